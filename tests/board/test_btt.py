# SPDX-License-Identifier: GPL-2.0-only
"""Sector mode (BTT): a block device whose sectors are written whole or not at all, and what it makes of damaged metadata.

The layout is that of drivers/nvdimm/btt.h, version 1.1: an information block of 4 KiB at 4 KiB, and all its offsets count from there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from boardtools import Region, Shell, Volumes, dax_refused

START = 4096
SECTOR = 4096
# Both bits of the error and zero flags: an entry of the map that counts
NORMAL = 0xC0000000


@dataclass
class SectorMode:
    """A namespace in sector mode, which can be looked at, and damaged, as plain memory."""

    sh: Shell
    pmem: Region
    namespace: str

    @property
    def device(self) -> str:
        return f"{self.pmem.device}s"

    def raw(self, *commands: str) -> str:
        """Commands on the plain region, where no BTT is in the way; the sector mode is back afterwards, if it can."""
        raw = f"/sys/bus/nd/devices/{self.namespace}/force_raw"
        self.sh(f"ndctl disable-namespace {self.namespace} 2>/dev/null && echo 1 >{raw}", timeout=60)
        try:
            self.sh(f"ndctl enable-namespace {self.namespace} 2>/dev/null; test -e {self.pmem.device}", timeout=60)
            out = [self.sh(command) for command in commands]
            self.sh(f"sync; ndctl disable-namespace {self.namespace} 2>/dev/null", timeout=60)
        finally:
            self.sh(f"echo 0 >{raw}; ndctl enable-namespace {self.namespace} 2>/dev/null; true", timeout=60)
        return "\n".join(out)

    def offsets(self) -> dict[str, int]:
        """Of the next arena, the data, the map, the log and the second information block, in the region."""
        words = self.raw(f"od -An -v -t u8 -j {START + 80} -N 40 {self.pmem.device}").split()
        return dict(zip(("next", "data", "map", "log", "info2"), (START + int(word) for word in words), strict=True))

    def poke(self, where: int, data: bytes) -> None:
        text = "".join(f"\\x{byte:02x}" for byte in data)
        self.raw(f"printf '{text}' | dd of={self.pmem.device} bs=1 seek={where} conv=notrunc,fsync 2>/dev/null")


@pytest.fixture
def sector_mode(sh: Shell, scratch: Volumes, pmem: Region) -> Iterator[SectorMode]:
    namespace = sh(f"basename $(readlink -f /sys/block/{pmem.name}/device)")
    try:
        sh(f"ndctl create-namespace -f -e {namespace} --mode=sector", timeout=60)
    except BaseException:
        # It may be disabled now, and no other test would find its device.
        sh.reboot_wanted = True
        raise
    yield SectorMode(sh, pmem, namespace)
    if not sh.reboot_wanted:
        scratch.release(f"{pmem.device}s")
        sh(
            f"ndctl disable-namespace {namespace}; ndctl destroy-namespace -f {namespace}; "
            f"ndctl enable-namespace {namespace}; test -e {pmem.device} && wipefs -q -a {pmem.device} && "
            f"dd if=/dev/zero of={pmem.device} bs=4k count=3 conv=fsync 2>/dev/null",
            timeout=60,
        )


def write_data(sh: Shell, device: str) -> None:
    sh(f"dd if=/dev/urandom of=/tmp/data bs=64k count=4 2>/dev/null; dd if=/tmp/data of={device} bs=4k conv=fsync")


def test_it_survives_and_has_no_dax(sh: Shell, sector_mode: SectorMode) -> None:
    write_data(sh, sector_mode.device)
    # Taken away and given back: the map of its blocks is read anew.
    sh(f"ndctl disable-namespace {sector_mode.namespace} && ndctl enable-namespace {sector_mode.namespace}", timeout=60)
    sh(f"dd if={sector_mode.device} bs=64k count=4 2>/dev/null | cmp - /tmp/data")
    assert sh(f"cat /sys/block/{sector_mode.pmem.name}s/queue/dax") == "0"


def test_a_file_system_on_it_refuses_dax_and_works(sh: Shell, sector_mode: SectorMode, scratch: Volumes) -> None:
    scratch.make("ext4", sector_mode.device)
    status, why = scratch.try_mount("ext4", sector_mode.device, "dax=always")
    assert status
    assert dax_refused(why)
    point = scratch.mount("ext4", sector_mode.device)
    digest = sh(f"dd if=/dev/urandom of={point}/f bs=64k count=16 conv=fsync 2>/dev/null; sha256sum <{point}/f")
    scratch.check("ext4", sector_mode.device)
    scratch.mount("ext4", sector_mode.device)
    assert sh(f"sha256sum <{point}/f") == digest


def test_without_its_information_block_it_is_plain_memory_and_the_copy_brings_it_back(
    sh: Shell, sector_mode: SectorMode
) -> None:
    write_data(sh, sector_mode.device)
    copy = sector_mode.offsets()["info2"]
    sector_mode.poke(START, bytes(16))
    sh(f"test ! -e {sector_mode.device} && test -e {sector_mode.pmem.device}")
    sector_mode.raw(
        f"dd if={sector_mode.pmem.device} of={sector_mode.pmem.device} bs=4k skip={copy // 4096} seek={START // 4096} "
        "count=1 conv=notrunc,fsync"
    )
    sh(f"dd if={sector_mode.device} bs=64k count=4 2>/dev/null | cmp - /tmp/data")


def test_a_damaged_log_is_refused_with_a_message(sh: Shell, sector_mode: SectorMode) -> None:
    log = sector_mode.offsets()["log"]
    # Two entries of one lane with the same sequence number: neither is the newer one.
    entry = struct.pack("<IIII", 0, 1, 2, 1)
    sector_mode.poke(log, entry + entry)
    sh(f"test ! -e {sector_mode.device}")
    assert "log corruption" in sh("dmesg")


# The kernel takes what damaged metadata asks for as a mistake of its own, once.
@pytest.mark.klog_allows("request out of range|WARNING: .*rw_bytes|Call trace:|Backtrace:")
def test_an_entry_beyond_the_end_is_an_error_and_not_another_sectors_data(sh: Shell, sector_mode: SectorMode) -> None:
    """4 GiB further on: cut off to 32 bits, the place would be in the region."""
    write_data(sh, sector_mode.device)
    places = sector_mode.offsets()
    beyond = (1 << 32) // SECTOR + 5
    sector_mode.poke(places["map"], struct.pack("<I", NORMAL | beyond))
    sh.fails(f"xfs_io -d -r -c 'pread 0 4k' {sector_mode.device}", "Input/output error|Bad address")
    sh(
        f"dd if={sector_mode.device} bs=4k skip=1 count=63 2>/dev/null >/tmp/rest; tail -c +4097 /tmp/data | cmp - /tmp/rest"
    )
