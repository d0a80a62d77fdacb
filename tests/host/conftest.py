# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the tools' tests: none of them needs a board."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from toyline import ROOT, Line, make_line

from tools.environment import lab_environment

# What the tests start themselves (git, make, compilers) sees no more of the user's shell than what the tools start.
seen = lab_environment()
os.environ.clear()
os.environ.update(seen)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return make_line(tmp_path)


@pytest.fixture(scope="session")
def kernel_tree() -> Path:
    """The unpatched kernel, where its source is on this machine already."""
    for name in ("output/linux-6.1-unpatched", "output/linux-6.1"):
        tree = ROOT / name
        if (tree / "Kconfig").exists():
            return tree
    pytest.skip("no kernel source here: `make kernel` unpacks it")


@pytest.fixture(scope="session")
def daxprobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program which writes and probes on the boards, built for this machine."""
    folder = tmp_path_factory.mktemp("daxprobe")
    subprocess.run(["make", "-s", "-C", ROOT / "tests/daxprobe", f"O={folder}"], check=True, timeout=120)
    return folder / "daxprobe"
