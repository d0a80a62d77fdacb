# SPDX-License-Identifier: GPL-2.0-only
"""The boards: every folder board/<name>/ which holds a kernel fragment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.common import ROOT, UserError


@dataclass(frozen=True)
class Board:
    name: str
    folder: Path

    @property
    def summary(self) -> str:
        """The first line of the board's readme.txt says what the board is."""
        readme = self.folder / "readme.txt"
        return readme.read_text().splitlines()[0] if readme.exists() else "(no readme.txt)"

    @property
    def defconfig(self) -> Path:
        """Buildroot's; a board without one has the minimal image only."""
        return self.folder.parents[1] / "br2-external/configs" / f"{self.name}_defconfig"

    @property
    def kernel_fragment(self) -> Path:
        return self.folder / "linux.config"

    @property
    def device_tree(self) -> Path | None:
        """A tree of the board's own, which includes the kernel's; most boards need none beside the overlay."""
        path = self.folder / f"{self.name}.dts"
        return path if path.exists() else None

    @property
    def overlay(self) -> Path:
        return self.folder / "pmem.dtso"


def boards(root: Path = ROOT) -> list[Board]:
    found = sorted((root / "board").glob("*/linux.config"))
    return [Board(path.parent.name, path.parent) for path in found]


def products(root: Path = ROOT) -> list[Board]:
    """The boards which have a Buildroot image."""
    return [one for one in boards(root) if one.defconfig.exists()]


def board(name: str, root: Path = ROOT) -> Board:
    known = {one.name: one for one in boards(root)}
    if name not in known:
        raise UserError(f"unknown board '{name}': the boards are {', '.join(known)} (`make list`)")
    return known[name]
