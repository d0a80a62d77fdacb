# SPDX-License-Identifier: GPL-2.0-only
"""The device mapper between the file system and pmem: DAX goes through, or is refused, never half."""

from __future__ import annotations

import pytest
from boardtools import Region, Shell, Volumes, dax_refused, dm_create, is_dax
from test_daxprobe import POINTS

DM = "/dev/mapper/t"
SECTORS = 32768  # 16 MiB


@pytest.fixture
def linear(sh: Shell, scratch: Volumes, pmem: Region) -> str:
    """A piece out of the middle of the region."""
    dm_create(sh, f"0 {SECTORS} linear {pmem.device} 8192")
    return DM


@pytest.fixture
def two_pieces(sh: Shell, scratch: Volumes, pmem: Region) -> str:
    """Two pieces of one region in the wrong order: an offset into dm is none into pmem."""
    dm_create(sh, f"0 {SECTORS} linear {pmem.device} 131072", f"{SECTORS} {SECTORS} linear {pmem.device} 8192")
    return DM


@pytest.fixture
def stripe(sh: Shell, scratch: Volumes, regions: list[Region]) -> str:
    """Stripes of 16 KiB over both regions."""
    each = min(region.size for region in regions) // 512
    devices = " ".join(f"{region.device} 0" for region in regions)
    dm_create(sh, f"0 {each * len(regions)} striped {len(regions)} 32 {devices}")
    return DM


@pytest.fixture
def over_both(sh: Shell, scratch: Volumes, regions: list[Region]) -> str:
    """One region after the other."""
    rows, start = [], 0
    for region in regions:
        rows.append(f"{start} 32768 linear {region.device} 0")
        start += 32768
    dm_create(sh, *rows)
    return DM


TARGETS = [
    "linear",
    "two_pieces",
    pytest.param("stripe", marks=pytest.mark.lg_feature("two-regions")),
    pytest.param("over_both", marks=pytest.mark.lg_feature("two-regions")),
]


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E6")
@pytest.mark.parametrize("target_kind", TARGETS)
class TestThrough:
    @pytest.fixture
    def point(self, scratch: Volumes, request: pytest.FixtureRequest, target_kind: str) -> str:
        device = request.getfixturevalue(target_kind)
        scratch.make("ext4", device)
        return scratch.mount("ext4", device, "dax=always")

    def test_the_queue_says_dax_and_files_are_dax(self, sh: Shell, point: str) -> None:
        sh(f"echo hello >{point}/file")
        assert sh("cat /sys/block/$(dmsetup info -c --noheadings -o blkdevname t)/queue/dax") == "1"
        assert is_dax(sh, f"{point}/file")

    def test_msync_and_fsync_of_mapped_stores_work(self, sh: Shell, point: str, scratch: Volumes) -> None:
        """The flush goes by physical address: an offset into dm would lead it elsewhere."""
        sh(
            f"xfs_io -f -c 'truncate 2m' -c 'mmap -rw 0 2m' -c 'mwrite -S 0x61 0 2m' -c 'msync -s 0 2m' -c 'mwrite -S 0x62 1m 100' "
            f"-c fsync {point}/file",
            timeout=60,
        )
        digest = sh(f"sha256sum <{point}/file")
        scratch.check("ext4", DM)
        scratch.mount("ext4", DM, "dax=always")
        assert sh(f"sha256sum <{point}/file") == digest

    def test_the_mapping_points_hold(self, sh: Shell, point: str) -> None:
        names = [one.name for one in POINTS if one.group in ("coherency", "ranges") and one.needs in ("DAX", "EXTENTS")]
        status, out = sh.run(f"mkdir {point}/p; daxprobe --dir {point}/p {' '.join(names[::3])}", timeout=120)
        assert status == 0, out


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E6")
def test_dax_goes_on_while_the_table_is_swapped_under_load(
    sh: Shell, linear: str, scratch: Volumes, pmem: Region
) -> None:
    scratch.make("ext4", linear)
    point = scratch.mount("ext4", linear, "dax=always")
    sh(
        f"cd /tmp && (fio --name=v --directory={point} --rw=randwrite --bs=4k --size=8m --ioengine=psync --verify=crc32c --thread "
        "--output-format=terse >/tmp/fio.out 2>&1; echo $? >/tmp/fio.status) & "
        f"for i in 1 2 3 4 5; do echo '0 {SECTORS} linear {pmem.device} 8192' | dmsetup load t; dmsetup suspend t; dmsetup resume t; "
        "done; wait; cat /tmp/fio.out; exit $(cat /tmp/fio.status)",
        timeout=90,
    )
    sh(f"echo hello >{point}/file")
    assert is_dax(sh, f"{point}/file")
    scratch.check("ext4", linear)


WITHOUT_DAX = {
    "crypt": "0 {sectors} crypt aes-xts-plain64 {key} 0 {device} 0",
    "snapshot": "0 {sectors} snapshot {device} /dev/ram1 N 8",
    "misaligned linear": "0 {sectors} linear {device} 1",
    "second target off a page": "0 32769 linear {device} 0\\n32769 32767 linear {device} 65536",
    "stripes of 2 KiB": "0 {sectors} striped 2 4 {device} 0 {device} 65536",
    "linear on a RAM disk": "0 {sectors} linear /dev/ram1 0",
}
# What has DAX, unless the data cache aliases
ALIASING = {
    "linear": "0 {sectors} linear {device} 8192",
    "stripes": "0 {sectors} striped 2 32 {device} 0 {device} 65536",
}


@pytest.mark.parametrize(
    "kind", [*WITHOUT_DAX, *(pytest.param(kind, marks=pytest.mark.lg_feature("dcache-aliasing")) for kind in ALIASING)]
)
class TestWithout:
    @pytest.fixture
    def device(self, sh: Shell, scratch: Volumes, pmem: Region, kind: str) -> str:
        sh("dd if=/dev/zero of=/dev/ram1 bs=4k count=16 2>/dev/null")
        dm_create(sh, (WITHOUT_DAX | ALIASING)[kind].format(sectors=SECTORS, device=pmem.device, key="00" * 64))
        scratch.make("ext4", DM)
        return DM

    @pytest.mark.parametrize("option", ["dax", "dax=always"])
    def test_dax_is_refused(self, scratch: Volumes, device: str, option: str) -> None:
        status, why = scratch.try_mount("ext4", device, option)
        assert status
        assert dax_refused(why)

    def test_it_works_without(self, sh: Shell, scratch: Volumes, device: str) -> None:
        point = scratch.mount("ext4", device)
        digest = sh(
            f"dd if=/dev/urandom of={point}/file bs=64k count=16 conv=fsync 2>/dev/null; sha256sum <{point}/file"
        )
        scratch.check("ext4", device)
        scratch.mount("ext4", device)
        assert sh(f"sha256sum <{point}/file") == digest
