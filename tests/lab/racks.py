# SPDX-License-Identifier: GPL-2.0-only
"""A rack for tests, and labgrid's and our programs as a user of it calls them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from boardlib import scaled

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "output/board/images"
Done = subprocess.CompletedProcess[str]
# A flash and a boot, in seconds before the scale factor
LIMIT = 240

needs_u_boot = pytest.mark.skipif(
    not (IMAGES / "u-boot.bin").exists(), reason="the rack boots by U-Boot: it needs the Buildroot image of `board`"
)


def needs_lab_deps(what: str, there: bool) -> pytest.MarkDecorator:
    """Skips where something is missing that `make deps` does not install."""
    return pytest.mark.skipif(not there, reason=f"no {what} here: `make lab-deps` installs it")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Rack:
    """A rack of its own for these tests, and labgrid's and our programs as a user of it calls them."""

    def __init__(self, folder: Path, count: int, board: str = "board", *options: str) -> None:
        self.folder = folder
        self.board, self.options = board, options
        self.coordinator = f"127.0.0.1:{free_port()}"
        self.environ = {
            key: value
            for key, value in os.environ.items()
            if key == "LG_TIMEOUT_SCALE" or not key.startswith(("LG_", "MAKE"))
        }
        self.environ["LG_COORDINATOR"] = self.coordinator
        self.count = count

    def program(self, *command: str, **environ: str) -> Done:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=scaled(LIMIT),
            check=False,
        )

    def rack(self, action: str, *options: str) -> Done:
        return self.program(sys.executable, "-m", "tools.rack", action, "--folder", str(self.folder), *options)

    def start(self) -> None:
        done = self.rack("start", "--count", str(self.count), "--boards", self.board, *self.options)
        assert done.returncode == 0, done.stdout + done.stderr

    def lab(self, action: str, *options: str, **environ: str) -> Done:
        return self.program(sys.executable, "-m", "tools.lab", action, *options, **environ)

    def background(self, action: str, *options: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.lab", action, *options],
            cwd=ROOT,
            env={**self.environ, "PYTHONUNBUFFERED": "1", **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def client(self, *words: str, **environ: str) -> str:
        done = self.program(str(Path(sys.executable).parent / "labgrid-client"), *words, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def switch_of(self, number: int) -> str:
        """The URL of a board's power switch."""
        places = json.loads((self.folder / "rack.json").read_text())["places"]
        url: str = places[number - 1]["power"]
        return url

    def power(self, number: int) -> str:
        return requests.get(self.switch_of(number), timeout=20).text

    def switch(self, number: int, on: bool) -> None:
        requests.put(self.switch_of(number), data=b"1" if on else b"0", timeout=60).raise_for_status()

    def hardware(self, number: int) -> dict[str, Any]:
        """What the rack's exporter says of a board."""
        content: dict[str, Any] = yaml.safe_load((self.folder / "exporter.yaml").read_text())[f"rack-{number}"]
        return content

    def console(self, number: int) -> str:
        path = self.folder / f"rack-{number}/console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def is_idle(self, number: int) -> bool:
        """The place is free, and its board off."""
        return "acquired: None" in self.client("-p", f"rack-{number}", "show") and self.power(number) == "0"

    def processes(self) -> str:
        return subprocess.run(
            ["pgrep", "-a", "-f", str(self.folder)], capture_output=True, text=True, check=False
        ).stdout

    @contextmanager
    def exporter(self, name: str, folder: Path, content: dict[str, Any], *options: str, board: str) -> Iterator[None]:
        """One more exporter, and a place for each of its groups."""
        file = folder / "exporter.yaml"
        file.write_text(json.dumps(content))
        command = [str(Path(sys.executable).parent / "labgrid-exporter"), "--name", name]
        if "--hostname" not in options:
            command += ["--hostname", "127.0.0.1"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*command, *options, str(file)], env=self.environ, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while any(f"{name}/{group}/" not in self.client("resources") for group in content):
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            for group in content:
                self.client("-p", group, "create")
                self.client("-p", group, "add-match", f"{name}/{group}/*")
                self.client("-p", group, "set-tags", f"board={board}")
            yield
            for group in content:
                self.client("-p", group, "delete")
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def running(folder: Path, count: int, board: str = "board", *options: str) -> Iterator[Rack]:
    """A rack that is up; afterwards nothing of it is left running."""
    one = Rack(folder, count, board, *options)
    one.start()
    try:
        yield one
    finally:
        done = one.rack("stop")
    assert done.returncode == 0, done.stdout + done.stderr
    # The kernel may take a moment for those that it kills.
    deadline = time.monotonic() + 10
    while left := one.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def changed_images(board: str, folder: Path, change: Callable[[Path], Any], named: str = "") -> Path:
    """A copy of a board's image as change() leaves it, with a manifest that fits, and names this board or another."""
    from tools.common import sha256

    built = ROOT / "output" / board / "images"
    folder.mkdir()
    manifest = json.loads((built / "manifest.json").read_text())
    for name in ("sdcard.img", "sdcard.img.bmap"):
        subprocess.run(["cp", "--sparse=always", built / name, folder], check=True, timeout=60)
    card = folder / "sdcard.img"
    change(card)
    manifest["board"] = named or board
    manifest["files"]["sdcard.img"] = {"size": card.stat().st_size, "sha256": sha256(card)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def change_extlinux(board: str, card: Path, pattern: str, new: str) -> None:
    """Another command line for the kernel of an image."""
    text, number = re.subn(pattern, new, (ROOT / f"board/{board}/extlinux.conf").read_text())
    assert number == 1
    command = ["mcopy", "-o", "-i", f"{card}@@1M", "-", "::extlinux/extlinux.conf"]
    subprocess.run(command, input=text, text=True, check=True, timeout=60)


def said(done: Done) -> str:
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    return text


def follow(process: subprocess.Popen[str], until: str) -> str:
    """Reads what a program says, to a line that matches."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if re.search(until, line):
            return text
    raise AssertionError(f"'{until}' was never said:\n{text}")


def interrupt(process: subprocess.Popen[str], at: str, number: signal.Signals) -> str:
    """Sends a signal when a line matches; all that was said to the end."""
    text = follow(process, at)
    process.send_signal(number)
    return text + process.communicate(timeout=scaled(LIMIT))[0]
