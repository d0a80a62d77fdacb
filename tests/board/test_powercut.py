# SPDX-License-Identifier: GPL-2.0-only
"""Power cuts at random moments under random writers: nothing that was acknowledged is ever lost. `make powercut CYCLES=N`.

Each cycle is a test. Four writers (append, mapped store, overwrite, rename) acknowledge each record over the console once
its fsync or msync has returned; the power goes at a random moment; then e2fsprogs on the host, from the region's memory, and
the board itself, after its own journal replay, must see the same files, with everything in them that was acknowledged.

An emulator has no caches: what the kernel orders and promises is shown here, not what silicon keeps. A flush that is left out
cannot be seen for the same reason; a sync that is left out can, and the last test shows that this campaign finds it.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import powercut
import pytest
from boardlib import scaled
from boardtools import CommandFailed, MountRefused, Region, Shell, Volumes

pytestmark = pytest.mark.lg_feature(["power-cut", "host-memory", "dax"])
# The host copies it after each cut.
FS_MIB = 32
# Acknowledged records before the cut, of all writers together: few, so that many cuts hit the beginning of things, or many.
ACKS = (3, 600)
# The same after the last writer has begun, which syncs what the others did until then
UNSYNCED_ACKS = (200, 600)
ACK = r"(\w+) acked (\d+)\r?\n"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cycle" in metafunc.fixturenames:
        metafunc.parametrize("cycle", range(metafunc.config.getoption("cycles")))


def cut(
    sh: Shell, strategy: Any, volumes: Volumes, device: str, chance: random.Random, options: str = ""
) -> dict[str, int]:
    """Writers at work, and then no power; returns how many records of each were acknowledged. The board is up again."""
    point = volumes.point(device)
    sh(f"rm -rf {point}/c && mkdir {point}/c && xfs_io -r -c fsync {point}")
    writers = list(powercut.WRITERS.items())
    chance.shuffle(writers)
    # Quiet about the jobs themselves; the console is the writers' from here on.
    start = " ".join(f"daxprobe {options} {option} {point}/c/{name} 20000 &" for name, option in writers)
    console = strategy.shell.console
    console.sendline(f"( {start} wait )")
    sh.used += 1
    acked = dict.fromkeys(powercut.WRITERS, 0)
    synced = "--no-sync" not in options
    wanted = chance.randint(*(ACKS if synced else UNSYNCED_ACKS))
    while wanted:
        _, _, match, _ = console.expect(ACK, timeout=scaled(30))
        acked[match[1].decode()] = int(match[2])
        if synced or all(acked.values()):
            wanted -= 1
    time.sleep(chance.random() * 0.02)
    strategy.power_cut()
    return acked


@pytest.fixture
def region(sh: Shell, scratch: Volumes, pmem: Region) -> Region:
    """The persistent region with an ext4 on it: the one that the last cycle left, or a new one."""
    try:
        sh(f"[ $(blkid -s LABEL -o value {pmem.device}) = powercut ]")
        scratch.mount("ext4", pmem.device, "dax=always")
    except (CommandFailed, MountRefused):
        scratch.make("ext4", pmem.device, "-L powercut", f"{FS_MIB}M")
        scratch.mount("ext4", pmem.device, "dax=always")
    return pmem


def look(strategy: Any, region: Region, work: Path) -> dict[str, bytes]:
    """The writers' files as e2fsprogs on the host sees them in the region's memory."""
    return powercut.read_ext4(strategy.power.read_memory(region.address, FS_MIB << 20), "/c", work)


def test_nothing_that_was_acknowledged_is_lost(
    sh: Shell,
    strategy: Any,
    scratch: Volumes,
    region: Region,
    chance: random.Random,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    cycle: int,
) -> None:
    acked = cut(sh, strategy, scratch, region.device, chance)
    files = look(strategy, region, tmp_path / "host")
    more = {name: powercut.check(name, files.get(name, b""), count) for name, count in acked.items()}
    request.node.user_properties.append(("acknowledged", sum(acked.values())))
    request.node.user_properties.append(("beyond", sum(more.values())))
    # The board's own view, by the kernel's journal replay
    point = scratch.mount("ext4", region.device, "dax=always")
    lines = [line.split("  ") for line in sh(f"cd {point}/c && sha256sum *").splitlines()]
    seen = {name: digest for digest, name in lines}
    assert {name: seen.get(name) for name in powercut.digests(files)} == powercut.digests(files)
    scratch.check("ext4", region.device)


def test_a_writer_that_does_not_sync_is_found(
    sh: Shell, strategy: Any, scratch: Volumes, pmem: Region, chance: random.Random, tmp_path: Path
) -> None:
    """The campaign can fail: without fsync and msync the same check finds a loss."""
    scratch.make("ext4", pmem.device, "-L unsynced", f"{FS_MIB}M")
    # The journal would sync by itself every five seconds.
    scratch.mount("ext4", pmem.device, "dax=always,commit=300")
    acked = cut(sh, strategy, scratch, pmem.device, chance, "--no-sync")
    files = look(strategy, pmem, tmp_path / "host")
    lost = []
    for name, count in acked.items():
        try:
            powercut.check(name, files.get(name, b""), count)
        except powercut.Lost as exc:
            lost.append(str(exc))
    assert lost
