# SPDX-License-Identifier: GPL-2.0-only
"""The loads of `make soak` on a file system of this machine: they end well, and find what must not be."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest


def test_operations_on_a_file_end_well(daxprobe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [daxprobe, "--soak-file", tmp_path / "file", "2", "7"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "operations" in done.stdout


def test_a_byte_that_somebody_else_wrote_is_found(daxprobe: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    load = subprocess.Popen([daxprobe, "--soak-file", file, "30", "7"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 25
        while load.poll() is None and time.monotonic() < deadline:
            if file.exists() and (size := file.stat().st_size):
                with file.open("r+b") as stream:
                    stream.seek(size // 2)
                    stream.write(b"\xff\xfe\xfd")
            time.sleep(0.01)
        _, said = load.communicate(timeout=40)
    finally:
        load.kill()
    assert load.returncode == 1
    assert f"{file}, seed 7: " in said
    # What was done before, for whoever looks for the cause
    assert said.startswith("# ")


def test_operations_on_a_tree_end_well_and_it_does_not_grow_without_end(daxprobe: Path, tmp_path: Path) -> None:
    load = subprocess.Popen([daxprobe, "--soak-tree", tmp_path, "6", "843752909"])
    most = 0
    try:
        while load.poll() is None:
            most = max(most, sum(len(dirs) + len(files) for _, dirs, files in os.walk(tmp_path)))
            time.sleep(0.05)
        assert load.wait(timeout=20) == 0
    finally:
        load.kill()
    # Of the 2000 operations between two times that it is emptied, 5 of 7 may make a name
    assert 100 < most < 1500


@pytest.mark.parametrize("values", [["file"], ["file", "2"], ["file", "x", "7"], ["file", "2", "0"]])
def test_what_is_missing_is_said(daxprobe: Path, values: list[str]) -> None:
    done = subprocess.run([daxprobe, "--soak-file", *values], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert "wants a path, a number of seconds and a seed" in done.stderr
