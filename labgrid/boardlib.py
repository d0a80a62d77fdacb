# SPDX-License-Identifier: GPL-2.0-only
"""What the drivers and the strategy share: named errors, the one timeout scale, the console's last lines.

The files of this folder are loaded by the `imports:` of an environment, in the order given there (this one
first). There is no __init__.py here: a package named labgrid would shadow the real one.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import functools
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from labgrid.step import steps
from pexpect import TIMEOUT

SCALE_VARIABLE = "LG_TIMEOUT_SCALE"

_VT100 = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class BoardError(Exception):
    """One sentence with cause and mend, then what the console said last (if anything)."""

    def __init__(self, sentence: str, console: list[str] | None = None) -> None:
        self.sentence = sentence
        self.console = console or []
        super().__init__(sentence)

    def __str__(self) -> str:
        if not self.console:
            return self.sentence
        return "\n".join([self.sentence, "Last console lines:", *(f"  | {c}" for c in self.console)])


class SettingError(BoardError):
    """An environment variable or a key of the environment file makes no sense."""


class ToolMissing(BoardError):
    """A host program is not installed."""


class ImageMissing(BoardError):
    """A file which a build should have made is not there."""


class QemuTooOld(BoardError):
    """The installed QEMU cannot emulate this board."""


class QemuOptionError(BoardError):
    """QEMU refuses its command line."""


class DeviceTreeError(BoardError):
    """The board's device tree cannot be made."""


class MachineDied(BoardError):
    """The emulator ended while it was needed."""


class ConsoleSilent(BoardError):
    """The machine was switched on and not one byte came from its console."""


class BootFailed(BoardError):
    """The machine talked, but never reached the expected point of its start."""


class KernelPanicked(BootFailed):
    """The kernel started, and gave up."""


class StuckInBootLoader(BootFailed):
    """The boot loader stayed at its prompt."""


class CommandTimeout(BoardError):
    """A command on the target did not come back in its time."""


# Time limits ------------------------------------------------------------------------------------------------------


def chosen_scale() -> float | None:
    """The factor in LG_TIMEOUT_SCALE; None where it is not set, and the machine is measured."""
    text = os.environ.get(SCALE_VARIABLE, "")
    if not text:
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1e6:
        raise SettingError(f"{SCALE_VARIABLE}='{text}' is no factor: give a number above 0, such as 2.5.")
    return factor


def usable_processors() -> float:
    """Those which this process may run on, by its affinity and the quota of its control group."""
    number = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        number = min(number, int(quota) / int(period))
    return number


class MachineClock:
    """A clock which goes slower on a slow machine, and on one with more to do than it has processors.

    Its seconds are those of the reference with nothing else to do. A thread looks again and again how many programs
    want to run: each then has its share of the processors only, and takes as many times as long.
    """

    # Processor time of the fixed work of _slowness() on the reference, in seconds: a virtual machine on a Xeon of 2023
    REFERENCE_S = 0.010
    INTERVAL_S = 0.25
    # The load is the mean of so many looks.
    LOOKS = 8
    # Whatever was measured, no limit becomes longer than this.
    MOST = 40.0

    def __init__(self) -> None:
        self.slowness = self._slowness()
        self._processors = usable_processors()
        self._looks = collections.deque([self._load() for _ in range(4)], self.LOOKS)
        self._lock = threading.Lock()
        self._passed = 0.0
        self._last = time.monotonic()
        self.highest = self.lowest = self.scale
        threading.Thread(target=self._watch, name="machine clock", daemon=True).start()

    def _slowness(self) -> float:
        """How many times as long as on the reference a fixed work takes: of several turns the fastest, at least 1."""
        turns = []
        for _ in range(5):
            start, number = time.thread_time(), 0
            for step in range(100_000):
                number = (number * 31 + step) & 0xFFFF
            turns.append(time.thread_time() - start)
        return max(1.0, min(turns) / self.REFERENCE_S)

    def _load(self) -> float:
        """How many programs want to run for each processor, this one not counted; at least 1."""
        try:
            running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return 1.0
        return max(1.0, (running - 1) / self._processors)

    @property
    def load(self) -> float:
        return sum(self._looks) / len(self._looks)

    @property
    def scale(self) -> float:
        return chosen_scale() or min(self.slowness * self.load, self.MOST)

    def _watch(self) -> None:
        while True:
            time.sleep(self.INTERVAL_S)
            with self._lock:
                self._looks.append(self._load())
            # A variable that makes no sense is the business of who asks for a limit.
            with contextlib.suppress(SettingError):
                self.seconds()
                self.highest, self.lowest = max(self.highest, self.scale), min(self.lowest, self.scale)

    def seconds(self) -> float:
        """What this clock shows."""
        with self._lock:
            now = time.monotonic()
            self._passed += (now - self._last) / self.scale
            self._last = now
            return self._passed

    def explain(self) -> str:
        """The scale for the user, and where it comes from."""
        if chosen_scale() is not None:
            return f"{self.scale:g} ({SCALE_VARIABLE})"
        return (
            f"{self.scale:.1f} (measured: {self.slowness:.1f} times the reference's time, {self.load:.1f} programs for each "
            f"processor; follows the load; {SCALE_VARIABLE} overrides)"
        )


@functools.cache
def machine_clock() -> MachineClock:
    """The one of this process; it begins with the first limit."""
    return MachineClock()


def scaled(seconds: float) -> float:
    """A time limit, made longer for a slow or busy machine as it is now; LG_TIMEOUT_SCALE is another factor."""
    return seconds * machine_clock().scale


class Limit:
    """A limit of so many seconds of the machine's clock: it gets longer when the machine gets slower meanwhile."""

    def __init__(self, seconds: float) -> None:
        self._start = time.monotonic()
        self._end = machine_clock().seconds() + seconds

    @property
    def left(self) -> float:
        """In seconds of the wall's clock, at the machine's present pace; 0 when it is over."""
        clock = machine_clock()
        return max(0.0, self._end - clock.seconds()) * clock.scale

    @property
    def waited(self) -> str:
        """For the user, who looks at the wall's clock, when it is over."""
        return f"{time.monotonic() - self._start:.0f} s"


def expect(console: Any, pattern: Any, seconds: float) -> Any:
    """What console.expect() returns, within so many seconds of the machine's clock."""
    limit = Limit(seconds)
    while True:
        try:
            return console.expect(pattern, timeout=limit.left)
        except TIMEOUT:
            # What was read until now is kept for the next turn.
            if not limit.left:
                raise


def forget_unread(console: Any) -> None:
    """What a console said before a start must not be taken for what the target says after it.

    pexpect keeps what was read in vain twice: a search that timed out is begun anew with all of it.
    """
    reader = getattr(console, "_expect", None)
    if reader is not None:
        reader.buffer = b""
        reader._before = reader.buffer_type()


# The console ------------------------------------------------------------------------------------------------------


class ConsoleTail:
    """The last output of one console, whatever driver it has: listens to labgrid's read steps."""

    LIMIT = 16384

    def __init__(self, console: Any) -> None:
        self._console = console
        self._data = b""
        steps.subscribe(self._notify)

    def _notify(self, event: Any) -> None:
        step = event.step
        if step is None or step.tag != "console" or step.title != "read" or step.source is not self._console:
            return
        if event.data.get("state") == "stop" and step.result:
            self._data = (self._data + step.result)[-self.LIMIT :]

    def clear(self) -> None:
        self._data = b""

    @property
    def silent(self) -> bool:
        return not self._data.strip()

    @property
    def text(self) -> str:
        return _VT100.sub("", self._data.decode("utf-8", "replace")).replace("\r", "")

    def lines(self, count: int = 15) -> list[str]:
        return [line.rstrip() for line in self.text.split("\n") if line.strip()][-count:]


class FlashProtocol(abc.ABC):
    """What the strategy asks of a way to flash."""

    # Whether the strategy must bring the board into its boot loader first; else it is switched off.
    needs_bootloader: bool

    @abc.abstractmethod
    def check(self) -> None:
        """Refuses an image that is not one of this board; looks at files only."""

    @abc.abstractmethod
    def flash(self) -> None:
        """Writes the image and reads it back."""
