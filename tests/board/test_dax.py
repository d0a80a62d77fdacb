# SPDX-License-Identifier: GPL-2.0-only
"""DAX is really on: the mount options, the attribute of each file, and a page cache which does not grow. And off, where it must be."""

from __future__ import annotations

import pytest
from boardtools import Region, Shell, Volumes, cached_kib, dax_refused, is_dax

# Enough to tell it from the noise of a running system
MIB = 12
KINDS = ["ext4", "ext2", "xfs"]
# What ext2 says where mainline has taken DAX out of it
EXT2_WITHOUT = "DAX support has been removed"
DAX_OPTION = {"ext4": "dax=always", "ext2": "dax", "xfs": "dax=always"}


def grows_by(sh: Shell, folder: str) -> int:
    """By how many KiB writing and reading a file makes the page cache grow."""
    sh("sync; echo 3 >/proc/sys/vm/drop_caches")
    before = cached_kib(sh)
    sh(
        f"dd if=/dev/zero of={folder}/big bs=1M count={MIB} conv=fsync 2>/dev/null; cat {folder}/big >/dev/null",
        timeout=60,
    )
    return cached_kib(sh) - before


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E1")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("kind_with_dax")
class TestOn:
    @pytest.fixture
    def folder(self, volumes: Volumes, pmem: Region, kind: str) -> str:
        return volumes.get(kind, pmem.device, DAX_OPTION[kind])

    def test_proc_mounts_says_dax(self, sh: Shell, folder: str, pmem: Region) -> None:
        options = sh(f"grep '^{pmem.device} ' /proc/mounts").split()[3].split(",")
        assert {"dax", "dax=always"} & set(options)

    def test_each_file_has_the_dax_attribute(self, sh: Shell, folder: str) -> None:
        sh(f"echo hello >{folder}/file; mkdir {folder}/d; echo hello >{folder}/d/file")
        assert is_dax(sh, f"{folder}/file")
        assert is_dax(sh, f"{folder}/d/file")

    def test_the_page_cache_does_not_grow(self, sh: Shell, folder: str) -> None:
        assert grows_by(sh, folder) < MIB * 1024 / 4

    def test_what_was_written_is_still_there_after_a_remount(
        self, sh: Shell, folder: str, volumes: Volumes, pmem: Region, kind: str
    ) -> None:
        digest = sh(f"dd if=/dev/urandom of={folder}/file bs=64k count=32 2>/dev/null; sha256sum <{folder}/file")
        volumes.release(pmem.device)
        point = volumes.mount(kind, pmem.device, DAX_OPTION[kind])
        assert sh(f"sha256sum <{point}/t/file") == digest
        volumes.release(pmem.device)

    def test_mapped_stores_are_still_there_after_a_remount(
        self, sh: Shell, folder: str, volumes: Volumes, pmem: Region, kind: str
    ) -> None:
        sh(f"xfs_io -f -c 'truncate 256k' -c 'mmap -rw 0 256k' -c 'mwrite -S 0x6b 4000 200000' {folder}/file")
        volumes.release(pmem.device)
        point = volumes.mount(kind, pmem.device, DAX_OPTION[kind])
        assert sh(f"tr -d '\\0' <{point}/t/file | tr -d k | wc -c; tr -cd k <{point}/t/file | wc -c").split() == [
            "0",
            "200000",
        ]
        volumes.release(pmem.device)

    def test_fio_verifies_mapped_random_writes(self, sh: Shell, folder: str) -> None:
        sh(
            f"cd /tmp && fio --name=v --directory={folder} --rw=randwrite --bs=4k --size=6m --ioengine=mmap --verify=crc32c "
            "--thread --fallocate=none --output-format=terse",
            timeout=60,
        )

    def test_fsck_finds_nothing_to_mend(
        self, sh: Shell, folder: str, volumes: Volumes, pmem: Region, kind: str
    ) -> None:
        sh(
            f"cd {folder} && for i in 1 2 3 4 5 6 7 8; do mkdir $i; cp -r /etc $i; done; rm -r 3 5; xfs_io -f -c 'truncate 1m' -c "
            "'mmap -rw 0 1m' -c 'mwrite 5000 600000' m"
        )
        volumes.check(kind, pmem.device)


# A kernel without FS_DAX does not even know dax=never.
@pytest.mark.parametrize(
    ("kind", "options"),
    [("ext2", ""), ("ext4", ""), ("xfs", "")]
    + [pytest.param(kind, "dax=never", marks=pytest.mark.series("E1")) for kind in ("ext4", "xfs")],
)
class TestOff:
    """The negative control: the same checks must say no."""

    @pytest.fixture
    def folder(self, volumes: Volumes, pmem: Region, kind: str, options: str, fs_dax: bool) -> str:
        if options and not fs_dax:
            pytest.skip("this board's kernel is to have no FS_DAX, and knows no dax=never")
        return volumes.get(kind, pmem.device, options)

    def test_no_file_has_the_dax_attribute(self, sh: Shell, folder: str) -> None:
        sh(f"echo hello >{folder}/file")
        assert not is_dax(sh, f"{folder}/file")

    def test_the_page_cache_grows(self, sh: Shell, folder: str) -> None:
        assert grows_by(sh, folder) > MIB * 1024 * 3 / 4


@pytest.mark.lg_feature("dax")
def test_ext2_says_that_it_has_no_dax_any_more(sh: Shell, scratch: Volumes, pmem: Region, ext2_has_dax: bool) -> None:
    scratch.make("ext2", pmem.device)
    status, said = scratch.try_mount("ext2", pmem.device, "dax")
    assert status == 0
    assert (EXT2_WITHOUT in said) == (not ext2_has_dax)
    sh(f"echo hello >{scratch.point(pmem.device)}/file")
    assert is_dax(sh, f"{scratch.point(pmem.device)}/file") == ext2_has_dax


class TestOnARamDisk:
    """A disk without DAX: ext4 refuses the mount, the others say so and go on without."""

    def test_ext4_refuses_dax(self, sh: Shell, scratch: Volumes) -> None:
        scratch.make("ext4", "/dev/ram0")
        status, why = scratch.try_mount("ext4", "/dev/ram0", "dax=always")
        assert status
        assert dax_refused(why)

    @pytest.mark.parametrize("kind", ["ext2", pytest.param("xfs", marks=pytest.mark.series("E1"))])
    def test_the_others_fall_back_with_a_message(
        self, sh: Shell, scratch: Volumes, kind: str, fs_dax: bool, ext2_has_dax: bool
    ) -> None:
        scratch.make(kind, "/dev/ram0")
        status, why = scratch.try_mount(kind, "/dev/ram0", DAX_OPTION[kind])
        assert dax_refused(why) if kind != "ext2" or ext2_has_dax else EXT2_WITHOUT in why
        if kind == "xfs" and not fs_dax:
            # It does not know the option.
            assert status
            return
        assert status == 0
        sh("echo hello >/mnt/ram0/file")
        assert not is_dax(sh, "/mnt/ram0/file")
