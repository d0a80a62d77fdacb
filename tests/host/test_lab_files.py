# SPDX-License-Identifier: GPL-2.0-only
"""The files for a lab: environments, examples of exporters, systemd units, CI."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from labgrid.factory import target_factory
from test_ci_examples import FOLDER, read, targets
from toyline import ROOT

from tools import rack
from tools.boards import boards, products

LABGRID = ROOT / "labgrid"
# What a piece of `flash` is: labgrid/boardlab.py keeps two of them in RAM
CHUNK = 32 << 20


LABS = sorted(path for path in LABGRID.glob("*.yaml") if "-" not in path.stem)


def test_each_board_with_a_card_has_an_environment_for_a_lab() -> None:
    assert {path.stem for path in LABS} == {one.name for one in products()}
    assert set(rack.kinds()) <= {path.stem for path in LABS}


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_what_is_flashed_is_the_boards_own_image_and_hits_no_pmem_region(path: Path) -> None:
    content = rack.read_environment(path)
    drivers = content["targets"]["main"]["drivers"]
    flash = drivers["UBootFlashDriver"]
    assert flash["board"] == path.stem
    assert content["images"][flash["image"]] == "$LG_BUILDDIR/sdcard.img"
    # The lowest address of RAM that holds pmem; where the board boots from, U-Boot's own RAM is at the top.
    board = next(one for one in boards() if one.name == path.stem)
    regions = [
        (int(match[1], 16), int(match[2], 16))
        for match in re.finditer(
            r"pmem-region.*?reg = <(?:0x0+ |0 )?(0x[0-9a-f]+) (?:0x0+ |0 )?(0x[0-9a-f]+)>",
            board.overlay.read_text(),
            re.S,
        )
    ]
    assert regions
    start, end = flash["address"], flash["address"] + 2 * CHUNK
    assert all(end <= address or start >= address + size for address, size in regions)


def test_the_sizes_are_those_of_the_driver() -> None:
    text = (LABGRID / "boardlab.py").read_text()
    assert f"chunk = attr.ib(default={CHUNK >> 20} * MIB" in text


def test_the_exporters_example_names_resources_that_labgrid_has() -> None:
    content = yaml.safe_load((LABGRID / "exporter-example.yaml").read_text())
    for group in content.values():
        for name, arguments in group.items():
            assert name in target_factory.resources, name
            allowed = {field.name for field in target_factory.resources[name].__attrs_attrs__}
            assert set(arguments) <= allowed, (name, set(arguments) - allowed)


@pytest.mark.parametrize("path", sorted((LABGRID / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_systemd_takes_the_units(path: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd on this machine")
    # The programs are where an operator puts them; here they stand in for themselves.
    unit = tmp_path / path.name
    unit.write_text(re.sub(r"/opt/arm-pmem/\.venv/bin/labgrid-\w+", "/bin/true", path.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("name", ["github-lab.yml", "gitlab-lab.yml"])
def test_the_ci_examples_call_what_exists(name: str) -> None:
    known = set(re.findall(r"(?m)^([\w%-]+):", (ROOT / "Makefile").read_text()))
    called = targets(FOLDER / name)
    assert called <= known and {"deps", "lab-test"} <= called
    listed = set(re.findall(r"orangepi_pc|imx7d_sabre|stm32mp157c_dk2", str(read(FOLDER / name))))
    assert listed <= {path.stem for path in LABS}
