# SPDX-License-Identifier: GPL-2.0-only
"""The kernel source tree: made once, patched when patches change, a developer's edits never lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from toyline import HELLO, SECOND, Line

from tools import debian, source
from tools.common import UserError, sha256
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


class Repo(debian.Archive):
    """An archive in a folder, which nobody has signed."""

    @property
    def line(self) -> str:
        return f"deb [trusted=yes] {self.uri} {self.suite} main"


def offer(folder: Path, suite: str, versions: dict[str, str], package: str = "linux-source-9.9") -> None:
    """A real archive of one suite, with packages that hold a kernel source: text by version."""
    index = folder / f"dists/{suite}/main/binary-all"
    index.mkdir(parents=True, exist_ok=True)
    entries = []
    for version, text in versions.items():
        tree = folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "usr/src").mkdir(parents=True)
        (tree / f"usr/src/{package}.tar.xz").write_text(text)
        (tree / "DEBIAN").mkdir()
        control = f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: m\nDescription: d\n"
        (tree / "DEBIAN/control").write_text(control)
        deb = folder / f"{package}_{version}_all.deb"
        subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True, timeout=60)
        entries.append(f"{control}Filename: {deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256(deb)}\n")
    (index / "Packages").write_text("\n".join(entries))
    native = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True, timeout=30)
    digest, size = sha256(index / "Packages"), (index / "Packages").stat().st_size
    (folder / f"dists/{suite}/Release").write_text(
        f"Codename: {suite}\nComponents: main\nArchitectures: {native.stdout.strip()} all\nSHA256:\n"
        f" {digest} {size} main/binary-all/Packages\n"
    )


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Debian is; the line 9.9 is in its suite `old`, or else in `new`, and 9.9.2-1 was tested."""
    folder = tmp_path / "debian"
    folder.mkdir()
    monkeypatch.setattr(debian, "archives", lambda suite: [Repo(f"copy:{folder}", suite)])
    monkeypatch.setattr(debian, "mirrors", lambda: (f"copy:{folder}", ""))
    monkeypatch.setattr(source, "suites", lambda kernel: ["old", "new"])
    tested = {"linux-source-9.9.2-1.tar.xz": sha256(b"tested"), "linux-source-9.99.7-1.tar.xz": "0" * 64}
    monkeypatch.setattr(source, "tested_hashes", lambda: tested)
    offer(folder, "old", {})
    return folder


def test_the_tested_kernel_source_goes_before_a_newer_one(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(archive, "old", {"9.9.1-1": "older", "9.9.2-1": "tested", "9.9.10-1": "newest"})
    path = source.tarball("9.9", tmp_path / "site")
    assert (path.name, path.read_text()) == ("linux-source-9.9.2-1.tar.xz", "tested")
    assert "note: Debian has linux-source-9.9 9.9.10-1, and 9.9.2-1 is what was tested" in capsys.readouterr().out
    # No archive is asked twice.
    shutil.rmtree(archive)
    assert source.tarball("9.9", tmp_path / "site") == path


def test_without_the_tested_source_the_newest_of_the_first_suite_counts(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(archive, "new", {"9.9.9-1": "9", "9.9.10-1": "10"})
    path = source.tarball("9.9", tmp_path / "site")
    assert (path.name, path.read_text()) == ("linux-source-9.9.10-1.tar.xz", "10")
    said = "note: the kernel source is linux-source-9.9.10-1.tar.xz, and linux-source-9.9.2-1.tar.xz is what was tested"
    assert said in capsys.readouterr().out
    shutil.rmtree(archive)
    assert source.tarball("9.9", tmp_path / "site") == path


def test_a_cached_source_that_is_older_than_the_tested_one_is_replaced(archive: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "linux-source-9.9.1-1.tar.xz").write_text("older")
    (site / "linux-source-9.99.1-1.tar.xz").write_text("another line")
    offer(archive, "old", {"9.9.2-1": "tested"})
    source.tarball("9.9", site)
    assert sorted(path.name for path in site.glob("linux-*")) == [
        "linux-source-9.9.2-1.tar.xz",
        "linux-source-9.99.1-1.tar.xz",
    ]


def test_a_source_that_is_not_the_one_that_was_tested_is_refused(archive: Path, tmp_path: Path) -> None:
    offer(archive, "old", {"9.9.2-1": "forged"})
    with pytest.raises(UserError, match=r"linux-source-9\.9\.2-1\.tar\.xz .* is not the one that .*linux\.hash names"):
        source.tarball("9.9", tmp_path / "site")
    assert list((tmp_path / "site").glob("linux*")) == []


def test_apt_is_asked_for_exactly_this_package(archive: Path, tmp_path: Path) -> None:
    """apt takes a name that it does not know for a regular expression: 9.9 is in 9x9 and in 9.95."""
    offer(archive, "old", {"9.95.1-1": "another line"}, package="linux-source-9.95")
    with pytest.raises(
        UserError, match=r"Debian's old or new at copy:.* has no package linux-source-9\.9.*DEBIAN_MIRROR"
    ):
        source.tarball("9.9", tmp_path / "site")


def test_every_line_names_its_suites_and_what_was_tested() -> None:
    for kernel in source.kernel_lines():
        assert all(re.fullmatch(r"[a-z]+(-backports)?", suite) for suite in source.suites(kernel)), kernel
        assert any(source.tarball_version(kernel, name) for name in source.tested_hashes()), kernel


def test_a_truncated_tarball_leaves_no_half_unpacked_tree(line: Line) -> None:
    content = line.tarball.read_bytes()
    line.tarball.write_bytes(content[: len(content) // 2])
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
