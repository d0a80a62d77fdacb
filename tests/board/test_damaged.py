# SPDX-License-Identifier: GPL-2.0-only
"""File systems which are damaged: a mount with DAX refuses them by name, mends what a journal can, and never harms the machine."""

from __future__ import annotations

import re

import pytest
from boardtools import FSCK, Region, Shell, Volumes, dm_create, is_dax

pytestmark = pytest.mark.lg_feature("dax")
KINDS = ("ext4", "ext2", "xfs")
# Groups of 32 MiB, so that there is a copy of the superblock in a second one
MKFS = {"ext4": "-g 8192", "ext2": "-g 8192", "xfs": ""}
# What the kernel says of a superblock that is none, and what brings it back from a copy
SUPERBLOCK = {
    "ext4": (1024, "e2fsck -f -y -b 8192 -B 4096 {}", r"EXT4-fs.*(VFS: Can't find ext4 filesystem|bad|unable|invalid)"),
    "ext2": (1024, "e2fsck -f -y -b 8192 -B 4096 {}", r"EXT2-fs.*(can't find an ext2 filesystem|VFS: )"),
    "xfs": (0, "xfs_repair {}", r"XFS.*(Invalid superblock magic|SB validate failed)"),
}


def damage(sh: Shell, device: str, where: int, size: int) -> None:
    sh(f"dd if=/dev/zero of={device} bs=1 seek={where} count={size} conv=notrunc,fsync 2>/dev/null")


@pytest.mark.series("E3")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("kind_with_dax")
class TestSuperblock:
    @pytest.mark.klog_allows("EXT2-fs.*error: can't find")
    def test_it_is_refused_and_mended_from_a_copy(self, sh: Shell, scratch: Volumes, pmem: Region, kind: str) -> None:
        device, (where, mend, message) = pmem.device, SUPERBLOCK[kind]
        scratch.make(kind, device, MKFS[kind])
        point = scratch.mount(kind, device, "dax")
        digest = sh(f"dd if=/dev/urandom of={point}/a bs=64k count=16 conv=fsync 2>/dev/null; sha256sum <{point}/a")
        scratch.release(device)
        damage(sh, device, where, 512)
        status, said = scratch.try_mount(kind, device, "dax")
        assert status
        assert re.search(message, said), said
        sh.run(mend.format(device), timeout=120)
        sh(f"{FSCK[kind]} {device}", timeout=60)
        scratch.mount(kind, device, "dax")
        assert sh(f"sha256sum <{point}/a") == digest
        assert is_dax(sh, f"{point}/a")
        scratch.release(device)

    @pytest.mark.klog_allows("EXT[24]-fs.*error: bad geometry")
    def test_a_device_that_is_cut_short_is_refused(self, sh: Shell, scratch: Volumes, pmem: Region, kind: str) -> None:
        """A file system made for the whole region, on a dm device which has only half of it."""
        scratch.make(kind, pmem.device)
        half = pmem.size // 1024
        dm_create(sh, f"0 {half} linear {pmem.device} 0")
        status, said = scratch.try_mount(kind, "/dev/mapper/t", "dax")
        assert status
        assert re.search("bad geometry|exceeds size of device|last sector read failed", said), said
        sh("dmsetup remove --retry t")
        point = scratch.mount(kind, pmem.device, "dax")
        sh(f": >{point}/a")
        assert is_dax(sh, f"{point}/a")
        scratch.release(pmem.device)


@pytest.mark.series("E3")
@pytest.mark.klog_allows("EXT4-fs error")
def test_an_inode_that_is_damaged_is_an_error_for_its_file_alone(sh: Shell, scratch: Volumes, pmem: Region) -> None:
    scratch.make("ext4", pmem.device)
    point = scratch.mount("ext4", pmem.device, "dax=always")
    sh(f"echo good >{point}/good; echo bad >{point}/bad")
    scratch.release(pmem.device)
    sh(f"debugfs -w -R 'set_inode_field bad checksum 0x1234' {pmem.device}")
    scratch.mount("ext4", pmem.device, "dax=always")
    sh.fails(f"cat {point}/bad", "Bad message|Input/output|Structure needs cleaning")
    assert sh(f"cat {point}/good") == "good"
    scratch.release(pmem.device)
    sh(f"e2fsck -f -p {pmem.device} || e2fsck -f -y {pmem.device}; e2fsck -f -n {pmem.device}", timeout=60)
