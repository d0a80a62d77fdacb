# SPDX-License-Identifier: GPL-2.0-only
"""Configure and build the kernel, out of tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tools import fragments, kconfig
from tools.common import CROSS_COMPILE, UserError, display, run, say, sha256, write_whole
from tools.environment import child_environment

ARCH = "arm"


@dataclass(frozen=True)
class Kernel:
    """One kernel build: its source, its object tree, and what names the release."""

    source: Path
    build: Path
    epoch: int
    # "" for the unpatched kernel
    localversion: str
    # A kernel without the whole series cannot grant every request: that is what the series is for.
    misses_allowed: bool = False

    def _make(self) -> list[str]:
        """`make` with all that must be the same at every call, or Kbuild rebuilds the world."""
        ccache = "ccache " if shutil.which("ccache") else ""
        relative = os.path.relpath(self.source.resolve(), self.build.resolve())
        return [
            "make",
            f"--directory={self.source}",
            f"O={self.build}",
            # As Kbuild has it for a build folder inside of the source: no command names the folder of this clone, and
            # so the compiler's cache serves all clones. Linux 7.3 calls it srcroot.
            *(f"{name}={relative}" for name in ("srctree", "srcroot")),
            f"ARCH={ARCH}",
            f"CROSS_COMPILE={CROSS_COMPILE}",
            f"CC={ccache}{CROSS_COMPILE}gcc",
            f"HOSTCC={ccache}gcc",
            f"LOCALVERSION={self.localversion}",
            f"KBUILD_BUILD_TIMESTAMP={time.strftime('%a %b %d %H:%M:%S UTC %Y', time.gmtime(self.epoch))}",
            "KBUILD_BUILD_VERSION=1",
            "KBUILD_BUILD_USER=arm-pmem",
            "KBUILD_BUILD_HOST=arm-pmem",
        ]

    def _environment(self) -> dict[str, str]:
        return child_environment(SOURCE_DATE_EPOCH=str(self.epoch))

    @property
    def config(self) -> Path:
        return self.build / ".config"

    # --- configuration -----------------------------------------------------------------------

    def configure(self, files: list[Path]) -> None:
        """allnoconfig + fragments; every request must be granted. Nothing to do when unchanged."""
        requests = fragments.read(files)
        wanted = fragments.merged(requests)
        stamp = self.build / ".arm-pmem-config"
        inputs = self._config_inputs(files)
        if stamp.exists() and self.config.exists() and json.loads(stamp.read_text()) == [inputs, sha256(self.config)]:
            return
        self.build.mkdir(parents=True, exist_ok=True)
        allconfig = self.build / "arm-pmem.config"
        write_whole(allconfig, wanted)
        stamp.unlink(missing_ok=True)
        command = [*self._make(), f"KCONFIG_ALLCONFIG={allconfig}"]
        self._run_make([*command, "allnoconfig"], "configuration")
        self._run_make([*command, "olddefconfig"], "configuration")
        missed = fragments.missed(requests, fragments.read_config(self.config))
        if missed:
            report = kconfig.explain_misses(self.source, ARCH, self.config, missed)
            if not self.misses_allowed:
                raise UserError(report)
            names = ", ".join(one.symbol for one in missed)
            say(f"note: without the whole series this kernel does not have {names}")
        write_whole(stamp, json.dumps([inputs, sha256(self.config)]))

    def _config_inputs(self, files: list[Path]) -> str:
        """A hash of what decides on the .config: fragments, Kconfig files, compiler."""
        listed = run(
            ["git", "ls-files", "*Kconfig*", "Makefile"],
            cwd=self.source,
            what=f"the Kconfig files of {display(self.source)}",
        )
        state = [f"{file} {sha256(file)}" for file in files]
        for name in listed.splitlines():
            path = self.source / name
            if path.exists():
                status = path.stat()
                state.append(f"{name} {status.st_size} {status.st_mtime_ns}")
        compiler = run([f"{CROSS_COMPILE}gcc", "--version"], what="the cross compiler")
        state += [compiler, " ".join(self._make()), str(self.misses_allowed)]
        return sha256("\n".join(state).encode())

    def _run_make(self, command: list[str], what: str) -> None:
        done = subprocess.run(
            command,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise UserError(f"{what} of the kernel failed: {' / '.join(lines[-4:])}")

    # --- build -------------------------------------------------------------------------------

    @property
    def image(self) -> Path:
        return self.build / "arch/arm/boot/zImage"

    @property
    def release(self) -> str:
        return (self.build / "include/config/kernel.release").read_text().strip()

    def make(self, log: Path, jobs: int | None = None) -> None:
        """Build zImage. The full log goes to a file, one line in a while to the terminal."""
        jobs = jobs or len(os.sched_getaffinity(0))
        command = [*self._make(), f"-j{jobs}", "zImage"]
        log.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            command,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        progress = Progress()
        last: deque[str] = deque(maxlen=4000)
        assert process.stdout
        try:
            with log.open("w") as stream:
                for line in process.stdout:
                    stream.write(line)
                    last.append(line.rstrip())
                    progress.step(line)
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        progress.end()
        if status:
            raise UserError(f"the kernel does not build: {first_error(list(last))} ({display(log)})")


class Progress:
    """How many files were built: a running line on a terminal, else a line every 20 s."""

    _STEP = re.compile(r"  (CC|AS|LD|AR|HOSTCC|GZIP|OBJCOPY)\s+(\S+)")

    def __init__(self) -> None:
        self.count = 0
        self.shown = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.clear = "\r\x1b[K" if self.terminal else ""

    def step(self, line: str) -> None:
        if "warning:" in line or "error:" in line:
            say(self.clear + line.rstrip())
        found = self._STEP.match(line)
        if not found:
            return
        self.count += 1
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else 20):
            self.shown = now
            text = f"  [{self.count:4}] {found[2]}"[:100]
            print(self.clear + text, end="" if self.terminal else "\n", flush=True)

    def end(self) -> None:
        print(self.clear, end="", flush=True)


def first_error(lines: list[str]) -> str:
    """The most telling line of a failed build."""
    for pattern in (r"\berror:", r"undefined reference", r"\*\*\*"):
        for line in lines:
            if re.search(pattern, line):
                return line.strip()
    return lines[-1].strip() if lines else "make said nothing"
