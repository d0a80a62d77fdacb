# SPDX-License-Identifier: GPL-2.0-only
"""Each point of daxprobe is a test of its own, and a run of its own: the kernel log belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from boardlib import scaled
from boardtools import HUGE_EXTENTS, Point, Region, Shell, Volumes, daxprobe_points

POINTS = daxprobe_points(Path(__file__).resolve().parents[1] / "daxprobe" / "points.def")
# How long the program, and then the shell, waits for one point: so the program says itself where it hangs.
POINT_LIMIT_S, RUN_LIMIT_S = 40, 60
# So many names fit into a command, and end within the limit of a run.
AT_ONCE = 8
# What each kind of file system offers the points; xfs is not told where to put its extents.
# ext2 lets a truncate go on while pages are in use, on all kernels, and its times are in whole seconds.
NOT_ON_EXT2 = {"direct_is_noticed", *(point.name for point in POINTS if point.group == "pins")}
OFFERED = {"ext2": {"DAX", "NODAX"}, "xfs": {"DAX", "NODAX", "EXTENTS"}}
NEEDS_DISK = {"NODAX", "HUGE"}
PAGES_GROUPS = list(dict.fromkeys(point.group for point in POINTS if point.memory == "PAGES" and point.needs != "HUGE"))


def as_test(point: Point):  # type: ignore[no-untyped-def]
    marks = [pytest.mark.series]
    if point.needs == "VOLATILE":
        marks.append(pytest.mark.lg_feature("two-regions"))
    if point.memory != "ANY":
        marks.append(pytest.mark.lg_feature("struct-pages" if point.memory == "PAGES" else "page-less"))
    return pytest.param(point, id=f"{point.group}-{point.name}", marks=marks)


def run_points(sh: Shell, folder: str, disk: str, names: list[str], limit: float = RUN_LIMIT_S) -> None:
    command = f"daxprobe --limit {round(scaled(POINT_LIMIT_S))} --dir {folder}"
    if disk:
        command += f" --no-dax-dir {disk}"
    wrong = []
    for start in range(0, len(names), AT_ONCE):
        chosen = names[start : start + AT_ONCE]
        status, out = sh.run(f"{command} {' '.join(chosen)}", timeout=limit)
        missing = [name for number, name in enumerate(chosen, 1) if f"\nok {number} - {name}" not in out]
        if status or missing:
            wrong.append(out)
    assert not wrong, "these points do not hold:\n" + "\n".join(wrong)


@pytest.mark.lg_feature("dax")
@pytest.mark.parametrize("point", [as_test(point) for point in POINTS])
def test_point(sh: Shell, volumes: Volumes, request: pytest.FixtureRequest, pmem: Region, point: Point) -> None:
    region = request.getfixturevalue("volatile_pmem") if point.needs == "VOLATILE" else pmem
    mkfs = ""
    if point.needs == "HUGE":
        request.getfixturevalue("dax_2mib")
        mkfs = HUGE_EXTENTS
    folder = volumes.get("ext4", region.device, "dax=always", mkfs)
    disk = request.getfixturevalue("nodax_dir") if point.needs in NEEDS_DISK else ""
    run_points(sh, folder, disk, [point.name])


@pytest.mark.lg_feature("dax")
@pytest.mark.parametrize("kind", ["ext2", "xfs"])
@pytest.mark.series
@pytest.mark.usefixtures("kind_with_dax")
def test_the_coherency_points_hold_on(sh: Shell, volumes: Volumes, pmem: Region, kind: str) -> None:
    folder = volumes.get(kind, pmem.device, "dax")
    names = [point.name for point in POINTS if point.group == "coherency" and point.needs == "DAX"]
    run_points(sh, folder, "", names)


@pytest.mark.lg_feature(["dax", "struct-pages"])
@pytest.mark.parametrize("kind", ["ext2", "xfs"])
@pytest.mark.parametrize("group", PAGES_GROUPS)
@pytest.mark.series
@pytest.mark.usefixtures("kind_with_dax")
def test_the_points_of_pages_hold_on(
    sh: Shell, volumes: Volumes, pmem: Region, nodax_dir: str, kind: str, group: str
) -> None:
    names = [
        point.name
        for point in POINTS
        if point.group == group and point.memory != "PAGELESS" and point.needs in OFFERED[kind]
    ]
    if kind == "ext2":
        names = [name for name in names if name not in NOT_ON_EXT2]
    if not names:
        pytest.skip(f"{kind} holds none of these points")
    run_points(sh, volumes.get(kind, pmem.device, "dax"), nodax_dir, names)


def test_the_program_knows_the_points_that_are_declared(sh: Shell) -> None:
    assert set(sh("daxprobe --list").split()) >= {point.name for point in POINTS}
