# SPDX-License-Identifier: GPL-2.0-only
"""Reads what a board's build left: genimage.cfg, the card's image, the files inside of it."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fdt

SECTOR = 512


def tool(*command: str | Path, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr.decode(errors='replace').strip()}"
    return done.stdout


# genimage.cfg -----------------------------------------------------------------------------------------------------


@dataclass
class Section:
    """One `kind name { … }` of libconfuse's language."""

    kind: str
    name: str
    options: dict[str, str] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)

    def all(self, kind: str) -> list[Section]:
        return [one for one in self.sections if one.kind == kind]


_TOKEN = re.compile(r'#[^\n]*|//[^\n]*|/\*.*?\*/|"((?:[^"\\]|\\.)*)"|([{}=+,]|[^\s{}=+,"#]+)', re.DOTALL)


def read_genimage(path: Path) -> Section:
    tokens = [m[1] if m[2] is None else m[2] for m in _TOKEN.finditer(path.read_text()) if m[1] is not None or m[2]]
    top = Section("", "")
    stack = [top]
    words: list[str] = []
    while tokens:
        word = tokens.pop(0)
        if word == "{":
            section = Section(words[0], words[1] if len(words) > 1 else "")
            stack[-1].sections.append(section)
            stack.append(section)
            words = []
        elif word == "}":
            stack.pop()
        elif word == "=":
            value = tokens.pop(0)
            if value == "{":
                value = " ".join(iter(lambda: tokens.pop(0), "}"))
            stack[-1].options[words[-1].rstrip("+")] = value
            words = []
        else:
            words.append(word)
    assert stack == [top], f"{path}: a brace is missing"
    return top


def size_of(text: str) -> int:
    """32M, 1024, 0x200, 2s."""
    units = {"": 1, "s": SECTOR, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    found = re.fullmatch(r"(0x[0-9a-f]+|\d+)([skmg]?)", text.lower())
    assert found, f"{text} is no size"
    return int(found[1], 0) * units[found[2]]


# The card's image -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Partition:
    name: str
    start: int
    size: int
    uuid: str
    bootable: bool


class Card:
    """An image, and where its partitions are by its own partition table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table: dict[str, Any] = json.loads(tool("sfdisk", "--json", path))["partitiontable"]
        self.label: str = table["label"]
        self.partitions: list[Partition] = []
        for number, one in enumerate(table["partitions"], 1):
            # For DOS partitions this is what Linux calls PARTUUID.
            uuid = one.get("uuid") or f"{int(table['id'], 16):08x}-{number:02x}"
            bootable = bool(one.get("bootable")) or "LegacyBIOSBootable" in one.get("attrs", "")
            start, size = one["start"] * SECTOR, one["size"] * SECTOR
            self.partitions.append(Partition(one.get("name", ""), start, size, uuid.lower(), bootable))

    def read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    @property
    def boot(self) -> Partition:
        """The partition which U-Boot looks for: the first with the bootable flag."""
        return next(one for one in self.partitions if one.bootable)

    def file(self, partition: Partition, name: str) -> bytes:
        """A file of a partition; the file system is ext2 or its heirs, or FAT."""
        if self.read(partition.start + 1080, 2) == b"\x53\xef":
            where = f"{self.path}?offset={partition.start}"
            return tool("debugfs", "-R", f"cat /{name.lstrip('/')}", where)
        return tool("mtype", "-i", f"{self.path}@@{partition.start}", f"::/{name.lstrip('/')}")


def extlinux(text: str) -> dict[str, str]:
    """The only entry of an extlinux.conf."""
    words = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {one[0].upper(): one[1].strip() for one in words if len(one) == 2}


# Boot loaders -----------------------------------------------------------------------------------------------------


def rom_loader(data: bytes) -> str:
    """Whose boot ROM would start these bytes; '' when no ROM known here would."""
    if data[4:12] == b"eGON.BT0":
        size = struct.unpack_from("<I", data, 16)[0]
        words = struct.unpack_from(f"<{size // 4}I", data)
        # The sum is made with a constant in its own place.
        total = sum(words) - words[3] + 0x5F0A6C39
        return "allwinner" if total & 0xFFFFFFFF == words[3] else ""
    if data[:4] == b"STM2":
        checksum, length = struct.unpack_from("<I", data, 68)[0], struct.unpack_from("<I", data, 76)[0]
        good = len(data) >= 256 + length and sum(data[256 : 256 + length]) & 0xFFFFFFFF == checksum
        return "stm32mp1" if good else ""
    if data[:3] == b"\xd1\x00\x20" and data[3] in range(0x40, 0x44):
        _, entry, _, _, boot_data, itself, _, _ = struct.unpack_from("<8I", data)
        start, length, _ = struct.unpack_from("<3I", data, boot_data - itself)
        # Before the header come the bytes which the ROM skips on a card: 1 KiB.
        return "imx" if start == itself - 1024 and start < entry < start + length else ""
    return ""


def legacy_image(data: bytes) -> bool:
    """U-Boot's own image format, with both checksums right."""
    if data[:4] != b"\x27\x05\x19\x56":
        return False
    header = data[:4] + bytes(4) + data[8:64]
    head_crc, size, data_crc = (struct.unpack_from(">I", data, at)[0] for at in (4, 12, 24))
    return bool(zlib.crc32(header) == head_crc and zlib.crc32(data[64 : 64 + size]) == data_crc)


def environment(data: bytes) -> dict[str, str]:
    """The default environment in a boot loader's file."""
    found: dict[str, str] = {}
    for match in re.finditer(rb"\0((?:[\w#.]+=[\x20-\x7e]*\0){8,})\0", data):
        for text in match[1].decode().rstrip("\0").split("\0"):
            name, value = text.split("=", 1)
            found[name] = value
    return found


# Device trees -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size

    def meets(self, other: Range) -> bool:
        return self.start < other.end and other.start < self.end

    def inside(self, other: Range) -> bool:
        return other.start <= self.start and self.end <= other.end


class Tree:
    """A flat device tree."""

    def __init__(self, blob: bytes) -> None:
        self._tree = fdt.parse_dtb(blob)

    def ranges(self, node: Any, parent: Any) -> Iterator[Range]:
        cells = list(node.get_property("reg").data) if node.exist_property("reg") else []
        address, size = (parent.get_property(f"#{name}-cells").value for name in ("address", "size"))
        for at in range(0, len(cells), address + size):
            numbers = cells[at : at + address], cells[at + address : at + address + size]
            start, length = (sum(cell << 32 * place for place, cell in enumerate(reversed(one))) for one in numbers)
            if length:
                yield Range(start, length)

    def memory(self) -> list[Range]:
        """RAM, as far as the tree knows it: some boards leave that to the boot loader."""
        root = self._tree.root
        return [one for node in root.nodes if node.name.split("@")[0] == "memory" for one in self.ranges(node, root)]

    def pmem(self) -> list[Range]:
        root = self._tree.root
        nodes = [node for node in root.nodes if node.exist_property("compatible")]
        found = [node for node in nodes if "pmem-region" in node.get_property("compatible").data]
        return [one for node in found for one in self.ranges(node, root)]

    def reserved(self, no_map: bool) -> list[Range]:
        """What /reserved-memory takes away, without or with a mapping of the kernel."""
        parent = next((node for node in self._tree.root.nodes if node.name == "reserved-memory"), None)
        nodes = [node for node in parent.nodes if node.exist_property("no-map") == no_map] if parent else []
        return [one for node in nodes for one in self.ranges(node, parent)]
