# SPDX-License-Identifier: GPL-2.0-only
"""Everything at once, for long: `make soak MINUTES=N`. Without it, one short round.

A round is a test. On an ext4 with DAX and on an ext2 (xfs, where that has none) with DAX over the device mapper, at the same time: random operations on
files, which must hold what was put there, random operations on a tree of names, and fio with checksums; and meanwhile
memory runs short again and again, and processors are taken away and given back. Then each load must have ended well, what
they wrote must be there after a new mount, and fsck must find nothing to mend.

There is no xfs in it where ext2 will do: on Linux 6.1 it shut down in half of the rounds ("ctx ticket reservation ran out"). That looks like what
upstream's ecd49f7a36fb mends, where a processor goes while xfs collects a commit; nobody has tried.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from boardtools import HOTPLUG, Region, Shell, Volumes, dm_create, is_dax

pytestmark = pytest.mark.lg_feature("dax")
SHORT_ROUND, ROUND = 10, 60
# What a round takes besides: programs start and end, digests, new mounts, fsck
BESIDES = 180

# Takes most of what is free, in files, as far as a kernel gets that must also write; then gives it back.
PRESSURE = """
cd /tmp && mkdir -p fill && mount -t tmpfs -o size=100% fill fill || exit 1
while [ -e soaking ]; do
    free=$(awk '$1 == "MemAvailable:" {print int($2 / 1024)}' /proc/meminfo)
    dd if=/dev/zero of=fill/file bs=1M count=$((free * 8 / 10)) 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    rm -f fill/file
    turns=$((turns + 1))
done
umount fill
echo "memory ran short $turns times"
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seconds" in metafunc.fixturenames:
        minutes = metafunc.config.getoption("minutes")
        rounds = [ROUND] * minutes or [SHORT_ROUND]
        marks = pytest.mark.timeout(ROUND + BESIDES)
        metafunc.parametrize("seconds", [pytest.param(one, marks=marks, id=f"{n}") for n, one in enumerate(rounds)])


@pytest.fixture
def points(
    sh: Shell, scratch: Volumes, regions: list[Region], pmem: Region, ext2_has_dax: bool
) -> Iterator[dict[str, str]]:
    """Device by kind of file system, both mounted with DAX; where there is one region, each has a half of it."""
    second = "ext2" if ext2_has_dax else "xfs"
    others = [region for region in regions if region != pmem]
    half = pmem.size // 1024
    if others:
        each = others[0].size // 1024
        dm_create(sh, f"0 {each} linear {others[0].device} {each}", f"{each} {each} linear {others[0].device} 0")
        devices = {"ext4": pmem.device, second: "/dev/mapper/t"}
    else:
        dm_create(sh, f"0 {half} linear {pmem.device} 0", name="u")
        dm_create(sh, f"0 {half} linear {pmem.device} {half}")
        devices = {"ext4": "/dev/mapper/u", second: "/dev/mapper/t"}
    for kind, device in devices.items():
        scratch.make(kind, device)
        scratch.mount(kind, device, "dax")
    yield devices
    sh("rm -f /tmp/soaking; wait; cat /sys/devices/system/cpu/online")


def test_everything_at_once(
    sh: Shell, scratch: Volumes, points: dict[str, str], seconds: int, chance: random.Random, env: Any
) -> None:
    sh.script("/tmp/pressure", PRESSURE)
    sh.script("/tmp/hotplug", HOTPLUG)
    loads = []
    for device in points.values():
        point = scratch.point(device)
        sh(f"mkdir {point}/tree {point}/fio")
        for name in ("a", "b"):
            loads.append(f"daxprobe --soak-file {point}/{name} {seconds} {chance.randint(1, 1 << 30)}")
        loads.append(f"daxprobe --soak-tree {point}/tree {seconds} {chance.randint(1, 1 << 30)}")
        loads.append(
            f"fio --directory={point}/fio --size=2m --bs=4k --thread --time_based --runtime={seconds} --verify=crc32c "
            "--verify_fatal=1 --output-format=terse --terse-version=3 --name=m --rw=randwrite --ioengine=mmap "
            "--name=p --rw=randwrite --ioengine=psync"
        )
    commands = [*loads, "sh /tmp/pressure"]
    if "cpu-hotplug" in env.get_target_features():
        commands.append("sh /tmp/hotplug")
    sh(": >/tmp/soaking; mkdir -p /tmp/soak && rm -f /tmp/soak/*")
    for number, command in enumerate(commands):
        sh(f"(cd /tmp; {command} >/tmp/soak/{number}.out 2>&1 </dev/null; echo $? >/tmp/soak/{number}.status) &")
    last = len(commands)
    ended = " ".join(f"soak/{number}.status" for number in range(len(loads)))
    sh(
        f"cd /tmp; for i in $(seq {seconds + 120}); do ls {ended} >/dev/null 2>&1 && break; sleep 1; done; rm soaking; "
        f"for i in $(seq 60); do [ $(ls soak/*.status | wc -l) = {last} ] && break; sleep 1; done; ls soak/*.status",
        timeout=seconds + 200,
    )
    out = {number: sh(f"cat /tmp/soak/{number}.status; tail -c 600 /tmp/soak/{number}.out") for number in range(last)}
    wrong = {commands[number]: text for number, text in out.items() if text.split(maxsplit=1)[0] != "0"}
    assert not wrong, "\n".join(f"{command}: {text}" for command, text in wrong.items())
    print("\n".join(text.partition("\n")[2].strip().splitlines()[-1][:200] for text in out.values()))
    for kind, device in points.items():
        point = scratch.point(device)
        assert is_dax(sh, f"{point}/a")
        digest = sh(f"cat {point}/a {point}/b {point}/fio/* | sha256sum", timeout=60)
        scratch.check(kind, device)
        scratch.mount(kind, device, "dax")
        assert sh(f"cat {point}/a {point}/b {point}/fio/* | sha256sum", timeout=60) == digest
