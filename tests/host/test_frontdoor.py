# SPDX-License-Identifier: GPL-2.0-only
"""`make` as a user types it: what works without a build, and one sentence for each mistake."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toyline import ROOT, copy_project, in_plain_folder

from tools import build
from tools.environment import child_environment


def make(*words: str, cwd: Path = ROOT, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    drop = {"BUILDROOT", "BUILDROOT_URL"}
    environ = {name: value for name, value in child_environment(**variables).items() if name not in drop}
    if path is not None:
        environ["PATH"] = path
    return subprocess.run(
        ["/usr/bin/make", *words], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def errors(done: subprocess.CompletedProcess[str]) -> str:
    """The complaint itself; make adds a line about the recipe that failed. Never a traceback."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not re.match(r"make(\[\d+\])?: \*\*\* \[", line)]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_help_shows_every_target() -> None:
    shown = make("help").stdout
    makefile = (ROOT / "Makefile").read_text()
    phony = " ".join(re.findall(r"(?m)^\.PHONY: (.*)$", makefile)).split()
    assert all(re.search(rf"(?m)^  {target} ", shown) for target in phony), shown
    assert "<board>_defconfig" in shown


def test_list_shows_each_board_with_what_it_is() -> None:
    shown = make("list").stdout
    assert re.search(r"(?m)^board +QEMU virt", shown)


def test_an_unknown_board_lists_the_known_ones() -> None:
    assert "unknown board 'toaster': the boards are board" in errors(make("toaster_defconfig"))


def test_an_unknown_kernel_lists_the_known_ones() -> None:
    assert "unknown KERNEL '5.0': there are patches for 6.1" in errors(make("kernel", "KERNEL=5.0"))


def test_an_unknown_kernel_configures_nothing(tmp_path: Path) -> None:
    assert "unknown KERNEL" in errors(make("board_defconfig", "KERNEL=5.0", f"O={tmp_path / 'out'}"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_image_lists_the_known_ones(tmp_path: Path) -> None:
    done = make("board_defconfig", "IMAGE=huge", f"O={tmp_path / 'out'}")
    assert "unknown IMAGE 'huge': it is auto, minimal or buildroot" in errors(done)
    assert not (tmp_path / "out").exists()


@in_plain_folder
def test_the_buildroot_image_without_buildroot_is_one_sentence(tmp_path: Path) -> None:
    out = f"O={tmp_path / 'out'}"
    assert make("board_defconfig", "IMAGE=buildroot", out).returncode == 0
    complaint = errors(make(out, f"BUILDROOT={tmp_path}"))
    assert f"{tmp_path} is not a tree of Buildroot: name one with BUILDROOT=" in complaint


def test_unknown_sources_list_the_known_ones(tmp_path: Path) -> None:
    out = f"O={tmp_path / 'out'}"
    assert make("board_defconfig", "SOURCES=moon", out).returncode == 0
    assert "unknown SOURCES 'moon': it is debian, upstream or archive:<tar>" in errors(make(out))


@in_plain_folder
def test_an_archive_that_is_not_there_is_said(tmp_path: Path) -> None:
    out = f"O={tmp_path / 'out'}"
    assert make("board_defconfig", "IMAGE=buildroot", "SOURCES=archive:/no/such.tar", out).returncode == 0
    assert "there is no archive /no/such.tar: `make sources-archive` writes one" in errors(make(out))


@in_plain_folder
def test_a_word_that_is_no_target_is_said(tmp_path: Path) -> None:
    out = f"O={tmp_path / 'out'}"
    assert make("board_defconfig", "IMAGE=minimal", out).returncode == 0
    assert re.search("there is no target 'tset' here .*; Buildroot's own need a board with", errors(make("tset", out)))


def test_make_without_a_configured_board_says_what_to_run(tmp_path: Path) -> None:
    done = make(f"O={tmp_path / 'out'}")
    assert re.search(r"no board is configured in .*/out: run `make board_defconfig`.* first", errors(done))
    assert not (tmp_path / "out").exists()


def test_the_lists_of_an_image_are_about_the_buildroot_image(tmp_path: Path) -> None:
    out = f"O={tmp_path / 'out'}"
    assert make("board_defconfig", "IMAGE=minimal", out).returncode == 0
    for target in ("sbom", "cve"):
        assert "this is about the Buildroot image, and " in errors(make(target, out))


def test_a_reproducibility_check_wants_a_configured_board(tmp_path: Path) -> None:
    assert "no board is configured in " in errors(make("repro-check", f"O={tmp_path / 'out'}"))


def test_an_unknown_variant_lists_the_known_ones() -> None:
    assert "unknown VARIANT 'fast': the variants are aliasing, debug, kasan, nohighmem, nolpae" in errors(
        make("kernel", "VARIANT=fast")
    )


def test_an_unknown_series_is_said() -> None:
    told = "unknown SERIES 'some': it is none for the unpatched kernel, or unset"
    assert told in errors(make("kernel", "SERIES=some"))


@pytest.mark.parametrize("value", ["false", "no", "2", "app:*", "1 0", " "])
def test_a_debug_that_is_neither_0_nor_1_is_said_and_builds_nothing(tmp_path: Path, value: str) -> None:
    done = make("kernel", f"O={tmp_path / 'out'}", DEBUG=value)
    assert f"unknown DEBUG '{value}': it is 1 for the debug variant, or 0, or unset" in errors(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "variants"), [("", ()), ("0", ()), ("1", ("debug",))])
def test_debug_is_a_variant(monkeypatch: pytest.MonkeyPatch, value: str, variants: tuple[str, ...]) -> None:
    built: list[build.Product] = []
    monkeypatch.setattr(build, "build", built.append)
    monkeypatch.setattr(sys, "argv", ["tools.build", "kernel", "--debug", value])
    assert build.main() == 0
    assert built[0].variants == variants
    assert built[0].out.name == "-".join(["kernel-6.1", *variants])


def test_without_a_virtual_environment_make_says_make_deps(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = make("list", cwd=tmp_path)
    assert done.returncode != 0
    assert "there is no .venv yet: run `make deps`" in done.stderr


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    """A machine with python and git only."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("git", "sh", "python3"):
        (tools / name).symlink_to(shutil.which(name) or "/bin/false")
    done = make("kernel", f"O={tmp_path / 'out'}", path=str(tools))
    assert re.search(r"arm-linux-gnueabihf-gcc.* not found on this machine: run `make deps`", errors(done))
    assert not (tmp_path / "out").exists()


def test_a_board_is_remembered_with_its_choices(tmp_path: Path) -> None:
    done = make("board_defconfig", "IMAGE=minimal", f"O={tmp_path / 'out'}")
    assert done.returncode == 0
    assert "is configured for board: QEMU virt" in done.stdout
    assert '"image": "minimal"' in (tmp_path / "out/board.json").read_text()


@in_plain_folder
@pytest.mark.parametrize("name", ["a b", "a:b", "a'b", "a$b", "a#b", "a%b", 'a"b', "a=b", "a;b", "a(b", "a\\b", "a&b"])
@pytest.mark.parametrize("command", [["board_defconfig"], ["kernel"]])
def test_a_folder_which_cannot_be_built_in_is_said_at_once(tmp_path: Path, name: str, command: list[str]) -> None:
    done = make(*command, f"O={tmp_path / name}")
    odd = "a space" if " " in name else re.escape(name.strip("ab"))
    assert re.search(rf"nothing can be built in .*, because of {odd} in its name: choose another folder", errors(done))
    assert list(tmp_path.iterdir()) == []


@in_plain_folder
@pytest.mark.parametrize("name", ["a@b", "ä", "a,b"])
def test_a_folder_which_only_buildroot_cannot_build_in_is_said_by_its_build(tmp_path: Path, name: str) -> None:
    """Kbuild can: tests/host/test_environment.py."""
    out = f"O={tmp_path / name}"
    assert make("board_defconfig", "IMAGE=buildroot", out).returncode == 0
    assert re.search("nothing can be built in .* choose another folder with O=, or IMAGE=minimal", errors(make(out)))
    assert [path.name for path in (tmp_path / name).iterdir()] == ["board.json"]


def test_a_project_in_such_a_folder_does_what_needs_no_build(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "a b:c'd$e")
    assert "QEMU virt" in make("list", cwd=project).stdout
    told = "because of a space $ ' : in its name: move this project to a folder with a plain name"
    for command in (["kernel"], ["kernel", f"O={tmp_path}/out"]):
        assert told in errors(make(*command, cwd=project))
    assert not (project / "output").exists() and not (tmp_path / "out").exists()


def test_clean_leaves_a_foreign_folder_alone(tmp_path: Path) -> None:
    """`make clean O=$HOME` must not be the end of somebody's home."""
    (tmp_path / "mine").write_text("precious")
    project = copy_project(tmp_path / "project")
    assert make("clean", f"O={tmp_path}", cwd=project).returncode == 0
    assert (tmp_path / "mine").read_text() == "precious"


def test_deps_does_nothing_when_everything_is_there() -> None:
    done = make("deps")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["all Debian packages are there", "all Python packages are in .venv"]


def test_what_fetches_names_no_mirror() -> None:
    """Where packages come from is the host's own choice."""
    done = subprocess.run(
        ["git", "grep", "-nE", "(https?|ftp)://", "--", "tools", "board", "Makefile", "requirements.txt", ".ci"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # The boards of the rack are on this very machine.
    assert [line for line in done.stdout.splitlines() if "http://127.0.0.1" not in line] == []


@pytest.mark.parametrize("deaf", ["", "trap '' INT;"])
def test_a_program_that_is_terminated_ends_what_it_started(tmp_path: Path, deaf: str) -> None:
    script = "import os\nfrom tools import common\nfrom tools.common import bounded, entry\ncommon.END_LIMIT = 1\n"
    child = f"{deaf} echo $$ >{tmp_path}/pid; exec sleep 600"
    script += f"entry(lambda: bounded(['sh', '-c', {child!r}], 600, env=os.environ) or 0)\n"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True) as program:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.05)
        program.terminate()
        assert program.communicate(timeout=60)[1] == "error: interrupted\n"
    assert program.returncode == 130
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
