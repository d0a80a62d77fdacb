# SPDX-License-Identifier: GPL-2.0-only
"""ext2 and xfs with DAX: what differs from ext4."""

from __future__ import annotations

import pytest
from boardtools import MKFS, MKFS_REFLINK, Region, Shell, Volumes, is_dax

pytestmark = pytest.mark.lg_feature("dax")


@pytest.mark.parametrize("kind", ["ext2"])
@pytest.mark.usefixtures("kind_with_dax")
class TestExt2:
    @pytest.mark.series("E1")
    def test_small_blocks_fall_back_with_a_message(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        scratch.make("ext2", pmem.device, "-b 1024")
        status, said = scratch.try_mount("ext2", pmem.device, "dax")
        assert status == 0
        assert "unsupported blocksize for DAX" in said
        sh(f"echo hello >{scratch.point(pmem.device)}/file")
        assert not is_dax(sh, f"{scratch.point(pmem.device)}/file")

    @pytest.mark.series("E3")
    def test_a_full_file_system_says_no_space(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        scratch.make("ext2", pmem.device, size="16M")
        point = scratch.mount("ext2", pmem.device, "dax")
        sh(f"echo hello >{point}/file")
        assert is_dax(sh, f"{point}/file")
        sh.fails(f"dd if=/dev/zero of={point}/big bs=1M", "No space left", timeout=60)
        sh(f"rm {point}/big; xfs_io -f -c 'truncate 1m' -c 'mmap -rw 0 1m' -c 'mwrite 0 1m' {point}/mapped")
        scratch.check("ext2", pmem.device)


@pytest.mark.series("E3")
class TestXfs:
    @pytest.fixture
    def folder(self, volumes: Volumes, pmem: Region) -> str:
        return volumes.get("xfs", pmem.device, "dax=inode")

    def test_a_file_without_the_flag_has_no_dax(self, sh: Shell, folder: str) -> None:
        sh(f"echo hello >{folder}/file")
        assert not is_dax(sh, f"{folder}/file")

    def test_a_file_takes_the_flag_from_its_folder(self, sh: Shell, folder: str) -> None:
        sh(f"xfs_io -c 'chattr +x' {folder}; echo hello >{folder}/file")
        assert is_dax(sh, f"{folder}/file")

    def test_dax_never_overrides_the_flag(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        scratch.make("xfs", pmem.device)
        point = scratch.mount("xfs", pmem.device, "dax=inode")
        sh(f"mkdir {point}/on; xfs_io -c 'chattr +x' {point}/on; echo hello >{point}/on/file")
        scratch.release(pmem.device)
        scratch.mount("xfs", pmem.device, "dax=never")
        assert not is_dax(sh, f"{point}/on/file")

    def test_it_grows_while_mounted(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        sh(f"{MKFS['xfs']} -d size=32m {pmem.device}", timeout=60)
        point = scratch.mount("xfs", pmem.device, "dax=always")
        digest = sh(f"dd if=/dev/urandom of={point}/a bs=1M count=4 2>/dev/null; sha256sum <{point}/a")
        sh(f"xfs_growfs -D $((64<<8)) {point}", timeout=60)
        sh(f"dd if=/dev/zero of={point}/b bs=1M count=24 conv=fsync", timeout=60)
        assert is_dax(sh, f"{point}/b")
        assert sh(f"sha256sum <{point}/a") == digest
        scratch.check("xfs", pmem.device)

    def test_a_full_file_system_says_no_space(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        sh(f"{MKFS['xfs']} -d size=32m,agcount=2 {pmem.device}", timeout=60)
        point = scratch.mount("xfs", pmem.device, "dax=always")
        sh.fails(f"dd if=/dev/zero of={point}/big bs=1M", "No space left", timeout=60)
        sh(f"rm {point}/big; xfs_io -f -c 'truncate 1m' -c 'mmap -rw 0 1m' -c 'mwrite 0 1m' {point}/mapped")
        scratch.check("xfs", pmem.device)

    def test_a_store_to_a_reflinked_file_leaves_the_other_one_alone(
        self, sh: Shell, scratch: Volumes, pmem: Region
    ) -> None:
        sh(f"{MKFS_REFLINK} {pmem.device}")
        point = scratch.mount("xfs", pmem.device, "dax=always")
        before = sh(f"cd {point} && dd if=/dev/urandom of=a bs=4k count=50 2>/dev/null; sha256sum <a")
        sh(f"cd {point} && xfs_io -f -c 'reflink a 0 0 200k' b && cmp a b")
        sh(f"xfs_io -c 'mmap -rw 0 200k' -c 'mwrite -S 0x41 5000 1000' -c 'msync -s 0 200k' {point}/b")
        assert is_dax(sh, f"{point}/b")
        assert sh(f"sha256sum <{point}/a") == before
        # The bytes which differ are among the stored ones.
        differing = [int(line.split()[0]) for line in sh(f"cmp -l {point}/a {point}/b; true").splitlines()]
        assert len(differing) > 900
        assert min(differing) > 5000
        assert max(differing) <= 6000
        scratch.check("xfs", pmem.device)

    def test_blocks_of_1_kib_turn_dax_off_with_a_message(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        scratch.make("xfs", pmem.device, "-b size=1024")
        status, said = scratch.try_mount("xfs", pmem.device, "dax=always")
        assert status == 0
        assert "DAX not supported for blocksize" in said
        sh(f"echo hello >{scratch.point(pmem.device)}/file")
        assert not is_dax(sh, f"{scratch.point(pmem.device)}/file")
