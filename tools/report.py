# SPDX-License-Identifier: GPL-2.0-only
"""`make report`: one page on all that ran (output/report/index.html), and tested-by.txt, which can be mailed as it is.

It reads what the runs left behind (run.json, JUnit, logs of each test, the series gate's results), and says no more than that.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tools import runs
from tools.common import OUTPUT, UserError, display, entry, say, write_whole
from tools.runs import Run, area_of
from tools.source import kernel_lines, series

FOLDER = OUTPUT / "report"
TEMPLATES = Path(__file__).parent
# Of the logs of a test that passed, so many lines
LINES = 30


@dataclass(frozen=True)
class Numbers:
    passed: int
    failed: int
    skipped: int

    @property
    def total(self) -> int:
        return self.passed + self.failed + self.skipped

    @property
    def kind(self) -> str:
        return "failed" if self.failed else "passed" if self.passed else "skipped"


def counts(run: Run, area: str) -> Numbers:
    return Numbers(*(run.count(outcome, area) for outcome in ("passed", "failed", "skipped")))


def reasons(run: Run, outcome: str) -> list[tuple[str, int]]:
    """Why tests had this outcome, the most frequent reason first."""
    found = Counter(one.reason or "(no reason given)" for one in run.results.values() if one.outcome == outcome)
    return found.most_common()


def log(run: Run, kind: str, name: str, outcome: str) -> str:
    lines = run.log(kind, name).splitlines()
    if outcome == "failed" or len(lines) <= LINES:
        return "\n".join(lines)
    return "\n".join([f"… {len(lines) - LINES} lines before", *lines[-LINES:]])


def render(name: str, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**content)


def make(output: Path, folder: Path) -> int:
    """Writes both files; the number of lanes with a failure."""
    lanes = list(runs.newest(runs.find(output)).values())
    gates = read_gates(output)
    if not lanes and not gates:
        raise UserError(f"nothing has run yet below {display(output)}: `make test` or `make matrix` first")
    areas = sorted({area_of(name) for run in lanes for name in run.results})
    page = render(
        "report.html.j2",
        made=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        lanes=lanes,
        areas=areas,
        gates=gates,
        counts=counts,
        area_of=area_of,
        log=log,
    )
    write_whole(folder / "index.html", page)
    write_whole(folder / "tested-by.txt", tested_by(lanes))
    for run in lanes:
        whole = "" if run.whole else ", not whole"
        say(
            f"  {' '.join(run.lane)}: {run.count('passed')} passed, {run.count('failed')} failed, "
            f"{run.count('skipped')} skipped ({run.facts['started']}{whole})"
        )
    say(f"{display(folder / 'index.html')} and {display(folder / 'tested-by.txt')}: {len(lanes)} lanes")
    return sum(run.count("failed") > 0 for run in lanes)


def tested_by(lanes: list[Run]) -> str:
    return render("tested-by.txt.j2", lanes=lanes, reasons=reasons)


def read_gates(output: Path) -> list[dict[str, Any]]:
    """The series gate's results of each kernel line, if it ran."""
    from tools import series as gate

    found = {line: output / "series" / line / "results.json" for line in kernel_lines()}
    return [gate.summary(path, series(line)) for line, path in found.items() if path.exists()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.report", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the runs are")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the report goes")
    options = parser.parse_args()
    make(options.output, options.folder)
    return 0


if __name__ == "__main__":
    entry(main)
