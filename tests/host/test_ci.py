# SPDX-License-Identifier: GPL-2.0-only
"""What a continuous-integration machine runs: each step has an outcome with its costs, and no failure is lost."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from toyline import ROOT


def step(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".ci/step", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("command", "limit", "status", "outcome"),
    [
        ("true", "30", 0, "ok"),
        ("exit 3", "30", 3, "FAILED"),
        ("sleep 30", "1", 124, "FAILED (no end after 1 s)"),
    ],
    ids=["passes", "fails", "hangs"],
)
def test_a_step_says_how_it_ended(tmp_path: Path, command: str, limit: str, status: int, outcome: str) -> None:
    done = step(tmp_path, "name", limit, f"echo working; {command}")
    assert done.returncode == status
    assert "name: working\n" in done.stdout
    assert re.search(rf"(?m)^=== {re.escape(outcome)} after \d+ s: name$", done.stdout), done.stdout
    result = (tmp_path / "output/ci/name.result").read_text()
    assert re.fullmatch(rf"[\d.]+ [\d.]+ [\d.]+ {re.escape(outcome)}\n", result), result


def test_a_step_without_its_image_says_that_it_is_not_run(tmp_path: Path) -> None:
    done = step(tmp_path, "--buildroot", "rack", "30", "touch ran")
    assert done.returncode == 0
    assert done.stdout == "=== not run: rack, because Buildroot's tree cannot be reached from here\n"
    assert not (tmp_path / "ran").exists()


def test_a_steps_make_knows_nothing_of_the_one_around_it(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(f"all:\n\t+@{ROOT}/.ci/step inner 30 'env'\n")
    done = subprocess.run(
        ["make", "-j2", "-k", "A=b"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "inner: PATH=" in done.stdout
    assert not re.search(r"(?m)^inner: (MAKEFLAGS|MFLAGS|MAKELEVEL|MAKEOVERRIDES)=.", done.stdout)


def test_a_failed_step_ends_in_failure_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    for name in ("run", "step"):
        (tmp_path / ".ci" / name).write_bytes((ROOT / ".ci" / name).read_bytes())
        (tmp_path / ".ci" / name).chmod(0o755)
    report = '<testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="1">'
    (tmp_path / ".ci/steps.mk").write_text(
        "all: bad good after\ndeps:\n\t@.ci/step $@ 30 true\nbad:\n\t@.ci/step $@ 30 false\nafter: bad\n\t@.ci/step $@ 30 true\n"
        f"good:\n\t@.ci/step $@ 30 'mkdir output/test; echo '\\''{report}'\\'' >output/test/x.xml'\n"
    )
    done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert re.search(r"(?m)^bad +\d+ +\d+  FAILED$", done.stdout), done.stdout
    assert re.search(r"(?m)^good +\d+ +\d+  ok$", done.stdout), done.stdout
    assert re.search(r"(?m)^after +- +-  not begun, for a step before it failed$", done.stdout), done.stdout
    assert "=== after" not in done.stdout
    assert "\noutput/test/x.xml: 4 passed, 3 failed, 3 skipped\ntotal: 4 passed, 3 failed, 3 skipped\n" in done.stdout
    assert done.stdout.endswith("=== FAILED: see above\n")
