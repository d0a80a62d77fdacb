# SPDX-License-Identifier: GPL-2.0-only
"""What is on record of a run, and what the report makes of it: never more than what ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools import report, runs
from tools.common import UserError

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.board.test_dax.TestOn" name="test_a[ext4]"/>
<testcase classname="tests.board.test_dax.TestOn" name="test_b"><failure message="no &lt;b&gt;dax&lt;/b&gt;"/></testcase>
<testcase classname="tests.board.test_dm" name="test_c"><skipped message="no crypt"/></testcase>
</testsuite></testsuites>"""
LOG = """[    0.000000] Linux version 6.1.192-arm-pmem (a@b) #1 SMP
[    0.000000] CPU: ARMv7 Processor [414fc0f0] revision 0 (ARMv7), cr=30c5387d
[    0.000000] CPU: PIPT / VIPT nonaliasing data cache, PIPT instruction cache
[    0.000000] OF: fdt: Machine model: linux,dummy-virt"""


def a_run(output: Path, name: str, junit: str = JUNIT, **facts: Any) -> Path:
    logs = output / "board/logs" / name
    (logs / "kernel").mkdir(parents=True)
    (logs / "kernel/test_dax.py_TestOn_test_b.log").write_text("the kernel's words\n")
    (logs / "junit.xml").write_text(junit)
    manifest = {
        "board": "board",
        "image": "minimal",
        "kernel": {"line": "6.1", "release": "6.1.192", "variants": ["debug"]},
        "series": {"name": "6.1", "sha256": "cafe", "patches": ["a", "b"], "edits": ""},
    }
    known = {
        "started": f"2026-01-{name}",
        "status": 1,
        "selection": [],
        "place": "",
        "tags": "",
        "junit": str(logs / "junit.xml"),
        "manifest": manifest,
        "target": runs.target_facts(LOG),
    }
    runs.record(logs, **{**known, **facts})
    return logs


def test_the_facts_of_a_target() -> None:
    assert runs.target_facts(LOG) == {
        "release": "6.1.192-arm-pmem",
        "cpu": "ARMv7 Processor [414fc0f0] revision 0 (ARMv7)",
        "caches": "PIPT / VIPT nonaliasing data cache, PIPT instruction cache",
        "machine": "linux,dummy-virt",
    }
    assert runs.target_facts("nothing of use") == {}


def test_a_page_and_a_text(tmp_path: Path) -> None:
    a_run(tmp_path, "01")
    assert report.make(tmp_path, tmp_path / "report") == 1
    page = (tmp_path / "report/index.html").read_text()
    assert "6.1.192-arm-pmem" in page and "1/1/0" in page and "0/0/1" in page
    # What a test says is text, and no part of the page.
    assert "<b>dax</b>" not in page and "no &lt;b&gt;dax" in page
    assert "the kernel&#39;s words" in page
    text = (tmp_path / "report/tested-by.txt").read_text()
    for line in (
        "QEMU: emulated, no caches",
        "Caches:   PIPT / VIPT nonaliasing data cache, PIPT instruction cache",
        "Series:   6.1, 2 patches, sha256 of their hashes cafe",
        "Tests:    1 passed, 1 failed, 1 skipped",
        "  skipped 1: no crypt",
        "  failed test_dax.TestOn::test_b: no",
    ):
        assert line in text, text


def test_a_whole_run_speaks_for_its_lane_and_a_part_is_called_one(tmp_path: Path) -> None:
    a_run(tmp_path, "01")
    a_run(tmp_path, "02", selection=["tests/board/test_dm.py"])
    found = runs.newest(runs.find(tmp_path))
    assert [run.facts["started"] for run in found.values()] == ["2026-01-01"]
    assert next(iter(found.values())).whole
    other = tmp_path / "other"
    a_run(other, "02", selection=["tests/board/test_dm.py"])
    report.make(other, tmp_path / "report")
    assert "not whole: tests/board/test_dm.py" in (tmp_path / "report/tested-by.txt").read_text()
    assert "<b>not whole</b>" in (tmp_path / "report/index.html").read_text()


def test_a_run_that_did_not_end_is_none(tmp_path: Path) -> None:
    a_run(tmp_path, "01", status=None)
    assert runs.find(tmp_path) == []
    with pytest.raises(UserError, match="nothing has run yet"):
        report.make(tmp_path, tmp_path / "report")


def test_a_run_that_was_interrupted_is_not_whole(tmp_path: Path) -> None:
    a_run(tmp_path, "01", status=2)
    assert not runs.find(tmp_path)[0].whole


def test_a_place_in_a_lab_is_another_lane_and_hardware_unless_its_tags_say_otherwise(tmp_path: Path) -> None:
    a_run(tmp_path, "01")
    a_run(tmp_path, "02", place="rack-1", tags="board=board emulated=yes")
    a_run(tmp_path, "03", place="bench-1", tags="board=board")
    found = runs.find(tmp_path)
    assert [run.emulated for run in found] == [True, True, False]
    assert len(runs.newest(found)) == 2


def test_facts_are_added_and_none_is_lost(tmp_path: Path) -> None:
    runs.record(tmp_path, one=1)
    runs.record(tmp_path, two=2)
    assert json.loads((tmp_path / runs.NAME).read_text()) == {"one": 1, "two": 2}


def test_the_gate_of_the_series_is_in_the_page_without_what_was_found_with_other_patches(tmp_path: Path) -> None:
    from tools.series import Outcome, Results, state_key
    from tools.source import series

    line = series("6.1")
    name, second = (patch.name for patch in line.patches[:2])
    results = Results(tmp_path / "series/6.1/results.json")
    results.put(name, "arm", state_key(line, 1), Outcome("passed", "1 of 1 objects"))
    results.put(name, "boot", state_key(line, 1), Outcome("failed", "no prompt"))
    results.put(second, "arm", "an older state", Outcome("passed", "before it was changed"))
    results.put("9999-gone.patch", "arm", state_key(line, 1), Outcome("passed", "before it was removed"))
    results.put("whole series", "corners", state_key(line, len(line.patches)), Outcome("passed", "DAX=n: all"))
    report.make(tmp_path, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert name in page and "no prompt" in page and second in page
    assert "corners passed" in page and "DAX=n: all" in page
    assert "1 results of an older state" in page
    assert "before it was" not in page and "9999-gone" not in page


def test_runs_of_the_same_second_have_their_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "2026-11-25-170000")
    made = [runs.new_folder(tmp_path / "logs", 20).name for _ in range(3)]
    assert made == ["2026-11-25-170000", "2026-11-25-170000.1", "2026-11-25-170000.2"]


def test_the_newest_runs_keep_their_logs(tmp_path: Path) -> None:
    for name in ("2025-01-01-000000", "2025-01-02-000000", "2025-01-03-000000", "mine"):
        (tmp_path / name).mkdir()
    new = runs.new_folder(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"2025-01-03-000000", "mine", new.name}
