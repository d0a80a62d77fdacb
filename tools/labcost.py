# SPDX-License-Identifier: GPL-2.0-only
"""`make lab-cost N='1 2 4 8'`: what the lab adds to the suite.

The same tests run on N emulated boards at once, which start by U-Boot from the same disk: first bare (pytest starts the emulator itself),
then through `make rack` (labgrid's coordinator and exporter, a serial port over TCP, a power switch over HTTP). Counted is processor
time, of all processes of either way, and the time on the clock, which says more of how busy this machine is; what counts are the ratios.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tools import rack, rackboard
from tools.common import OUTPUT, ROOT, UserError, display, end_groups, entry, run, say, write_whole
from tools.environment import child_environment, lab_environment
from tools.regression import read_report

FOLDER = OUTPUT / "lab-cost"
BOARD = "board"
# Tests which need nothing that the lab's environment of this board lacks, and which end within a minute or two
TESTS = ("tests/board/test_dax.py", "tests/board/test_ext4.py", "tests/board/test_pmem.py")
# For all boards together, in seconds
LIMIT = 3600


@dataclass(frozen=True)
class Cost:
    """Of N boards: processor time and time on the clock, both in seconds, and how many tests passed on each."""

    processor: float
    clock: float
    passed: tuple[int, ...]


def passed(report: Path) -> int:
    outcomes = Counter(one.outcome for one in read_report(report).values())
    if outcomes["failed"]:
        raise UserError(f"{outcomes['failed']} tests failed: see {display(report)}, nothing was measured")
    return outcomes["passed"]


def together(commands: Sequence[list[str]], logs: Path, environ: dict[str, str]) -> tuple[float, float]:
    """Runs all at once; processor time, with that of all which they started and waited for, and time on the clock."""
    start = time.monotonic()
    running: dict[int, tuple[subprocess.Popen[bytes], Path]] = {}
    processor = 0.0
    try:
        for number, command in enumerate(commands, 1):
            with (logs / f"{number}.log").open("wb") as log:
                one = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            running[one.pid] = one, logs / f"{number}.log"
        while running:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                if time.monotonic() - start > LIMIT:
                    raise UserError(f"no end after {LIMIT} s: see {display(logs)}")
                time.sleep(0.1)
            elif pid in running:
                one, log_file = running.pop(pid)
                one.returncode = os.waitstatus_to_exitcode(status)
                processor += usage.ru_utime + usage.ru_stime
                if status:
                    raise UserError(f"a run failed, so nothing was measured: see {display(log_file)}")
    finally:
        end_groups(one for one, _ in running.values())
    return processor, time.monotonic() - start


def tree_time(root: int) -> float:
    """Processor time of a process and all below it, ended ones included."""
    total = 0.0
    top = psutil.Process(root)
    for one in [top, *top.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def bare_environment(folder: Path) -> Path:
    """The rack's machine and the lab's board in one environment, without anything between them."""
    emulator = rack.kinds()[BOARD]
    content, lab = rack.read_environment(emulator), rack.read_environment(ROOT / "labgrid" / f"{BOARD}.yaml")
    main, board = content["targets"]["main"], lab["targets"]["main"]
    main["drivers"] |= {name: board["drivers"][name] for name in ("BoardShellDriver", "BoardStrategy")}
    main["features"] = board["features"]
    content["imports"].append("../boardstrategy.py")
    path = folder / "bare.yaml"
    rack.write_environment(content, emulator, path)
    return path


def bare(count: int, tests: Sequence[str], folder: Path) -> Cost:
    environment = bare_environment(folder)
    images = rack.image_folder(BOARD)
    commands, reports = [], []
    for number in range(1, count + 1):
        own = folder / f"bare-{number}"
        own.mkdir()
        run(["cp", "--sparse=always", images / "sdcard.img", own / "blank"], what="the copy of a disk", timeout=60)
        reports.append(own / "junit.xml")
        variables = {"LG_BUILDDIR": images, "LG_RACK_FIRMWARE": rack.firmware_of(BOARD), **rackboard.variables(own)}
        commands.append(
            ["env", *(f"{key}={value}" for key, value in variables.items()), sys.executable, "-m", "pytest"]
            + ["--lg-env", str(environment), *tests, f"--junitxml={reports[-1]}"]
        )
    processor, clock = together(commands, folder, lab_environment())
    return Cost(processor, clock, tuple(map(passed, reports)))


def through_rack(count: int, tests: Sequence[str], folder: Path) -> Cost:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    scale = {name: value for name, value in lab_environment().items() if name == "LG_TIMEOUT_SCALE"}
    environ = child_environment(LG_COORDINATOR=address, **scale)
    own = folder / "rack"
    own.mkdir(exist_ok=True)
    rack.start(own, [BOARD] * count, address, None)
    try:
        lab = [sys.executable, "-m", "tools.lab"]
        places = [f"rack-{number}" for number in range(1, count + 1)]
        together([[*lab, "flash", "--place", place] for place in places], folder, environ)
        supervisor = rack.running(own)
        assert supervisor is not None
        reports = [folder / f"{place}.xml" for place in places]
        before = tree_time(supervisor)
        processor, clock = together(
            [
                [*lab, "test", "--place", place, *tests, "--", f"--junitxml={report}"]
                for place, report in zip(places, reports, strict=True)
            ],
            folder,
            environ,
        )
        return Cost(processor + tree_time(supervisor) - before, clock, tuple(map(passed, reports)))
    finally:
        rack.stop(own)


def measure(counts: Sequence[int], tests: Sequence[str]) -> str:
    """A row for each number of boards."""
    rows = ["boards  tests on each  processor, bare  through the rack  ratio  clock, ratio"]
    say(rows[0])
    FOLDER.mkdir(parents=True, exist_ok=True)
    for count in counts:
        with tempfile.TemporaryDirectory(prefix=f"{count}-", dir=FOLDER) as name:
            one, other = bare(count, tests, Path(name)), through_rack(count, tests, Path(name))
        if len({*one.passed, *other.passed}) != 1:
            raise UserError(f"not the same tests ran: {one.passed} passed bare, {other.passed} through the rack")
        rows.append(
            f"{count:6}  {one.passed[0]:13}  {one.processor / count:13.1f} s  {other.processor / count:14.1f} s  "
            f"{other.processor / one.processor:5.2f}  {other.clock / one.clock:12.2f}"
        )
        say(rows[-1])
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.labcost", description=__doc__)
    parser.add_argument("--count", default="", help="numbers of boards (1 2 4 8)")
    parser.add_argument("tests", nargs="*", help="pytest's, instead of some of tests/board")
    options = parser.parse_args()
    words = (options.count or "1 2 4 8").split()
    if not all(re.fullmatch(r"[1-9]\d?", word) for word in words):
        raise UserError(f"N='{options.count}' is no list of numbers of boards from 1 to 99")
    if rack.missing(BOARD):
        raise UserError("the rack needs the Buildroot image of `board`: `make board_defconfig && make IMAGE=buildroot`")
    text = measure([int(word) for word in words], options.tests or TESTS)
    write_whole(FOLDER / "cost.txt", text)
    return 0


if __name__ == "__main__":
    entry(main)
