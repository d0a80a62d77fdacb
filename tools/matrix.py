# SPDX-License-Identifier: GPL-2.0-only
"""`make matrix`: every lane of tests/matrix.yaml (kernel line, board, variants) is built and tested, and the table says what ran.

The hosts of `make hosts-check` are lanes, too.

A lane that ran already, on the same images with the same tests, is not run again: a matrix that was stopped goes on where it
was. A lane that does not build, or does not pass, hides no other.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools import common, hosts
from tools.common import OUTPUT, ROOT, UserError, bounded, display, entry, say, sha256, write_whole
from tools.environment import lab_environment
from tools.regression import read_report

LANES = ROOT / "tests/matrix.yaml"
FOLDER = OUTPUT / "matrix"
# In seconds; a test run of a slow lane gets its scale times as much.
BUILD_LIMIT = 3600
TEST_LIMIT = 3600


@dataclass(frozen=True)
class Lane:
    kernel: str
    board: str
    variants: tuple[str, ...] = ()
    scale: float = 1

    @property
    def name(self) -> str:
        return "-".join([self.kernel, self.board, *self.variants])

    @property
    def out(self) -> Path:
        return FOLDER / self.name

    @property
    def environment(self) -> Path:
        return ROOT / ("arm-pmem.yaml" if self.board == "board" else f"labgrid/{self.board}-qemu.yaml")

    @property
    def key(self) -> str:
        """A hash of the images and of all that tests them."""
        files = json.loads((self.out / "images/manifest.json").read_text())["files"]
        tests = [self.environment, ROOT / "conftest.py"]
        for folder in ("tests/board", "labgrid"):
            tests += sorted((ROOT / folder).glob("*.py"))
        state = [f"{name} {facts['sha256']}" for name, facts in sorted(files.items())]
        return sha256("\n".join([*state, *(sha256(path) for path in tests)]).encode())


@dataclass(frozen=True)
class HostLane:
    host: hosts.Host

    @property
    def name(self) -> str:
        return f"host-{self.host.name}"

    @property
    def out(self) -> Path:
        return hosts.FOLDER / self.host.name

    @property
    def key(self) -> str:
        """A clone of this commit is what is built there."""
        return common.run(["git", "rev-parse", "HEAD"], cwd=ROOT, what="git").strip()


@dataclass(frozen=True)
class Result:
    # passed, failed, not built, no end, not run
    outcome: str
    # (area, outcome) -> number of tests
    counts: dict[tuple[str, str], int]
    seconds: float = 0
    key: str = ""


def lanes(file: Path = LANES) -> list[Lane]:
    content = yaml.safe_load(file.read_text())
    return [
        Lane(str(kernel), row["board"], tuple(row.get("variants", ())), float(row.get("scale", 1)))
        for kernel in content["kernels"]
        for row in content["lanes"]
    ]


def choose(pattern: str) -> list[Lane | HostLane]:
    """The lanes that a pattern matches, hosts last."""
    all_lanes: list[Lane | HostLane] = [*lanes(), *(HostLane(host) for host in hosts.HOSTS)]
    chosen = [lane for lane in all_lanes if fnmatch.fnmatch(lane.name, pattern)]
    if not chosen:
        raise UserError(f"no lane is named '{pattern}': there are {', '.join(lane.name for lane in all_lanes)}")
    return chosen


def follow(command: Sequence[str], log: Path, limit: float, **environment: str) -> int | None:
    """A command as `bounded` runs it, with its output in a log."""
    with log.open("w") as stream:
        return bounded(command, limit, env=lab_environment(**environment), output=stream)


def run(lane: Lane) -> Result:
    start = time.monotonic()
    lane.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tools.build", "kernel", "--out", str(lane.out), "--kernel", lane.kernel]
    command += ["--board", lane.board, "--variant", " ".join(lane.variants)]
    status = follow(command, lane.out / "build.log", BUILD_LIMIT)
    if status != 0:
        return Result("not built", {}, time.monotonic() - start)
    known = load(lane)
    if known and known.key == lane.key:
        say(f"{lane.name}: ran already on these images with these tests")
        return known
    report = lane.out / "junit.xml"
    report.unlink(missing_ok=True)
    status = follow(
        [sys.executable, "-m", "pytest", "--lg-env", str(lane.environment), "tests/board", f"--junitxml={report}"],
        lane.out / "test.log",
        TEST_LIMIT * lane.scale,
        LG_BUILDDIR=str(lane.out / "images"),
        # Elsewhere the machine is measured.
        **({"LG_TIMEOUT_SCALE": f"{lane.scale:g}"} if lane.scale != 1 else {}),
    )
    counts: Counter[tuple[str, str]] = Counter()
    if report.exists():
        for name, one in read_report(report).items():
            counts[name.partition("::")[0].removeprefix("test_").partition(".")[0], one.outcome] += 1
    outcome = "no end" if status is None else "passed" if status == 0 and counts else "failed"
    result = Result(outcome, dict(counts), time.monotonic() - start, lane.key)
    save(lane, result)
    return result


def run_host(lane: HostLane) -> Result:
    start = time.monotonic()
    known = load(lane)
    if known and known.outcome == "passed" and known.key == lane.key:
        say(f"{lane.name}: ran already on this commit")
        return known
    try:
        say(f"{lane.name}: {hosts.check(lane.host)}")
        outcome = "passed"
    except (hosts.NotRun, UserError) as reason:
        say(f"{lane.name}: {reason}")
        outcome = "not run" if isinstance(reason, hosts.NotRun) else "failed"
    result = Result(outcome, {}, time.monotonic() - start, lane.key)
    save(lane, result)
    return result


def save(lane: Lane | HostLane, result: Result) -> None:
    content = {
        "outcome": result.outcome,
        "counts": [[*place, number] for place, number in sorted(result.counts.items())],
        "seconds": round(result.seconds),
        "key": result.key,
    }
    write_whole(lane.out / "result.json", json.dumps(content, indent=1) + "\n")


def load(lane: Lane | HostLane) -> Result | None:
    path = lane.out / "result.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    counts = {(area, outcome): number for area, outcome, number in content["counts"]}
    return Result(content["outcome"], counts, content["seconds"], content["key"])


def table(results: dict[Lane | HostLane, Result | None]) -> str:
    """A row a lane: its outcome, and passed/failed/skipped tests by area."""
    areas = sorted({area for one in results.values() if one for area, _ in one.counts})
    rows = [["lane", "outcome", *areas]]
    for lane, one in results.items():
        cells = []
        for area in areas:
            numbers = [one.counts.get((area, kind), 0) if one else 0 for kind in ("passed", "failed", "skipped")]
            cells.append("/".join(map(str, numbers)) if any(numbers) else "-")
        rows.append([lane.name, one.outcome if one else "did not run", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def conclude(results: dict[Lane | HostLane, Result | None]) -> int:
    text = table(results)
    write_whole(FOLDER / "matrix.txt", f"{text}\n")
    say(f"\npassed/failed/skipped by area ({display(FOLDER / 'matrix.txt')}):\n{text}")
    not_run = [lane.name for lane, one in results.items() if one and one.outcome == "not run"]
    passed = [lane.name for lane, one in results.items() if one and one.outcome == "passed"]
    bad = [lane.name for lane in results if lane.name not in (*passed, *not_run)]
    say(
        f"{len(passed)} of {len(results)} lanes passed"
        + (f"; not {', '.join(bad)}" if bad else "")
        + (f"; not run: {', '.join(not_run)}" if not_run else "")
    )
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.matrix", description=__doc__)
    parser.add_argument("--lanes", default="*", help="a pattern of lanes, such as '6.12-*'")
    options = parser.parse_args()
    results: dict[Lane | HostLane, Result | None] = dict.fromkeys(choose(options.lanes or "*"))
    try:
        for number, lane in enumerate(results, 1):
            say(f"lane {number} of {len(results)}: {lane.name} (logs in {display(lane.out)})")
            results[lane] = one = run_host(lane) if isinstance(lane, HostLane) else run(lane)
            total: Counter[str] = Counter()
            for (_, outcome), count in one.counts.items():
                total[outcome] += count
            said = ", ".join(f"{total[kind]} {kind}" for kind in ("passed", "failed", "skipped") if total[kind])
            say(f"lane {number} of {len(results)}: {one.outcome}{f': {said}' if said else ''} ({one.seconds:.0f} s)")
    except KeyboardInterrupt:
        say("interrupted: the next `make matrix` goes on here")
        conclude(results)
        return 130
    return conclude(results)


if __name__ == "__main__":
    entry(main)
