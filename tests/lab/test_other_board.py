# SPDX-License-Identifier: GPL-2.0-only
"""The strategy on a board of which it knows nothing: a serial port and a switch in the supply, no emulator's driver."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boardstrategy  # noqa: F401  (its drivers are named in the environment below)
import pytest
import yaml
from labgrid.environment import Environment


class Board:
    """A shell on a serial line which starts again when it ends, as long as the power is on."""

    def __init__(self, folder: Path) -> None:
        self._master, slave = pty.openpty()
        self.port = os.ttyname(slave)
        self._slave = slave
        self._power = folder / "power"
        # "reboot -f" ends the shell; what starts it again says so, as a kernel would.
        (folder / "bin").mkdir()
        reboot = folder / "bin" / "reboot"
        reboot.write_text("#!/bin/sh\necho $* >>reboots\nkill -KILL $PPID\n")
        reboot.chmod(0o755)
        self._env = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "PS1": "arm-pmem:# ", "HOME": str(folder)}
        self._folder = folder
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def switch(self, state: str) -> str:
        return f"sh -c 'echo {state} >{self._power}.new && mv {self._power}.new {self._power}'"

    @property
    def _on(self) -> bool:
        return self._power.exists() and self._power.read_text() == "on\n"

    def _live(self) -> None:
        while not self._end.wait(0.02):
            if self._on:
                self._run_once()

    def _run_once(self) -> None:
        os.write(self._master, b"Booting Linux on a board without a name\r\n")
        inner, tty = pty.openpty()
        cmd = ["bash", "--norc", "--noprofile", "-i"]
        with subprocess.Popen(
            cmd, stdin=tty, stdout=tty, stderr=tty, cwd=self._folder, env=self._env, start_new_session=True
        ) as shell:
            os.close(tty)
            while self._on and shell.poll() is None and not self._end.is_set():
                for source in select.select([inner, self._master], [], [], 0.02)[0]:
                    try:
                        os.write(self._master if source == inner else inner, os.read(source, 4096))
                    except OSError:
                        break
            shell.kill()
        os.close(inner)

    def close(self) -> None:
        self._end.set()
        self._thread.join(timeout=10)
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def unknown(tmp_path: Path) -> Iterator[Any]:
    board = Board(tmp_path)
    drivers = {
        "ExternalPowerDriver": {"cmd_on": board.switch("on"), "cmd_off": board.switch("off"), "delay": 0.2},
        "SerialDriver": {},
        "BoardShellDriver": {
            "prompt": "arm-pmem:# ",
            "login_prompt": "login: ",
            "username": "root",
            "login_timeout": 20,
        },
        "BoardStrategy": {},
    }
    target = {"resources": {"RawSerialPort": {"port": board.port}}, "drivers": drivers}
    path = tmp_path / "env.yaml"
    path.write_text(yaml.safe_dump({"targets": {"main": target}}, sort_keys=False))
    env = Environment(str(path))
    main = env.get_target()
    assert main
    yield main.get_driver("Strategy")
    env.cleanup()
    board.close()


def test_it_comes_to_its_shell(unknown: Any) -> None:
    unknown.transition("shell")
    assert unknown.shell.run_check("echo hello") == ["hello"]


def test_it_goes_off_and_on(unknown: Any) -> None:
    unknown.transition("shell")
    unknown.transition("off")
    assert unknown.status.name == "off"
    unknown.transition("shell")
    assert unknown.boots == 2


@pytest.mark.parametrize("operation", ["reboot", "reset"])
def test_without_a_reset_line_it_resets_itself(unknown: Any, operation: str) -> None:
    unknown.transition("shell")
    unknown.shell.run_check("lost=1; export lost")
    getattr(unknown, operation)()
    assert unknown.shell.run_check("cat reboots") == ["-f"]
    assert unknown.boots == 2


def test_a_power_cut_is_the_switch(unknown: Any) -> None:
    unknown.transition("shell")
    unknown.power_cut()
    assert unknown.boots == 2
    assert unknown.shell.run_check("ls reboots 2>/dev/null || echo none") == ["none"]
