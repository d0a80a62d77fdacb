# SPDX-License-Identifier: GPL-2.0-only
"""The kernel source tree: made once, patched when patches change, a developer's edits never lost."""

from __future__ import annotations

import os

import pytest
from toyline import HELLO, SECOND, Line

from tools.common import UserError
from tools.source import NO_SERIES, series, without


def test_the_series_is_applied_on_top_of_the_pristine_source(line: Line) -> None:
    line.repository.prepare(line.series())
    assert "line two" in line.hello()
    assert "line thirty" in line.hello()
    assert line.git("show", "base:hello.c") == HELLO.strip()
    assert line.git("rev-list", "--count", "base..arm-pmem") == "2"


def test_an_empty_series_is_the_pristine_source(line: Line) -> None:
    for patch in line.patches.iterdir():
        patch.unlink()
    line.repository.prepare(line.series())
    assert line.hello() == HELLO


def test_nothing_is_written_when_nothing_changed(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.repository.prepare(line.series())
    capsys.readouterr()
    before = (line.repository.path / "hello.c").stat().st_mtime_ns, line.git("rev-parse", "HEAD")
    line.repository.prepare(line.series())
    assert before == ((line.repository.path / "hello.c").stat().st_mtime_ns, line.git("rev-parse", "HEAD"))
    assert capsys.readouterr().out == ""


def test_the_same_patches_give_the_same_commit(line: Line) -> None:
    line.repository.prepare(line.series())
    first = line.git("rev-parse", "HEAD")
    assert line.git("log", "-1", "--format=%ct") == line.git("log", "-1", "--format=%at")
    os.rename(line.repository.path, line.root / "other")
    line.repository.prepare(line.series())
    assert line.git("rev-parse", "HEAD") == first


def test_only_the_patches_from_the_changed_one_on_are_applied_again(
    line: Line, capsys: pytest.CaptureFixture[str]
) -> None:
    line.repository.prepare(line.series())
    first = line.git("rev-parse", "HEAD~1")
    (line.patches / "0002-hello-say-ten-and-thirty.patch").write_text(SECOND.replace("+line ten", "+line TEN"))
    line.repository.prepare(line.series())
    assert "line TEN" in line.hello()
    assert line.git("rev-parse", "HEAD~1") == first
    assert "applying 1 of 2 patches" in capsys.readouterr().out


def test_a_patch_that_was_removed_is_gone(line: Line) -> None:
    line.repository.prepare(line.series())
    (line.patches / "0002-hello-say-ten-and-thirty.patch").unlink()
    line.repository.prepare(line.series())
    assert "line 30" in line.hello()
    assert "line two" in line.hello()


def test_a_patch_that_does_not_apply_is_named_with_file_and_hunk(line: Line) -> None:
    line.repository.prepare(line.series())
    before = line.hello(), line.git("rev-parse", "HEAD")
    (line.patches / "0002-hello-say-ten-and-thirty.patch").write_text(SECOND.replace("line 31", "line thirty-one"))
    with pytest.raises(UserError) as error:
        line.repository.prepare(line.series())
    assert "0002-hello-say-ten-and-thirty.patch does not apply to Linux 9.9" in str(error.value)
    assert "hello.c, hunk #2 (at line 28)" in str(error.value)
    assert "\n" not in str(error.value)
    # the tree is what it was, and no git am is left half-done
    assert before == (line.hello(), line.git("rev-parse", "HEAD"))
    assert line.repository.edits() == ""


def test_after_a_mended_patch_the_series_applies(line: Line) -> None:
    bad = line.patches / "0002-hello-say-ten-and-thirty.patch"
    bad.write_text(SECOND.replace("line 31", "line thirty-one"))
    with pytest.raises(UserError):
        line.repository.prepare(line.series())
    bad.write_text(SECOND)
    line.repository.prepare(line.series())
    assert "line thirty" in line.hello()


def test_a_patch_of_a_file_that_is_not_there_names_the_file(line: Line) -> None:
    (line.patches / "0002-hello-say-ten-and-thirty.patch").write_text(SECOND.replace("hello.c", "absent.c"))
    with pytest.raises(UserError, match=r"absent\.c does not exist"):
        line.repository.prepare(line.series())


def test_what_is_not_a_patch_is_said_to_be_none(line: Line) -> None:
    (line.patches / "0003-nonsense.patch").write_text("nothing\n")
    with pytest.raises(UserError, match=r"0003-nonsense\.patch does not apply"):
        line.repository.prepare(line.series())


def test_uncommitted_edits_are_built_as_they_are(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.repository.prepare(line.series())
    (line.repository.path / "hello.c").write_text("mine\n")
    line.repository.prepare(line.series())
    assert line.hello() == "mine\n"
    assert "uncommitted edits: built as it is" in capsys.readouterr().out


def test_own_commits_are_built_as_they_are(line: Line) -> None:
    line.repository.prepare(line.series())
    (line.repository.path / "hello.c").write_text("mine\n")
    line.git("commit", "--all", "--message", "mine")
    line.repository.prepare(line.series())
    assert line.hello() == "mine\n"


def test_edits_and_changed_patches_are_an_error_which_loses_nothing(line: Line) -> None:
    line.repository.prepare(line.series())
    (line.repository.path / "hello.c").write_text("mine\n")
    (line.patches / "0002-hello-say-ten-and-thirty.patch").unlink()
    with pytest.raises(UserError, match="holds uncommitted edits and the patches"):
        line.repository.prepare(line.series())
    assert line.hello() == "mine\n"


def test_the_unpatched_tree_is_the_pristine_source(line: Line) -> None:
    line.repository.prepare(line.series())
    unpatched = line.worktree("unpatched")
    assert (unpatched.prepare(NO_SERIES) / "hello.c").read_text() == HELLO
    assert "line two" in line.hello()


def test_a_series_without_some_patches_has_a_tree_of_its_own(line: Line) -> None:
    line.repository.prepare(line.series())
    text = (line.worktree("drop").prepare(without(line.series(), ["0001"])) / "hello.c").read_text()
    assert "line 2" in text
    assert "line thirty" in text
    assert "line two" in line.hello()
    text = (line.worktree("drop").prepare(without(line.series(), ["2"])) / "hello.c").read_text()
    assert "line two" in text
    assert "line 30" in text


def test_a_patch_to_leave_out_which_does_not_exist(line: Line) -> None:
    with pytest.raises(UserError, match=r"no patch of 9\.9 has the number '0007'"):
        without(line.series(), ["0001", "0007"])


def test_no_source_package_on_this_machine(line: Line) -> None:
    line.repository.tarball.unlink()
    with pytest.raises(UserError, match=r"linux-source-9\.9\.tar\.xz not found .* `make deps`"):
        line.repository.prepare(line.series())


def test_a_truncated_tarball_leaves_no_half_unpacked_tree(line: Line) -> None:
    content = line.repository.tarball.read_bytes()
    line.repository.tarball.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be unpacked"):
        line.repository.prepare(line.series())
    assert [path.name for path in line.repository.path.parent.iterdir() if path.is_dir()] == []


def test_two_makes_at_once_do_not_patch_a_tree_that_is_being_built(line: Line) -> None:
    line.repository.prepare(line.series())
    (line.patches / "0002-hello-say-ten-and-thirty.patch").unlink()
    with line.repository.in_use(shared=True), pytest.raises(UserError, match="in use by another make"):
        line.repository.prepare(line.series())
    assert "line thirty" in line.hello()


def test_an_unknown_kernel_lists_the_known_ones(line: Line) -> None:
    with pytest.raises(UserError, match=r"unknown KERNEL '5\.0': there are patches for 9\.9"):
        series("5.0", line.root)
