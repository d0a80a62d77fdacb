# SPDX-License-Identifier: GPL-2.0-only
"""`make series KERNEL=6.1`: the series patch by patch, as its reviewers would want to have it shown.

After each patch: it applies without fuzz, checkpatch is content, what it touches compiles on every architecture that Debian has a
compiler for without a new warning (W=1, sparse), 64-bit text grows only with a reason (patches/linux/growth.yaml), and the reference
board boots. A result is kept until the patches up to there, or this program, change: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools import fragments, serieswhole
from tools.boards import board
from tools.check import checkpatch, touched
from tools.common import OUTPUT, ROOT, UserError, bounded, display, end_groups, entry, locked, say, sha256, write_whole
from tools.common import run as shell
from tools.environment import child_environment, lab_environment
from tools.kernel import Kernel, first_error
from tools.source import BASE, Repository, Series, kernel_lines, numbered, series

FOLDER = OUTPUT / "series"
PATCHES = ROOT / "patches/linux"
GROWTH = PATCHES / "growth.yaml"
# Raised when results of an older version of a step say something else than this one's would. In seconds: limits.
VERSION = 1
MAKE_LIMIT = 3600
BOOT_LIMIT = 600
# The test that a state of the series must pass: the board comes up and its kernel has no complaint.
BOOT_TEST = "tests/board/test_kernel.py::test_the_start_is_without_complaint"
# What the series touches shall be compiled; an architecture grants what it can.
ENABLE = [
    "ARM_LPAE",
    "DAX",
    "FS_DAX",
    "DEV_DAX",
    "LIBNVDIMM",
    "BLK_DEV_PMEM",
    "BTT",
    "ND_BTT",
    "OF_PMEM",
    "NVDIMM_PFN",
    "NVDIMM_DAX",
    "MEMORY_HOTPLUG",
    "MEMORY_HOTREMOVE",
    "ZONE_DEVICE",
    "MD",
    "BLK_DEV_DM",
    "FUSE_FS",
    "VIRTIO",
    "VIRTIO_MENU",
    "VIRTIO_FS",
    "FUSE_DAX",
    "EXT2_FS",
    "EXT4_FS",
    "XFS_FS",
    "BLOCK",
    "MMU",
    "DCSSBLK",
    "STMMAC_ETH",
    "OF",
]
# Where the answer is a constant, the code must not become larger.
SIZED = ("x86_64", "arm64")


@dataclass(frozen=True)
class Arch:
    name: str
    # ARCH= of the kernel's make, its compiler's prefix, and the configuration to begin with
    arch: str
    prefix: str
    defconfig: str
    # folders of the tree which only this architecture compiles
    own: tuple[str, ...] = ()
    # Debian 12's sparse does not understand riscv's -march.
    sparse: bool = True


ARCHES = (
    Arch("arm", "arm", "arm-linux-gnueabihf-", "multi_v7_defconfig", ("arch/arm/",)),
    Arch("arm64", "arm64", "aarch64-linux-gnu-", "defconfig", ("arch/arm64/",)),
    Arch("x86_64", "x86_64", "", "x86_64_defconfig", ("arch/x86/",)),
    Arch("s390", "s390", "s390x-linux-gnu-", "defconfig", ("arch/s390/", "drivers/s390/")),
    Arch("mips", "mips", "mips-linux-gnu-", "malta_defconfig", ("arch/mips/",)),
    Arch("sparc64", "sparc64", "sparc64-linux-gnu-", "sparc64_defconfig", ("arch/sparc/",)),
    Arch("sh", "sh", "sh4-linux-gnu-", "rts7751r2d1_defconfig", ("arch/sh/",)),
    Arch("m68k", "m68k", "m68k-linux-gnu-", "multi_defconfig", ("arch/m68k/",)),
    Arch("parisc", "parisc", "hppa-linux-gnu-", "generic-32bit_defconfig", ("arch/parisc/",)),
    Arch("powerpc", "powerpc", "powerpc64-linux-gnu-", "ppc64_defconfig", ("arch/powerpc/",)),
    Arch("riscv", "riscv", "riscv64-linux-gnu-", "defconfig", ("arch/riscv/",), sparse=False),
    Arch("alpha", "alpha", "alpha-linux-gnu-", "defconfig", ("arch/alpha/",)),
)
# Debian has no compiler for these: their header is preprocessed by the host's, and the answer looked at.
PREPROCESSED = ("arc", "csky", "nios2", "xtensa")
# What an architecture says that is broken already without a patch
BROKEN = "the source before this patch does not compile there"
# For the series as a whole
WHOLE = serieswhole.STEPS
STEPS = ("applies", "checkpatch", *(one.name for one in ARCHES), *PREPROCESSED, "size", "boot", *WHOLE)


@dataclass(frozen=True)
class Outcome:
    """passed, failed or skipped, with what there is to say."""

    outcome: str
    text: str = ""


class Results:
    """What each step came to, by patch; kept in a file, which is written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, dict[str, str]]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, patch: str, step: str, key: str) -> Outcome | None:
        """What failed is asked again: what it lacked may be there now. So is what grew: its reason stands elsewhere."""
        one = self.known.get(patch, {}).get(step)
        kept = one and one["key"] == key and one["outcome"] not in ("failed", "grown")
        return Outcome(one["outcome"], one["text"]) if one and kept else None

    def put(self, patch: str, step: str, key: str, one: Outcome) -> None:
        self.known.setdefault(patch, {})[step] = {"key": key, "outcome": one.outcome, "text": one.text}
        write_whole(self.path, json.dumps(self.known, indent=1) + "\n")

    def forget(self, patches: Iterable[str]) -> None:
        """Drops patches which the series no longer has."""
        kept = set(patches)
        self.known = {name: steps for name, steps in self.known.items() if name in kept}


class Gate:
    """One kernel line's series."""

    def __init__(self, wanted: Series, repository: Repository, folder: Path) -> None:
        self.kernel = repository.kernel
        self.series = wanted
        self.folder = folder
        self.repository = repository
        self.results = Results(self.folder / "results.json")
        self.results.forget([*(patch.name for patch in self.series.patches), serieswhole.NAME])
        # All .c files of the series: who changes a header must not break them.
        self.witnesses = sorted(
            {name for patch in self.series.patches for name in touched(patch) if name.endswith(".c")}
        )
        self.commits: list[str] = []
        self.at = -1
        # What could not be compiled at all, by number of patches and architecture: asked once
        self.broken: dict[tuple[int, str], str] = {}
        self.running: set[subprocess.Popen[str]] = set()

    def key(self, number: int) -> str:
        return state_key(self.series, number)

    def git(self, *words: str) -> str:
        return self.repository.git(*words)

    def prepare(self) -> None:
        """The series as commits, in a work tree of its own: nobody works there, so it may be moved about."""
        branch = self.repository.branch
        if (self.repository.path / ".git").exists():
            self.git("checkout", "--quiet", "--force", branch)
        self.repository.prepare(self.series)
        self.commits = [self.git("rev-parse", BASE), *self.git("rev-list", "--reverse", f"{BASE}..{branch}").split()]
        if len(self.commits) != len(self.series.patches) + 1:
            raise UserError(
                f"{display(self.repository.path)} holds {len(self.commits) - 1} commits, and the series has "
                f"{len(self.series.patches)} patches: remove the folder"
            )

    def checkout(self, number: int) -> None:
        if self.at != number:
            self.at = -1
            self.git("checkout", "--quiet", "--force", "--detach", self.commits[number])
            self.at = number

    # One step after one patch -------------------------------------------------------------------------------------

    def run(self, number: int, step: str) -> Outcome:
        patch = self.series.patches[number - 1]
        if step == "applies":
            # prepare() has applied all, by git am, which knows no fuzz
            return Outcome("passed")
        if step == "checkpatch":
            said = checkpatch(self.repository.path, patch)
            return Outcome("failed", said) if said else Outcome("passed")
        if step in PREPROCESSED:
            return self.preprocess(number, step)
        if step == "size":
            return self.size(number)
        if step == "boot":
            return self.boot(number)
        return self.compile(number, next(one for one in ARCHES if one.name == step))

    def every_object(self, arch: Arch) -> list[str]:
        """Of all files of the series."""
        return [name.replace(".c", ".o") for name in self.witnesses if not foreign(arch).match(name)]

    def objects(self, number: int, arch: Arch) -> list[str]:
        """What this patch may change the code of, on this architecture."""
        names = {name for name in touched(self.series.patches[number - 1]) if not foreign(arch).match(name)}
        sources = {name for name in names if name.endswith(".c")}
        if any(not name.endswith((".c", ".txt", ".yaml")) for name in names):
            sources = {name for name in self.witnesses if not foreign(arch).match(name)}
        if not sources:
            return []
        # By git, since moving the work tree there and back would make everything out of date.
        there = self.git("ls-tree", "-r", "--name-only", self.commits[number], "--", *sorted(sources)).split()
        return sorted(name.removesuffix(".c") + ".o" for name in there)

    def make(self, arch: Arch, build: Path, *words: str) -> tuple[int, str]:
        """Exit status and output of the kernel's make, out of tree and on all processors."""
        ccache = "ccache " if shutil.which("ccache") else ""
        command = ["make", f"--directory={self.repository.path}", f"O={build}", f"ARCH={arch.arch}"]
        command += [f"CROSS_COMPILE={arch.prefix}", f"CC={ccache}{arch.prefix}gcc", f"HOSTCC={ccache}gcc"]
        command += [f"-j{len(os.sched_getaffinity(0))}", *words]
        with subprocess.Popen(
            command,
            env=child_environment(KBUILD_BUILD_TIMESTAMP="0"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            self.running.add(process)
            try:
                said, _ = process.communicate(timeout=MAKE_LIMIT)
            except subprocess.TimeoutExpired:
                raise UserError(f"{arch.name}: make {words[0]} did not end within {MAKE_LIMIT} s") from None
            finally:
                end_groups([process], signal.SIGTERM)
                self.running.discard(process)
        return process.returncode, said

    def configure(self, arch: Arch, build: Path, options: Sequence[str] = (), start: str = "") -> None:
        """The defconfig with what the series is about; what the architecture cannot have it does not get."""
        build.mkdir(parents=True, exist_ok=True)
        status, said = self.make(arch, build, start or arch.defconfig)
        if status == 0:
            words = [word for name in ENABLE for word in ("--enable", name)]
            # A warning shall be seen, and compared, not end the compilation.
            words += ["--disable", "WERROR", *options]
            script = self.repository.path / "scripts/config"
            shell([script, "--file", build / ".config", *words], what=f"the configuration of {arch.name}", timeout=60)
            status, said = self.make(arch, build, "olddefconfig")
        if status:
            raise UserError(f"{arch.name} cannot be configured: {' / '.join(said.splitlines()[-3:])}")

    def compile(self, number: int, arch: Arch) -> Outcome:
        """The objects before and after the patch; what gets worse is the patch's fault."""
        if shutil.which(f"{arch.prefix}gcc") is None:
            raise UserError(f"there is no {arch.prefix}gcc: `make series-deps` installs the compilers")
        objects = self.objects(number, arch)
        if not objects:
            return Outcome("skipped", "it changes nothing that this architecture compiles")
        try:
            before = self.state(number - 1, arch, objects)
        except UserError as error:
            return Outcome("skipped", f"{BROKEN}: {error}")
        after = self.state(number, arch, objects)
        worse = []
        for name in objects:
            old, new = before.get(name, {"ok": False, "warnings": []}), after[name]
            if old["ok"] and not new["ok"]:
                worse.append(f"{name} does not compile any more: {new['error']}")
            more = Counter(map(without_place, new["warnings"])) - Counter(map(without_place, old["warnings"]))
            for warning, count in more.items():
                if new["ok"] and old["ok"]:
                    worse.append(f"{name}: new warning ({count}): {warning}")
        built = [name for name in objects if after[name]["ok"]]
        if worse:
            return Outcome("failed", "\n".join(worse))
        if not built:
            return Outcome("skipped", f"it compiles none of {', '.join(objects)}: {after[objects[0]]['error']}")
        return Outcome("passed", f"{len(built)} of {len(objects)} objects: {', '.join(built)}")

    def ahead(self, number: int, arches: Sequence[Arch], following: Sequence[Arch] = ()) -> None:
        """The states before and after a patch, on as many architectures at once as there are processors.

        The state after it is the one before the next: what that will ask of it, on `following`, is compiled by the same make.
        """
        before = {arch: self.objects(number, arch) for arch in arches if shutil.which(f"{arch.prefix}gcc")}
        after = {arch: list(names) for arch, names in before.items()}
        for arch in following:
            if arch in after:
                after[arch] = sorted({*after[arch], *self.objects(number + 1, arch)})
        for state, wanted in ((number - 1, before), (number, after)):
            missing = [(arch, names) for arch, names in wanted.items() if set(names) - set(self.known(state, arch))]
            if not missing:
                continue
            self.checkout(state)
            pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
            try:
                futures = [pool.submit(self.state, state, *one) for one in missing]
                for future in futures:
                    # What does not compile is said where it is asked for.
                    with suppress(UserError):
                        future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                end_groups(list(self.running), signal.SIGTERM)
                raise
            finally:
                pool.shutdown()

    def unanswered(self, number: int, steps: Sequence[str]) -> list[Arch]:
        """The architectures which these steps need for this patch, and have no result of."""
        name, key = self.series.patches[number - 1].name, self.key(number)
        asked = {step for step in steps if self.results.get(name, step, key) is None}
        return [arch for arch in ARCHES if arch.name in asked or ("size" in asked and arch.name in SIZED)]

    def store(self, number: int, arch: Arch) -> Path:
        return self.folder / "objects" / arch.name / f"{self.key(number)[:16]}.json"

    def known(self, number: int, arch: Arch) -> dict[str, Any]:
        store = self.store(number, arch)
        found: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
        return found

    def state(self, number: int, arch: Arch, objects: list[str]) -> dict[str, Any]:
        """Per object: whether it compiles, its warnings, its text size. Kept by the state's key."""
        known = self.known(number, arch)
        wanted = [name for name in objects if name not in known]
        if wanted:
            if (number, arch.name) in self.broken:
                raise UserError(self.broken[number, arch.name])
            self.checkout(number)
            build = self.folder / "build" / arch.name
            if not (build / ".config").exists():
                self.configure(arch, build)
            self.make(arch, build, "olddefconfig")
            status, said = self.make(arch, build, "prepare")
            if status:
                text = f"{arch.name} after {number} patches: {first_error(said.splitlines())}"
                self.broken[number, arch.name] = text
                raise UserError(text)
            known |= self.compile_all(arch, build, wanted)
            write_whole(self.store(number, arch), json.dumps(known, indent=1) + "\n")
        return known

    def compile_all(self, arch: Arch, build: Path, objects: list[str]) -> dict[str, dict[str, Any]]:
        """All objects by one make, whose output comes object by object."""
        there = [name for name in objects if (self.repository.path / name.replace(".o", ".c")).exists()]
        for name in there:
            (build / name).unlink(missing_ok=True)
        sparse = ("C=1",) if arch.sparse and shutil.which("sparse") else ()
        said = ""
        if there:
            _, said = self.make(arch, build, "--keep-going", "--output-sync=target", "W=1", *sparse, *there)
        warnings: dict[str, list[str]] = {name: [] for name in objects}
        errors: dict[str, str] = {}
        current = ""
        for line in said.splitlines():
            step = re.match(r"  (?:CC|CHECK)\s+(?:\[M\]\s+)?(?:.*/linux-[^/]*/)?(\S+)\.[co]$", line)
            if step:
                current = next((name for name in there if f"{step[1]}.o".endswith(name)), "")
            elif current and "warning:" in line:
                warnings[current].append(line)
            elif current and re.search(r"\berror:", line):
                errors.setdefault(current, line.strip())
        found = {}
        for name in objects:
            path = build / name
            ok = name in there and path.exists()
            error = (
                ""
                if ok
                else errors.get(name, first_error(said.splitlines()) if name in there else "there is no such file yet")
            )
            size = text_size(arch, path) if ok else 0
            found[name] = {"ok": ok, "warnings": warnings[name], "error": error, "text": size}
        return found

    def size(self, number: int) -> Outcome:
        """Text of the touched objects, where cpu_dcache_is_aliasing() is a constant."""
        lines, grown = [], False
        for arch in (one for one in ARCHES if one.name in SIZED):
            objects = self.objects(number, arch)
            if not objects:
                continue
            before, after = self.state(number - 1, arch, objects), self.state(number, arch, objects)
            both = [name for name in objects if before.get(name, {}).get("ok") and after[name]["ok"]]
            for name in both:
                old, new = before[name]["text"], after[name]["text"]
                if old != new:
                    lines.append(f"{arch.name} {name}: {old} -> {new} ({new - old:+})")
            total = sum(after[name]["text"] - before[name]["text"] for name in both)
            lines.append(f"{arch.name}: {total:+} bytes of text in {len(both)} objects")
            grown = grown or total > 0
        if not lines:
            return Outcome("skipped", "it changes no code of these")
        if not grown:
            return Outcome("passed", "\n".join(lines))
        reason = growth_reasons().get(subject(self.series.patches[number - 1]))
        if reason is None:
            return Outcome("failed", "\n".join([f"text grows, and {display(GROWTH)} has no reason for it", *lines]))
        return Outcome("grown", "\n".join([*lines, reason]))

    def preprocess(self, number: int, arch: str) -> Outcome:
        header = f"arch/{arch}/include/asm/cachetype.h"
        if header not in touched(self.series.patches[number - 1]):
            return Outcome("skipped", "it does not touch this architecture")
        self.checkout(number)
        tree = self.repository.path
        # What it includes needs that compiler's own headers; the answer does not.
        lines = [line for line in (tree / header).read_text().splitlines() if not line.startswith("#include")]
        done = subprocess.run(
            ["gcc", "-E", "-P", "-nostdinc", "-x", "c", "-"],
            env=child_environment(),
            input="\n".join([*lines, "answer cpu_dcache_is_aliasing()", ""]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        answer = done.stdout.rpartition("answer ")[2].strip()
        selects = re.search(r"select ARCH_HAS_CPU_CACHE_ALIASING", (tree / f"arch/{arch}/Kconfig").read_text())
        if done.returncode or answer.startswith("cpu_dcache_is_aliasing") or not answer or not selects:
            return Outcome(
                "failed", done.stderr or f"the answer is '{answer}', and Kconfig {'has' if selects else 'lacks'} it"
            )
        return Outcome("passed", f"preprocessed only, there is no compiler: cpu_dcache_is_aliasing() is {answer}")

    def boot(self, number: int) -> Outcome:
        """The reference board with the kernel of this state; one that has booted already is not booted again."""
        rootfs = OUTPUT / f"kernel-{self.kernel}/images"
        if not (rootfs / "manifest.json").exists():
            raise UserError(f"there is no minimal image to boot with: `make kernel KERNEL={self.kernel}` builds it")
        self.checkout(number)
        files = fragments.for_kernel(board("board").kernel_fragment, self.kernel, [])
        build = self.folder / "build/board"
        kernel = Kernel(self.repository.path, build, self.repository.epoch(), "-arm-pmem", misses_allowed=True)
        kernel.configure(files)
        kernel.make(self.folder / "board.log")
        booted = sha256(f"{sha256(kernel.image)} {sha256(rootfs / 'rootfs.cpio.gz')}".encode())[:16]
        for name, steps in self.results.known.items():
            if "boot" in steps and steps["boot"]["outcome"] == "passed" and booted in steps["boot"]["text"]:
                return Outcome(
                    "passed", f"zImage and rootfs {booted} are, byte for byte, those of {name}, which booted"
                )
        images = self.folder / "boot/images"
        images.mkdir(parents=True, exist_ok=True)
        for name in ("rootfs.cpio.gz", "pmem.dtbo"):
            shutil.copyfile(rootfs / name, images / name)
        shutil.copyfile(kernel.image, images / "zImage")
        manifest = json.loads((rootfs / "manifest.json").read_text())
        manifest["series"] = {
            "name": f"{self.kernel}, the first {number}",
            "sha256": self.key(number),
            "patches": [patch.name for patch in self.series.patches[:number]],
            "edits": "",
        }
        write_whole(images / "manifest.json", json.dumps(manifest) + "\n")
        log = self.folder / "boot/test.log"
        with log.open("w") as stream:
            status = bounded(
                [sys.executable, "-m", "pytest", "--lg-env", "arm-pmem.yaml", BOOT_TEST],
                BOOT_LIMIT,
                env=lab_environment(LG_BUILDDIR=str(images)),
                output=stream,
            )
        if status == 0:
            return Outcome("passed", f"zImage and rootfs {booted}")
        return Outcome("failed", "\n".join(log.read_text(errors="replace").splitlines()[-40:]))


def subject(patch: Path) -> str:
    """The same for one change in all kernel lines."""
    return patch.stem.partition("-")[2]


def growth_reasons() -> dict[str, str]:
    """Why a patch may make 64-bit code larger, by subject; each must be of a patch that is there."""
    reasons: dict[str, str] = yaml.safe_load(GROWTH.read_text())
    for name in reasons.keys() - {subject(patch) for patch in PATCHES.glob("*/*.patch")}:
        raise UserError(f"{display(GROWTH)} names {name}, and no kernel line has such a patch: remove it there")
    return reasons


def without_place(warning: str) -> str:
    """A warning without the line, which a patch may move; kernel-doc names no column."""
    return re.sub(r"^\S*?([^/\s]+\.[ch]):\d+(?::\d+)?: ", r"\1: ", warning)


def foreign(arch: Arch) -> re.Pattern[str]:
    """Files that only other architectures compile."""
    others = [own for one in ARCHES if one is not arch for own in one.own]
    return re.compile("|".join([*map(re.escape, others), r"arch/(?!" + arch.own[0].split("/")[1] + "/)"]))


def text_size(arch: Arch, path: Path) -> int:
    said = shell([f"{arch.prefix}size", path], what=f"the size of {path.name}", timeout=60)
    return int(said.splitlines()[1].split()[0])


def state_key(wanted: Series, number: int) -> str:
    """Of the state after so many patches."""
    return sha256("\n".join([str(VERSION), *wanted.hashes[:number]]).encode())


def summary(path: Path, wanted: Series) -> dict[str, Any]:
    """The results as report and cover letter show them: of these patches, without what was found when they were others."""
    known = Results(path).known
    older = 0

    def of(name: str, number: int) -> dict[str, Outcome]:
        nonlocal older
        asked, key = known.get(name, {}), state_key(wanted, number)
        found = {step: Outcome(one["outcome"], one["text"]) for step, one in asked.items() if one["key"] == key}
        older += len(asked) - len(found)
        return found

    patches = [
        {"name": patch.name, "results": of(patch.name, number)} for number, patch in enumerate(wanted.patches, 1)
    ]
    whole = of(serieswhole.NAME, len(wanted.patches))
    return {
        "kernel": path.parent.name,
        "steps": [step for step in STEPS if any(step in patch["results"] for patch in patches)],
        "patches": patches,
        "whole": whole,
        "older": older,
    }


def gate(kernel: str, steps: Sequence[str], patches: Sequence[str]) -> int:
    # Two of them would take the work tree from each other.
    with locked(FOLDER / kernel / "lock", f"another `make series KERNEL={kernel}` runs: wait until that has ended"):
        one = Gate(series(kernel), Repository(kernel, "series"), FOLDER / kernel)
        one.prepare()
        return run(one, steps, patches)


def run(one: Gate, steps: Sequence[str], patches: Sequence[str]) -> int:
    """These steps for these patches, what has a result already left out; 1 when anything failed."""
    chosen = numbered(one.series, patches) if patches else one.series.patches
    numbers = [number for number, patch in enumerate(one.series.patches, 1) if patch in chosen]
    failed: list[str] = []
    try:
        for number in numbers:
            name = one.series.patches[number - 1].name
            said = []
            following = one.unanswered(number + 1, steps) if number + 1 in numbers else []
            one.ahead(number, one.unanswered(number, steps), following)
            for step in (step for step in steps if step not in WHOLE):
                key = one.key(number)
                outcome = one.results.get(name, step, key)
                if outcome is None:
                    try:
                        outcome = one.run(number, step)
                    except UserError as error:
                        outcome = Outcome("failed", str(error))
                    one.results.put(name, step, key, outcome)
                if outcome.outcome == "failed":
                    failed.append(f"{name}: {step}: {outcome.text.splitlines()[0] if outcome.text else ''}")
                said.append(f"{step} {outcome.outcome}" if outcome.outcome != "passed" else step)
            counted = [word for word in said if not word.endswith(" skipped")]
            say(f"{number:2} of {len(one.series.patches)}: {name[:60]}: {', '.join(counted)}")
    except KeyboardInterrupt:
        say("interrupted: the next `make series` goes on here")
        raise
    failed += whole(one, [step for step in steps if step in WHOLE])
    for line in failed:
        say(f"FAILED {line}")
    say(f"{len(numbers)} patches of {one.kernel}, {len(failed)} failures (results in {display(one.results.path)})")
    return 1 if failed else 0


def whole(one: Gate, steps: Sequence[str]) -> list[str]:
    """The steps for the series as a whole; what failed, a line each."""
    failed = []
    arch = next(known for known in ARCHES if known.name == "x86_64")
    key = one.key(len(one.series.patches))
    for step in steps:
        outcome = one.results.get(serieswhole.NAME, step, key)
        if outcome is None:
            try:
                outcome = Outcome(*WHOLE[step](one, arch))
            except UserError as error:
                outcome = Outcome("failed", str(error))
            one.results.put(serieswhole.NAME, step, key, outcome)
        say(f"{serieswhole.NAME}: {step} {outcome.outcome}: {outcome.text}")
        if outcome.outcome == "failed":
            failed.append(f"{serieswhole.NAME}: {step}: {outcome.text}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.series", description=__doc__)
    parser.add_argument("--kernel", default="", help=f"one of {', '.join(kernel_lines())} (default 6.1)")
    parser.add_argument("--steps", default="", help=f"of {', '.join(STEPS)}; all, without it")
    parser.add_argument("--patches", default="", help="numbers of patches, such as 7,8; all, without it")
    options = parser.parse_args()
    steps = options.steps.replace(",", " ").split() or list(STEPS)
    for step in steps:
        if step not in STEPS:
            raise UserError(f"there is no step '{step}': the steps are {', '.join(STEPS)}")
    return gate(options.kernel or "6.1", steps, options.patches.replace(",", " ").split())


if __name__ == "__main__":
    entry(main)
