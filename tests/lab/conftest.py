# SPDX-License-Identifier: GPL-2.0-only
"""Machines for the tests of the lab itself: the real QEMU and the real labgrid, with programs of a few words as kernel."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from labgrid import Environment

ROOT = Path(__file__).resolve().parents[2]

OVERLAY = """
/dts-v1/; /plugin/;
/ { fragment@0 { target-path = "/"; __overlay__ {
    #address-cells = <2>; #size-cells = <2>;
    pmem@60000000 { compatible = "pmem-region"; reg = <0 0x60000000 0 0x100000>; };
    pmem@61000000 { compatible = "pmem-region"; reg = <0 0x61000000 0 0x100000>; volatile; };
}; }; };
"""

# ARM code: b .
SILENT = struct.pack("<I", 0xEAFFFFFE)
# The same after a power-off call to PSCI: movw r0, #8; movt r0, #0x8400; hvc #0
POWER_OFF = struct.pack("<4I", 0xE3000008, 0xE3480400, 0xE1400070, 0xEAFFFFFE)


def talker(text: str, then: bytes = SILENT) -> bytes:
    """A program which sends text to the serial port at 0x09000000, and goes on with other code."""
    code = [
        0xE3A00409,  # mov   r0, #0x09000000
        0xE28F1010 + len(then),  # add   r1, pc, #…   (the text, behind all code)
        0xE4D12001,  # ldrb  r2, [r1], #1
        0xE3520000,  # cmp   r2, #0
        0x0A000001,  # beq   then
        0xE5802000,  # str   r2, [r0]
        0xEAFFFFFA,  # b     back to ldrb
    ]
    return struct.pack("<7I", *code) + then + text.encode() + b"\0"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An images folder with all that arm-pmem.yaml wants; the kernel is one that stays silent."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "zImage").write_bytes(SILENT)
    (folder / "rootfs.cpio.gz").write_bytes(b"nothing")
    source = tmp_path / "overlay.dtso"
    source.write_text(OVERLAY)
    dtc = ["dtc", "-q", "-@", "-I", "dts", "-O", "dtb", "-o", str(folder / "pmem.dtbo"), str(source)]
    subprocess.run(dtc, check=True, timeout=30)
    monkeypatch.setenv("LG_BUILDDIR", str(folder))
    return folder


MakeStrategy = Callable[..., Any]


@pytest.fixture
def board(images: Path, tmp_path: Path) -> Iterator[MakeStrategy]:
    """Makes the strategy of arm-pmem.yaml, with other settings of its drivers: board(driver={...}, shell={...})."""
    environments = []

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!template", lambda loader, node: node.value.replace("$LG_BUILDDIR", str(images)))

    def make(driver: dict[str, Any] | None = None, shell: dict[str, Any] | None = None, qemu: str = "") -> Any:
        import boardstrategy  # noqa: F401
        import pmemqemu  # noqa: F401

        data = yaml.load((ROOT / "arm-pmem.yaml").read_text(), Loader)  # noqa: S506
        # They are loaded above: labgrid lets nobody load a driver twice.
        del data["imports"]
        drivers = data["targets"]["main"]["drivers"]
        drivers["PmemQEMUDriver"].update(driver or {})
        drivers["BoardShellDriver"].update(shell or {})
        if qemu:
            data["tools"]["qemu"] = qemu
        path = tmp_path / f"env{len(environments)}.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        env = Environment(str(path))
        environments.append(env)
        target = env.get_target()
        assert target
        return target.get_driver("Strategy")

    yield make
    for env in environments:
        env.cleanup()
