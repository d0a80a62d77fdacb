# SPDX-License-Identifier: GPL-2.0-only
"""The examples of a product team's CI: what they call exists, and their list of boards is the one of `make list`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from toyline import ROOT

from tools import boards, buildroot
from tools.common import cache_folder

FOLDER = ROOT / "docs/ci"
GITHUB, GITLAB = FOLDER / "github.yml", FOLDER / "gitlab-ci.yml"
TREE = cache_folder() / f"buildroot-{buildroot.pin()[0]}"
# The targets of Buildroot's which they use
PASSED = {"legal-info"}


def read(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text())
    return content


def scripts(content: Any) -> Iterator[str]:
    """Every command of a CI file."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name in ("run", "script", "before_script") and not isinstance(value, dict):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from scripts(value)
    elif isinstance(content, list):
        for value in content:
            yield from scripts(value)


def targets(path: Path) -> set[str]:
    """What they call make for; the name of a board is a pattern in a Makefile."""
    found = set()
    for script in scripts(read(path)):
        for words in re.findall(r"(?m)(?:^|[;(] ?|then |&& )\s*make\b([^|;)&\n]*)", script):
            named = [word.strip('"') for word in words.split() if "=" not in word]
            found |= {word.replace("${BOARD}", "%") for word in named} or {"all"}
    return found


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=lambda path: path.name)
def test_every_target_exists(path: Path) -> None:
    known = set(re.findall(r"(?m)^([\w%-]+):", (ROOT / "Makefile").read_text()))
    called = targets(path)
    assert called - PASSED <= known, called - PASSED - known
    assert {"deps", "%_defconfig", "all", "sbom", "test", "legal-info"} <= called


@pytest.mark.skipif(not TREE.is_dir(), reason="no tree of Buildroot in the cache")
def test_what_is_passed_on_is_a_target_of_buildroots() -> None:
    known = re.findall(r"(?m)^([\w-]+):", (TREE / "Makefile").read_text())
    assert set(known) >= PASSED


def test_each_file_that_they_name_is_here() -> None:
    text = GITHUB.read_text() + GITLAB.read_text()
    named = set(re.findall(r"\b(?:br2-external|tools|tests|labgrid)/[\w./-]+", text)) - {"tests/board"}
    assert {name for name in named if not (ROOT / name).exists() and not name.endswith("/")} == set(), named
    assert (ROOT / "tests/board").is_dir()
    assert "br2-external/sources/debian.yaml" in named
    # the environments of the emulated boards are called as the examples spell them
    known = {one.name for one in boards.boards()}
    assert all(one.name.removesuffix("-qemu.yaml") in known for one in (ROOT / "labgrid").glob("*-qemu.yaml"))


def run(script: str, folder: Path, **environment: str) -> None:
    (folder / "br2-external").symlink_to(ROOT / "br2-external")
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_github_builds_the_boards_with_a_buildroot_image(tmp_path: Path) -> None:
    job = read(GITHUB)["jobs"]["boards"]
    step = next(step for step in job["steps"] if step.get("id") == "list")
    run(step["run"], tmp_path, GITHUB_OUTPUT=str(tmp_path / "output"))
    name, _, value = (tmp_path / "output").read_text().partition("=")
    assert name in job["outputs"]
    assert json.loads(value) == [one.name for one in boards.products()]


def test_gitlab_builds_the_boards_with_a_buildroot_image(tmp_path: Path) -> None:
    script = "\n".join(read(GITLAB)["boards"]["script"])
    run(script, tmp_path, CI_CONFIG_PATH=".gitlab-ci.yml")
    child = read(tmp_path / "boards.yml")
    assert child["include"] == {"local": ".gitlab-ci.yml"}
    assert child["board"]["parallel"]["matrix"] == [{"BOARD": [one.name for one in boards.products()]}]
    assert read(GITLAB)["boards"]["artifacts"]["paths"] == ["boards.yml"]


@pytest.mark.parametrize(
    ("path", "place"), [(GITHUB, "${{ matrix.board }}"), (GITLAB, "$BOARD")], ids=["github", "gitlab"]
)
def test_what_is_kept(path: Path, place: str) -> None:
    text = path.read_text()
    for name in (f"output/{place}/images/", f"output/{place}/sbom.cdx.json", f"output/{place}/legal-info/"):
        assert re.search(rf"(?m)^\s+(- )?{re.escape(name)}$", text), name
    assert "output/test/*.xml" in text
    assert "debian:12" in text
