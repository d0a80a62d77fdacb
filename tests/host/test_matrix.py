# SPDX-License-Identifier: GPL-2.0-only
"""`make matrix`: which lanes there are, what is run again, and what the table says of those that broke."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toyline import ROOT

from tools import hosts, matrix
from tools.boards import boards
from tools.common import UserError
from tools.matrix import HostLane, Lane, Result
from tools.source import kernel_lines, series

REPORT = """<testsuites><testsuite>
<testcase classname="tests.board.test_dax.TestOn" name="a"/>
<testcase classname="tests.board.test_dax.TestOn" name="b"><failure message="no"/></testcase>
<testcase classname="tests.board.test_dm" name="c"><skipped message="x"/></testcase>
</testsuite></testsuites>"""


def test_each_lane_is_of_a_kernel_a_board_and_an_environment_that_are_there() -> None:
    known = {one.name for one in boards()}
    for lane in matrix.lanes():
        assert lane.kernel in kernel_lines()
        assert lane.board in known
        assert lane.environment.is_file()
        assert all((ROOT / f"board/common/variants/{name}.config").is_file() for name in lane.variants)
    assert {lane.kernel for lane in matrix.lanes()} == {line for line in kernel_lines() if series(line).patches}


def test_a_pattern_chooses_lanes() -> None:
    assert {lane.name.partition("-")[0] for lane in matrix.choose("6.12-*")} == {"6.12"}
    with pytest.raises(UserError, match="no lane is named '5.*': there are 6.1-board, "):
        matrix.choose("5.*")


def test_the_hosts_are_lanes() -> None:
    assert [lane.name for lane in matrix.choose("host-*")] == [f"host-{host.name}" for host in hosts.HOSTS]
    assert [lane.name for lane in matrix.choose("*-debian-13")] == ["host-debian-13"]


def test_a_host_that_was_not_run_fails_no_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hosts, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.delenv("UBUNTU_MIRROR", raising=False)
    lane = HostLane(hosts.choose("ubuntu-24.04")[0])
    assert matrix.conclude({lane: matrix.run_host(lane)}) == 0
    printed = capsys.readouterr().out
    assert "host-ubuntu-24.04: name a mirror of Ubuntu with UBUNTU_MIRROR=<address>" in printed
    assert "0 of 1 lanes passed; not run: host-ubuntu-24.04" in printed


@pytest.fixture
def lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lane:
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    return Lane("6.1", "board", ("debug",))


def programs(lane: Lane, monkeypatch: pytest.MonkeyPatch, build: int | None, test: int | None) -> list[str]:
    """Stand-ins for make and pytest, which take minutes: they end as told. Returns the list of what was called."""
    called: list[str] = []

    def follow(command: Any, log: Path, limit: float, **environment: str) -> int | None:
        called.append(log.name)
        if log.name == "build.log":
            (lane.out / "images").mkdir(parents=True, exist_ok=True)
            (lane.out / "images/manifest.json").write_text(json.dumps({"files": {"zImage": {"sha256": "1"}}}))
            return build
        (lane.out / "junit.xml").write_text(REPORT)
        return test

    monkeypatch.setattr(matrix, "follow", follow)
    return called


def test_the_tests_are_counted_by_area(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(lane, monkeypatch, 0, 1)
    one = matrix.run(lane)
    assert one.outcome == "failed"
    assert one.counts == {("dax", "passed"): 1, ("dax", "failed"): 1, ("dm", "skipped"): 1}


def test_what_ran_is_not_run_again_until_the_images_change(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    called = programs(lane, monkeypatch, 0, 0)
    first = matrix.run(lane)
    assert matrix.run(lane).counts == first.counts
    assert called == ["build.log", "test.log", "build.log"]
    (lane.out / "result.json").write_text((lane.out / "result.json").read_text().replace(first.key, "other"))
    matrix.run(lane)
    assert called[-1] == "test.log"


@pytest.mark.parametrize(
    ("build", "test", "outcome"), [(1, 0, "not built"), (None, 0, "not built"), (0, None, "no end")]
)
def test_a_lane_that_breaks_has_a_name_for_it(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, build: int | None, test: int | None, outcome: str
) -> None:
    programs(lane, monkeypatch, build, test)
    assert matrix.run(lane).outcome == outcome


def test_the_table_says_what_ran_and_what_did_not(lane: Lane, capsys: pytest.CaptureFixture[str]) -> None:
    results: dict[Lane | HostLane, Result | None] = {
        lane: Result("passed", {("dax", "passed"): 2, ("dax", "skipped"): 1}),
        Lane("6.12", "raspi0"): Result("not built", {}),
        Lane("6.12", "board"): None,
    }
    assert matrix.conclude(results) == 1
    said = capsys.readouterr().out
    assert "6.1-board-debug  passed       2/0/1" in said
    assert "6.12-raspi0      not built    -" in said
    assert "6.12-board       did not run  -" in said
    assert "1 of 3 lanes passed; not 6.12-raspi0, 6.12-board" in said


def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    status = matrix.follow(["sh", "-c", "echo begun; sleep 60"], tmp_path / "log", 0.5)
    assert status is None
    assert (tmp_path / "log").read_text() == "begun\n"
