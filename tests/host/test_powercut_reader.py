# SPDX-License-Identifier: GPL-2.0-only
"""The reader of `make powercut`: it accepts what daxprobe's writers leave, and finds what must not be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toyline import ROOT

sys.path.insert(0, str(ROOT / "tests/board"))
import powercut
from powercut import SIZE, SLOTS, WRITERS, Lost, check

COUNT = 150


@pytest.fixture(scope="session")
def written(daxprobe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What each writer leaves after so many records: the real program, built for this machine."""
    folder = tmp_path_factory.mktemp("records")
    files = {}
    for name, option in WRITERS.items():
        done = subprocess.run(
            [daxprobe, option, folder / name, str(COUNT)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.splitlines()[-1] == f"{name} acked {COUNT}"
        files[name] = (folder / name).read_bytes()
    return files


@pytest.mark.parametrize("name", WRITERS)
def test_what_the_writers_leave_is_whole(written: dict[str, bytes], name: str) -> None:
    assert check(name, written[name], COUNT) == 0
    assert check(name, written[name], COUNT - 3) == 3


@pytest.mark.parametrize("name", WRITERS)
def test_a_record_that_was_acknowledged_and_is_not_there(written: dict[str, bytes], name: str) -> None:
    with pytest.raises(Lost, match=f"{COUNT + 1} records were acknowledged, and the newest that is there is {COUNT}"):
        check(name, written[name], COUNT + 1)


def place(data: bytes, number: int, record: bytes) -> bytes:
    return data[: number * SIZE] + record + data[(number + 1) * SIZE :]


@pytest.mark.parametrize("name", ["append", "store"])
def test_a_gap_or_a_torn_record_before_the_newest(written: dict[str, bytes], name: str) -> None:
    with pytest.raises(Lost, match="record 11 of 150 is not there"):
        check(name, place(written[name], 10, bytes(SIZE)), 5)
    torn = written[name][10 * SIZE : 10 * SIZE + 64] + bytes(SIZE - 64)
    with pytest.raises(Lost, match="record 11 of 150 is torn"):
        check(name, place(written[name], 10, torn), 5)


@pytest.mark.parametrize("name", ["append", "store"])
def test_the_record_under_way_may_be_torn(written: dict[str, bytes], name: str) -> None:
    torn = written[name][-SIZE : -SIZE + 100]
    assert check(name, written[name][:-SIZE] + torn, COUNT - 1) == 0


def test_an_overwritten_place_has_the_newest_or_the_one_before(written: dict[str, bytes]) -> None:
    data = written["overwrite"]
    newest = (COUNT - 1) % SLOTS
    # record 151 was under way
    torn = place(data, newest + 1, b"x" * SIZE)
    assert check("overwrite", torn, COUNT) == 0
    for wrong in (newest - 5, newest + 2):
        with pytest.raises(Lost, match="record None is in place"):
            check("overwrite", place(data, wrong, b"x" * SIZE), COUNT)
    # an old record that should have been overwritten
    old = data[(newest + 5) * SIZE : (newest + 6) * SIZE]
    with pytest.raises(Lost, match=f"is in place {newest - 5}, where {COUNT - 5} belongs"):
        check("overwrite", place(data, newest - 5, old), COUNT)


def test_a_renamed_file_is_one_whole_record(written: dict[str, bytes]) -> None:
    with pytest.raises(Lost, match="not one whole record"):
        check("rename", written["rename"] * 2, COUNT)
    with pytest.raises(Lost, match="the newest that is there is 0"):
        check("rename", written["rename"][:-1], COUNT)
    assert check("rename", b"", 0) == 0


def test_an_image_that_e2fsck_cannot_mend_by_itself_is_a_loss(tmp_path: Path) -> None:
    with pytest.raises(Lost, match="e2fsck ended with status 8"):
        powercut.read_ext4(bytes(1 << 20), "/c", tmp_path / "work")


def test_the_files_of_a_folder_are_read_by_e2fsprogs(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    (source / "c").mkdir(parents=True)
    (source / "c/append").write_bytes(b"hello")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", source, image, "4M"], check=True, timeout=60)
    assert powercut.read_ext4(image.read_bytes(), "/c", tmp_path / "work") == {"append": b"hello"}
