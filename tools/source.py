# SPDX-License-Identifier: GPL-2.0-only
"""The kernel source: Debian's source package in a git repository, with our series on a branch.

output/linux-<X.Y>/ is made once. Tag `base` is the source as Debian ships it, branch `arm-pmem` is
base + `git am` of patches/linux/<X.Y>/*.patch. When patches change, the branch is made again, from
the last patch that did not change. A developer's own edits there are never touched.
Other states (no series, a series without some patches) are git worktrees beside it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tools import debian
from tools.common import (
    OUTPUT,
    ROOT,
    UserError,
    cache_folder,
    check_path,
    display,
    locked,
    run,
    say,
    sha256,
    write_whole,
)
from tools.environment import child_environment

BRANCH = "arm-pmem"
BASE = "base"
# The kernel sources that were tested: Buildroot checks them, too, and so the file follows its rules.
LINUX_HASH = ROOT / "patches/linux/linux.hash"
# Where one line's source is in Debian's archive: names of suites
SUITES = "debian-suites"
# How long one make waits for another to fetch the same source
FETCH_LIMIT_S = 900

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


def suites(kernel: str, root: Path = ROOT) -> list[str]:
    """Debian's suites that have the source of a kernel line; the first that does counts."""
    lines = (root / "patches/linux" / kernel / SUITES).read_text().splitlines()
    return [word for line in lines for word in line.partition("#")[0].split()]


def tested_hashes() -> dict[str, str]:
    """sha256 by file name of the kernel sources that were tested."""
    rows = re.findall(r"(?m)^sha256\s+([0-9a-f]{64})\s+(\S+)", LINUX_HASH.read_text())
    return {name: digest for digest, name in rows}


def tarball_version(kernel: str, name: str) -> str:
    """The Debian version in a tarball's name; '' where it is not one of this kernel line."""
    match = re.fullmatch(rf"linux-source-({re.escape(kernel)}\..+)\.tar\.xz", name)
    return match[1] if match else ""


def tarball(kernel: str, folder: Path | None = None) -> Path:
    """Debian's source of a kernel line, from the cache or from the archive, under a name with its version.

    The tested version where it can be had, else the newest.
    """
    folder = folder or cache_folder() / "site"
    tested = next((name for name in tested_hashes() if tarball_version(kernel, name)), "")
    busy = f"another make has been fetching Linux {kernel} to {folder} for {FETCH_LIMIT_S} s: wait until that has ended"
    with locked(folder / f".linux-{kernel}.lock", busy, wait=FETCH_LIMIT_S):
        if tested and (folder / tested).exists():
            return folder / tested
        cached = [path for path in folder.glob("linux-source-*.tar.xz") if tarball_version(kernel, path.name)]
        for path in cached:
            # It was fetched when the archive had the tested version no more.
            if debian.newer(tarball_version(kernel, path.name), tarball_version(kernel, tested)):
                return path
        fetched = fetch_tarball(kernel, folder, tested)
        for path in cached:
            path.unlink(missing_ok=True)
        return fetched


def fetch_tarball(kernel: str, folder: Path, tested: str) -> Path:
    say(f"fetching the source of Linux {kernel} from Debian's archive (once)")
    package = f"linux-source-{kernel}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".linux-") as name:
        preferred = tarball_version(kernel, tested)
        deb, version, newest = debian.download_version(package, suites(kernel), preferred, Path(name))
        debian.unpack(deb, Path(name) / "files")
        packed = Path(name) / "files/usr/src" / f"{package}.tar.xz"
        target = folder / f"linux-source-{version}.tar.xz"
        expected = tested_hashes().get(target.name)
        if expected and sha256(packed) != expected:
            raise UserError(f"{target.name} of Debian's archive is not the one that {display(LINUX_HASH)} names")
        packed.replace(target)
    if tested and version != preferred:
        say(f"note: the kernel source is {target.name}, and {tested} is what was tested")
    elif newest != version:
        say(f"note: Debian has {package} {newest}, and {version} is what was tested and is used")
    return target


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

    def __init__(self, kernel: str, worktree: str = "", output: Path = OUTPUT, given: Path | None = None) -> None:
        suffix = f"-{worktree}" if worktree else ""
        self.kernel = kernel
        self.main = output / f"linux-{kernel}"
        self.path = output / f"linux-{kernel}{suffix}"
        self.branch = f"{BRANCH}{suffix}"
        # A tarball of the source, instead of Debian's
        self.given = given

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
        source = self.given or tarball(self.kernel)
        say(f"unpacking {source.name} to {display(self.main)} (once)")
        work = self.main.with_name(f".{self.main.name}.tmp")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            run(
                ["tar", "xf", source, "-C", work, "--strip-components=1", "--no-same-owner"],
                what=f"{source} cannot be unpacked",
            )
            # tar restores mtimes, so that the top Makefile tells when Debian made this source.
            date = f"{int((work / 'Makefile').stat().st_mtime)} +0000"
            dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
            what = f"a git repository of {source}"
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
