# SPDX-License-Identifier: GPL-2.0-only
"""The kernel on the board is the one that was built, with the options that were asked for."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from boardtools import COMPLAINTS, Shell

from tools import fragments

ROOT = Path(__file__).resolve().parents[2]
FRAGMENTS = sorted(path.name for path in (ROOT / "board/common").glob("*.config")) + ["linux.config"]
# Which patch a fragment cannot do without
NEEDS_SERIES = {"pmem.config": "E1"}


@pytest.fixture(scope="module")
def config(_shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The configuration which the running kernel tells."""
    packed = base64.b64decode(_shell("base64 /proc/config.gz", timeout=60))
    path = tmp_path_factory.mktemp("config") / "config"
    path.write_bytes(gzip.decompress(packed))
    return fragments.read_config(path)


def test_the_release_is_the_one_that_was_built(sh: Shell, manifest: dict[str, Any]) -> None:
    assert sh("uname -r") == manifest["kernel"]["release"]


def test_the_machine_is_what_the_kernel_was_built_for(sh: Shell, config: dict[str, str]) -> None:
    versions = {"CPU_V7": "armv7l", "CPU_V6K": "armv6l", "CPU_V6": "armv6l", "CPU_ARM926T": "armv5tejl"}
    assert sh("uname -m") in {machine for symbol, machine in versions.items() if config.get(symbol) == "y"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.series(NEEDS_SERIES[name])] if name in NEEDS_SERIES else [])
        for name in FRAGMENTS
    ],
)
def test_the_kernel_has_what_the_fragment_asks_for(
    sh: Shell, config: dict[str, str], manifest: dict[str, Any], name: str
) -> None:
    board = ROOT / "board" / manifest["board"] / "linux.config"
    asked = fragments.read(fragments.for_kernel(board, manifest["kernel"]["line"], manifest["kernel"]["variants"]))
    # What only this line of kernels knows goes with the base.
    names = {name, "line.config"} if name == "base.config" else {name}
    mine = {symbol: request for symbol, request in asked.items() if request.file.name in names}
    assert mine
    assert [f"{one.text} ({one.place})" for one in fragments.missed(mine, config)] == []


def test_the_kernel_has_what_its_variants_ask_for(sh: Shell, config: dict[str, str], manifest: dict[str, Any]) -> None:
    variants = manifest["kernel"]["variants"]
    if not variants:
        pytest.skip("the image is of no variant (DEBUG=1, VARIANT=…)")
    asked = fragments.read(ROOT / "board/common/variants" / f"{name}.config" for name in variants)
    assert [f"{one.text} ({one.place})" for one in fragments.missed(asked, config)] == []


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E1")
def test_the_kernel_has_fs_dax(sh: Shell, config: dict[str, str]) -> None:
    assert config.get("FS_DAX") == "y"


def test_the_start_is_without_complaint(start_log: str) -> None:
    assert [line for line in start_log.splitlines() if COMPLAINTS.search(line)] == []


def test_the_data_cache_is_of_the_kind_that_the_board_has(start_log: str, config: dict[str, str], env: Any) -> None:
    # The instruction cache, on the same line, may be of another kind.
    kind = re.search(r"CPU: (.*) data cache", start_log)
    assert kind
    aliasing = kind[1] in ("VIVT", "VIPT aliasing") or config.get("DEBUG_CPU_DCACHE_ALIASING") == "y"
    assert ("dcache-aliasing" if aliasing else "dax") in env.get_target_features()


def test_the_persistent_memory_is_of_the_kind_that_the_environment_says(config: dict[str, str], env: Any) -> None:
    kinds = {"struct-pages", "page-less"} & set(env.get_target_features())
    # A board whose data cache aliases says nothing: it has no DAX.
    assert kinds <= {"struct-pages" if config.get("ZONE_DEVICE") == "y" else "page-less"}
    assert kinds or "dax" not in env.get_target_features()


def test_nothing_has_tainted_the_kernel(sh: Shell) -> None:
    assert sh("cat /proc/sys/kernel/tainted") == "0"


def test_all_processors_of_the_device_tree_run(sh: Shell) -> None:
    assert sh("nproc") == sh("ls -d /proc/device-tree/cpus/cpu@* | wc -l")


def test_the_image_is_the_one_that_was_built(sh: Shell, manifest: dict[str, Any]) -> None:
    release = dict(line.split("=", 1) for line in sh("cat /etc/arm-pmem-release").splitlines())
    assert release["IMAGE"] == manifest["image"]
    assert release["SERIES"] == manifest["series"]["name"]
    assert release["SERIES_HASH"] == manifest["series"]["sha256"]
