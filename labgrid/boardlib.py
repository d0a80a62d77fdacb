# SPDX-License-Identifier: GPL-2.0-only
"""What the drivers and the strategy share: named errors, the one timeout scale, the console's last lines.

The files of this folder are loaded by the `imports:` of an environment, in the order given there (this one
first). There is no __init__.py here: a package named labgrid would shadow the real one.
"""

from __future__ import annotations

import abc
import os
import re
from typing import Any

from labgrid.step import steps

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


def scaled(seconds: float) -> float:
    """A time limit, made longer for slow machines by the one factor in LG_TIMEOUT_SCALE."""
    text = os.environ.get(SCALE_VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1e6:
        raise SettingError(f"{SCALE_VARIABLE}='{text}' is no factor: give a number above 0, such as 2.5.")
    return seconds * factor


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
