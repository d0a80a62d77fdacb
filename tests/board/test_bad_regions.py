# SPDX-License-Identifier: GPL-2.0-only
"""Regions that a device tree must not have: each gives a message, and the system and its good regions live on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from boardtools import Region, Shell, Volumes, find_regions

pytestmark = pytest.mark.lg_feature("extra-overlays")
MIB = 1 << 20


@dataclass(frozen=True)
class Bad:
    address: int
    size: int
    # What the kernel says of it; {range} is the resource as the kernel prints it
    message: str
    # So much is taken out of RAM: the driver reads the beginning first, and where no memory answers is an external abort.
    reserved: int = 0


def places(sh: Shell, regions: list[Region], cells: int) -> dict[str, Bad]:
    """Bad regions for this very board: in its RAM, or behind all that it has where nothing is read."""

    def ranges(lines: str) -> list[tuple[int, ...]]:
        return [tuple(int(number, 16) for number in line.split()[0].split("-")) for line in lines.splitlines()]

    ram = ranges(sh("grep 'System RAM' /proc/iomem"))
    largest, last = max(ram, key=lambda one: one[1] - one[0]), max(ram)[1]
    top = max([end + 1 for _, end in ram] + [region.address + region.size for region in regions])
    free = (top + 64 * MIB) & -(64 * MIB)
    found = {
        "in RAM": Bad(sum(largest) // 2 & -MIB, MIB, r"could not reserve region \[mem {range}"),
        "not page aligned": Bad(free + 1024 * MIB + 512, MIB, r"\[mem {range}.*is empty or not page aligned"),
        "of size 0": Bad(free + 1056 * MIB, 0, r"is empty or not page aligned"),
    }
    # It begins with memory and lies over whatever comes behind: that must be nothing.
    large = Bad(
        last + 1 - 16 * MIB,
        1024 * MIB,
        r"(vmap allocation|vmalloc_node_range) for size \d+ failed",
        reserved=16 * MIB,
    )
    others = ranges(sh("grep '^[^ ]' /proc/iomem"))
    if not any(start > last and start < large.address + large.size for start, _ in others):
        found["larger than the vmalloc space"] = large
    if cells == 2 and sh.run("zcat /proc/config.gz | grep -q '^CONFIG_ARM_LPAE=y'")[0]:
        found["out of reach"] = Bad((1 << 32) + free, MIB, r"has no range that can be addressed here")
    return found


def overlay(bad: dict[str, Bad], cells: int) -> str:
    def words(number: int) -> str:
        return f"{number >> 32:#x} {number & 0xFFFFFFFF:#x}" if cells == 2 else f"{number:#x}"

    nodes = "".join(
        f'bad{number}@{one.address:x} {{ compatible = "pmem-region"; reg = <{words(one.address)} {words(one.size)}>; }};\n'
        for number, one in enumerate(bad.values())
    )
    reserved = "".join(
        f"bad{number}@{one.address:x} {{ reg = <{words(one.address)} {words(one.reserved)}>; no-map; }};\n"
        for number, one in enumerate(bad.values())
        if one.reserved
    )
    return (
        '/dts-v1/; /plugin/; / { fragment@0 { target-path = "/"; __overlay__ {\n'
        f"#address-cells = <{cells}>; #size-cells = <{cells}>;\n{nodes}reserved-memory {{\n{reserved}}}; }}; }}; }};\n"
    )


@pytest.fixture(scope="module")
def bad(_shell: Shell, strategy: Any, regions: list[Region], tmp_path_factory: Any) -> Iterator[dict[str, Bad]]:
    """The board, started with all bad regions beside its own."""
    _shell.ready()
    cells = int(_shell("od -An -tx1 '/proc/device-tree/#address-cells' | tr -d ' '"), 16)
    found = places(_shell, regions, cells)
    folder: Path = tmp_path_factory.mktemp("bad")
    source, target = folder / "bad.dtso", folder / "bad.dtbo"
    source.write_text(overlay(found, cells))
    subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", target, source], check=True, timeout=30)
    strategy.transition("off")
    strategy.power.extra_overlays.append(str(target))
    yield found
    strategy.power.extra_overlays.clear()
    _shell.reboot_wanted = True


@pytest.fixture(scope="module")
def said(_shell: Shell, bad: dict[str, Bad]) -> str:
    """What the kernel said at this start."""
    _shell.ready()
    return _shell("dmesg | grep -e pmem -e nd_ -e vmap -e vmalloc")


@pytest.mark.parametrize(
    "kind", ["in RAM", "larger than the vmalloc space", "not page aligned", "of size 0", "out of reach"]
)
def test_the_kernel_says_what_is_wrong(sh: Shell, said: str, bad: dict[str, Bad], kind: str) -> None:
    if kind not in bad:
        pytest.skip("this board has no address for such a region")
    one = bad[kind]
    assert re.search(one.message.format(range=f"0x0*{one.address:x}-"), said), said


def test_the_good_regions_work(sh: Shell, said: str, scratch: Volumes, regions: list[Region]) -> None:
    # Their devices may have other names: those of the bad ones have taken numbers.
    found = [one for one in find_regions(sh) if one.name != "no-device"]
    assert {(one.address, one.size) for one in found} == {(one.address, one.size) for one in regions}
    for region in found:
        sh(f"xfs_io -d -c 'pwrite -S 0x5a 0 64k' {region.device} && wipefs -q -a {region.device}")
