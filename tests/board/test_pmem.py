# SPDX-License-Identifier: GPL-2.0-only
"""The pmem devices are what the device tree says, and behave like block devices."""

from __future__ import annotations

import json

import pytest
from boardtools import Region, Shell, Volumes, dax_refused, is_dax


def test_each_region_has_a_device_of_its_size(sh: Shell, regions: list[Region]) -> None:
    sizes = {region.name: int(sh(f"blockdev --getsize64 {region.device}")) for region in regions}
    assert sizes == {region.name: region.size for region in regions}


def test_there_is_no_device_without_a_region(sh: Shell, regions: list[Region]) -> None:
    assert sh("ls /sys/block | grep pmem").split() == sorted(region.name for region in regions)


def test_the_regions_are_not_system_ram(sh: Shell, regions: list[Region]) -> None:
    ranges = [line.split() for line in sh("grep 'System RAM' /proc/iomem").splitlines()]
    for first, last in ((int(part, 16) for part in entry[0].split("-")) for entry in ranges):
        for region in regions:
            assert region.address > last or region.address + region.size <= first


@pytest.mark.lg_feature("two-regions")
def test_one_region_is_volatile_and_one_is_not(regions: list[Region]) -> None:
    assert {region.volatile for region in regions} == {True, False}


def test_ndctl_lists_each_region(sh: Shell, regions: list[Region]) -> None:
    listed = json.loads(sh("ndctl list -RN", timeout=60))
    found = listed["regions"] if isinstance(listed, dict) else listed
    assert sorted(one["size"] for one in found) == sorted(region.size for region in regions)
    assert {one["namespaces"][0]["blockdev"] for one in found} == {region.name for region in regions}


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E3")
def test_the_queue_says_that_the_device_can_do_dax(sh: Shell, regions: list[Region]) -> None:
    assert [sh(f"cat /sys/block/{region.name}/queue/dax") for region in regions] == ["1" for _ in regions]


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E7")
def test_a_persistent_region_has_a_write_cache(sh: Shell, pmem: Region) -> None:
    assert sh(f"cat /sys/block/{pmem.name}/dax/write_cache") == "1"


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E7")
@pytest.mark.lg_feature("two-regions")
def test_a_volatile_region_has_no_write_cache(sh: Shell, volatile_pmem: Region) -> None:
    assert sh(f"cat /sys/block/{volatile_pmem.name}/dax/write_cache") == "0"


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E7")
def test_the_write_cache_can_be_switched(sh: Shell, pmem: Region) -> None:
    attribute = f"/sys/block/{pmem.name}/dax/write_cache"
    try:
        assert sh(f"echo 0 >{attribute}; cat {attribute}") == "0"
    finally:
        assert sh(f"echo 1 >{attribute}; cat {attribute}") == "1"


def test_what_is_written_to_the_device_is_read_back(sh: Shell, scratch: Volumes, regions: list[Region]) -> None:
    sh("dd if=/dev/urandom of=/tmp/data bs=1M count=2 2>/dev/null")
    for region in regions:
        sh(f"dd if=/tmp/data of={region.device} bs=4k seek=16 conv=fsync && echo 3 >/proc/sys/vm/drop_caches")
        sh(f"dd if={region.device} bs=4k skip=16 count=512 2>/dev/null | cmp - /tmp/data")
    sh("rm /tmp/data")


def test_direct_io_and_the_page_cache_of_the_device_agree(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    sh(f"xfs_io -d -c 'pwrite -S 0x5a 1m 64k' {pmem.device}")
    assert "5a 5a" in sh(f"dd if={pmem.device} bs=64k skip=16 count=1 2>/dev/null | od -An -tx1 | sort -u")
    sh(f"xfs_io -c 'pwrite -S 0xa5 1m 64k' -c fsync {pmem.device}")
    assert "a5:" not in sh(f"xfs_io -d -r -c 'pread -v 1m 4k' {pmem.device} | grep -v 'a5 a5' | grep : || true")


def test_the_last_block_of_the_device_can_be_written(sh: Shell, scratch: Volumes, regions: list[Region]) -> None:
    for region in regions:
        last = region.size - 4096
        sh(f"xfs_io -d -c 'pwrite -S 0x77 {last} 4k' -c 'pread -v {last} 4k' {region.device} | grep -q '77 77 77'")


def test_nothing_can_be_written_behind_the_end(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    sh.fails(f"dd if=/dev/zero of={pmem.device} bs=4k seek={pmem.size // 4096} count=1", "No space left")


def test_fio_verifies_random_writes_on_the_device(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    sh(
        f"cd /tmp && fio --name=v --filename={pmem.device} --rw=randwrite --bs=4k --size=8m --direct=1 --verify=crc32c "
        "--ioengine=psync --thread --output-format=terse",
        timeout=60,
    )


def partition(sh: Shell, device: str, *lines: str) -> None:
    text = "\\n".join(["label: gpt", *lines])
    sh(f"printf '{text}\\n' | sfdisk -q {device} && partx -u {device}; test -e {device}p1")


@pytest.fixture
def no_partitions(sh: Shell, scratch: Volumes, pmem: Region):  # type: ignore[no-untyped-def]
    yield
    scratch.clean_up()
    sh(f"wipefs -q -a {pmem.device}; partx -d {pmem.device}; ! test -e {pmem.device}p1")


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E3")
@pytest.mark.usefixtures("no_partitions")
def test_dax_works_on_an_aligned_partition(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    partition(sh, pmem.device, "start=2048, size=65536", "size=65536")
    scratch.make("ext4", f"{pmem.device}p2")
    point = scratch.mount("ext4", f"{pmem.device}p2", "dax=always")
    sh(f"echo hello >{point}/file")
    assert is_dax(sh, f"{point}/file")


@pytest.mark.usefixtures("no_partitions")
def test_dax_is_refused_on_a_misaligned_partition(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    partition(sh, pmem.device, "start=2049, size=65536")
    scratch.make("ext4", f"{pmem.device}p1")
    status, why = scratch.try_mount("ext4", f"{pmem.device}p1", "dax=always")
    assert status
    assert dax_refused(why)


@pytest.mark.usefixtures("no_partitions")
def test_a_misaligned_partition_works_without_dax(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    partition(sh, pmem.device, "start=2049, size=65536")
    scratch.make("ext4", f"{pmem.device}p1")
    point = scratch.mount("ext4", f"{pmem.device}p1")
    sh(f"echo hello >{point}/file; sync")
    scratch.check("ext4", f"{pmem.device}p1")
