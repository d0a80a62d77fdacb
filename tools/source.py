# SPDX-License-Identifier: GPL-2.0-only
"""The kernel source: Debian's source package in a git repository, with our series on a branch.

output/linux-<X.Y>/ is made once. Tag `base` is the source as Debian ships it, branch `arm-pmem` is
base + `git am` of patches/linux/<X.Y>/*.patch. When patches change, the branch is made again, from
the last patch that did not change. A developer's own edits there are never touched.
Other states (no series, a series without some patches) are git worktrees beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tools.common import OUTPUT, ROOT, UserError, check_path, display, locked, run, say, sha256, write_whole
from tools.environment import child_environment

BRANCH = "arm-pmem"
BASE = "base"
TARBALLS = Path(os.environ.get("KERNEL_TARBALLS", "/usr/src"))

# Nothing of the user's own git set-up (signing, hooks, names) may change what a build gives.
GIT = [
    "git",
    *("-c", "commit.gpgSign=false"),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.autocrlf=false"),
    *("-c", "am.threeWay=false"),
    *("-c", "gc.auto=0"),
    *("-c", "advice.detachedHead=false"),
]
IDENTITY = {
    "GIT_AUTHOR_NAME": "arm-pmem",
    "GIT_AUTHOR_EMAIL": "arm-pmem@localhost",
    "GIT_COMMITTER_NAME": "arm-pmem",
    "GIT_COMMITTER_EMAIL": "arm-pmem@localhost",
}


@dataclass(frozen=True)
class Series:
    """Patches in their order; `name` is 6.1, 6.1-drop-0007 or none."""

    name: str
    patches: tuple[Path, ...]
    # Taken at the start: somebody may edit the patches while a kernel is built from them.
    hashes: tuple[str, ...]

    @property
    def hash(self) -> str:
        return sha256("\n".join(self.hashes).encode())


NO_SERIES = Series("none", (), ())


def kernel_lines(root: Path = ROOT) -> list[str]:
    return sorted(path.name for path in (root / "patches/linux").glob("*/") if path.is_dir())


def series(kernel: str, root: Path = ROOT) -> Series:
    known = kernel_lines(root)
    if kernel not in known:
        raise UserError(f"unknown KERNEL '{kernel}': there are patches for {', '.join(known) or 'none yet'}")
    folder = root / "patches/linux" / kernel
    patches = tuple(sorted(folder.glob("*.patch")))
    return Series(kernel, patches, tuple(sha256(patch) for patch in patches))


def numbered(wanted: Series, numbers: Sequence[str]) -> set[Path]:
    """The patches of these numbers, which may do without their zeros: 2 is 0002."""
    chosen = set()
    for number in numbers:
        found = {patch for patch in wanted.patches if patch.name.startswith(f"{number.zfill(4)}-")}
        if not found:
            raise UserError(f"no patch of {wanted.name} has the number '{number}': give numbers such as 2,5")
        chosen |= found
    return chosen


def without(wanted: Series, numbers: Sequence[str]) -> Series:
    """The series without the patches of these numbers."""
    dropped = numbered(wanted, numbers)
    kept = [pair for pair in zip(wanted.patches, wanted.hashes, strict=True) if pair[0] not in dropped]
    name = "-".join([wanted.name, "drop", *(number.zfill(4) for number in numbers)])
    return Series(name, tuple(patch for patch, _ in kept), tuple(known for _, known in kept))


class Repository:
    """The git repository of one kernel line; `worktree` names a second work tree of it."""

    def __init__(self, kernel: str, worktree: str = "", output: Path = OUTPUT, tarballs: Path = TARBALLS) -> None:
        suffix = f"-{worktree}" if worktree else ""
        self.kernel = kernel
        self.main = output / f"linux-{kernel}"
        self.path = output / f"linux-{kernel}{suffix}"
        self.branch = f"{BRANCH}{suffix}"
        self.tarball = tarballs / f"linux-source-{kernel}.tar.xz"

    def git(self, *arguments: str, cwd: Path | None = None, what: str = "") -> str:
        command = [*GIT, *arguments]
        what = what or f"git {arguments[0]} in {display(cwd or self.path)}"
        return run(command, cwd=cwd or self.path, env=IDENTITY, what=what).strip()

    def epoch(self) -> int:
        """The date of the pristine source: SOURCE_DATE_EPOCH of all that is built from it."""
        return int(self.git("log", "-1", "--format=%ct", BASE))

    # --- making it ---------------------------------------------------------------------------

    def unpack(self) -> None:
        """Make the repository from the tarball, and the work tree; each appears whole or not at all."""
        if not (self.main / ".git").exists():
            with self.in_use(self.main, shared=False):
                self._unpack()
        if not (self.path / ".git").exists():
            self.git("worktree", "prune", cwd=self.main)
            self.git("worktree", "add", "--quiet", "-B", self.branch, str(self.path), BASE, cwd=self.main)

    def _unpack(self) -> None:
        if self.main.exists():
            raise UserError(f"{display(self.main)} is not a git repository: remove it")
        if not self.tarball.exists():
            raise UserError(f"{self.tarball} not found on this machine: run `make deps`")
        say(f"unpacking {self.tarball} to {display(self.main)} (once)")
        work = self.main.with_name(f".{self.main.name}.tmp")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            run(
                ["tar", "xf", self.tarball, "-C", work, "--strip-components=1", "--no-same-owner"],
                what=f"{self.tarball} cannot be unpacked",
            )
            # tar restores mtimes, so that the top Makefile tells when Debian made this source.
            date = f"{int((work / 'Makefile').stat().st_mtime)} +0000"
            dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
            what = f"a git repository of {self.tarball}"
            for command in (
                ["init", "--quiet", "--initial-branch", BRANCH],
                # Fast rather than small, and no time stamps of the tarball in the index to check.
                ["config", "core.looseCompression", "1"],
                ["add", "--all", "--force"],
                ["commit", "--quiet", "-m", f"linux-source-{self.kernel} of Debian"],
                ["tag", BASE],
            ):
                run([*GIT, *command], cwd=work, env={**IDENTITY, **dates}, what=what)
            work.rename(self.main)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def in_use(self, tree: Path | None = None, *, shared: bool) -> AbstractContextManager[None]:
        """A build shares the work tree with other builds, but with nobody who changes it."""
        tree = tree or self.path
        return locked(
            tree.with_name(f".{tree.name}.lock"),
            f"{display(tree)} is in use by another make: wait until that has ended",
            shared=shared,
        )

    # --- the series --------------------------------------------------------------------------

    @property
    def _git_folder(self) -> Path:
        return self.path / self.git("rev-parse", "--git-dir")

    @property
    def _memory(self) -> Path:
        return self._git_folder / "arm-pmem.json"

    def _remembered(self) -> tuple[list[str], str]:
        """Patch hashes that were applied last, and the commit which that gave."""
        if not self._memory.exists():
            return [], self.git("rev-parse", BASE)
        memory = json.loads(self._memory.read_text())
        return list(memory["patches"]), str(memory["head"])

    def _edited(self, head: str) -> str:
        """What a developer did here since the series was applied, or ''."""
        if any((self._git_folder / name).exists() for name in ("rebase-apply", "rebase-merge")):
            return "a git am or rebase under way"
        if self.git("rev-parse", "HEAD") != head:
            return "own commits or another branch"
        if self.git("status", "--porcelain", "--untracked-files=no"):
            return "uncommitted edits"
        return ""

    def edits(self) -> str:
        return self._edited(self._remembered()[1])

    def prepare(self, wanted: Series) -> Path:
        """Bring the work tree to base + the series and return its path."""
        check_path(self.path, "move this project to a folder with a plain name")
        self.unpack()
        applied, head = self._remembered()
        hashes = list(wanted.hashes)
        edits = self._edited(head)
        if edits and hashes != applied:
            raise UserError(
                f"{display(self.path)} holds {edits} and the patches in patches/linux/"
                f"{self.kernel} changed too: save your work as patches, then "
                f"`git -C {display(self.path)} checkout -f {self.branch} && "
                f"git -C {display(self.path)} reset --hard {head[:12]}`"
            )
        if edits:
            say(f"{display(self.path)} holds {edits}: built as it is")
        elif hashes != applied:
            with self.in_use(shared=False):
                self._apply(wanted, applied, head)
        return self.path

    def _apply(self, wanted: Series, applied: list[str], head: str) -> None:
        hashes = list(wanted.hashes)
        same = 0
        while same < min(len(hashes), len(applied)) and hashes[same] == applied[same]:
            same += 1
        commits = self.git("rev-list", "--reverse", f"{BASE}..{head}").split()
        start = commits[same - 1] if same else BASE
        self.git("checkout", "--quiet", "-B", self.branch, head)
        self.git("reset", "--quiet", "--hard", start)
        say(f"applying {len(hashes) - same} of {len(hashes)} patches to {display(self.path)}")
        try:
            for patch in wanted.patches[same:]:
                self._apply_one(patch)
        except BaseException:
            if (self._git_folder / "rebase-apply").exists():
                self.git("am", "--abort")
            self.git("reset", "--quiet", "--hard", head)
            raise
        memory = {"patches": hashes, "head": self.git("rev-parse", "HEAD")}
        write_whole(self._memory, json.dumps(memory, indent=1) + "\n")

    def _apply_one(self, patch: Path) -> None:
        """`git am` knows no fuzz; its committer date is the author's, for the same commit ids."""
        reason = git_am(self.path, patch.read_bytes(), "--committer-date-is-author-date")
        if reason:
            raise UserError(
                f"{display(patch)} does not apply to Linux {self.kernel}: {reason}; the source tree is left as it was"
            )


def git_am(tree: Path, mails: bytes, *options: str) -> str:
    """Applies mails as commits, without fuzz; why they do not apply, or ''."""
    done = subprocess.run(
        [*GIT, "am", "--quiet", *options],
        cwd=tree,
        env=child_environment(**IDENTITY),
        input=mails,
        capture_output=True,
        timeout=120,
        check=False,
    )
    complaint = (done.stdout + done.stderr).decode(errors="replace")
    return why_not(mails.decode(errors="replace"), complaint) if done.returncode else ""


def why_not(patch: str, complaint: str) -> str:
    """Turn git's complaint into the file and the hunk."""
    failed = re.search(r"error: patch failed: (.+):(\d+)", complaint)
    if failed:
        name, line = failed[1], failed[2]
        hunk = hunk_number(patch, name, int(line))
        return f"{name}, hunk {f'#{hunk} ' if hunk else ''}(at line {line}) does not match"
    missing = re.search(r"error: (.+): (does not exist in index|already exists in .*)", complaint)
    if missing:
        return f"{missing[1]} {missing[2].replace('does not exist in index', 'does not exist')}"
    lines = [line for line in complaint.splitlines() if line.strip()]
    return lines[0] if lines else "git am gave no reason"


def hunk_number(patch: str, name: str, line: int) -> int | None:
    """Which hunk of file `name` starts at `line` of the old file."""
    current, number = "", 0
    for text in patch.splitlines():
        if text.startswith("--- "):
            current, number = text[4:].split("\t")[0].removeprefix("a/"), 0
        elif text.startswith("+++ ") and text[4:] != "/dev/null":
            current = text[4:].split("\t")[0].removeprefix("b/")
        hunk = re.match(r"@@ -(\d+)", text)
        if hunk:
            number += 1
            if current == name and int(hunk[1]) == line:
                return number
    return None
