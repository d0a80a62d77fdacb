# SPDX-License-Identifier: GPL-2.0-only
# labgrid has no types to build on.
# mypy: disable-error-code="misc,var-annotated"
"""A host writes a medium (labgrid's USBStorageDriver and bmaptool, on a loop device), and what an image is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attr
import boardlab
import pytest
import yaml
from labgrid.environment import Environment
from labgrid.factory import target_factory
from labgrid.resource.udev import USBMassStorage, USBSDMuxDevice

MIB = 1 << 20
MakeBoard = Callable[..., Any]


@target_factory.reg_resource
@attr.s(eq=False)
class LoopStorage(USBMassStorage):
    """A loop device where udev would find a stick."""

    device_path = attr.ib(default="", validator=attr.validators.instance_of(str))

    @property
    def path(self) -> str:
        return self.device_path


@target_factory.reg_resource
@attr.s(eq=False)
class LoopMux(USBSDMuxDevice):
    """A loop device where udev would find an SD mux; the program that switches it only writes down what it was told."""

    def poll(self) -> None:
        pass

    def update(self) -> None:
        pass


def card(folder: Path, size: int = 8 * MIB, board: str = "toy") -> Path:
    """An image with data at its beginning, in its middle and at its end, a bmap and a manifest."""
    path = folder / "sdcard.img"
    with path.open("wb") as stream:
        for at in (0, size // 2, size - 8192):
            stream.seek(at)
            stream.write(os.urandom(8192))
    bmap = subprocess.run(["bmaptool", "create", str(path)], check=True, capture_output=True, timeout=60).stdout
    Path(f"{path}.bmap").write_bytes(bmap)
    write_manifest(path, board)
    return path


def write_manifest(path: Path, board: str = "toy") -> None:
    from tools.common import sha256

    files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)}}
    (path.parent / "manifest.json").write_text(json.dumps({"board": board, "files": files}))


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A medium of 16 MiB, which holds something already."""
    backing = tmp_path / "medium"
    backing.write_bytes(b"\xa5" * 16 * MIB)
    done = subprocess.run(
        ["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode:
        pytest.skip(f"no loop device can be had here: {done.stderr.strip()}")
    device = done.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True, timeout=30)


@pytest.fixture
def board(tmp_path: Path, loop: str) -> Iterator[Any]:
    yield from flasher(tmp_path, {"LoopStorage": {"device_path": loop}}, {})


@pytest.fixture
def muxed(tmp_path: Path, loop: str) -> Iterator[Any]:
    """A board with an SD mux; what the mux was told is in the file `mux`."""
    tool = tmp_path / "usbsdmux"
    tool.write_text(
        f'#!/bin/sh\nprintf "%s " "$@" >>{tmp_path}/mux\n'
        f"dd if={loop} bs=8k count=1 status=none | sha256sum >>{tmp_path}/mux\n[ ! -e {tmp_path}/broken ]\n"
    )
    tool.chmod(0o755)
    resources = {"LoopMux": {"control_path": "/dev/sg0", "disk_path": loop}}
    yield from flasher(tmp_path, resources, {"USBSDMuxDriver": {}}, {"usbsdmux": str(tool)})


def flasher(
    tmp_path: Path, resources: dict[str, Any], drivers: dict[str, Any], tools: dict[str, str] | None = None
) -> Iterator[Any]:
    data = {
        "targets": {
            "main": {
                "resources": resources,
                "drivers": {**drivers, "USBStorageDriver": {}, "StorageFlashDriver": {"board": "toy"}},
            }
        },
        "images": {"card": str(tmp_path / "sdcard.img")},
        "tools": tools or {},
    }
    file = tmp_path / "env.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    env = Environment(str(file))
    target = env.get_target()
    assert target
    yield target.get_driver("StorageFlashDriver")
    env.cleanup()


def flash(board: Any) -> None:
    board.check()
    board.flash()


def test_the_image_is_written_and_read_back(board: Any, tmp_path: Path) -> None:
    path = card(tmp_path)
    flash(board)
    image = boardlab.Image(path)
    medium = (tmp_path / "medium").read_bytes()
    assert all(medium[part.start : part.start + part.size] == image.read(part) for part in image.parts(MIB, gap=1))
    # The holes of the image are not written: that is what the block map is for.
    assert medium[2 * MIB] == 0xA5


def test_without_a_block_map_all_of_it_is_written(board: Any, tmp_path: Path) -> None:
    path = card(tmp_path)
    Path(f"{path}.bmap").unlink()
    flash(board)
    assert (tmp_path / "medium").read_bytes()[: 8 * MIB] == path.read_bytes()


def test_a_medium_that_keeps_other_bytes_is_found(board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = card(tmp_path)
    write = board.storage.write_image

    def worn_out(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        with (tmp_path / "medium").open("r+b") as stream:
            stream.seek(path.stat().st_size // 2 + 100)
            stream.write(b"worn out")

    monkeypatch.setattr(board.storage, "write_image", worn_out)
    with pytest.raises(boardlab.FlashFailed, match="is not what was written"):
        flash(board)


def sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_mux_gives_the_medium_to_the_host_and_back(muxed: Any, tmp_path: Path) -> None:
    path = card(tmp_path)
    flash(muxed)
    before, after = sum_of(b"\xa5" * 8192), sum_of(path.read_bytes()[:8192])
    assert (tmp_path / "mux").read_text().splitlines() == [
        f"/dev/sg0 host {before}  -",
        f"/dev/sg0 dut {after}  -",
    ]


def test_the_board_gets_its_medium_back_when_flashing_fails(muxed: Any, tmp_path: Path) -> None:
    card(tmp_path, 20 * MIB)
    with pytest.raises(boardlab.ImageTooLarge):
        flash(muxed)
    assert [line.split()[1] for line in (tmp_path / "mux").read_text().splitlines()] == ["host", "dut"]


def test_a_mux_that_does_not_switch(muxed: Any, tmp_path: Path) -> None:
    card(tmp_path)
    (tmp_path / "broken").touch()
    with pytest.raises(boardlab.FlashFailed, match="The medium cannot be written: .*usbsdmux"):
        flash(muxed)
    assert set((tmp_path / "medium").read_bytes()) == {0xA5}


def test_an_image_that_is_too_large(board: Any, tmp_path: Path) -> None:
    card(tmp_path, 20 * MIB)
    with pytest.raises(
        boardlab.ImageTooLarge, match="has 20971520 bytes, and the medium 16777216: nothing was written"
    ):
        flash(board)
    assert set((tmp_path / "medium").read_bytes()) == {0xA5}


def test_an_image_of_another_board(board: Any, tmp_path: Path) -> None:
    card(tmp_path, board="other")
    with pytest.raises(boardlab.WrongImage, match="is an image of 'other', and this board is 'toy'"):
        flash(board)
    assert set((tmp_path / "medium").read_bytes()) == {0xA5}


def test_a_block_map_of_another_image(tmp_path: Path) -> None:
    path = card(tmp_path)
    os.truncate(path, 4 * MIB)
    with pytest.raises(boardlab.WrongImage, match="is not of this image"):
        boardlab.Image(path).parts(MIB)


def test_an_image_without_a_manifest(tmp_path: Path) -> None:
    path = card(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(boardlab.WrongImage, match="does not say what sdcard.img is"):
        boardlab.Image(path).check("toy")


@pytest.mark.parametrize("size", [0, 1000])
def test_something_that_is_no_image(tmp_path: Path, size: int) -> None:
    path = tmp_path / "sdcard.img"
    path.write_bytes(bytes(size))
    with pytest.raises(boardlab.WrongImage, match="not a number of blocks"):
        boardlab.Image(path)


def test_parts_cover_all_data_and_are_no_larger_than_asked(tmp_path: Path) -> None:
    image = boardlab.Image(card(tmp_path))
    parts = image.parts(4096, gap=1)
    assert all(part.size <= 4096 and part.start % 512 == 0 and part.size % 512 == 0 for part in parts)
    assert sum(part.size for part in parts) == 3 * 8192
    assert image.parts(64 * MIB, gap=16 * MIB) == [boardlab.Part(0, image.size)]
