# SPDX-License-Identifier: GPL-2.0-only
"""What is known of a run of the suite: run.json beside its logs, written while it goes on, read by the report."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.common import write_whole
from tools.regression import Result, read_report

NAME = "run.json"


def file_name(node: str) -> str:
    """Of the logs of a test, by its node id below tests/board."""
    return re.sub(r"[^\w.,=-]+", "_", node)


def new_folder(base: Path, keep: int) -> Path:
    """A folder of this moment's for the logs of a run; of those in `base` the newest `keep` stay."""
    stamp = time.strftime("%Y-%m-%d-%H%M%S")
    for number in itertools.count():
        logs = base / (f"{stamp}.{number}" if number else stamp)
        with suppress(FileExistsError):
            logs.mkdir(parents=True)
            break
    for path in sorted(path for path in base.glob("20*") if path.is_dir())[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    return logs


def record(logs: Path, **facts: Any) -> None:
    """Adds facts to what is known of the run with these logs."""
    path = logs / NAME
    known = json.loads(path.read_text()) if path.exists() else {}
    write_whole(path, json.dumps({**known, **facts}, indent=1) + "\n")


def target_facts(start_log: str) -> dict[str, str]:
    """Of the kernel's first words: its release, the CPU, the kind of its caches, the machine."""
    patterns = {
        "release": r"Linux version (\S+)",
        "cpu": r"CPU: (\S.* \[[0-9a-f]{8}\] revision \d+ \(\S+\))",
        "caches": r"CPU: (\S.* data cache.*)",
        "machine": r"Machine model: (.*)",
    }
    found = {name: re.search(pattern, start_log) for name, pattern in patterns.items()}
    return {name: match[1].strip() for name, match in found.items() if match}


@dataclass(frozen=True)
class Run:
    """One run of the board tests on one image."""

    logs: Path
    facts: dict[str, Any]
    results: dict[str, Result]

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = self.facts.get("manifest") or {}
        return found

    @property
    def board(self) -> str:
        return str(self.manifest.get("board", "?"))

    @property
    def kernel(self) -> str:
        return str(self.manifest.get("kernel", {}).get("line", "?"))

    @property
    def image(self) -> str:
        """The kind of image, with what is special in its kernel."""
        return " ".join([str(self.manifest.get("image", "?")), *self.manifest.get("kernel", {}).get("variants", [])])

    @property
    def through(self) -> str:
        """How the suite reached the board: an emulator of its own, or a place in a lab."""
        place = self.facts.get("place")
        return f"lab, place {place}" if place else str(self.facts.get("emulator") or "QEMU")

    @property
    def emulated(self) -> bool:
        """Whether the board was QEMU, so far as is known."""
        return not self.facts.get("place") or "emulated=yes" in str(self.facts.get("tags")).split()

    @property
    def lane(self) -> tuple[str, str, str, str]:
        return self.kernel, self.board, self.image, "lab" if self.facts.get("place") else "QEMU"

    @property
    def whole(self) -> bool:
        """Whether all board tests were asked for, and pytest came to its end."""
        return not self.facts.get("selection") and self.facts.get("status") in (0, 1)

    @property
    def series(self) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest.get("series", {})
        return found

    def count(self, outcome: str, area: str = "") -> int:
        return sum(one.outcome == outcome and area in ("", area_of(name)) for name, one in self.results.items())

    def log(self, kind: str, name: str) -> str:
        """The console's or the kernel's log of one test; '' where it has none."""
        module, _, test = name.partition("::")
        file, *classes = module.split(".")
        node = "::".join([f"{file}.py", *classes, test])
        path = self.logs / kind / f"{file_name(node)}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def area_of(name: str) -> str:
    """test_dax.TestOn::test_x is of the area dax, one of the suite's files."""
    return name.partition("::")[0].partition(".")[0].removeprefix("test_")


def read(logs: Path) -> Run | None:
    """The run with these logs; None when it has left no result."""
    facts = json.loads((logs / NAME).read_text())
    report = Path(facts.get("junit", ""))
    if not report.is_file() or facts.get("status") is None:
        return None
    return Run(logs, facts, read_report(report))


def find(output: Path) -> list[Run]:
    """All runs below output, the oldest first."""
    places = ("*/logs", "matrix/*/logs", "lab/*", "series/*/boot")
    folders = {path.parent.resolve() for place in places for path in output.glob(f"{place}/*/{NAME}")}
    runs = [run for run in map(read, folders) if run is not None and run.results]
    return sorted(runs, key=lambda run: str(run.facts.get("started", "")))


def newest(runs: list[Run]) -> dict[tuple[str, str, str, str], Run]:
    """The run that speaks for each lane: the last whole one, or else the last."""
    found: dict[tuple[str, str, str, str], Run] = {}
    for run in runs:
        known = found.get(run.lane)
        if known is None or run.whole or not known.whole:
            found[run.lane] = run
    return dict(sorted(found.items()))
