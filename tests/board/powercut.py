# SPDX-License-Identifier: GPL-2.0-only
"""What a power cut left of the records that daxprobe's writers acknowledged: a reader that knows nothing of the kernel's.

Records are as tests/daxprobe/records.c says: 192 bytes each, with a sequence number and a CRC-32.
"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZE = 192
SLOTS = 64
# option of daxprobe by the name of the file that it writes
WRITERS = {
    "append": "--fsync-writer",
    "store": "--writer",
    "overwrite": "--overwrite-writer",
    "rename": "--rename-writer",
}
# How a commit block of JBD2 begins (magic number, type), and what of it is not just zeros: struct commit_header in the
# kernel's include/linux/jbd2.h, in bytes, with the padding that a compiler adds
JBD2_COMMIT = struct.pack(">II", 0xC03B3998, 2)
JBD2_COMMIT_HEAD = 64


class Lost(AssertionError):
    """Something that was acknowledged is gone, or something is torn that must not be."""


def parse(record: bytes) -> int | None:
    """The sequence number of a record; 0 of one that was never written, None of a torn one."""
    if not any(record):
        return 0
    if len(record) == SIZE and record[:4] == b"DAXR" and zlib.crc32(record[:188]).to_bytes(4, "little") == record[188:]:
        return int.from_bytes(record[4:8], "little")
    return None


def check(name: str, data: bytes, acked: int) -> int:
    """Demands that a writer's file holds all that was acknowledged; returns how many records more it holds.

    Only the record that was under way may be torn.
    """
    found = [parse(data[start : start + SIZE]) for start in range(0, len(data), SIZE)]
    newest = max((sequence for sequence in found if sequence), default=0)
    if newest < acked:
        raise Lost(f"{name}: {acked} records were acknowledged, and the newest that is there is {newest}")
    if name == "rename":
        if newest and found != [newest]:
            raise Lost(f"{name}: the file is not one whole record: {found}")
    elif name == "overwrite":
        for place, sequence in enumerate(found):
            expected = newest - (newest - 1 - place) % SLOTS
            # The record after the newest may have begun to take the place of its forerunner.
            if sequence is None and place == newest % SLOTS:
                continue
            if sequence != max(expected, 0):
                raise Lost(f"{name}: record {sequence} is in place {place}, where {max(expected, 0)} belongs")
    else:
        for place, sequence in enumerate(found):
            if sequence is None and place == newest:
                continue
            if sequence != (place + 1 if place < newest else 0):
                raise Lost(f"{name}: record {place + 1} of {newest} is {'torn' if sequence is None else 'not there'}")
    return newest - acked


def check_all(files: Mapping[str, bytes], acked: Mapping[str, int]) -> int:
    """The same for all writers together; a file that is not there holds nothing."""
    return sum(check(name, files.get(name, b""), count) for name, count in acked.items())


def run(*command: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode not in allowed:
        raise Lost(f"{command[0]} ended with status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def written(image: bytes, work: Path) -> Iterator[Path]:
    """An image as a file for e2fsprogs; what went wrong with it leaves it there to be looked at."""
    work.mkdir(exist_ok=True)
    path = work / "region"
    path.write_bytes(image)
    yield path
    path.unlink()


@contextmanager
def kept(image: bytes, path: Path) -> Iterator[None]:
    """What goes wrong leaves the image, as it was, to be looked at."""
    try:
        yield
    except Exception as exc:
        path.write_bytes(image)
        exc.add_note(f"The region as it was is in {path}")
        raise


def read_ext4(image: bytes, folder: str, work: Path) -> dict[str, bytes]:
    """The files of a folder of an ext4 image after its journal was replayed, by e2fsprogs and not by the kernel."""
    with written(image, work) as path:
        # 1: what was to be done, the journal above all, was done.
        run("e2fsck", "-f", "-p", path, allowed=(0, 1))
        run("e2fsck", "-f", "-n", path)
        out = work / "files"
        out.mkdir()
        run("debugfs", "-R", f"rdump {folder} {out}", path)
    return {one.name: one.read_bytes() for one in (out / folder.strip("/")).iterdir()}


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name in WRITERS}


def last_commit(image: bytes, work: Path) -> int:
    """Where in an ext4 image the newest commit block of its journal is, in bytes."""
    with written(image, work) as path:
        facts = run("dumpe2fs", "-h", path)
        size = int(re.findall(r"^Block size: +(\d+)$", facts, re.MULTILINE)[0])
        blocks = [int(word) * size for word in run("debugfs", "-R", "blocks <8>", path).split()]
    commits = [at for at in blocks if image[at : at + 8] == JBD2_COMMIT]
    return max(commits, key=lambda at: image[at + 8 : at + 12])


def tear(power: Any, address: int, size: int, where: int, work: Path) -> None:
    """The newest commit block of the ext4 in this memory gets something else in it, from that byte on."""
    torn = last_commit(bytes(power.read_memory(address, size)), work / "journal") + where
    power.write_memory(address + torn, b"\xa5" * 512)
