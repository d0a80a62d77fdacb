# SPDX-License-Identifier: GPL-2.0-only
"""A small kernel line for the tools' tests: a tarball and a series of two patches, in a temporary folder; and the project itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.buildroot import PLAIN
from tools.source import Repository, Series, series

ROOT = Path(__file__).resolve().parents[2]

# For a test of what builds
in_plain_folder = pytest.mark.skipif(
    not re.fullmatch(f"{PLAIN}*", str(ROOT)), reason="this project lies in a folder where nothing can be built"
)

HELLO = "".join(f"line {number}\n" for number in range(1, 41))

FIRST = """\
From 1111111111111111111111111111111111111111 Mon Sep 17 00:00:00 2001
From: A Developer <a@example.com>
Date: Mon, 1 Jan 2024 00:00:00 +0000
Subject: [PATCH] hello: say two

---
--- a/hello.c
+++ b/hello.c
@@ -1,4 +1,4 @@
 line 1
-line 2
+line two
 line 3
 line 4
--
2.39.5
"""

SECOND = """\
From 2222222222222222222222222222222222222222 Mon Sep 17 00:00:00 2001
From: A Developer <a@example.com>
Date: Mon, 1 Jan 2024 00:00:00 +0000
Subject: [PATCH] hello: say ten and thirty

---
--- a/hello.c
+++ b/hello.c
@@ -8,5 +8,5 @@
 line 8
 line 9
-line 10
+line ten
 line 11
 line 12
@@ -28,5 +28,5 @@
 line 28
 line 29
-line 30
+line thirty
 line 31
 line 32
--
2.39.5
"""


@dataclass
class Line:
    """One kernel line in a temporary folder."""

    root: Path
    repository: Repository

    @property
    def tarball(self) -> Path:
        return self.root / "linux-source-9.9.tar.xz"

    @property
    def patches(self) -> Path:
        return self.root / "patches/linux/9.9"

    def worktree(self, name: str) -> Repository:
        return Repository("9.9", name, output=self.repository.path.parent, given=self.tarball)

    def series(self) -> Series:
        return series("9.9", self.root)

    def hello(self) -> str:
        return (self.repository.path / "hello.c").read_text()

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
        return subprocess.run(
            ["git", *identity, *words], cwd=self.repository.path, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()


def make_line(folder: Path) -> Line:
    tree = folder / "linux-source-9.9"
    tree.mkdir()
    (tree / "hello.c").write_text(HELLO)
    (tree / "Makefile").write_text("VERSION = 9\nPATCHLEVEL = 9\nSUBLEVEL = 1\n")
    with tarfile.open(folder / "linux-source-9.9.tar.xz", "w:xz") as tarball:
        tarball.add(tree, arcname=tree.name)
    patches = folder / "patches/linux/9.9"
    patches.mkdir(parents=True)
    (patches / "0001-hello-say-two.patch").write_text(FIRST)
    (patches / "0002-hello-say-ten-and-thirty.patch").write_text(SECOND)
    return Line(folder, Repository("9.9", output=folder / "output", given=folder / "linux-source-9.9.tar.xz"))


def copy_project(project: Path) -> Path:
    """What `make` needs in another place, without git."""
    project.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", project)
    for name in ("tools", "board", "br2-external", "patches"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / ".venv").symlink_to(ROOT / ".venv")
    return project
