# SPDX-License-Identifier: GPL-2.0-only
"""ext4 with DAX: which files have it, when it is refused, and what a full, grown or frozen file system does."""

from __future__ import annotations

import pytest
from boardtools import Region, Shell, Volumes, is_dax

pytestmark = pytest.mark.lg_feature("dax")


class TestMountOption:
    @pytest.mark.series("E3")
    def test_plain_dax_means_always(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        scratch.make("ext4", pmem.device)
        point = scratch.mount("ext4", pmem.device, "dax")
        sh(f"echo hello >{point}/file")
        assert is_dax(sh, f"{point}/file")

    @pytest.mark.series("E1")
    @pytest.mark.parametrize("change", ["dax=always:dax=never", "dax=never:dax=always", "dax=inode:dax=always"])
    def test_a_remount_cannot_change_it(self, sh: Shell, scratch: Volumes, pmem: Region, change: str) -> None:
        before, after = change.split(":")
        scratch.make("ext4", pmem.device)
        point = scratch.mount("ext4", pmem.device, before)
        sh.fails(f"mount -o remount,{after} {point}")
        sh(f"echo hello >{point}/file")
        assert is_dax(sh, f"{point}/file") == (before == "dax=always")


@pytest.mark.series("E3")
class TestPerFile:
    """-o dax=inode: each file has its own flag, and takes it from its folder."""

    @pytest.fixture
    def folder(self, volumes: Volumes, pmem: Region) -> str:
        return volumes.get("ext4", pmem.device, "dax=inode")

    def test_a_file_without_the_flag_has_no_dax(self, sh: Shell, folder: str) -> None:
        sh(f"echo hello >{folder}/file")
        assert not is_dax(sh, f"{folder}/file")

    def test_a_file_takes_the_flag_from_its_folder(self, sh: Shell, folder: str) -> None:
        sh(f"chattr +x {folder}; echo hello >{folder}/file")
        assert is_dax(sh, f"{folder}/file")

    def test_a_folder_takes_the_flag_from_its_parent(self, sh: Shell, folder: str) -> None:
        sh(f"chattr +x {folder}; mkdir -p {folder}/a/b; echo hello >{folder}/a/b/file")
        assert is_dax(sh, f"{folder}/a/b/file")

    def test_a_file_made_before_the_folder_got_the_flag_stays_as_it_is(self, sh: Shell, folder: str) -> None:
        sh(f"echo hello >{folder}/old; chattr +x {folder}")
        assert not is_dax(sh, f"{folder}/old")

    def test_a_flag_set_on_a_file_works_once_nobody_uses_it(
        self, sh: Shell, folder: str, volumes: Volumes, pmem: Region
    ) -> None:
        sh(f"echo hello >{folder}/file; chattr +x {folder}/file")
        volumes.release(pmem.device)
        point = volumes.mount("ext4", pmem.device, "dax=inode")
        try:
            assert is_dax(sh, f"{point}/t/file")
            assert sh(f"cat {point}/t/file") == "hello"
        finally:
            volumes.release(pmem.device)

    def test_a_flag_taken_away_ends_dax_once_nobody_uses_the_file(
        self, sh: Shell, folder: str, volumes: Volumes, pmem: Region
    ) -> None:
        sh(f"chattr +x {folder}; echo hello >{folder}/file; chattr -x {folder}/file")
        volumes.release(pmem.device)
        point = volumes.mount("ext4", pmem.device, "dax=inode")
        try:
            assert not is_dax(sh, f"{point}/t/file")
            assert sh(f"cat {point}/t/file") == "hello"
        finally:
            volumes.release(pmem.device)

    def test_lsattr_shows_the_flag(self, sh: Shell, folder: str) -> None:
        sh(f"chattr +x {folder}; echo hello >{folder}/file")
        assert "x" in sh(f"lsattr {folder}/file").split()[0]

    def test_a_moved_file_keeps_its_own(self, sh: Shell, folder: str) -> None:
        sh(
            f"mkdir {folder}/on {folder}/off; chattr +x {folder}/on; echo hello >{folder}/on/file; mv {folder}/on/file {folder}/off"
        )
        assert is_dax(sh, f"{folder}/off/file")

    def test_files_with_and_without_copy_to_each_other(self, sh: Shell, folder: str) -> None:
        sh(f"mkdir {folder}/on; chattr +x {folder}/on; dd if=/dev/urandom of={folder}/a bs=4k count=99 2>/dev/null")
        sh(f"cp {folder}/a {folder}/on/b && cp {folder}/on/b {folder}/c && cmp {folder}/a {folder}/c")
        assert is_dax(sh, f"{folder}/on/b")
        assert not is_dax(sh, f"{folder}/c")

    def test_dax_never_overrides_the_flag(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        scratch.make("ext4", pmem.device)
        point = scratch.mount("ext4", pmem.device, "dax=inode")
        sh(f"mkdir {point}/on; chattr +x {point}/on; echo hello >{point}/on/file")
        scratch.release(pmem.device)
        scratch.mount("ext4", pmem.device, "dax=never")
        assert not is_dax(sh, f"{point}/on/file")
        assert "x" in sh(f"lsattr {point}/on/file").split()[0]


class TestRefused:
    """What does not go with DAX is refused with its reason, and works without."""

    CASES = {
        "data journalling": ("", ",data=journal", "data=journal and dax"),
        "inline data": ("-O inline_data", "", "inline data"),
        "blocks of 1 KiB": ("-b 1024", "", "unsupported blocksize for DAX"),
        "blocks of 2 KiB": ("-b 2048", "", "unsupported blocksize for DAX"),
    }

    @pytest.mark.series("E1")
    @pytest.mark.parametrize("case", CASES)
    def test_with_dax(self, scratch: Volumes, pmem: Region, case: str) -> None:
        mkfs, options, reason = self.CASES[case]
        scratch.make("ext4", pmem.device, mkfs)
        status, why = scratch.try_mount("ext4", pmem.device, f"dax=always{options}")
        assert status
        assert reason.lower() in why.lower()

    @pytest.mark.parametrize("case", CASES)
    def test_without_dax(self, sh: Shell, scratch: Volumes, pmem: Region, case: str) -> None:
        mkfs, options, _ = self.CASES[case]
        scratch.make("ext4", pmem.device, mkfs)
        point = scratch.mount("ext4", pmem.device, options.lstrip(","))
        sh(f"echo hello >{point}/file; sync")
        assert not is_dax(sh, f"{point}/file")


@pytest.mark.series("E3")
class TestInUse:
    """16 MiB of ext4 with DAX, so that it is soon full and can grow."""

    @pytest.fixture
    def point(self, scratch: Volumes, pmem: Region) -> str:
        scratch.make("ext4", pmem.device, size="16M")
        return scratch.mount("ext4", pmem.device, "dax=always")

    def test_a_full_file_system_says_no_space(self, sh: Shell, point: str, scratch: Volumes, pmem: Region) -> None:
        sh.fails(f"dd if=/dev/zero of={point}/big bs=1M", "No space left", timeout=60)
        sh(f"rm {point}/big; echo hello >{point}/file; cat {point}/file")
        scratch.check("ext4", pmem.device)

    def test_a_store_into_a_hole_of_a_full_file_system_is_a_bus_error(
        self, sh: Shell, point: str, scratch: Volumes, pmem: Region
    ) -> None:
        sh(f"xfs_io -f -c 'truncate 64k' {point}/sparse")
        sh.fails(f"dd if=/dev/zero of={point}/big bs=1M", "No space left", timeout=60)
        sh(f"dd if=/dev/zero of={point}/rest bs=4k; true", timeout=60)
        status, _ = sh.run(f"xfs_io -c 'mmap -rw 0 64k' -c 'mwrite 0 64k' {point}/sparse")
        assert status == 128 + 7
        scratch.check("ext4", pmem.device)

    def test_it_grows_while_mounted(self, sh: Shell, point: str, scratch: Volumes, pmem: Region) -> None:
        digest = sh(f"dd if=/dev/urandom of={point}/a bs=1M count=4 2>/dev/null; sha256sum <{point}/a")
        sh(f"resize2fs {pmem.device} 64M", timeout=60)
        sh(f"dd if=/dev/zero of={point}/b bs=1M count=24 conv=fsync", timeout=60)
        assert is_dax(sh, f"{point}/b")
        assert sh(f"sha256sum <{point}/a") == digest
        scratch.check("ext4", pmem.device)

    def test_it_shrinks_while_unmounted(self, sh: Shell, point: str, scratch: Volumes, pmem: Region) -> None:
        digest = sh(f"dd if=/dev/urandom of={point}/a bs=1M count=4 2>/dev/null; sha256sum <{point}/a")
        scratch.check("ext4", pmem.device)
        sh(f"resize2fs -f {pmem.device} 12M", timeout=60)
        scratch.mount("ext4", pmem.device, "dax=always")
        assert sh(f"sha256sum <{point}/a") == digest

    def test_a_frozen_file_system_goes_on_when_thawed(self, sh: Shell, point: str) -> None:
        sh(
            f"xfs_io -x -c freeze {point}; (echo hello >{point}/file; echo done >/tmp/thawed) & sleep 0.2; test ! -e /tmp/thawed; s=$?; "
            f"xfs_io -x -c thaw {point}; wait; rm /tmp/thawed && exit $s"
        )
        assert sh(f"cat {point}/file") == "hello"

    def test_a_read_only_remount_refuses_stores_and_keeps_data(self, sh: Shell, point: str) -> None:
        sh(f"echo hello >{point}/file; mount -o remount,ro {point}")
        sh.fails(f"xfs_io -c 'mmap -rw 0 4k' {point}/file", "Read-only")
        assert sh(f"cat {point}/file") == "hello"

    def test_readers_and_writers_of_one_file_do_not_disturb_each_other(self, sh: Shell, point: str) -> None:
        sh(
            f"cd /tmp && fio --directory={point} --size=2m --bs=4k --thread --output-format=terse --verify=crc32c "
            "--name=a --rw=randwrite --ioengine=mmap --name=b --rw=randwrite --ioengine=psync --name=c --rw=write "
            "--ioengine=psync --direct=1",
            timeout=60,
        )

    def test_a_loop_device_in_a_dax_file_holds_a_file_system(self, sh: Shell, point: str, scratch: Volumes) -> None:
        sh(f"xfs_io -f -c 'truncate 8m' {point}/disk; losetup /dev/loop0 {point}/disk")
        scratch.make("ext4", "/dev/loop0")
        inner = scratch.mount("ext4", "/dev/loop0")
        sh(f"echo hello >{inner}/file; sync")
        scratch.check("ext4", "/dev/loop0")

    def test_overlayfs_over_dax_shows_and_copies_up(self, sh: Shell, point: str) -> None:
        sh(f"cd {point} && mkdir low up work /mnt/over; echo low >low/file")
        sh(f"mount -t overlay -o lowerdir={point}/low,upperdir={point}/up,workdir={point}/work overlay /mnt/over")
        assert sh("cat /mnt/over/file") == "low"
        sh("xfs_io -c 'mmap -rw 0 3' -c 'mwrite -S 0x75 0 3' /mnt/over/file")
        assert sh(f"cat /mnt/over/file {point}/up/file {point}/low/file").split() == ["uuu", "uuu", "low"]
        assert is_dax(sh, f"{point}/up/file")

    def test_msync_of_a_mapping_counts_as_done(self, sh: Shell, point: str) -> None:
        sh(
            f"xfs_io -f -c 'truncate 1m' -c 'mmap -rw 0 1m' -c 'mwrite -S 0x31 0 1m' -c 'msync -s 0 1m' -c fsync {point}/file"
        )
        assert sh(f"tr -d 1 <{point}/file | wc -c") == "0"
