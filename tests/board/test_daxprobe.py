# SPDX-License-Identifier: GPL-2.0-only
"""Each point of daxprobe is a test of its own, and a run of its own: the kernel log belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from boardlib import scaled
from boardtools import Point, Region, Shell, Volumes, daxprobe_points

POINTS = daxprobe_points(Path(__file__).resolve().parents[1] / "daxprobe" / "points.def")


def as_test(point: Point):  # type: ignore[no-untyped-def]
    marks = [pytest.mark.series]
    if point.needs == "VOLATILE":
        marks.append(pytest.mark.lg_feature("two-regions"))
    return pytest.param(point, id=f"{point.group}-{point.name}", marks=marks)


@pytest.mark.lg_feature("dax")
@pytest.mark.parametrize("point", [as_test(point) for point in POINTS])
def test_point(sh: Shell, volumes: Volumes, request: pytest.FixtureRequest, pmem: Region, point: Point) -> None:
    region = request.getfixturevalue("volatile_pmem") if point.needs == "VOLATILE" else pmem
    folder = volumes.get("ext4", region.device, "dax=always")
    # Less than the shell waits for it: the program then says itself where it hangs.
    command = f"daxprobe --limit {round(scaled(40))} --dir {folder}"
    if point.needs == "NODAX":
        command += f" --no-dax-dir {request.getfixturevalue('nodax_dir')}"
    status, out = sh.run(f"{command} {point.name}", timeout=60)
    assert status == 0, f"{point.text}: not so\n{out}"
    assert f"ok 1 - {point.name}" in out


@pytest.mark.lg_feature("dax")
@pytest.mark.parametrize("kind", ["ext2", "xfs"])
@pytest.mark.series
def test_the_coherency_points_hold_on(sh: Shell, volumes: Volumes, pmem: Region, kind: str) -> None:
    folder = volumes.get(kind, pmem.device, "dax")
    names = [one.name for one in POINTS if one.group == "coherency" and one.needs == "DAX"]
    status, out = sh.run(f"daxprobe --dir {folder} {' '.join(names)}", timeout=120)
    assert status == 0, out
    assert f"1..{len(names)}" in out


def test_the_program_knows_the_points_that_are_declared(sh: Shell) -> None:
    assert set(sh("daxprobe --list").split()) >= {point.name for point in POINTS}
