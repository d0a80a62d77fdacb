# SPDX-License-Identifier: GPL-2.0-only
"""What was synced is there after the power went, after a reset and after a reboot.

An emulator has no caches which could lose a line: this shows what the file systems promise, not what silicon does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from boardtools import MountRefused, Region, Shell, Volumes, is_dax

SIZE = 300_000
# Each writes its file in its own way, and syncs it; the mountpoint is the current folder.
WAYS = {
    "write_fsync": "xfs_io -f -c 'pwrite -S 0x41 0 {size}' -c fsync {name}",
    "write_fdatasync": "xfs_io -f -c 'pwrite -S 0x42 0 {size}' -c fdatasync {name}",
    "write_osync": "xfs_io -f -s -c 'pwrite -S 0x43 0 {size}' {name}",
    "mmap_msync": "xfs_io -f -c 'truncate {size}' -c 'mmap -rw 0 {size}' -c 'mwrite -S 0x44 0 {size}' -c 'msync -s 0 {size}' {name}",
    "mmap_fsync": "xfs_io -f -c 'truncate {size}' -c 'mmap -rw 0 {size}' -c 'mwrite -S 0x45 0 {size}' -c fsync {name}",
    "overwrite_msync": "xfs_io -f -c 'pwrite -S 0x00 0 {size}' -c fsync -c 'mmap -rw 0 {size}' -c 'mwrite -S 0x46 0 {size}' "
    "-c 'msync -s 0 {size}' {name}",
    "rename": "xfs_io -f -c 'pwrite -S 0x47 0 {size}' -c fsync new && mv new {name} && xfs_io -r -c fsync .",
}
CONTENT = {name: 0x41 + number for number, name in enumerate(WAYS)}


class Went(NamedTuple):
    """What a restart left."""

    event: str
    kind: str
    folder: str
    # What the kernel said of the first mount afterwards
    mount: str


EVENTS = [
    pytest.param(("power_cut", "ext4"), id="power_cut-ext4", marks=pytest.mark.lg_feature("power-cut")),
    pytest.param(("power_cut", "xfs"), id="power_cut-xfs", marks=pytest.mark.lg_feature("power-cut")),
    pytest.param(("reset", "ext4"), id="reset-ext4", marks=pytest.mark.lg_feature("warm-reset")),
    pytest.param(("reboot", "ext4"), id="reboot-ext4", marks=pytest.mark.lg_feature(["warm-reset", "reboot"])),
]


@pytest.fixture(scope="module", params=EVENTS)
def went(
    _shell: Shell, _volumes: Volumes, machine: Any, pmem: Region, request: pytest.FixtureRequest
) -> Iterator[Went]:
    """Files written and synced in all the ways, one which was not, and then the event; one start for all tests of it."""
    event, kind = request.param
    sh = _shell
    sh.ready()
    _volumes.release(pmem.device)
    _volumes.make(kind, pmem.device)
    point = _volumes.mount(kind, pmem.device, "dax=always")
    for name, way in WAYS.items():
        sh(f"cd {point} && {way.format(size=SIZE, name=name)}")
    sh(f"cd {point} && mkdir many && for i in $(seq 100); do echo $i >many/$i; done; xfs_io -r -c fsync many")
    # Not synced: it may be lost, but nothing else may suffer.
    sh(
        f"cd {point} && echo unsynced >unsynced; xfs_io -f -c 'truncate 1m' -c 'mmap -rw 0 1m' -c 'mwrite 0 1m' unsynced2"
    )
    getattr(machine, event)()
    status, said = _volumes.try_mount(kind, pmem.device, "dax=always")
    if status:
        raise MountRefused(f"after the {event} the mount was refused: {said}")
    yield Went(event, kind, point, said)
    if not sh.reboot_wanted:
        _volumes.release(pmem.device)


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E7")
class TestAfter:
    @pytest.mark.parametrize("name", WAYS)
    def test_what_was_synced_is_there(self, sh: Shell, went: Went, name: str) -> None:
        octal = f"{CONTENT[name]:o}"
        counts = sh(f"cd {went.folder} && wc -c <{name}; tr -d '\\{octal}' <{name} | wc -c").split()
        assert counts == [str(SIZE), "0"]

    def test_the_files_of_a_synced_folder_are_there(self, sh: Shell, went: Went) -> None:
        assert sh(f"ls {went.folder}/many | wc -l") == "100"

    def test_the_journal_was_replayed(self, went: Went) -> None:
        assert re.search(r"recovery complete|Ending recovery|Starting recovery", went.mount)

    def test_files_are_dax_again(self, sh: Shell, went: Went) -> None:
        assert is_dax(sh, f"{went.folder}/mmap_msync")

    def test_fsck_finds_nothing_to_mend(self, sh: Shell, volumes: Volumes, pmem: Region, went: Went) -> None:
        volumes.check(went.kind, pmem.device)


@pytest.mark.lg_feature(["power-cut", "two-regions"])
def test_a_power_cut_takes_the_volatile_region(
    sh: Shell, scratch: Volumes, machine: Any, regions: list[Region]
) -> None:
    for region in regions:
        sh(f"xfs_io -d -c 'pwrite -S 0x99 1m 4k' {region.device}")
    machine.power_cut()
    for region in regions:
        left = sh(f"dd if={region.device} bs=4k skip=256 count=1 2>/dev/null | tr -d '\\231' | wc -c")
        assert left == ("4096" if region.volatile else "0")


@pytest.mark.lg_feature("warm-reset")
def test_a_reset_keeps_the_regions(sh: Shell, scratch: Volumes, machine: Any, regions: list[Region]) -> None:
    for region in regions:
        sh(f"xfs_io -d -c 'pwrite -S 0x99 1m 4k' {region.device}")
    machine.reset()
    for region in regions:
        assert sh(f"dd if={region.device} bs=4k skip=256 count=1 2>/dev/null | tr -d '\\231' | wc -c") == "0"


@pytest.mark.lg_feature("dax")
@pytest.mark.lg_feature("host-memory")
@pytest.mark.series("E7")
class TestFromOutside:
    """The host reads the region's memory at its physical address: where a flush must have brought the bytes."""

    @staticmethod
    def physical(sh: Shell, path: str, region: Region) -> int:
        """The physical address of a file's first block."""
        extent = re.search(r"^\s*0:\s+\d+\.\.\s*\d+:\s+(\d+)\.\.", sh(f"filefrag -v {path}"), re.MULTILINE)
        assert extent
        return region.address + int(extent[1]) * 4096

    @pytest.mark.parametrize("sync", ["msync -s 0 8k", "fsync"])
    def test_synced_stores_are_at_the_address_of_the_block(
        self, sh: Shell, ext4_dax: str, machine: Any, pmem: Region, sync: str
    ) -> None:
        path = f"{ext4_dax}/file"
        sh(
            f"xfs_io -f -c 'pwrite -S 0 0 8k' -c fsync -c 'mmap -rw 0 8k' -c 'mwrite -S 0x3c 100 5000' -c '{sync}' {path}"
        )
        data = machine.read_memory(self.physical(sh, path, pmem), 8192)
        assert data == bytes(100) + b"\x3c" * 5000 + bytes(8192 - 5100)

    def test_written_bytes_are_at_the_address_of_the_block(
        self, sh: Shell, ext4_dax: str, machine: Any, pmem: Region
    ) -> None:
        path = f"{ext4_dax}/file"
        sh(f"xfs_io -f -c 'pwrite -S 0x5e 0 8k' -c fsync {path}")
        assert machine.read_memory(self.physical(sh, path, pmem), 8192) == b"\x5e" * 8192


@pytest.mark.lg_feature("host-memory")
def test_the_first_block_of_the_device_is_the_first_of_the_region(
    sh: Shell, scratch: Volumes, machine: Any, regions: list[Region]
) -> None:
    for region in regions:
        sh(f"xfs_io -d -c 'pwrite -S 0x6d 0 4k' {region.device}")
        assert machine.read_memory(region.address, 4096) == b"\x6d" * 4096
        sh(f"wipefs -q -a {region.device}")
