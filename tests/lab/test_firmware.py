# SPDX-License-Identifier: GPL-2.0-only
"""A U-Boot that is not ours: Debian's, which knows no board_id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from racks import ROOT, Rack, needs_lab_deps, needs_u_boot, running, said

FIRMWARE = Path("/usr/lib/u-boot/qemu_arm/u-boot.bin")

pytestmark = [
    pytest.mark.timeout(600),
    needs_u_boot,
    needs_lab_deps("U-Boot of Debian's", FIRMWARE.exists()),
]


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with running(tmp_path_factory.mktemp("rack"), 1, "board", "--firmware", str(FIRMWARE)) as one:
        yield one


def test_a_board_whose_device_tree_says_that_it_is_another_is_not_written(rack: Rack, tmp_path: Path) -> None:
    from tools.rack import read_environment, write_environment

    source = ROOT / "labgrid/board.yaml"
    content = read_environment(source)
    content["targets"]["main"]["drivers"]["UBootFlashDriver"]["compatible"] = "vendor,other"
    file = tmp_path / "board.yaml"
    write_environment(content, source, file)
    done = rack.lab("flash", "--place", "rack-1", LG_ENV=str(file))
    assert re.search(
        "error: The board has no board_id, and by its device tree it is 'linux,dummy-virt', and not 'vendor,other'",
        said(done),
    )
    assert "virtio write" not in rack.console(1)
    assert rack.is_idle(1)


def test_it_flashes_and_boots_the_board(rack: Rack) -> None:
    done = rack.lab("lab-test", "--tags", "board=board", "tests/board/test_network.py", "tests/board/test_pmem.py")
    assert done.returncode == 0, said(done)
    assert re.search(r"U-Boot 20\d\d\.\d\d\+dfsg", rack.console(1))
    assert rack.is_idle(1)


def test_a_firmware_that_is_not_there(tmp_path: Path) -> None:
    one = Rack(tmp_path, 1)
    done = one.rack("start", "--boards", "board", "--firmware", str(tmp_path / "nothing"))
    assert re.search(r"error: there is no firmware \S+/nothing: Debian's is in the package u-boot-qemu", said(done))
