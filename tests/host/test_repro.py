# SPDX-License-Identifier: GPL-2.0-only
"""Two builds compared: the same, or the files which differ are named. The builds themselves are stood in for."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tools import boards, build, repro
from tools.common import UserError, entry, sha256

FILES = {"zImage": b"kernel", "rootfs.ext4": b"files"}


def images(folder: Path, files: dict[str, bytes] = FILES, **more: Any) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    listed = {name: {"size": len(data), "sha256": sha256(data)} for name, data in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"board": "board", **more, "files": listed}))
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repro"
    folder.mkdir()
    monkeypatch.setattr(repro, "FOLDER", folder)
    return folder


@pytest.fixture
def no_diffoscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def diffoscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A diffoscope which does what the test needs; it is called as `diffoscope --no-progress --text REPORT ONE TWO`."""
    program = tmp_path / "bin/diffoscope"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


# --- comparing ---------------------------------------------------------------------------------


def test_two_equal_builds_are_the_same(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repro.conclude(images(tmp_path / "a"), images(tmp_path / "b"))
    assert capsys.readouterr().out == "both builds are the same: 2 files, byte for byte\n"
    assert not place.exists()


@pytest.mark.usefixtures("no_diffoscope")
def test_a_file_that_differs_is_named_and_the_exit_status_is_1(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = images(tmp_path / "a"), images(tmp_path / "b", {**FILES, "zImage": b"Kernel"})

    def main() -> int:
        repro.conclude(one, two)
        return 0

    with pytest.raises(SystemExit) as ended:
        entry(main)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "zImage: differs\n" in said.out
    assert "rootfs.ext4" not in said.out + said.err
    assert said.err == f"error: two builds of the same commit are not the same: zImage; both are left in {place}\n"


@pytest.mark.usefixtures("no_diffoscope", "place")
@pytest.mark.parametrize("order", [1, -1])
def test_a_file_that_only_one_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], order: int) -> None:
    both = [images(tmp_path / "a"), images(tmp_path / "b", {"zImage": b"kernel"})][::order]
    with pytest.raises(UserError, match="are not the same: rootfs.ext4;"):
        repro.conclude(*both)
    assert "rootfs.ext4: only in one of the builds\n" in capsys.readouterr().out


def test_what_the_manifests_say_besides_is_compared_too(tmp_path: Path) -> None:
    one = images(tmp_path / "a", kernel="6.1.1", project="x")
    two = images(tmp_path / "b", kernel="6.1.2", project="x")
    assert repro.compare(one, two) == {"manifest.json": "differs in kernel"}


@pytest.mark.parametrize("harm", ["write", "unlink"])
def test_a_manifest_is_not_believed_unseen(tmp_path: Path, harm: str) -> None:
    one, two = images(tmp_path / "a"), images(tmp_path / "b")
    (two / "zImage").write_bytes(b"other") if harm == "write" else (two / "zImage").unlink()
    with pytest.raises(UserError, match=r"b/zImage is not what its manifest.json says"):
        repro.compare(one, two)


@pytest.mark.parametrize("content", ["", None])
def test_a_build_without_a_manifest_is_not_whole(tmp_path: Path, content: str | None) -> None:
    one, two = images(tmp_path / "a"), images(tmp_path / "b")
    (two / "manifest.json").unlink()
    if content is not None:
        (two / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"b/manifest.json cannot be read \(.*\): the build is not whole"):
        repro.compare(one, two)


# --- diffoscope --------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_diffoscope")
def test_without_diffoscope_it_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repro.explain(images(tmp_path / "a"), images(tmp_path / "b"), ["zImage"], place)
    assert "`apt-get install diffoscope-minimal`" in capsys.readouterr().out


def test_each_file_that_differs_gets_a_report(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diffoscope(tmp_path, monkeypatch, 'echo "$4 $5" >"$3"; exit 1')
    one, two = images(tmp_path / "a"), images(tmp_path / "b", {"zImage": b"Kernel"})
    repro.explain(one, two, ["rootfs.ext4", "zImage"], place)
    assert (place / "zImage.txt").read_text() == f"{one}/zImage {two}/zImage\n"
    # what only one build has, there is nothing to hold against
    assert [path.name for path in place.iterdir()] == ["zImage.txt"]
    assert "zImage.txt" in capsys.readouterr().out


def test_a_diffoscope_without_end_is_ended(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diffoscope(tmp_path, monkeypatch, f"echo $$ >{tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(repro, "DIFF_LIMIT", 1)
    start = time.monotonic()
    repro.explain(images(tmp_path / "a"), images(tmp_path / "b"), ["zImage"], place)
    assert time.monotonic() - start < 30
    assert "no report: no end after 1 s" in capsys.readouterr().out
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_diffoscope_that_fails_is_said(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diffoscope(tmp_path, monkeypatch, "exit 2")
    repro.explain(images(tmp_path / "a"), images(tmp_path / "b"), ["zImage"], place)
    assert "no report: exit status 2" in capsys.readouterr().out


# --- building ----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose `make` writes an image; its content is what the committed file `source` says."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Makefile").write_text(
        "images = output/board/images\n"
        "board_defconfig:\n\t@mkdir -p output; echo '$(KERNEL) $(IMAGE) $(SOURCES)' >output/words\n"
        "all:\n\t@mkdir -p $(images); $(WRITE) >$(images)/zImage\n"
        '\t@echo "{\\"files\\": {\\"zImage\\": {\\"sha256\\": \\"`sha256sum <$(images)/zImage | cut -c -64`\\"}}}" '
        ">$(images)/manifest.json\n"
        ".DEFAULT_GOAL := all\n"
        "include source\n"
    )
    (folder / "source").write_text('WRITE = { echo "$$CCACHE_DISABLE $(BOARD)"; cat output/words; }\n')
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["init", "--quiet"], ["add", "-A"], ["commit", "--quiet", "-m", "one"]):
        subprocess.run([*git, *words], cwd=folder, check=True, timeout=30)
    monkeypatch.setattr(repro, "ROOT", folder)
    monkeypatch.setattr(repro, "ROOM", 0)
    return folder


def chosen(sources: str = "debian") -> build.Configured:
    return build.Configured(Path("/out"), boards.board("board"), "6.1", "auto", sources)


def commit(project: Path, text: str) -> None:
    (project / "source").write_text(text)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    subprocess.run([*git, "commit", "--quiet", "-am", "two"], cwd=project, check=True, timeout=30)


def test_head_is_built_in_two_folders_of_different_length(
    project: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "source").write_text("WRITE = false\n")
    monkeypatch.setenv("BOARD", "other")
    monkeypatch.setenv("MAKEFLAGS", "n")
    repro.check(chosen())
    said = capfd.readouterr().out
    assert "note: what is not committed here is not a part of it" in said
    assert "build 1 of 2: board at " in said
    assert "build 2 of 2 took " in said
    assert said.endswith("both builds are the same: 1 files, byte for byte\n")
    assert len({len(name) for name in repro.PLACES}) == 2


@pytest.mark.usefixtures("no_diffoscope_after")
def test_a_path_in_an_image_is_found(project: Path, place: Path) -> None:
    commit(project, "WRITE = pwd\n")
    with pytest.raises(UserError, match="are not the same: zImage; both are left in"):
        repro.check(chosen())
    assert [(place / name / "output/board/images/zImage").exists() for name in repro.PLACES] == [True, True]


@pytest.fixture
def no_diffoscope_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro, "explain", lambda *words: None)


def test_a_build_is_what_is_configured_here_and_uses_no_ccache(project: Path, place: Path) -> None:
    repro.clone(place / "1", "HEAD")
    made = repro.build_in(place / "1", chosen())
    assert (made / "zImage").read_text() == "1 \n6.1 auto debian\n"


def test_an_archive_is_found_from_another_folder(project: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    repro.clone(place / "1", "HEAD")
    made = repro.build_in(place / "1", chosen("archive:sources.tar"))
    assert f"auto archive:{project}/sources.tar\n" in (made / "zImage").read_text()


@pytest.mark.usefixtures("place")
def test_a_build_that_fails_ends_it(project: Path) -> None:
    commit(project, "WRITE = false\n")
    with pytest.raises(UserError, match=r"the build in .*/repro/1 failed: see above"):
        repro.check(chosen())


@pytest.mark.usefixtures("place")
def test_a_build_without_end_is_ended(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(project, "WRITE = sleep 60\n")
    monkeypatch.setattr(repro, "BUILD_LIMIT", 2)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no end of `make` in .*/repro/1 after 2 s"):
        repro.check(chosen())
    assert time.monotonic() - start < 40


@pytest.mark.usefixtures("project", "place")
def test_a_small_disk_is_said_before_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro, "ROOM", 1 << 30)
    with pytest.raises(UserError, match="two builds need .* GiB of disk, and .* has .*: make room first"):
        repro.check(chosen())
