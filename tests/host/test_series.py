# SPDX-License-Identifier: GPL-2.0-only
"""The series gate, on a kernel of one file: what it finds, and that a run which was stopped goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
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
prepare: ; @test "$(ARCH)" != bad || { echo "error: no such CPU" >&2; false; }
%.o: %.c
	@echo "  CC      $@"
	@gcc -Wall -Wextra -O2 -c -o $(O)/$@ $<
"""
CODE = "int one(void)\n{\n\treturn 1;\n}\n"


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    """gate(state, …): a series whose patches bring code.c, or another file by (name, text), from each state to the next."""
    # Other compilers need not be installed here.
    monkeypatch.setattr(series, "SIZED", ("x86_64",))

    def make(*states: str | tuple[str, str]) -> Gate:
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


def write_patches(folder: Path, line: Line, states: tuple[str | tuple[str, str], ...]) -> None:
    """git's own format-patch makes them."""
    work = folder / "work"
    work.mkdir()

    def git(*words: str) -> None:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
        subprocess.run(["git", *identity, *words], cwd=work, check=True, timeout=60, capture_output=True)

    git("init")
    for number, state in enumerate((CODE, *states)):
        name, text = ("code.c", state) if isinstance(state, str) else state
        (work / name).write_text(text)
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


@pytest.mark.parametrize("place", ["/work/linux/drivers/dax/super.c:502", "super.c:502:3", "drivers/dax/super.c:1"])
def test_a_warning_that_only_moves_is_the_same(place: str) -> None:
    """Of gcc, sparse and kernel-doc"""
    assert series.without_place(f"{place}: warning: bad line:") == "super.c: warning: bad line:"


def test_what_failed_is_asked_again(tmp_path: Path) -> None:
    results = series.Results(tmp_path / "results.json")
    for step, outcome in (("arm", "failed"), ("sh", "passed"), ("alpha", "skipped")):
        results.put("0001-a.patch", step, "key", Outcome(outcome))
    found = [series.Results(results.path).get("0001-a.patch", step, "key") for step in ("arm", "sh", "alpha")]
    assert found == [None, Outcome("passed"), Outcome("skipped")]


def test_what_no_longer_compiles(gate: Callable[..., Gate]) -> None:
    one = gate(CODE.replace("return 1", "return nothing"), CODE.replace("return 1", "return 3"))
    found = one.compile(1, X86)
    assert found.outcome == "failed"
    assert "code.o does not compile any more: " in found.text and "'nothing' undeclared" in found.text.replace(
        "‘", "'"
    ).replace("’", "'")
    assert one.compile(2, X86).outcome == "passed"


def test_architectures_at_once_and_one_that_breaks_hides_no_other(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [replace(X86, name=name, arch=name, own=(f"arch/{name}/",)) for name in ("good", "bad")]
    monkeypatch.setattr(series, "ARCHES", (X86, *others))
    one = gate(CODE.replace("return 1", "return 2"))
    assert series.run(one, ["x86_64", "good", "bad"], []) == 0
    assert "x86_64, good\n" in capsys.readouterr().out
    assert one.results.known[one.series.patches[0].name]["bad"]["text"].endswith("error: no such CPU")
    states = {path.parent.name for path in (one.folder / "objects").glob("*/*.json")}
    assert states == {"x86_64", "good"}


def test_a_state_is_compiled_once_for_the_patches_on_both_sides(
    gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = gate(CODE.replace("return 1", "return 2"), ("other.c", CODE.replace("one", "two")))
    compiled = []
    compile_all = one.compile_all

    def spy(arch: series.Arch, build: Path, objects: list[str]) -> dict[str, dict[str, object]]:
        compiled.append(objects)
        return compile_all(arch, build, objects)

    monkeypatch.setattr(one, "compile_all", spy)
    assert series.run(one, ["x86_64"], []) == 0
    assert compiled == [["code.o"], ["code.o", "other.o"], ["other.o"]]


def test_an_interrupted_run_ends_what_it_started(gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    one = gate(CODE.replace("return 1", "return 2"))
    tree = one.repository.path
    (tree / "Makefile").write_text(MAKEFILE.replace("prepare: ;", "prepare: ; @sleep 600;"))
    # The work tree is as it is: nothing takes the slow Makefile away.
    monkeypatch.setattr(one, "checkout", lambda number: None)
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        one.ahead(1, [X86])
    assert time.monotonic() - start < 30
    assert not one.running


def test_code_grows_only_with_a_reason(gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    one = gate(CODE + "int two(int a)\n{\n\treturn a * 7 + 3;\n}\n")
    monkeypatch.setattr(series, "growth_reasons", dict)
    assert one.size(1).outcome == "failed"
    assert one.size(1).text.startswith(
        "text grows, and patches/linux/growth.yaml has no reason for it\nx86_64 code.o: "
    )
    monkeypatch.setattr(series, "growth_reasons", lambda: {series.subject(one.series.patches[0]): "it can do more"})
    assert one.size(1).outcome == "grown"
    assert one.size(1).text.endswith("\nit can do more")


def test_each_reason_for_growth_is_of_a_patch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert all(series.growth_reasons().values())
    monkeypatch.setattr(series, "GROWTH", tmp_path / "growth.yaml")
    series.GROWTH.write_text("no-such-patch: because\n")
    with pytest.raises(UserError, match="growth.yaml names no-such-patch, and no kernel line has such a patch"):
        series.growth_reasons()


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
    again.ahead = lambda number, arches, following=(): None  # type: ignore[method-assign]
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
    with pytest.raises(UserError, match="no patch of 9.9 has the number '7'"):
        series.run(one, ["applies"], ["1", "7"])
    (one.repository.path / "code.c").write_text("edited")
    one.git("commit", "-qam", "own work")
    with pytest.raises(UserError, match="holds 2 commits, and the series has 1 patches: remove the folder"):
        one.prepare()


def test_each_architecture_has_its_compiler_in_the_list_of_packages() -> None:
    listed = (Path(series.__file__).parent / "debian-packages-series.txt").read_text()
    listed += (Path(series.__file__).parent / "debian-packages.txt").read_text()
    for one in ARCHES:
        assert not one.prefix or f"gcc-{one.prefix.rstrip('-')}\n" in listed, one.name
