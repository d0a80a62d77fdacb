# SPDX-License-Identifier: GPL-2.0-only
"""Time limits follow the machine: who is slow because others work gets more time, who hangs does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boardlib
import pytest
from test_front import front

PER_PROCESSOR = 8
SLEEPER_S = 1.5


@contextmanager
def load() -> Iterator[None]:
    """Programs that do nothing but work, many for each processor; they end by themselves, too."""
    work = "import time\nwhile time.monotonic() < {end}: pass"
    command = [sys.executable, "-c", work.format(end=time.monotonic() + 60)]
    number = round(PER_PROCESSOR * boardlib.usable_processors())
    programs = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait(timeout=20)


def left_after(limit: boardlib.Limit, seconds: float) -> float:
    time.sleep(seconds)
    return limit.left


def test_a_limit_gets_longer_when_the_load_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(boardlib.SCALE_VARIABLE, raising=False)
    limit = boardlib.Limit(2)
    with load():
        assert left_after(limit, 4) > 0
        assert boardlib.machine_clock().scale > PER_PROCESSOR / 2
        assert boardlib.scaled(1) > PER_PROCESSOR / 2


def test_it_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(boardlib.SCALE_VARIABLE, "0.5")
    limit = boardlib.Limit(1)
    assert limit.left <= 0.5
    assert left_after(limit, 0.6) == 0


def test_the_variable_overrides_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(boardlib.SCALE_VARIABLE, "2.5")
    assert boardlib.scaled(2) == 5
    assert boardlib.machine_clock().explain() == "2.5 (LG_TIMEOUT_SCALE)"


@pytest.mark.parametrize(("scale", "outcome"), [("3", "1 passed"), ("1", "1 failed")])
def test_the_limit_of_a_whole_test_follows_too(tmp_path: Path, scale: str, outcome: str) -> None:
    words = ["-o", "timeout=1", "tests/lab/test_limits.py::test_sleeper", f"--board-logs={tmp_path}"]
    done = front(*words, exported={"LG_TIMEOUT_SCALE": scale, "ARM_PMEM_SLEEPER": "yes"})
    assert outcome in done.stdout
    assert f"timeout scale: {scale} (LG_TIMEOUT_SCALE)\n" in done.stdout


def test_the_header_says_what_was_measured(tmp_path: Path) -> None:
    done = front("tests/lab/test_front.py::test_nothing", f"--board-logs={tmp_path}")
    assert "timeout scale: " in done.stdout and "(measured: " in done.stdout
    assert "LG_TIMEOUT_SCALE overrides" in done.stdout


def test_a_scale_that_makes_no_sense_is_refused_before_anything_starts() -> None:
    done = front("tests/lab/test_front.py::test_nothing", exported={"LG_TIMEOUT_SCALE": "fast"})
    assert done.returncode == 4
    assert "LG_TIMEOUT_SCALE='fast' is no factor: give a number above 0, such as 2.5." in done.stderr


def test_sleeper() -> None:
    """For the test above."""
    if "ARM_PMEM_SLEEPER" in os.environ:
        time.sleep(SLEEPER_S)
