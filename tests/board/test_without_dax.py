# SPDX-License-Identifier: GPL-2.0-only
"""A data cache that aliases: DAX is refused by the file system's own message, and all the rest works without it."""

from __future__ import annotations

from typing import Any

import pytest
from boardtools import Region, Shell, Volumes, dax_refused, is_dax
from test_dax import DAX_OPTION, KINDS

pytestmark = pytest.mark.lg_feature("dcache-aliasing")


def test_the_queue_says_that_the_device_cannot_do_dax(sh: Shell, regions: list[Region]) -> None:
    assert [sh(f"cat /sys/block/{region.name}/queue/dax") for region in regions] == ["0" for _ in regions]


def test_the_device_has_no_dax_attributes(sh: Shell, regions: list[Region]) -> None:
    for region in regions:
        sh(f"test -d /sys/block/{region.name} && test ! -e /sys/block/{region.name}/dax/write_cache")


def test_every_attribute_can_be_read(sh: Shell, regions: list[Region]) -> None:
    """What looked into the dax device that is not there was an oops."""
    # Some say no (EIO, EINVAL); the kernel log tells whether that is all they do.
    count = sh(
        "n=0; for f in $(find /sys/devices -path '*ndbus*' -type f -perm -400); do cat $f >/dev/null 2>&1; n=$((n+1)); done; echo $n",
        timeout=120,
    )
    assert int(count) > 50 * len(regions)


@pytest.mark.parametrize("options", ["dax", "dax=always"])
def test_ext4_refuses_the_mount(scratch: Volumes, pmem: Region, options: str) -> None:
    scratch.make("ext4", pmem.device)
    status, said = scratch.try_mount("ext4", pmem.device, options)
    assert status
    assert dax_refused(said)


@pytest.mark.parametrize("kind", ["ext2", "xfs"])
def test_the_others_go_on_without_and_say_so(
    sh: Shell, scratch: Volumes, pmem: Region, kind: str, fs_dax: bool
) -> None:
    scratch.make(kind, pmem.device)
    status, said = scratch.try_mount(kind, pmem.device, DAX_OPTION[kind])
    assert dax_refused(said)
    if kind == "xfs" and not fs_dax:
        # It does not know the option.
        assert status
        return
    assert status == 0
    sh(f"echo hello >{scratch.point(pmem.device)}/file")
    assert not is_dax(sh, f"{scratch.point(pmem.device)}/file")


@pytest.mark.parametrize("kind", KINDS)
class TestWorks:
    @pytest.fixture
    def folder(self, volumes: Volumes, pmem: Region, kind: str) -> str:
        return volumes.get(kind, pmem.device)

    def test_stores_and_writes_are_there_after_a_remount(
        self, sh: Shell, folder: str, volumes: Volumes, pmem: Region, kind: str
    ) -> None:
        digest = sh(
            f"cd {folder} && dd if=/dev/urandom of=file bs=64k count=32 2>/dev/null; "
            "xfs_io -c 'mmap -rw 0 2m' -c 'mwrite -S 0x6b 4000 200000' -c 'msync -s 0 2m' file; sha256sum <file"
        )
        volumes.release(pmem.device)
        point = volumes.mount(kind, pmem.device)
        assert sh(f"sha256sum <{point}/t/file") == digest
        volumes.check(kind, pmem.device)

    def test_fio_verifies_mapped_random_writes(self, sh: Shell, folder: str) -> None:
        sh(
            f"cd /tmp && fio --name=v --directory={folder} --rw=randwrite --bs=4k --size=6m --ioengine=mmap --verify=crc32c "
            "--thread --fallocate=none --output-format=terse",
            timeout=120,
        )

    def test_a_program_runs_from_it(self, sh: Shell, folder: str) -> None:
        sh(f"cp $(readlink -f /bin/busybox) {folder}/busybox && sync && echo 3 >/proc/sys/vm/drop_caches")
        assert sh(f"{folder}/busybox echo hello") == "hello"


@pytest.mark.lg_feature("power-cut")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_synced_survives_a_power_cut(
    sh: Shell, scratch: Volumes, machine: Any, pmem: Region, kind: str
) -> None:
    scratch.make(kind, pmem.device)
    point = scratch.mount(kind, pmem.device)
    digest = sh(f"cd {point} && dd if=/dev/urandom of=f bs=64k count=16 conv=fsync 2>/dev/null; sha256sum <f")
    sh(f"xfs_io -r -c fsync {point}")
    machine.power_cut()
    assert sh("ls /mnt") == ""
    scratch.mount(kind, pmem.device)
    assert sh(f"sha256sum <{point}/f") == digest
    scratch.check(kind, pmem.device)
