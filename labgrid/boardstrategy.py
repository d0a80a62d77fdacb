# SPDX-License-Identifier: GPL-2.0-only
# labgrid has no types to build on.
# mypy: disable-error-code="untyped-decorator,misc,var-annotated,has-type"
"""One strategy for emulated and real boards: it knows protocols, never drivers."""

from __future__ import annotations

import enum
import re
import shlex
import time

import attr
from boardlib import (
    BoardError,
    BootFailed,
    CommandTimeout,
    ConsoleSilent,
    ConsoleTail,
    FlashProtocol,
    KernelPanicked,
    Limit,
    StuckInBootLoader,
    chosen_scale,
    expect,
    forget_unread,
)
from labgrid.driver import ShellDriver
from labgrid.driver.powerdriver import PowerResetMixin
from labgrid.factory import target_factory
from labgrid.protocol import CommandProtocol
from labgrid.step import step
from labgrid.strategy import Strategy, StrategyError
from labgrid.util import gen_marker, re_vt100
from pexpect import TIMEOUT

# The last line of a kernel that gave up for good: nothing comes after it.
PANIC = r"---\[ end Kernel panic[^\r\n]*"
# How long the first sign of a restart may take after it was asked for, in seconds before the scale factor
RESTART_LIMIT = 30
# How long a shell may take to answer with its prompt, in seconds before the scale factor
PROMPT_LIMIT = 10
# Keeps the kernel's messages off the console, where one within an answer would garble it: they stay in the kernel log.
# On some command lines `ignore_loglevel` says that no level counts.
SILENCE = "{ echo 1 >/proc/sys/kernel/printk; echo N >/sys/module/printk/parameters/ignore_loglevel; } 2>/dev/null"


@target_factory.reg_driver
@attr.s(eq=False)
class BoardShellDriver(ShellDriver):
    """ShellDriver whose limits follow LG_TIMEOUT_SCALE, and which says what it waited for in vain."""

    # A boot loader takes commands, too: who asks for a CommandProtocol means this one.
    priorities = {CommandProtocol: 10}

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        chosen_scale()  # One that makes no sense is refused at once.
        self.tail = ConsoleTail(self.console)
        self._at_prompt = False

    def on_deactivate(self) -> None:
        super().on_deactivate()
        self._at_prompt = False

    def _await_login(self) -> None:
        # A panic ends the wait for the prompt as the prompt does: nobody has to wait for the limit.
        prompt, login_limit_s = self.prompt, self.login_timeout
        limit = Limit(login_limit_s)
        self.prompt = f"{prompt}|{PANIC}"
        self.tail.clear()
        # What labgrid asks next, whether the prompt is there, _inject_run() asks in its own way.
        self._at_prompt = True
        try:
            while True:
                self.login_timeout = max(1, round(limit.left))
                try:
                    super()._await_login()
                    break
                except TIMEOUT:
                    if not limit.left:
                        raise
        finally:
            self.prompt, self.login_timeout = prompt, login_limit_s
            self._at_prompt = False
        if re.search(PANIC, self.tail.text):
            raise TIMEOUT("the kernel panicked")

    def _check_prompt(self) -> None:
        # labgrid asks for the prompt before each command. When the last one ended at the prompt, that is known
        # already, and it is half of the time which a short command takes on an emulator.
        if not self._at_prompt:
            super()._check_prompt()

    def _inject_run(self) -> None:
        # labgrid starts a new shell for each command, and reads its echo: too much for an emulated serial port.
        # A copy of the present shell, without echo, takes a fifth of the time.
        marker = gen_marker()
        line = f"""{SILENCE}; stty -echo; run() {{ echo -n "$MARKER"; ( eval "$@" ); echo "$MARKER $?"; }}; """
        line += f"echo '{marker[:4]}''{marker[4:]}'"
        for last in (False, False, True):
            self.console.sendline(line)
            try:
                # Until the kernel is silent its words may stand anywhere, in the middle of the line or the prompt, too.
                expect(self.console, rf"{marker}\s.*?{self.prompt}", PROMPT_LIMIT)
                break
            except TIMEOUT:
                if last:
                    raise
        self._at_prompt = True

    def _run(  # type: ignore[no-untyped-def]
        self, cmd: str, *, timeout: float = 30.0, codec: str = "utf-8", decodeerrors: str = "strict"
    ):
        """As labgrid's, but for the limit, which is in seconds of the machine's clock."""
        start = time.monotonic()
        try:
            self._check_prompt()
            self._at_prompt = False
            marker = gen_marker()
            # Not written as it will come back: the target may have an echo.
            self.console.sendline(f"MARKER='{marker[:4]}''{marker[4:]}' run {shlex.quote(cmd)}")
            _, _, match, _ = expect(self.console, rf"{marker}(.*){marker}\s+(\d+)\s+{self.prompt}", timeout)
        except TIMEOUT as exc:
            raise CommandTimeout(
                f"The target did not answer within {time.monotonic() - start:.0f} s to '{cmd}': it hangs, or is slow "
                "(LG_TIMEOUT_SCALE gives it more time).",
                self.tail.lines(),
            ) from exc
        self._at_prompt = True
        # An oops prints into the dialogue, so bytes which are no text must not hide it.
        lines = re_vt100.sub("", match[1].decode(codec, "replace")).split("\r\n")
        if lines and not lines[-1]:
            del lines[-1]
        return lines, [], int(match[2])


class Status(enum.Enum):
    unknown = 0
    off = 1
    bootloader = 2
    flashed = 3
    shell = 4


STATES = ", ".join(one.name for one in Status if one is not Status.unknown)


@target_factory.reg_driver
@attr.s(eq=False)
class BoardStrategy(Strategy):
    """States off, bootloader, flashed and shell; operations reset(), reboot() and power_cut(), which end in shell.

    From each state to each other the board goes by its power switch: what a state leaves in RAM helps no other.
    Flashed means that the image of the environment was written and read back, and that nothing ran since.

    Args:
        restart_line (regex): what the boot loader or the kernel prints first, on the way up from a reset
    """

    bindings = {
        "power": "PowerProtocol",
        "console": "ConsoleProtocol",
        "shell": "CommandProtocol",
        "resetter": {"ResetProtocol", None},
        "bootloader": {"LinuxBootProtocol", None},
        "flasher": {FlashProtocol, None},
    }

    status = attr.ib(default=Status.unknown)
    restart_line = attr.ib(default="Booting Linux|U-Boot", validator=attr.validators.instance_of(str))

    # After so many starts in a row which failed, the board is taken for broken: labgrid then skips the other tests.
    PATIENCE = 2

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        re.compile(self.restart_line)
        if isinstance(self.resetter, PowerResetMixin):
            # It would switch the power off and on: no warm reset, and RAM is lost.
            self.resetter = None
        self.tail = ConsoleTail(self.console)
        # Counts how often the target came up; whatever a test left on it is gone when this number changes.
        self.boots = 0
        self._failures = 0

    @step(args=["status"])
    def transition(self, status: Status | str, *, step: object = None) -> None:
        if not isinstance(status, Status):
            if status not in Status.__members__:
                raise StrategyError(f"There is no state '{status}': use one of {STATES}.")
            status = Status[status]
        if status is Status.unknown:
            raise StrategyError(f"Nobody can bring a board into the state 'unknown': use one of {STATES}.")
        if status is self.status:
            return
        if status is Status.flashed:
            self._flash()
            return
        if self.status is not Status.off:
            self._switch_off()
        if status is Status.bootloader:
            self._enter_bootloader()
        elif status is Status.shell:
            self.tail.clear()
            self._bring_up(self.power.on)

    def _enter_bootloader(self) -> None:
        if self.bootloader is None:
            raise StrategyError("This environment has no driver for a boot loader: add BoardUBootDriver.")
        self.status = Status.unknown
        self.tail.clear()
        try:
            self.power.on()
            self.target.activate(self.bootloader)
        except TIMEOUT as exc:
            raise self._count(self._named("the boot loader's prompt")) from exc
        self.status = Status.bootloader

    def _flash(self) -> None:
        if self.flasher is None:
            raise StrategyError("This environment has no way to flash: add UBootFlashDriver or one of its kind.")
        # Before the board is touched
        self.flasher.check()
        self.transition(Status.bootloader if self.flasher.needs_bootloader else Status.off)
        # Whatever goes wrong now: it is begun anew.
        self.status = Status.unknown
        self.target.activate(self.flasher)
        self.flasher.flash()
        self.target.deactivate(self.flasher)
        self.status = Status.flashed

    def _switch_off(self) -> None:
        self.status = Status.unknown
        for driver in (self.shell, self.flasher, self.bootloader):
            if driver is not None:
                self.target.deactivate(driver)
        self.target.activate(self.console)
        self.target.activate(self.power)
        self.power.off()
        self.status = Status.off

    def _bring_up(self, *actions) -> None:  # type: ignore[no-untyped-def]
        """From an action which starts the target to its shell; whatever goes wrong gets a name."""
        self.status = Status.unknown
        self.target.deactivate(self.shell)
        forget_unread(self.console)
        try:
            for action in actions:
                action()
            self.target.activate(self.shell)
        except TIMEOUT as exc:
            raise self._count(self._named()) from exc
        except BoardError as exc:
            self._count(exc)
            raise
        self._failures = 0
        self.boots += 1
        self.status = Status.shell

    def _named(self, goal: str = "its shell's prompt") -> BoardError:
        last = self.tail.lines()
        # Many lines may stand between that and the end: each processor says where it was.
        panic = re.search(r".*Kernel panic - .*", self.tail.text)
        if panic:
            return KernelPanicked(f"The kernel gave up ({panic[0].strip()}): see what it said before.", last)
        prompt = getattr(self.bootloader, "prompt", "")
        if last and prompt and re.search(f"(?:{prompt})$", f"\n{last[-1].strip()} "):
            return StuckInBootLoader(
                "The board stayed at its boot loader's prompt: flash it, or see what the boot loader misses.", last
            )
        if self.tail.silent:
            return ConsoleSilent(
                "The board was started, but its console stayed silent: check console= in boot_args, the "
                "device tree, and whether the image is one for this board."
            )
        return BootFailed(
            f"The board did not reach {goal} in time: see where its console stopped, and raise LG_TIMEOUT_SCALE if it is "
            "just slow.",
            last,
        )

    def _count(self, exc: BoardError) -> BoardError:
        self._failures += 1
        if self._failures >= self.PATIENCE:
            self.broken = exc
        return exc

    def _await_restart(self) -> None:
        expect(self.console, self.restart_line, RESTART_LIMIT)

    def lost(self) -> None:
        """Says that nobody knows any more what the target does: the next transition starts it anew."""
        self.status = Status.unknown

    @step()
    def reset(self) -> None:
        """A warm reset without the target's consent, RAM is kept; without a reset line, the target resets itself."""
        self._need_shell("reset")
        self.tail.clear()
        if self.resetter is None:
            self._bring_up(self._ask_for_reboot, self._await_restart)
        else:
            self.target.activate(self.resetter)
            self._bring_up(self.resetter.reset, self._await_restart)

    @step()
    def reboot(self) -> None:
        """A warm reset which the target does itself, at once: nothing is unmounted or synced before."""
        self._need_shell("reboot")
        self.tail.clear()
        self._bring_up(self._ask_for_reboot, self._await_restart)

    def _ask_for_reboot(self) -> None:
        self.console.sendline("reboot -f")

    @step()
    def power_cut(self) -> None:
        """Takes the power away without warning and gives it back: only what the board's pmem holds remains.

        A driver which can do it its own way has power_cut(); elsewhere off() is the switch in the supply.
        """
        self._need_shell("cut the power")
        self.status = Status.unknown
        self.target.deactivate(self.shell)
        getattr(self.power, "power_cut", self.power.off)()
        self.tail.clear()
        self._bring_up(self.power.on)

    def _need_shell(self, what: str) -> None:
        if self.status is not Status.shell:
            raise StrategyError(f"Cannot {what}: the board is in the state '{self.status.name}', not at its shell.")

    def force(self, status: str) -> None:
        """--lg-initial-state: the board is in this state already, says the developer."""
        if status not in ("off", "bootloader", "shell"):
            raise StrategyError(f"There is no state '{status}' to start from: use one of off, bootloader, shell.")
        self.target.activate(self.console)
        if status == "shell":
            self.target.activate(self.shell)
            self.boots += 1
        elif status == "bootloader":
            self.target.activate(self.bootloader)
        self.status = Status[status]
