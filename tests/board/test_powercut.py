# SPDX-License-Identifier: GPL-2.0-only
"""Power cuts at random moments under random writers: nothing that was acknowledged is ever lost. `make powercut CYCLES=N`.

Each cycle is a test. Four writers (append, mapped store, overwrite, rename) acknowledge each record over the console once
its fsync or msync has returned; the power goes at a random moment; then everything that was acknowledged must be there, as
e2fsprogs on the host replays the journal in the region's memory, and as the board itself does.

An emulator has no caches: what the kernel orders and promises is shown here, not what silicon keeps. A flush that is left out
cannot be seen for the same reason; a sync that is left out can, and the last test shows that this campaign finds it.
"""

from __future__ import annotations

import random
import re
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


def memory(strategy: Any, region: Region) -> bytes:
    return bytes(strategy.power.read_memory(region.address, FS_MIB << 20))


def look(strategy: Any, region: Region, work: Path) -> dict[str, bytes]:
    """The writers' files as e2fsprogs on the host sees them in the region's memory."""
    return powercut.read_ext4(memory(strategy, region), "/c", work)


def mounted(sh: Shell, scratch: Volumes, device: str) -> tuple[str, bool]:
    """Where it is mounted, and whether that took what boards do before they mount: `e2fsck -p`.

    Without a BTT pmem does not write sectors as a whole, and the kernel refuses a journal when a cut fell into the
    head of its last commit block. Only that may be mended here.
    """
    try:
        return scratch.mount("ext4", device, "dax=always"), False
    except MountRefused as exc:
        if not re.search(r"JBD2: journal transaction \d+ on \S+ is corrupt", str(exc)):
            raise
    sh(f"e2fsck -p {device}; [ $? -le 1 ]", timeout=60)
    return scratch.mount("ext4", device, "dax=always"), True


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
    request.node.user_properties.append(("cycle", cycle))
    acked = cut(sh, strategy, scratch, region.device, chance)
    image = memory(strategy, region)
    with powercut.kept(image, tmp_path / "cut"):
        more = powercut.check_all(powercut.read_ext4(image, "/c", tmp_path / "host"), acked)
        request.node.user_properties.append(("acknowledged", sum(acked.values())))
        request.node.user_properties.append(("beyond", more))
        # The board's own view, by the kernel's journal replay
        point, mended = mounted(sh, scratch, region.device)
        request.node.user_properties.append(("mended", int(mended)))
        if mended:
            (Path(request.config.getoption("board_logs")) / f"refused-{cycle}.ext4").write_bytes(image)
        lines = [line.split("  ") for line in sh(f"cd {point}/c && sha256sum *").splitlines()]
        seen = {name: digest for digest, name in lines}
        scratch.check("ext4", region.device)
        # Not the same as before: a commit block that is torn behind its head is taken by the kernel, and not by e2fsck.
        replayed = look(strategy, region, tmp_path / "replayed")
        powercut.check_all(replayed, acked)
        assert {name: seen.get(name) for name in powercut.digests(replayed)} == powercut.digests(replayed)


def test_a_commit_block_with_half_a_head_is_mended_before_the_mount(
    sh: Shell, strategy: Any, scratch: Volumes, region: Region, tmp_path: Path
) -> None:
    point = scratch.point(region.device)
    sh(f"rm -rf {point}/c && mkdir {point}/c && echo before >{point}/c/a && xfs_io -r -c fsync {point}/c/a")
    # The commit of this one is torn as if nobody had waited for it.
    sh(f"mkdir {point}/c/b && xfs_io -r -c fsync {point}/c/b")
    strategy.power_cut()
    powercut.tear(strategy.power, region.address, FS_MIB << 20, powercut.JBD2_COMMIT_HEAD // 2, tmp_path)
    point, mended = mounted(sh, scratch, region.device)
    assert mended
    assert sh(f"cat {point}/c/a") == "before"
    scratch.check("ext4", region.device)


def test_a_commit_block_that_is_half_written_is_taken(
    sh: Shell, strategy: Any, scratch: Volumes, region: Region, chance: random.Random, tmp_path: Path
) -> None:
    """The power may go within a block: pmem promises no more than a word."""
    acked = cut(sh, strategy, scratch, region.device, chance)
    powercut.tear(strategy.power, region.address, FS_MIB << 20, powercut.JBD2_COMMIT_HEAD, tmp_path)
    # The kernel first: e2fsck would leave out that transaction, and what it acknowledged.
    scratch.mount("ext4", region.device, "dax=always")
    # Ours on 6.1, mainline's on 6.12
    assert re.search("half written|incomplete commit block", sh("dmesg | grep JBD2"))
    scratch.check("ext4", region.device)
    powercut.check_all(look(strategy, region, tmp_path / "host"), acked)


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
