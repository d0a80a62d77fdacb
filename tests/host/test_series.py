# SPDX-License-Identifier: GPL-2.0-only
"""The series gate, on a kernel of one file: what it finds, and that a run which was stopped goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from toyline import Line, make_line

from tools import series
from tools.common import UserError
from tools.series import ARCHES, Gate, Outcome
from tools.source import Series

X86 = next(one for one in ARCHES if one.name == "x86_64")
# What the gate asks of a kernel's make, for one file
MAKEFILE = """
O ?= .
%defconfig: ; @touch $(O)/.config
prepare: ; @true
%.o: %.c
	@echo "  CC      $@"
	@gcc -Wall -Wextra -O2 -c -o $(O)/$@ $<
"""
CODE = "int one(void)\n{\n\treturn 1;\n}\n"


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    """gate(state, …): a series whose patches bring code.c from each state to the next."""
    # Other compilers need not be installed here.
    monkeypatch.setattr(series, "SIZED", ("x86_64",))

    def make(*states: str) -> Gate:
        line: Line = make_line(tmp_path)
        tree = tmp_path / "linux-source-9.9"
        (tree / "Makefile").write_text(MAKEFILE)
        (tree / "hello.c").unlink()
        (tree / "code.c").write_text(CODE)
        (tree / "scripts").mkdir()
        (tree / "scripts/config").write_text("#!/bin/sh\n")
        (tree / "scripts/config").chmod(0o755)
        (tmp_path / "linux-source-9.9.tar.xz").unlink()
        subprocess.run(["tar", "cJf", "linux-source-9.9.tar.xz", tree.name], cwd=tmp_path, check=True, timeout=60)
        for patch in line.patches.glob("*.patch"):
            patch.unlink()
        write_patches(tmp_path, line, states)
        one = Gate(line.series(), line.worktree("series"), tmp_path / "gate")
        one.prepare()
        return one

    return make


def write_patches(folder: Path, line: Line, states: tuple[str, ...]) -> None:
    """git's own format-patch makes them."""
    work = folder / "work"
    work.mkdir()

    def git(*words: str) -> None:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
        subprocess.run(["git", *identity, *words], cwd=work, check=True, timeout=60, capture_output=True)

    git("init")
    for number, state in enumerate((CODE, *states)):
        (work / "code.c").write_text(state)
        git("add", ".")
        git("commit", "-m", f"code: state {number}")
    git("format-patch", "-N", "-o", str(line.patches), "HEAD~" + str(len(states)))


def test_a_good_patch(gate: Callable[..., Gate]) -> None:
    one = gate(CODE.replace("return 1", "return 2"))
    assert one.compile(1, X86) == Outcome("passed", "1 of 1 objects: code.o")
    assert one.size(1).outcome == "passed"
    assert "x86_64: +0 bytes of text in 1 objects" in one.size(1).text


def test_a_new_warning_is_the_patchs_fault(gate: Callable[..., Gate]) -> None:
    warns = CODE.replace("\treturn", "\tint unused;\n\treturn")
    one = gate(warns, warns.replace("return 1", "return 2"))
    found = one.compile(1, X86)
    assert found.outcome == "failed"
    assert "code.o: new warning (1): code.c: warning: unused variable" in found.text
    # The next one did not bring it.
    assert one.compile(2, X86).outcome == "passed"


def test_what_no_longer_compiles(gate: Callable[..., Gate]) -> None:
    one = gate(CODE.replace("return 1", "return nothing"), CODE.replace("return 1", "return 3"))
    found = one.compile(1, X86)
    assert found.outcome == "failed"
    assert "code.o does not compile any more: " in found.text and "'nothing' undeclared" in found.text.replace(
        "‘", "'"
    ).replace("’", "'")
    assert one.compile(2, X86).outcome == "passed"


def test_code_that_grows_is_named(gate: Callable[..., Gate]) -> None:
    one = gate(CODE + "int two(int a)\n{\n\treturn a * 7 + 3;\n}\n")
    assert one.size(1).outcome == "grown"
    assert "x86_64 code.o: " in one.size(1).text


def test_a_result_is_kept_until_its_patches_change(
    gate: Callable[..., Gate], capsys: pytest.CaptureFixture[str]
) -> None:
    one = gate(CODE.replace("return 1", "return 2"), CODE.replace("return 1", "return 3"))
    assert series.run(one, ["applies", "x86_64"], []) == 0
    assert "2 patches of 9.9, 0 failures" in capsys.readouterr().out
    again = Gate(one.series, one.repository, one.folder)
    again.run = lambda number, step: pytest.fail("it ran again")  # type: ignore[method-assign]
    assert series.run(again, ["applies", "x86_64"], []) == 0
    changed = Series(one.series.name, one.series.patches, (one.series.hashes[0], "other"))
    again = Gate(changed, one.repository, one.folder)
    ran = []
    again.run = lambda number, step: ran.append((number, step)) or Outcome("passed")  # type: ignore[method-assign,func-returns-value]
    series.run(again, ["applies", "x86_64"], [])
    assert ran == [(2, "applies"), (2, "x86_64")]


def test_one_step_that_breaks_hides_no_other(gate: Callable[..., Gate], capsys: pytest.CaptureFixture[str]) -> None:
    one = gate(CODE.replace("return 1", "return 2"))

    def run(number: int, step: str) -> Outcome:
        if step == "arm":
            raise UserError("no compiler")
        return Outcome("passed")

    one.run = run  # type: ignore[method-assign]
    assert series.run(one, ["arm", "x86_64"], []) == 1
    out = capsys.readouterr().out
    assert "FAILED 0001-code-state-1.patch: arm: no compiler" in out and "arm failed, x86_64" in out


def test_ctrl_c_keeps_what_was_done(gate: Callable[..., Gate], capsys: pytest.CaptureFixture[str]) -> None:
    one = gate(CODE.replace("return 1", "return 2"), CODE.replace("return 1", "return 3"))

    def run(number: int, step: str) -> Outcome:
        if number == 2:
            raise KeyboardInterrupt
        return Outcome("passed")

    one.run = run  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        series.run(one, ["applies"], [])
    assert "the next `make series` goes on here" in capsys.readouterr().out
    assert series.Results(one.results.path).get("0001-code-state-1.patch", "applies", one.key(1)) == Outcome("passed")


def test_wishes_that_cannot_be_met(gate: Callable[..., Gate]) -> None:
    one = gate(CODE.replace("return 1", "return 2"))
    with pytest.raises(UserError, match="no patch of 9.9 begins with 0007"):
        series.run(one, ["applies"], ["0007"])
    (one.repository.path / "code.c").write_text("edited")
    one.git("commit", "-qam", "own work")
    with pytest.raises(UserError, match="holds 2 commits, and the series has 1 patches: remove the folder"):
        one.prepare()


def test_each_architecture_has_its_compiler_in_the_list_of_packages() -> None:
    listed = (Path(series.__file__).parent / "debian-packages-series.txt").read_text()
    listed += (Path(series.__file__).parent / "debian-packages.txt").read_text()
    for one in ARCHES:
        assert not one.prefix or f"gcc-{one.prefix.rstrip('-')}\n" in listed, one.name
