# SPDX-License-Identifier: GPL-2.0-only
"""The cards of the boards which boot from one, where they were built: what the boot ROM, U-Boot and Linux look for."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import pytest
from cards import (
    Card,
    Partition,
    Range,
    Section,
    Tree,
    environment,
    extlinux,
    legacy_image,
    read_genimage,
    rom_loader,
    size_of,
    tool,
)
from toyline import ROOT

from tools.boards import Board, boards

IMAGE = "sdcard.img"
# The vmalloc space when the command line has no vmalloc=, and what the kernel itself may take of it
VMALLOC = 240 << 20
OTHERS = 24 << 20
# More than U-Boot takes at the end of RAM on any of these boards: 32 MiB of heap, 16 of stack, itself
U_BOOT = 64 << 20
# Where the ROMs read their loader; the STM32MP1's looks for partitions whose names begin with fsbl.
ROM_PLACE = {"allwinner": 8 << 10, "imx": 1 << 10}


def images_of(one: Board) -> Path:
    """The folder that LG_BUILDDIR names, when it is this board's; else the usual one."""
    named = ROOT / os.environ.get("LG_BUILDDIR", "output/board/images")
    manifest = named / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_text())["board"] == one.name:
        return named
    return ROOT / "output" / one.name / "images"


CARDS = [one for one in boards() if (one.folder / "genimage.cfg").exists()]
BUILT = [one for one in CARDS if (images_of(one) / IMAGE).exists()]
if not BUILT:
    pytest.skip("no card was built: `make <board>_defconfig && make` builds one", allow_module_level=True)


@pytest.mark.parametrize("one", CARDS, ids=lambda one: one.name)
def test_a_card_was_built(one: Board) -> None:
    if one not in BUILT:
        pytest.skip(f"no card was built: `make {one.name}_defconfig && make` builds it")
    assert json.loads((images_of(one) / "manifest.json").read_text())["board"] == one.name


@pytest.fixture(scope="module", params=BUILT, ids=lambda one: one.name)
def board(request: pytest.FixtureRequest) -> Board:
    one: Board = request.param
    return one


@pytest.fixture(scope="module")
def images(board: Board) -> Path:
    return images_of(board)


@pytest.fixture(scope="module")
def card(images: Path) -> Card:
    return Card(images / IMAGE)


@pytest.fixture(scope="module")
def layout(board: Board) -> Section:
    """What genimage.cfg says about the card."""
    wanted = read_genimage(board.folder / "genimage.cfg")
    return next(one for one in wanted.all("image") if one.name == IMAGE)


@pytest.fixture(scope="module")
def entry(card: Card) -> dict[str, str]:
    return extlinux(card.file(card.boot, "extlinux/extlinux.conf").decode())


@pytest.fixture(scope="module")
def loader(card: Card, images: Path, layout: Section) -> dict[int, bytes]:
    """The files of the boot loader by the offset where they begin: everything but file systems."""
    found = {}
    for one, offset in placed(layout, card):
        data = (images / one.options["image"]).read_bytes()
        if data[1080:1082] != b"\x53\xef" and data[510:512] != b"\x55\xaa":
            found[offset] = data
    if not found:
        pytest.skip("no boot loader is on this card: the machine brings its own")
    return found


@pytest.fixture(scope="module")
def tree(card: Card, entry: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The device tree which Linux gets: the one on the card with the overlay on it."""
    if "FDT" not in entry:
        pytest.skip("no device tree is on this card: the machine brings its own")
    folder = tmp_path_factory.mktemp("tree")
    names = [entry["FDT"], *entry["FDTOVERLAYS"].split()]
    paths = []
    for number, name in enumerate(names):
        paths.append(folder / f"{number}.dtb")
        paths[-1].write_bytes(card.file(card.boot, name))
    tool("fdtoverlay", "-i", paths[0], "-o", folder / "all.dtb", *paths[1:])
    return Tree((folder / "all.dtb").read_bytes())


def placed(layout: Section, card: Card) -> list[tuple[Section, int]]:
    """The parts of the card which have a file, and where they begin by the card's own table."""
    result, in_table = [], iter(card.partitions)
    for one in layout.all("partition"):
        outside = one.options.get("in-partition-table", "true") in ("false", "no", "off")
        offset = size_of(one.options["offset"]) if outside else next(in_table).start
        if "image" in one.options:
            result.append((one, offset))
    return result


# The card ---------------------------------------------------------------------------------------------------------


def test_the_partitions_are_those_of_genimage_cfg(card: Card, layout: Section) -> None:
    wanted = [one for one in layout.all("partition") if one.options.get("in-partition-table", "true") == "true"]
    assert len(card.partitions) == len(wanted)
    for one, partition in zip(wanted, card.partitions, strict=True):
        if card.label == "gpt":
            assert partition.name == one.name
            assert partition.uuid == one.options["partition-uuid"].lower()
        if "offset" in one.options:
            assert partition.start == size_of(one.options["offset"])


def test_nothing_on_the_card_overlaps(card: Card, images: Path, layout: Section) -> None:
    parts = [Range(one.start, one.size) for one in card.partitions]
    for one, offset in placed(layout, card):
        size = (images / one.options["image"]).stat().st_size
        if all(offset != part.start for part in parts):
            parts.append(Range(offset, size))
        else:
            assert size <= next(part.size for part in parts if part.start == offset)
    parts.sort(key=lambda part: part.start)
    assert [(a, b) for a, b in zip(parts, parts[1:], strict=False) if a.meets(b)] == []
    assert parts[-1].end <= card.path.stat().st_size


def test_each_file_is_where_genimage_cfg_puts_it(card: Card, images: Path, layout: Section) -> None:
    for one, offset in placed(layout, card):
        data = (images / one.options["image"]).read_bytes()
        assert card.read(offset, len(data)) == data, one.name


def test_nothing_in_the_partition_table_is_made_up_anew(layout: Section) -> None:
    """An image is the same bytes each time it is built, and root= finds its partition."""
    hdimage = layout.all("hdimage")[0]
    assert {"disk-signature", "disk-uuid"} & set(hdimage.options)
    if "disk-uuid" in hdimage.options:
        assert [one.name for one in layout.all("partition") if "partition-uuid" not in one.options] == []


# The boot loader --------------------------------------------------------------------------------------------------


def test_the_boot_rom_finds_its_loader(card: Card, loader: dict[int, bytes]) -> None:
    kinds = {offset: rom_loader(data) for offset, data in loader.items()}
    found = {offset: kind for offset, kind in kinds.items() if kind}
    assert found, "no file before the file systems has the header of a known boot ROM"
    for offset, kind in found.items():
        names = [one.name for one in card.partitions if one.start == offset]
        assert offset == ROM_PLACE[kind] if kind in ROM_PLACE else names[0].startswith("fsbl")


def test_what_the_boot_rom_does_not_start_is_an_image_of_u_boot(loader: dict[int, bytes]) -> None:
    for data in loader.values():
        if not rom_loader(data):
            assert legacy_image(data) or data[:4] == b"\xd0\x0d\xfe\xed"


def test_u_boot_knows_the_board(board: Board, loader: dict[int, bytes]) -> None:
    said = re.compile(rf"\bboard_id[= ]{board.name}\b".encode())
    assert any(said.search(data) for data in loader.values())


def test_u_boot_does_not_load_into_the_regions(
    tree: Tree, card: Card, entry: dict[str, str], loader: dict[int, bytes]
) -> None:
    variables: dict[str, str] = {}
    for data in loader.values():
        variables |= environment(data)
    names = [name for name in variables if re.fullmatch(r"\w+_addr_r|loadaddr|fdt_addr|scriptaddr|ramdiskaddr", name)]
    assert {"kernel_addr_r", "fdt_addr_r"} <= set(names)
    room = {"kernel_addr_r": len(card.file(card.boot, entry["LINUX"])), "ramdisk_addr_r": 16 << 20}
    for name in names:
        loaded = Range(int(variables[name], 16), room.get(name, 1 << 20))
        assert [region for region in tree.pmem() if region.meets(loaded)] == [], name


# What U-Boot reads ------------------------------------------------------------------------------------------------


def test_the_board_id_is_on_the_boot_partition(board: Board, card: Card) -> None:
    assert card.file(card.boot, "board-id").decode() == f"{board.name}\n"


def test_the_files_of_the_entry_are_those_which_were_built(card: Card, images: Path, entry: dict[str, str]) -> None:
    names = [entry["LINUX"], *(entry.get(key, "") for key in ("FDT", "FDTOVERLAYS"))]
    for name in " ".join(names).split():
        assert card.file(card.boot, name) == (images / Path(name).name).read_bytes(), name


def test_the_kernel_is_one(card: Card, entry: dict[str, str]) -> None:
    assert struct.unpack_from("<I", card.file(card.boot, entry["LINUX"]), 0x24)[0] == 0x016F2818


def test_the_root_file_system_is_found_and_has_an_init(card: Card, entry: dict[str, str]) -> None:
    found = re.search(r"\broot=PARTUUID=(\S+)", entry["APPEND"])
    assert found
    roots = [one for one in card.partitions if one.uuid == found[1].lower()]
    assert len(roots) == 1
    assert has(card, roots[0], "/sbin/init")


def has(card: Card, partition: Partition, name: str) -> bool:
    where = f"{card.path}?offset={partition.start}"
    return b"Inode:" in tool("debugfs", "-R", f"stat {name}", where)


# The regions ------------------------------------------------------------------------------------------------------


def test_the_regions_fit_into_the_vmalloc_space_and_the_largest_one_once_more(
    tree: Tree, entry: dict[str, str]
) -> None:
    """ndctl unmaps a namespace to change it; some thread's stack in the gap, and it can only be mapped elsewhere."""
    found = re.search(r"\bvmalloc=(\d+)M", entry["APPEND"])
    space = int(found[1]) << 20 if found else VMALLOC
    sizes = [region.size for region in tree.pmem()]
    assert 0 < sum(sizes) + max(sizes) <= space - OTHERS


def test_a_region_begins_and_ends_on_a_page(tree: Tree) -> None:
    assert [region for region in tree.pmem() if region.start % 4096 or region.size % 4096] == []


def test_a_region_is_reserved_without_a_mapping(tree: Tree) -> None:
    assert set(tree.pmem()) <= set(tree.reserved(no_map=True))


def test_a_region_meets_no_other_reservation(tree: Tree) -> None:
    regions = tree.pmem()
    others = [one for one in tree.reserved(True) + tree.reserved(False) if one not in regions]
    assert [(a, b) for a in regions for b in others if a.meets(b)] == []
    assert len(regions) == len(set(regions))


def test_a_region_lies_in_ram(tree: Tree) -> None:
    ram = tree.memory()
    if not ram:
        pytest.skip("this device tree leaves it to the boot loader to say where RAM is")
    assert [region for region in tree.pmem() if not any(region.inside(one) for one in ram)] == []


def test_a_region_is_clear_of_the_end_of_ram(tree: Tree) -> None:
    """There U-Boot moves itself, with its heap and stack."""
    ram = tree.memory()
    if not ram:
        pytest.skip("this device tree leaves it to the boot loader to say where RAM is")
    ends = [Range(one.end - U_BOOT, U_BOOT) for one in ram]
    assert [(a, b) for a in tree.pmem() for b in ends if a.meets(b)] == []
