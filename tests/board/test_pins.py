# SPDX-License-Identifier: GPL-2.0-only
"""Pages in use by somebody else, against everything that wants to take them away: nothing is lost, and nothing waits for ever."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from boardtools import (
    DRIVER,
    HOTPLUG,
    HUGE_EXTENTS,
    MKFS_REFLINK,
    Region,
    Shell,
    Volumes,
    device_zone,
    dm_create,
    is_dax,
    namespace_of,
)

pytestmark = pytest.mark.lg_feature(["dax", "struct-pages"])
SOAK_S = 10
# What a soak takes besides: programs start and end, fsck
BESIDES_S = 120
# How long pages are held; and how long, at the most, whoever waits for them needs afterwards
HELD_S, AFTER_S = 3, 15


def pins(sh: Shell) -> dict[str, int]:
    """How many pages were pinned, and how many set free, since the start; each processor counts for itself at first."""
    found = re.findall(
        r"nr_foll_pin_(\w+) (\d+)", sh("echo 1 >/proc/sys/vm/stat_refresh; grep nr_foll_pin /proc/vmstat")
    )
    return {name: int(value) for name, value in found}


def check_idle(sh: Shell, scratch: Volumes, kind: str, region: Region, zone_before: str) -> None:
    """No page is in use any more: the counts agree, the driver gives the region back, and takes it again."""
    count = pins(sh)
    assert count["acquired"] == count["released"]
    scratch.check(kind, region.device)
    namespace = namespace_of(sh, region)
    # It waits until the last reference to a page is gone.
    sh(f"echo {namespace} >{DRIVER}/unbind", timeout=AFTER_S)
    sh(f"echo {namespace} >{DRIVER}/bind; test -e {region.device}", timeout=AFTER_S)
    assert device_zone(sh) == zone_before
    point = scratch.mount(kind, region.device, "dax=always")
    assert is_dax(sh, f"{point}/t/pinned")
    scratch.check(kind, region.device)


def mounted(sh: Shell, scratch: Volumes, kind: str, region: Region, mkfs: str = "") -> str:
    scratch.make(kind, region.device, mkfs)
    point = scratch.mount(kind, region.device, "dax=always")
    sh(f"mkdir {point}/t; dd if=/dev/urandom of={point}/t/pinned bs=64k count=4 2>/dev/null")
    assert is_dax(sh, f"{point}/t/pinned")
    return f"{point}/t"


@pytest.fixture
def processors_come_and_go(sh: Shell, env: Any) -> Iterator[None]:
    """Where the board can do that"""
    if "cpu-hotplug" not in env.get_target_features():
        yield
        return
    sh.script("/tmp/hotplug", HOTPLUG)
    sh(": >/tmp/soaking; (sh /tmp/hotplug >/tmp/hotplug.out 2>&1 </dev/null; echo $? >/tmp/hotplug.status) & true")
    yield
    sh("rm -f /tmp/soaking; for i in $(seq 30); do [ -e /tmp/hotplug.status ] && break; sleep 1; done")
    assert sh("cat /tmp/hotplug.status; cat /tmp/hotplug.out; rm /tmp/hotplug.status").split()[:1] == ["0"]


@pytest.mark.timeout(240 + BESIDES_S)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_random_use_of_pages(
    sh: Shell,
    scratch: Volumes,
    pmem: Region,
    disk: str,
    kind: str,
    chance: random.Random,
    processors_come_and_go: None,
) -> None:
    before = device_zone(sh)
    pinned = pins(sh)["acquired"]
    folder = mounted(sh, scratch, kind, pmem, HUGE_EXTENTS if kind == "ext4" else "")
    print(
        sh(
            f"daxprobe --no-dax-dir {disk} --soak-pins {folder} {SOAK_S} {chance.randint(1, 1 << 30)}",
            timeout=SOAK_S + BESIDES_S,
        )
    )
    assert pins(sh)["acquired"] > pinned
    check_idle(sh, scratch, kind, pmem, before)


# Pages held by a pipe -------------------------------------------------------------------------------------------


def start(sh: Shell, command: str, first_word: str) -> None:
    """A program of its own, until it has said its first word; what it says is in /tmp/holder."""
    sh(
        f"cd /tmp; rm -f holder.status; ({command} >holder 2>&1 </dev/null; echo $? >holder.status) & "
        f"for i in $(seq 100); do grep -q {first_word} /tmp/holder 2>/dev/null && exit 0; sleep 0.1; done; "
        "cat /tmp/holder; exit 1"
    )


def ended(sh: Shell, limit_s: int) -> str:
    """What the program had said when it ended well."""
    sh(f"for i in $(seq {limit_s * 10}); do [ -e /tmp/holder.status ] && break; sleep 0.1; done")
    out = sh("cat /tmp/holder; cat /tmp/holder.status")
    assert out.splitlines()[-1:] == ["0"], out
    return out


def hold(sh: Shell, folder: str) -> None:
    start(sh, f"daxprobe --hold-pages {folder}/pinned {HELD_S}", "held")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("truncate", "truncate -s 0 {folder}/pinned"),
        ("punch", "xfs_io -c 'fpunch 0 16k' {folder}/pinned"),
        ("remove", "rm {folder}/pinned"),
        ("umount", "umount {point}"),
    ],
    ids=["truncate", "punch", "remove", "umount"],
)
def test_it_waits_for_pages_that_a_pipe_has(
    sh: Shell, scratch: Volumes, pmem: Region, kind: str, what: str, command: str
) -> None:
    folder = mounted(sh, scratch, kind, pmem)
    hold(sh, folder)
    said = sh(
        f"cd /; {command.format(folder=folder, point=scratch.point(pmem.device))} && cat /tmp/holder",
        timeout=HELD_S + AFTER_S,
    )
    assert "released" in said, f"{what} did not wait: {said}"
    ended(sh, AFTER_S)
    scratch.check(kind, pmem.device)


def test_a_reflink_over_pages_in_use_waits(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    """On xfs: the target's blocks are replaced by shared ones, while a pipe has its pages."""
    sh(f"{MKFS_REFLINK} {pmem.device}", timeout=60)
    point = scratch.mount("xfs", pmem.device, "dax=always")
    sh(
        f"cd {point} && dd if=/dev/urandom of=pinned bs=64k count=4 2>/dev/null; dd if=/dev/urandom of=other bs=64k count=4"
    )
    assert is_dax(sh, f"{point}/pinned")
    digest = sh(f"sha256sum <{point}/other")
    hold(sh, point)
    said = sh(f"xfs_io -c 'reflink {point}/other 0 0 256k' {point}/pinned && cat /tmp/holder", timeout=HELD_S + AFTER_S)
    assert "released" in said, said
    ended(sh, AFTER_S)
    assert sh(f"sha256sum <{point}/pinned") == digest
    scratch.check("xfs", pmem.device)


def test_shared_blocks_take_what_direct_io_reads(sh: Shell, scratch: Volumes, pmem: Region, disk: str) -> None:
    """On xfs: O_DIRECT reads into a mapping of shared blocks, which must become the file's own first."""
    sh(f"{MKFS_REFLINK} {pmem.device}", timeout=60)
    point = scratch.mount("xfs", pmem.device, "dax=always")
    sh(
        f"cd {point} && dd if=/dev/urandom of=a bs=64k count=4 2>/dev/null; cp --reflink=always a b 2>/dev/null || xfs_io -f -c 'reflink a' b"
    )
    assert is_dax(sh, f"{point}/b")
    digest = sh(f"sha256sum <{point}/a")
    sh(f"dd if=/dev/urandom of={disk}/disk bs=64k count=4 conv=fsync 2>/dev/null")
    sh(f"daxprobe --aio-into {point}/b {disk}/disk")
    assert sh(f"sha256sum <{point}/a") == digest
    sh(f"cmp -n 16384 {point}/b {disk}/disk")
    scratch.check("xfs", pmem.device)


# Requests under way ---------------------------------------------------------------------------------------------


@pytest.fixture
def slow_disk(sh: Shell, scratch: Volumes) -> str:
    """A disk that takes requests, and answers when it is resumed."""
    size = int(sh("blockdev --getsz /dev/ram1"))
    sh("dd if=/dev/urandom of=/dev/ram1 bs=64k count=1 conv=fsync 2>/dev/null")
    dm_create(sh, f"0 {size} linear /dev/ram1 0")
    sh("dmsetup suspend --noflush --nolockfs t")
    return "/dev/mapper/t"


@pytest.fixture
def resumed(sh: Shell, slow_disk: str) -> Iterator[None]:
    yield
    if not sh.reboot_wanted:
        sh("dmsetup resume t")


@pytest.mark.usefixtures("resumed")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
class TestUnderWay:
    def test_truncate_waits_for_a_request(
        self, sh: Shell, scratch: Volumes, pmem: Region, slow_disk: str, kind: str
    ) -> None:
        before = device_zone(sh)
        folder = mounted(sh, scratch, kind, pmem)
        start(sh, f"daxprobe --aio-into {folder}/pinned {slow_disk}", "submitted")
        sh(
            f"(truncate -s 0 {folder}/pinned; echo $? >/tmp/truncated) >/dev/null 2>&1 & sleep 1; test ! -e /tmp/truncated"
        )
        sh("dmsetup resume t; for i in $(seq 150); do [ -e /tmp/truncated ] && break; sleep 0.1; done")
        assert sh("cat /tmp/truncated; rm /tmp/truncated") == "0"
        ended(sh, AFTER_S)
        # Whoever has the blocks now has them alone.
        digest = sh(f"dd if=/dev/urandom of={folder}/new bs=64k count=8 2>/dev/null; sha256sum <{folder}/new")
        assert sh(f"sha256sum <{folder}/new") == digest
        sh(f"dd if=/dev/zero of={folder}/pinned bs=64k count=4 2>/dev/null")
        check_idle(sh, scratch, kind, pmem, before)

    def test_a_process_ends_with_a_request_under_way(
        self, sh: Shell, scratch: Volumes, pmem: Region, slow_disk: str, kind: str
    ) -> None:
        before = device_zone(sh)
        folder = mounted(sh, scratch, kind, pmem)
        start(sh, f"daxprobe --aio-and-exit {folder}/pinned {slow_disk}", "submitted")
        sh("sleep 1; test ! -e /tmp/holder.status")
        sh("dmsetup resume t")
        ended(sh, AFTER_S)
        # The request has reached the page all the same: nobody else had it meanwhile.
        sh(f"cmp -n 16384 {folder}/pinned {slow_disk}")
        check_idle(sh, scratch, kind, pmem, before)

    def test_a_killed_process_lets_umount_go_on(
        self, sh: Shell, scratch: Volumes, pmem: Region, slow_disk: str, kind: str
    ) -> None:
        before = device_zone(sh)
        folder = mounted(sh, scratch, kind, pmem)
        start(sh, f"exec daxprobe --aio-into {folder}/pinned {slow_disk}", "submitted")
        sh("kill -KILL $(pidof daxprobe)")
        sh.fails(f"umount {scratch.point(pmem.device)}", "busy")
        sh("dmsetup resume t")
        sh(f"for i in $(seq {AFTER_S * 10}); do pidof daxprobe >/dev/null || break; sleep 0.1; done; ! pidof daxprobe")
        check_idle(sh, scratch, kind, pmem, before)
