# SPDX-License-Identifier: GPL-2.0-only
"""Machines for the tests of the lab itself: the real QEMU and the real labgrid, with programs of a few words as kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from labgrid.environment import Environment
from machines import OVERLAY, SILENT, MakeStrategy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An images folder with all that arm-pmem.yaml wants; the kernel is one that stays silent. Its parameter is a path."""
    folder: Path = tmp_path / getattr(request, "param", "images")
    folder.mkdir(parents=True)
    (folder / "zImage").write_bytes(SILENT)
    (folder / "rootfs.cpio.gz").write_bytes(b"nothing")
    source = tmp_path / "overlay.dtso"
    source.write_text(OVERLAY)
    dtc = ["dtc", "-q", "-@", "-I", "dts", "-O", "dtb", "-o", str(folder / "pmem.dtbo"), str(source)]
    subprocess.run(dtc, check=True, timeout=30)
    monkeypatch.setenv("LG_BUILDDIR", str(folder))
    return folder


@pytest.fixture
def board(images: Path, tmp_path: Path) -> Iterator[MakeStrategy]:
    """Makes the strategy of arm-pmem.yaml, with other settings: board(driver={...}, shell={...}, images={...})."""
    environments: list[Environment] = []

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!template", lambda loader, node: node.value.replace("$LG_BUILDDIR", str(images)))

    def make(
        driver: dict[str, Any] | None = None,
        shell: dict[str, Any] | None = None,
        images: dict[str, str] | None = None,
        qemu: str = "",
    ) -> Any:
        import boardstrategy  # noqa: F401
        import pmemqemu  # noqa: F401

        data = yaml.load((ROOT / "arm-pmem.yaml").read_text(), Loader)  # noqa: S506
        # They are loaded above: labgrid lets nobody load a driver twice.
        del data["imports"]
        drivers = data["targets"]["main"]["drivers"]
        drivers["PmemQEMUDriver"].update(driver or {})
        drivers["BoardShellDriver"].update(shell or {})
        data["images"].update(images or {})
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
