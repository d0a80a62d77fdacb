# SPDX-License-Identifier: GPL-2.0-only
"""`make lab-cost`: it measures nothing where something failed, or where not the same ran."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools import common, labcost
from tools.common import UserError


def write(path: Path, *outcomes: str) -> Path:
    cases = "".join(f'<testcase classname="a" name="{number}">{one}</testcase>' for number, one in enumerate(outcomes))
    path.write_text(f'<testsuites><testsuite name="x">{cases}</testsuite></testsuites>')
    return path


def test_what_passed_is_counted(tmp_path: Path) -> None:
    report = write(tmp_path / "junit.xml", "", "", "<skipped/>")
    assert labcost.passed(report) == 2


def test_a_run_with_failures_is_no_measure(tmp_path: Path) -> None:
    report = write(tmp_path / "junit.xml", "", "<failure/>", "<skipped/>")
    with pytest.raises(UserError, match="1 tests failed: .* nothing was measured"):
        labcost.passed(report)


def test_time_is_that_of_all_which_a_run_started(tmp_path: Path) -> None:
    """A program whose child works for a second: that child's time is counted, too."""
    work = "import time\nwhile time.process_time() < 1: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}], check=True)"
    processor, clock = labcost.together([[sys.executable, "-c", parent]] * 2, tmp_path, dict(os.environ))
    assert 2 <= processor < 4 and clock >= 1


def test_a_run_that_fails_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run failed, so nothing was measured: see .*2.log"):
        labcost.together([["sleep", "600"], ["false"]], tmp_path, dict(os.environ))


@pytest.mark.timeout(60)
def test_a_run_that_is_deaf_to_ctrl_c_is_ended_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As all are in the background of a shell."""
    monkeypatch.setattr(common, "END_LIMIT", 1)
    deaf = ["env", "--ignore-signal=INT", "sleep", "600"]
    with pytest.raises(UserError, match="a run failed"):
        labcost.together([deaf, ["false"]], tmp_path, dict(os.environ))


def test_other_tests_on_the_other_side_are_no_measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(labcost, "FOLDER", tmp_path)
    monkeypatch.setattr(labcost, "bare", lambda *_: labcost.Cost(10, 10, (7,)))
    monkeypatch.setattr(labcost, "through_rack", lambda *_: labcost.Cost(10, 10, (6,)))
    with pytest.raises(UserError, match=r"not the same tests ran: \(7,\) passed bare, \(6,\) through the rack"):
        labcost.measure([1], [])


def test_numbers_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["labcost", "--count", "1 many"])
    with pytest.raises(UserError, match="N='1 many' is no list of numbers of boards"):
        labcost.main()
