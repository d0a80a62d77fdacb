# SPDX-License-Identifier: GPL-2.0-only
"""Show what the kernel series changes: the tests marked `series`, on the patched and on the unpatched kernel.

Fails when a marked test passes on the unpatched kernel already (it shows nothing, then), or fails on the patched one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tools.common import ROOT, UserError, display, entry, say
from tools.environment import lab_environment

# Nothing that the suite does takes so long.
LIMIT = 3600


@dataclass(frozen=True)
class Result:
    """What one test came to: passed, failed or skipped, and why."""

    outcome: str
    reason: str = ""
    patch: str = ""


def run_marked(images: Path, env: str, extra: list[str]) -> dict[str, Result]:
    """Run the marked tests against an image; their results by name."""
    if not (images / "zImage").is_file():
        command = "make kernel SERIES=none" if "unpatched" in images.parent.name else "make board_defconfig && make"
        raise UserError(f"there is no image {display(images)}/zImage: `{command}` builds it")
    logs = images.parent / "logs" / "regression"
    report = logs / "junit.xml"
    report.unlink(missing_ok=True)
    command_line = [sys.executable, "-m", "pytest", "--lg-env", env, "-m", "series", "-q", "--no-header", "--tb=line"]
    command_line += ["-r", "N", f"--board-logs={logs}", f"--junitxml={report}", *extra]
    say(f"running the marked tests on {display(images)}")
    done = subprocess.run(
        command_line,
        cwd=ROOT,
        env=lab_environment(LG_BUILDDIR=str(images.resolve())),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    (logs / "output.txt").write_text(done.stdout) if logs.is_dir() else None
    # 0: all passed, 1: some failed. Everything else means that pytest did not do its work.
    if done.returncode not in (0, 1) or not report.is_file():
        tail = " / ".join(line for line in done.stdout.splitlines() if line.strip())[-600:]
        raise UserError(f"the tests did not run on {display(images)} (pytest ended with {done.returncode}): {tail}")
    return read_report(report)


def read_report(report: Path) -> dict[str, Result]:
    """The outcome of each test in a JUnit file; an error in its setup is a failure like any other."""
    results: dict[str, Result] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.board.')}::{case.get('name')}"
        properties = {one.get("name"): one.get("value") or "" for one in case.iter("property")}
        problem = case.find("failure")
        if problem is None:
            problem = case.find("error")
        if problem is not None:
            result = Result("failed", reason(problem), properties.get("series", ""))
        elif case.find("skipped") is not None:
            result = Result("skipped", case.find("skipped").get("message", ""), properties.get("series", ""))  # type: ignore[union-attr]
        else:
            result = Result("passed", "", properties.get("series", ""))
        # A test whose teardown failed, too, is there twice: the failure counts.
        if name not in results or results[name].outcome == "passed":
            results[name] = result
    return results


def reason(problem: ElementTree.Element) -> str:
    """What a failure says in one line, without what differs from run to run."""
    text = problem.get("message") or problem.text or ""
    lines = [re.sub(r"^\[\s*\d+\.\d+\]\s*", "", line.strip()) for line in text.splitlines() if line.strip()]
    if not lines:
        return "(no reason given)"
    # The kernel log has the cause; mount(8) itself says no more than "Invalid argument".
    kernel = [
        re.sub(r" \(\w+\):", ":", line).rstrip('"')
        for line in lines
        if re.match(r"(EXT[24]-fs|XFS)\b.*dax", line, re.I)
    ]
    if kernel:
        return f"mount refused: {kernel[-1]}"
    first = re.sub(r"^(failed on setup with )?\"?(\w+\.)*\w*(Error|Refused|Failed|Complaint): ", "", lines[0])
    if first.startswith("assert ") and len(lines) > 1 and lines[1].startswith("+"):
        first = f"{first} {lines[1]}"
    return first.rstrip('"')[:160]


def compare(patched: dict[str, Result], unpatched: dict[str, Result]) -> int:
    """Print what the series turns from fail to pass, and what contradicts it; the number of contradictions."""
    turned = [name for name in unpatched if unpatched[name].outcome == "failed" and patched[name].outcome == "passed"]
    say(f"\n{len(turned)} behaviours which the series turns from fail to pass, by what the unpatched kernel does:")
    causes: dict[str, list[str]] = {}
    for name in turned:
        causes.setdefault(unpatched[name].reason, []).append(name)
    for cause, names in causes.items():
        say(f"\n  {cause}")
        for name in names:
            say(f"    {name}" + (f" [{unpatched[name].patch}]" if unpatched[name].patch else ""))
    wrong = 0
    for title, names in (
        ("pass on the unpatched kernel already", [n for n, r in unpatched.items() if r.outcome == "passed"]),
        ("fail on the patched kernel, too", [n for n, r in patched.items() if r.outcome == "failed"]),
    ):
        wrong += len(names)
        if names:
            say(f"\nWRONG: {len(names)} marked tests {title}:")
            for name in names:
                say(f"  {name}" + (f"\n      {patched[name].reason}" if "patched kernel, too" in title else ""))
    skipped = [name for name in unpatched if "skipped" in (unpatched[name].outcome, patched[name].outcome)]
    if skipped:
        say(f"\n{len(skipped)} marked tests were skipped: this board has not what they need")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="regression", description=__doc__)
    parser.add_argument("--patched", type=Path, required=True, metavar="IMAGES")
    parser.add_argument("--unpatched", type=Path, required=True, metavar="IMAGES")
    parser.add_argument("--lg-env", default="arm-pmem.yaml", help="the board (default: %(default)s)")
    parser.add_argument("pytest_args", nargs="*", help="more for pytest, such as tests/board/test_dm.py")
    arguments = parser.parse_args()
    unpatched = run_marked(arguments.unpatched, arguments.lg_env, arguments.pytest_args)
    patched = run_marked(arguments.patched, arguments.lg_env, arguments.pytest_args)
    if unpatched.keys() != patched.keys():
        raise UserError("the two runs had different tests: run it again while nobody edits tests/board")
    if not any(result.outcome == "failed" for result in unpatched.values()):
        raise UserError("no marked test failed on the unpatched kernel: is that image really unpatched?")
    wrong = compare(patched, unpatched)
    say(f"\n{'FAILED' if wrong else 'passed'}: {len(unpatched)} marked tests, {wrong} contradictions")
    return 1 if wrong else 0


if __name__ == "__main__":
    entry(main)
