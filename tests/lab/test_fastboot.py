# SPDX-License-Identifier: GPL-2.0-only
"""FastbootFlashDriver on the rack's Orange Pi PC: U-Boot's own `fastboot udp`, and Debian's program `fastboot`."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from racks import LIMIT, ROOT, Rack, change_extlinux, changed_images, needs_lab_deps, running, said

BOARD = "orangepi_pc"

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (ROOT / f"output/{BOARD}/images/sdcard.img").exists(), reason=f"it needs the Buildroot image of {BOARD}"
    ),
    needs_lab_deps("fastboot", shutil.which("fastboot") is not None),
]


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with running(tmp_path_factory.mktemp("rack"), 1, BOARD) as one:
        yield one


def environment(folder: Path, **settings: Any) -> str:
    """The board's environment for a lab, with the other way to flash, as docs/lab.md says."""
    from tools.rack import read_environment, write_environment

    source = ROOT / f"labgrid/{BOARD}.yaml"
    content = read_environment(source)
    main = content["targets"]["main"]
    drivers = main["drivers"]
    fastboot = drivers["UBootFlashDriver"] | settings
    # A driver must stand behind those that it is bound to, and before those that are bound to it.
    other = {"BoardTFTPDriver": {"BoardFastbootDriver": {}}, "UBootFlashDriver": {"FastbootFlashDriver": fastboot}}
    main["drivers"] = {
        name: one for old, given in drivers.items() for name, one in other.get(old, {old: given}).items()
    }
    file = folder / "fastboot.yaml"
    write_environment(content, source, file)
    return str(file)


def test_the_card_is_written_by_fastboot_read_back_and_booted(rack: Rack, tmp_path: Path) -> None:
    # The rack's card holds the built image: this one can be told from it.
    changed = changed_images(
        BOARD, tmp_path / "images", lambda card: change_extlinux(BOARD, card, "rootwait", "rootwait by=fastboot")
    )
    before = rack.console(1)
    done = rack.lab("flash", "--place", "rack-1", LG_ENV=environment(tmp_path), LG_BUILDDIR=str(changed))
    assert done.returncode == 0, said(done)
    assert "rack-1: flashed, read back and booted" in done.stdout
    console = rack.console(1)[len(before) :]
    assert "Listening for fastboot command on 10." in console and "Flashing sparse image" in console
    assert re.search(r"Kernel command line: .* by=fastboot", console)
    assert rack.is_idle(1)


def test_a_u_boot_without_the_command(rack: Rack, tmp_path: Path) -> None:
    done = rack.lab("flash", "--place", "rack-1", LG_ENV=environment(tmp_path, command="fastboot usb 0"))
    assert re.search(r"error: fastboot cannot write sdcard.img: .*; check the cable or the network", said(done))
    assert rack.is_idle(1)


def test_a_board_that_loses_its_power_half_way(rack: Rack, tmp_path: Path) -> None:
    before = len(rack.console(1))
    process = rack.background("flash", "--place", "rack-1", LG_ENV=environment(tmp_path))
    deadline = time.monotonic() + LIMIT
    while "Starting download" not in rack.console(1)[before:]:
        assert time.monotonic() < deadline and process.poll() is None, rack.console(1)[before:]
        time.sleep(0.2)
    rack.switch(1, on=False)
    text = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1
    assert "error: U-Boot did not come back from 'fastboot udp'" in text and "Traceback" not in text, text
    assert rack.is_idle(1)


def test_a_medium_that_u_boot_does_not_know(rack: Rack, tmp_path: Path) -> None:
    done = rack.lab("flash", "--place", "rack-1", LG_ENV=environment(tmp_path, partition="mmc7"))
    assert re.search(r"error: fastboot cannot write sdcard.img: it failed \(.*\)", said(done))
    assert rack.is_idle(1)


def test_the_exporter_says_where_fastboot_is(rack: Rack) -> None:
    resources = rack.client("resources")
    assert "rack/rack-1/RemoteAndroidNetFastboot" in resources or "rack-1/AndroidNetFastboot" in resources
    assert json.loads((rack.folder / "rack.json").read_text())["places"][0]["board"] == BOARD
