# SPDX-License-Identifier: GPL-2.0-only
"""Persistent memory with struct pages: the driver, its namespaces, and who takes what of them; mappings of 2 MiB.

What the pages are good for is in the points of daxprobe: test_daxprobe.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from boardtools import DRIVER, HUGE_EXTENTS, MountRefused, Region, Shell, Volumes, device_zone, is_dax, namespace_of

pytestmark = pytest.mark.lg_feature(["dax", "struct-pages"])
NDCTL_LIMIT_S = 60
# Points that go through pages on all ways, and take little time
FEW_POINTS = ["direct_read", "direct_hole", "remote_vm", "vmsplice_shared", "futex_key", "pin_truncate"]


def bind(sh: Shell, namespace: str, anew: bool = True) -> None:
    """Takes the namespace from its driver, and gives it back."""
    sh(f"echo {namespace} >{DRIVER}/unbind", timeout=NDCTL_LIMIT_S)
    if anew:
        sh(f"echo {namespace} >{DRIVER}/bind", timeout=NDCTL_LIMIT_S)


def check_dax(sh: Shell, scratch: Volumes, region: Region, disk: str) -> None:
    """A new file system on the region: DAX is on, and pages work."""
    scratch.make("ext4", region.device)
    point = scratch.mount("ext4", region.device, "dax=always")
    sh(f"mkdir {point}/t; echo hello >{point}/t/file")
    assert is_dax(sh, f"{point}/t/file")
    sh(f"daxprobe --dir {point}/t --no-dax-dir {disk} {' '.join(FEW_POINTS)}", timeout=NDCTL_LIMIT_S)
    scratch.check("ext4", region.device)


class TestDriver:
    def test_nothing_stood_in_the_way_at_the_start(self, start_log: str) -> None:
        obstacles = re.compile(r"(nd_pmem|pmem\d|namespace\d|memremap|dax).*(fail|error|without|cannot|refus)", re.I)
        assert [line for line in start_log.splitlines() if obstacles.search(line)] == []

    def test_each_namespace_has_its_pages_in_memory(self, sh: Shell, regions: list[Region]) -> None:
        modes = {region.name: sh(f"cat /sys/block/{region.name}/device/mode") for region in regions}
        assert modes == {region.name: "memory" for region in regions}

    def test_ndctl_says_fsdax_with_its_map_in_memory(self, sh: Shell, regions: list[Region]) -> None:
        listed = json.loads(sh("ndctl list -N", timeout=NDCTL_LIMIT_S))
        assert {(one["mode"], one["map"]) for one in listed} == {("fsdax", "mem")}
        assert {one["blockdev"] for one in listed} == {region.name for region in regions}

    def test_each_queue_can_do_dax(self, sh: Shell, regions: list[Region]) -> None:
        assert {sh(f"cat /sys/block/{region.name}/queue/dax") for region in regions} == {"1"}

    def test_device_pages_are_no_free_memory(self, sh: Shell) -> None:
        zone = device_zone(sh)
        values = dict(re.findall(r"^\s+(?:pages )?(free|present|managed)\s+(\d+)", zone, re.MULTILINE))
        assert values.get("managed") == "0", zone
        assert values.get("free") == "0", zone

    def test_memory_does_not_grow_by_the_regions(self, sh: Shell, pmem: Region) -> None:
        """MemTotal is what the device tree calls memory, without the regions."""
        ram = 0
        for first, last in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM", sh("cat /proc/iomem"), re.MULTILINE):
            ram += int(last, 16) + 1 - int(first, 16)
        total = int(sh("awk '$1 == \"MemTotal:\" {print $2}' /proc/meminfo")) * 1024
        assert total <= ram


class TestBinding:
    def test_unbound_and_bound_again_it_works(self, sh: Shell, scratch: Volumes, pmem: Region, disk: str) -> None:
        namespace = namespace_of(sh, pmem)
        zone = device_zone(sh)
        for _ in range(2):
            check_dax(sh, scratch, pmem, disk)
            bind(sh, namespace, anew=False)
            sh(f"test ! -e {pmem.device}")
            sh(f"echo {namespace} >{DRIVER}/bind; test -e {pmem.device}")
        check_dax(sh, scratch, pmem, disk)
        assert device_zone(sh) == zone

    def test_all_namespaces_at_once(self, sh: Shell, scratch: Volumes, regions: list[Region], disk: str) -> None:
        namespaces = [namespace_of(sh, region) for region in regions]
        for operation in ("unbind", "bind"):
            for namespace in namespaces:
                sh(f"echo {namespace} >{DRIVER}/{operation}", timeout=NDCTL_LIMIT_S)
        for region in regions:
            check_dax(sh, scratch, region, disk)

    def test_its_data_is_still_there(self, sh: Shell, scratch: Volumes, pmem: Region) -> None:
        scratch.make("ext4", pmem.device)
        point = scratch.mount("ext4", pmem.device, "dax=always")
        digest = sh(f"dd if=/dev/urandom of={point}/f bs=64k count=32 2>/dev/null; sha256sum <{point}/f")
        scratch.release(pmem.device)
        bind(sh, namespace_of(sh, pmem))
        scratch.mount("ext4", pmem.device, "dax=always")
        assert sh(f"sha256sum <{point}/f") == digest

    def test_many_times_nothing_is_used_up(self, sh: Shell, scratch: Volumes, pmem: Region, disk: str) -> None:
        """Neither address space of the kernel nor memory: the last of many times is like the first."""
        times, page_struct = 20, 32
        namespace = namespace_of(sh, pmem)
        bind(sh, namespace)
        free = "sync; echo 3 >/proc/sys/vm/drop_caches; awk '$1 == \"MemAvailable:\" {print $2}' /proc/meminfo"
        before = int(sh(free))
        sh(
            f"cd {DRIVER}; for i in $(seq {times}); do echo {namespace} >unbind && echo {namespace} >bind || exit 1; done",
            timeout=NDCTL_LIMIT_S,
        )
        # What is free goes up and down by some MiB; the pages of the region, taken each time, would be more.
        taken_kib = times * pmem.size // 4096 * page_struct // 1024
        assert before - int(sh(free)) < taken_kib / 2
        check_dax(sh, scratch, pmem, disk)


class TestModes:
    """Other modes of a namespace, by ndctl: each works or is refused in words, and the default comes back."""

    @pytest.fixture
    def namespace(self, sh: Shell, scratch: Volumes, pmem: Region, disk: str) -> Iterator[str]:
        name = namespace_of(sh, pmem)
        yield name
        if sh.reboot_wanted:
            return
        scratch.clean_up()
        sh(
            f"ndctl disable-namespace {name}; ndctl destroy-namespace -f {name}; ndctl enable-namespace {name}; "
            f"test -e {pmem.device} && wipefs -q -a {pmem.device}; dd if=/dev/zero of={pmem.device} bs=4k count=3 "
            "conv=fsync 2>/dev/null",
            timeout=NDCTL_LIMIT_S,
        )
        assert sh(f"cat /sys/block/{pmem.name}/device/mode") == "memory"
        scratch.make("ext4", pmem.device)
        point = scratch.mount("ext4", pmem.device, "dax=always")
        sh(f"echo hello >{point}/file")
        assert is_dax(sh, f"{point}/file")
        scratch.release(pmem.device)

    def test_sector_mode_has_no_dax_and_works(self, sh: Shell, scratch: Volumes, pmem: Region, namespace: str) -> None:
        sh(f"ndctl create-namespace -f -e {namespace} --mode=sector", timeout=NDCTL_LIMIT_S)
        device = f"{pmem.device}s"
        assert sh(f"cat /sys/block/{pmem.name}s/queue/dax") == "0"
        scratch.make("ext4", device)
        with pytest.raises(MountRefused):
            scratch.mount("ext4", device, "dax=always")
        point = scratch.mount("ext4", device)
        sh(f"dd if=/dev/urandom of={point}/f bs=64k count=16 conv=fsync 2>/dev/null")
        scratch.check("ext4", device)

    def test_raw_mode(self, sh: Shell, scratch: Volumes, pmem: Region, namespace: str, disk: str) -> None:
        """`raw` is what a namespace without labels is in any case: memory, with its block device."""
        status, out = sh.run(f"ndctl create-namespace -f -e {namespace} --mode=raw", timeout=NDCTL_LIMIT_S)
        if status:
            assert re.search(r"fail|error|invalid|not support|unable", out, re.I), out
            sh(f"ndctl enable-namespace {namespace}; test -e {pmem.device}", timeout=NDCTL_LIMIT_S)
        check_dax(sh, scratch, pmem, disk)

    @pytest.mark.parametrize("words", ["fsdax --map=mem", "fsdax --map=dev", "devdax"])
    def test_modes_with_metadata_of_their_own(
        self, sh: Shell, scratch: Volumes, pmem: Region, namespace: str, words: str
    ) -> None:
        """They write a superblock, which a kernel without NVDIMM_PFN or NVDIMM_DAX does not know."""
        status, out = sh.run(f"ndctl create-namespace -f -e {namespace} --mode={words}", timeout=NDCTL_LIMIT_S)
        if status:
            assert re.search(r"fail|error|invalid|not support|unable", out, re.I), out
            return
        listed = json.loads(sh(f"ndctl list -n {namespace}", timeout=NDCTL_LIMIT_S))
        mode, _, place = words.partition(" --map=")
        assert listed[0]["mode"] == mode
        if place:
            assert listed[0]["map"] == place
            device = f"/dev/{listed[0]['blockdev']}"
            scratch.make("ext4", device)
            point = scratch.mount("ext4", device, "dax=always")
            sh(f"echo hello >{point}/file")
            assert is_dax(sh, f"{point}/file")
            scratch.check("ext4", device)


class TestSameDevice:
    """On a file system that is mounted with dax=inode some files have DAX, and some have the page cache."""

    @pytest.mark.parametrize("kind", ["ext4", "xfs"])
    def test_direct_io_between_files_with_and_without_dax(
        self, sh: Shell, volumes: Volumes, pmem: Region, kind: str
    ) -> None:
        folder = volumes.get(kind, pmem.device, "dax=inode")
        sh(
            f"mkdir {folder}/on {folder}/off; xfs_io -c 'chattr +x' {folder}/on; echo 1 >{folder}/on/f; echo 1 >{folder}/off/f"
        )
        assert is_dax(sh, f"{folder}/on/f")
        assert not is_dax(sh, f"{folder}/off/f")
        names = sh("daxprobe --describe | awk '$1 == \"direct\" {print $2}'").split()
        for start in range(0, len(names), 8):
            chosen = " ".join(names[start : start + 8])
            sh(f"daxprobe --dir {folder}/on --no-dax-dir {folder}/off {chosen}", timeout=60)
        volumes.release(pmem.device)


@pytest.mark.usefixtures("dax_2mib")
class TestHuge:
    SWITCH = "/sys/kernel/mm/transparent_hugepage/enabled"

    @pytest.fixture
    def folder(self, sh: Shell, volumes: Volumes, pmem: Region) -> Iterator[str]:
        before = re.search(r"\[(\w+)\]", sh(f"cat {self.SWITCH}"))
        assert before
        yield volumes.get("ext4", pmem.device, "dax=always", HUGE_EXTENTS)
        sh(f"echo {before[1]} >{self.SWITCH}")

    @pytest.mark.parametrize("setting", ["always", "madvise", "never"])
    def test_the_switch_for_ordinary_memory_leaves_files_alone(
        self, sh: Shell, folder: str, nodax_dir: str, setting: str
    ) -> None:
        """As on other architectures: a mapping of a DAX file asks MADV_NOHUGEPAGE and PR_SET_THP_DISABLE only."""
        sh(f"echo {setting} >{self.SWITCH}")
        names = "huge_stores huge_hole huge_advised_against huge_truncate"
        sh(f"daxprobe --dir {folder} --no-dax-dir {nodax_dir} {names}", timeout=60)
        sh(f"daxprobe --dir {folder} many_pages big_file punch_race fault_race", timeout=60)

    def test_a_program_runs_from_a_file_system_of_large_extents(self, sh: Shell, folder: str) -> None:
        sh(f"cp /usr/bin/daxprobe {folder}/program; sync")
        assert "huge_stores" in sh(f"for i in 1 2 3; do {folder}/program --list || exit 1; done")
