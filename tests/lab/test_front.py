# SPDX-License-Identifier: GPL-2.0-only
"""`pytest --lg-env arm-pmem.yaml` as a user types it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pexpect
import pytest
from machines import talker

ROOT = Path(__file__).resolve().parents[2]


# What the shell of somebody who works on another project may have exported
FOREIGN = {
    "LG_ENV": "/nowhere/foreign.yaml",
    "LG_BUILDDIR": "/nowhere/images",
    "LG_PLACE": "foreign-1",
    "LG_COORDINATOR": "foreign:20408",
    "LG_PROXY": "foreign-gateway",
    "LG_STATE": "shell",
}


def front(
    *args: str, builddir: Path | None = None, exported: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("LG_")} | {**exported}
    if builddir:
        environ["LG_BUILDDIR"] = str(builddir)
    cmd = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    return subprocess.run(cmd, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("board", "make board_defconfig && make"),
        ("orangepi_pc", "make orangepi_pc_defconfig && make"),
        ("elsewhere", "make board_defconfig && make"),
        ("kernel-6.1-debug", "make kernel KERNEL=6.1 DEBUG=1"),
        ("kernel-6.1-unpatched", "make kernel KERNEL=6.1 SERIES=none"),
    ],
)
def test_without_an_image_one_sentence_says_what_builds_it(tmp_path: Path, folder: str, command: str) -> None:
    images = tmp_path / folder / "images"
    done = front("--lg-env", "arm-pmem.yaml", "tests/board", builddir=images)
    assert done.returncode == 4
    named = "(LG_BUILDDIR is set to that folder)"
    assert f"There is no image {images}/zImage {named}: `{command}` builds it." in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("env", "board"), [("arm-pmem.yaml", "board"), ("labgrid/orangepi_pc-qemu.yaml", "orangepi_pc")]
)
def test_an_environment_knows_the_images_of_its_board(tmp_path: Path, env: str, board: str) -> None:
    done = front("--lg-env", env, "tests/lab/test_front.py::test_nothing", f"--board-logs={tmp_path}")
    assert f"images: output/{board}/images\n" in done.stdout


def test_without_an_environment_the_board_tests_are_skipped(tmp_path: Path) -> None:
    done = front("tests/board/test_pmem.py", f"--board-logs={tmp_path}")
    assert done.returncode == 0
    assert re.search(r"\d+ skipped", done.stdout)
    assert "passed" not in done.stdout


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    done = front("--lg-env", "no-such.yaml", f"--board-logs={tmp_path}")
    assert done.returncode == 4
    assert "There is no environment no-such.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_tests_on_the_host_do_not_care_for_what_another_project_exported(tmp_path: Path) -> None:
    """A coordinator of their own answers where LG_PROXY and LG_COORDINATOR lead nowhere."""
    tests = ["tests/lab/test_front.py::test_nothing", "tests/lab/test_coordinator.py::test_a_place_can_be_had_once"]
    done = front(*tests, f"--board-logs={tmp_path}", exported=FOREIGN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "foreign" not in done.stdout


@pytest.mark.parametrize(
    ("env", "exported", "named"),
    [
        ("arm-pmem.yaml", FOREIGN, "LG_BUILDDIR=/nowhere/images"),
        (
            "labgrid/board.yaml",
            FOREIGN,
            "LG_BUILDDIR=/nowhere/images LG_COORDINATOR=foreign:20408 LG_PLACE=foreign-1 LG_PROXY=foreign-gateway",
        ),
        ("", {"LG_ENV": "arm-pmem.yaml", "LG_PLACE": "foreign-1"}, "LG_ENV=arm-pmem.yaml"),
    ],
)
def test_tests_on_a_board_say_what_they_took_from_the_environment(
    tmp_path: Path, env: str, exported: dict[str, str], named: str
) -> None:
    words = ["--lg-env", env] if env else []
    done = front(*words, "tests/board/test_klog.py", "-k", "nothing", f"--board-logs={tmp_path}", exported=exported)
    assert f"\nfrom the environment: {named}\n" in done.stdout


def test_the_emulator_s_version_is_in_the_header_and_kept_with_the_run(tmp_path: Path) -> None:
    done = front("--lg-env", "arm-pmem.yaml", "tests/lab/test_front.py::test_nothing", f"--board-logs={tmp_path}")
    header = re.search(r"^emulator: (QEMU \d+\.\d+\.\d+)$", done.stdout, re.MULTILINE)
    assert header
    assert json.loads((tmp_path / "run.json").read_text())["emulator"] == header[1]


def test_an_exported_folder_without_an_image_is_named_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "foreign/images"
    done = front("--lg-env", "arm-pmem.yaml", "tests/board", builddir=folder)
    assert f"There is no image {folder}/zImage (LG_BUILDDIR is set to that folder): " in done.stdout + done.stderr
    assert not folder.parent.exists()


def test_an_exported_environment_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = front("tests/board", f"--board-logs={tmp_path}", exported={"LG_ENV": "/nowhere/foreign.yaml"})
    assert "There is no environment /nowhere/foreign.yaml (LG_ENV is set to that)" in done.stderr


def test_a_path_which_labgrid_would_change_is_refused(tmp_path: Path) -> None:
    done = front("--lg-env", "arm-pmem.yaml", f"--board-logs={tmp_path}", builddir=Path("/tmp/a$HOME/images"))
    assert "In the path /tmp/a$HOME/images labgrid takes what follows a $ for a variable" in done.stderr


def test_a_machine_that_cannot_start_ends_the_run_with_one_sentence(images: Path, tmp_path: Path) -> None:
    (images / "pmem.dtbo").write_bytes(b"no device tree")
    done = front("--lg-env", "arm-pmem.yaml", "tests/board/test_pmem.py", f"--board-logs={tmp_path}", builddir=images)
    assert done.returncode == 3
    assert "DeviceTreeError: The overlays" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_dry_run_prints_a_command_that_qemu_takes(images: Path) -> None:
    done = front("--lg-env", "arm-pmem.yaml", "--dry-run", builddir=images)
    assert done.returncode == 0
    cmd = shlex.split(done.stdout)
    dump = images.parent / "again.dtb"
    subprocess.run([*cmd, "-S", "-machine", f"dumpdtb={dump}"], check=True, timeout=30, stdin=subprocess.DEVNULL)
    assert dump.exists()


@pytest.mark.parametrize("option", ["--dry-run", "--interactive"])
def test_by_hand_without_an_environment(option: str) -> None:
    done = front(option)
    assert done.returncode == 4
    assert "Add --lg-env arm-pmem.yaml" in done.stderr


def test_interactive_is_the_machine_on_this_terminal(images: Path) -> None:
    (images / "zImage").write_bytes(talker("the console\n"))
    child = pexpect.spawn(
        sys.executable,
        ["-m", "pytest", "--lg-env", "arm-pmem.yaml", "--interactive"],
        cwd=str(ROOT),
        env={**os.environ, "LG_BUILDDIR": str(images)},
        timeout=30,
    )
    child.expect("Ctrl-A x ends the machine")
    child.expect("the console")
    child.send("\x01x")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert (images.parent / "run" / "interactive" / "ram").exists()


def test_each_run_leaves_its_logs(tmp_path: Path) -> None:
    done = front("tests/lab/test_front.py::test_nothing", f"--board-logs={tmp_path}/logs")
    assert done.returncode == 0, done.stdout
    assert "<testsuite" in (tmp_path / "logs" / "junit.xml").read_text()


def test_nothing() -> None:
    """For the test above."""
