# SPDX-License-Identifier: GPL-2.0-only
"""`make rack N=4`: a lab on loopback, with labgrid's own coordinator and exporter, and emulated boards as hardware.

`start` leaves a supervisor behind, which keeps coordinator, exporter and boards (tools/rackboard.py) running; `stop` ends
it, and all of them with it. Everything is in output/rack and listens on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fdt
import requests
import yaml

from tools import coordinator
from tools.common import OUTPUT, ROOT, UserError, display, entry, locked, say, write_whole
from tools.environment import lab_environment

FOLDER = OUTPUT / "rack"
EMULATED = ROOT / "labgrid/rack"
# How long the whole rack may take to come up or to end, in seconds
START_LIMIT = 90
STOP_LIMIT = 60
# A program that ends is started again, but not in a loop that eats the machine.
PAUSE = 1
# What the exporter says when it has lost its coordinator
EXPORTER_LOST = 100
BLANK = 256 << 20


def free_udp_port() -> int:
    """For QEMU, which must bind it by itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Place:
    """One emulated board of the rack."""

    number: int
    board: str
    images: Path
    tags: dict[str, str]
    firmware: Path
    console: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    power: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    fastboot: int = field(default_factory=free_udp_port)

    @property
    def name(self) -> str:
        return f"rack-{self.number}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.power.getsockname()[1]}"

    def resources(self, folder: Path) -> dict[str, Any]:
        """What the exporter says of it, in its own terms."""
        found: dict[str, Any] = {
            "NetworkSerialPort": {"host": "127.0.0.1", "port": self.console.getsockname()[1], "protocol": "raw"},
            "NetworkPowerPort": {"model": "rest", "host": self.url + "/{index}", "index": self.number},
            "TFTPProvider": {"internal": f"{folder / self.name / 'tftp'}/", "external": ""},
        }
        # Where the emulator lets fastboot in
        if "$LG_RACK_FASTBOOT" in kinds()[self.board].read_text():
            found["AndroidNetFastboot"] = {"address": "127.0.0.1", "port": self.fastboot, "protocol": "udp"}
        return found


def kinds() -> dict[str, Path]:
    return {path.stem: path for path in sorted(EMULATED.glob("*.yaml"))}


def image_folder(board: str) -> Path:
    return OUTPUT / board / "images"


class _Template(str):
    """What labgrid fills in, by !template."""


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


_Loader.add_constructor("!template", lambda loader, node: _Template(node.value))
_Dumper.add_representer(_Template, lambda dumper, one: dumper.represent_scalar("!template", str(one)))


def read_environment(path: Path) -> dict[str, Any]:
    """A labgrid environment; its !template stay as they are written."""
    content: dict[str, Any] = yaml.load(path.read_text(), _Loader)  # noqa: S506 (a SafeLoader)
    return content


def write_environment(content: dict[str, Any], like: Path, path: Path) -> None:
    """An environment which stands elsewhere than the one it was made of."""
    imports = [str((like.parent / name).resolve()) for name in content["imports"]]
    write_whole(path, yaml.dump({**content, "imports": imports}, Dumper=_Dumper, sort_keys=False))


def firmware_of(board: str) -> Path:
    """The U-Boot which the build makes, where a board has its own as firmware."""
    return image_folder(board) / "u-boot.bin"


def missing(board: str, firmware: Path | None = None) -> Path | None:
    """An image of the emulator's that has not been built."""
    content = read_environment(kinds()[board])
    for path in content["images"].values():
        name = path.replace("$LG_BUILDDIR", str(image_folder(board)))
        name = name.replace("$LG_RACK_FIRMWARE", str(firmware or firmware_of(board)))
        if "$" not in name and not Path(name).is_file():
            return Path(name)
    # What is flashed
    card = image_folder(board) / "sdcard.img"
    return None if card.is_file() else card


def choose(wanted: Sequence[str], count: int, firmware: Path | None = None) -> list[str]:
    """The kind of each board; without a wish, of all kinds whose images are there, in turn."""
    known = kinds()
    for board in wanted:
        if board not in known:
            raise UserError(f"the rack has no emulator of '{board}': it has {', '.join(known)}")
    lacking = {board: missing(board, firmware) for board in wanted or known}
    ready = [board for board, path in lacking.items() if path is None]
    if (wanted and len(ready) < len(wanted)) or not ready:
        board, path = next((board, path) for board, path in lacking.items() if path is not None)
        raise UserError(
            f"there is no image {display(path)}: `make {board}_defconfig && make IMAGE=buildroot` builds it"
        )
    return [ready[number % len(ready)] for number in range(count)]


def tags(board: str) -> dict[str, str]:
    """What a reservation can ask for; each fact from where it stands already."""
    folder = image_folder(board)
    content = read_environment(kinds()[board])
    config = (folder / "kernel.config").read_text()

    def pmem(node: Any) -> int:
        """Bytes in the pmem regions at and below a node of the overlay."""
        here = node.exist_property("compatible") and "pmem-region" in node.get_property("compatible").data
        return sum(map(pmem, node.nodes)) + (list(node.get_property("reg").data)[-1] if here else 0)

    total = pmem(fdt.parse_dtb((folder / "pmem.dtbo").read_bytes()).root)
    return {
        "board": board,
        "cpu": content["targets"]["main"]["drivers"]["PmemQEMUDriver"]["cpu"],
        "lpae": "yes" if re.search(r"^CONFIG_ARM_LPAE=y$", config, re.MULTILINE) else "no",
        "pmem": str(total >> 20),
        "emulated": "yes",
        **content.get("options", {}).get("tags", {}),
    }


# The supervisor ---------------------------------------------------------------------------------------------------


class Rack:
    def __init__(self, places: list[Place], folder: Path, address: str) -> None:
        self.places, self.folder, self.address = places, folder, address
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def spawn(self, name: str, command: list[str], *, fds: Sequence[int] = (), **environment: str) -> None:
        """Starts one program of the rack; it does not outlive this one."""
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig",
            "TERM",
            "--",
            *command,
            cwd=ROOT if fds else self.folder / "state",
            env=lab_environment(**{"LG_COORDINATOR": self.address, "PYTHONUNBUFFERED": "1", **environment}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            start_new_session=True,
        )
        log.close()

    async def coordinator(self) -> None:
        await self.spawn("coordinator", [program("labgrid-coordinator"), "-l", self.address])

    async def exporter(self) -> None:
        # It ends when there is no coordinator.
        host, _, port = self.address.partition(":")
        for _ in range(100):
            try:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.2)
        file = self.folder / "exporter.yaml"
        await self.spawn(
            "exporter", [program("labgrid-exporter"), "--name", "rack", "--hostname", "127.0.0.1", str(file)]
        )

    async def board(self, place: Place) -> None:
        own = self.folder / place.name
        (own / "tftp").mkdir(parents=True, exist_ok=True)
        with (own / "blank").open("ab") as blank:
            blank.truncate(BLANK)
        fds = (place.console.fileno(), place.power.fileno())
        command = [sys.executable, "-m", "tools.rackboard", str(kinds()[place.board]), str(own)]
        command += ["--console", str(fds[0]), "--power", str(fds[1])]
        variables = {
            "LG_BUILDDIR": str(place.images),
            "LG_RACK_FIRMWARE": str(place.firmware),
            "LG_RACK_FASTBOOT": str(place.fastboot),
        }
        await self.spawn(place.name, command, fds=fds, **variables)

    async def keep(self, name: str, start: Any) -> None:
        """Starts a program, and starts it again when it ends."""
        while True:
            await start()
            status = await self.processes[name].wait()
            say(f"{time.strftime('%T')} {name} ended with status {status} and is started again")
            if name == "exporter" and status == EXPORTER_LOST:
                # Nobody holds a place any more: who gets one next gets a board that is off.
                await asyncio.gather(*(asyncio.to_thread(power_off, place) for place in self.places))
            await asyncio.sleep(PAUSE)

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        content = {place.name: place.resources(self.folder) for place in self.places}
        write_whole(self.folder / "exporter.yaml", yaml.safe_dump(content, sort_keys=False))
        tasks = [
            asyncio.create_task(self.keep(place.name, lambda place=place: self.board(place))) for place in self.places
        ]
        tasks.append(asyncio.create_task(self.keep("coordinator", self.coordinator)))
        tasks.append(asyncio.create_task(self.keep("exporter", self.exporter)))
        try:
            ready = asyncio.create_task(self.furnish())
            await asyncio.wait([ready, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                ready.result()
                await stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await self.end()

    async def furnish(self) -> None:
        """Waits for all programs, makes the places, and says so."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                async with coordinator.session(self.address) as session:
                    while "rack" not in session.client.resources or len(session.client.resources["rack"]) < len(
                        self.places
                    ):
                        if time.monotonic() > deadline:
                            raise UserError(f"the exporter did not come up within {START_LIMIT} s")
                        await asyncio.sleep(0.2)
                    for place in self.places:
                        await session.make_place(place.name, f"rack/{place.name}/*", place.tags)
                    for name in set(session.client.places) - {place.name for place in self.places}:
                        if name.startswith("rack-"):
                            await session.drop_place(name)
                break
            except UserError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.3)
        for place in self.places:
            while not await asyncio.to_thread(answers, place):
                if time.monotonic() > deadline:
                    raise UserError(f"the board of {place.name} did not come up within {START_LIMIT} s")
                await asyncio.sleep(0.2)
        state = {
            "coordinator": self.address,
            "places": [{"name": place.name, "power": place.url, **place.tags} for place in self.places],
        }
        write_whole(self.folder / "rack.json", json.dumps(state, indent=1) + "\n")

    async def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            running = [one for one in self.processes.values() if one.returncode is None]
            for one in running:
                with suppress(ProcessLookupError):
                    one.send_signal(number)
            if running:
                await asyncio.wait([asyncio.create_task(one.wait()) for one in running], timeout=STOP_LIMIT / 3)


def program(name: str) -> str:
    """One of labgrid's, from the same environment as this Python."""
    return str(Path(sys.executable).parent / name)


def answers(place: Place) -> bool:
    try:
        return requests.get(place.url, timeout=2).ok
    except requests.RequestException:
        return False


def power_off(place: Place) -> None:
    with suppress(requests.RequestException):
        requests.put(place.url, data=b"0", timeout=30)


# The user's side --------------------------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, Any] | None:
    path = folder / "rack.json"
    content: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return content


def running(folder: Path) -> int | None:
    """The supervisor's process, by the lock which it holds."""
    try:
        with locked(folder / "lock", "busy"):
            return None
    except UserError:
        return int((folder / "pid").read_text())


def start(folder: Path, boards: list[str], address: str, firmware: Path | None) -> int:
    if running(folder) is not None:
        raise UserError(f"the rack in {display(folder)} runs already: `make rack-stop` ends it")
    host, _, port = address.partition(":")
    try:
        socket.create_server((host, int(port))).close()
    except (OSError, ValueError) as exc:
        raise UserError(
            f"no coordinator can listen on {address} ({exc}): name another by LG_COORDINATOR=host:port"
        ) from exc
    (folder / "rack.json").unlink(missing_ok=True)
    log = folder / "rack.log"
    command = [sys.executable, "-m", "tools.rack", "run", "--folder", str(folder), "--coordinator", address]
    command += ["--boards", *boards, *(["--firmware", str(firmware)] if firmware else [])]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=lab_environment(),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    say(f"starting {len(boards)} boards ({', '.join(boards)}), coordinator and exporter; logs in {display(folder)}")
    deadline = time.monotonic() + START_LIMIT + 10
    try:
        while state(folder) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                raise UserError(f"the rack did not start: {lines[-1] if lines else 'it says nothing'} ({display(log)})")
            time.sleep(0.1)
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
            process.wait(timeout=STOP_LIMIT)
        raise
    show(state(folder) or {})
    return 0


def show(content: dict[str, Any]) -> None:
    for one in content["places"]:
        say("  " + one["name"] + ": " + " ".join(f"{key}={one[key]}" for key in ("board", "cpu", "lpae", "pmem")))
    if content["coordinator"] != coordinator.DEFAULT:
        say(f"export LG_COORDINATOR={content['coordinator']}")
    first = content["places"][0]["name"]
    say(
        f"ready: make flash PLACE={first}; make test PLACE={first}; make lab-test TAGS='board=…'; `make rack-stop` ends it"
    )


def run(folder: Path, boards: list[str], address: str, firmware: Path | None) -> int:
    with locked(folder / "lock", f"another rack runs in {display(folder)}"):
        write_whole(folder / "pid", f"{os.getpid()}\n")
        places = [
            Place(number, board, image_folder(board), tags(board), firmware or firmware_of(board))
            for number, board in enumerate(boards, 1)
        ]
        try:
            asyncio.run(Rack(places, folder, address).run())
        finally:
            (folder / "rack.json").unlink(missing_ok=True)
            (folder / "pid").unlink(missing_ok=True)
    return 0


def stop(folder: Path) -> int:
    process = running(folder) if folder.exists() else None
    if process is None:
        say("no rack is running")
    else:
        os.kill(process, signal.SIGTERM)
        with locked(
            folder / "lock", f"the rack (process {process}) did not end within {STOP_LIMIT} s", wait=STOP_LIMIT
        ):
            pass
        say("the rack is down: coordinator, exporter and boards have ended")
    if folder.exists():
        # RAM and disks of the boards; the logs stay.
        for path in folder.glob("rack-*/"):
            shutil.rmtree(path / "machine", ignore_errors=True)
            shutil.rmtree(path / "tftp", ignore_errors=True)
            (path / "blank").unlink(missing_ok=True)
        shutil.rmtree(folder / "state", ignore_errors=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.rack", description=__doc__)
    parser.add_argument("action", choices=["start", "run", "stop"])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--count", default="", help="how many boards (4)")
    parser.add_argument("--boards", nargs="*", default=[], help="kinds of boards, in turn")
    parser.add_argument("--firmware", type=Path, help="another U-Boot for the boards that have one as firmware")
    parser.add_argument("--coordinator", default="", help="HOST:PORT where the coordinator listens")
    options = parser.parse_args()
    address = options.coordinator or coordinator.address()
    firmware = options.firmware.resolve() if options.firmware else None
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.action == "stop":
        return stop(options.folder)
    if options.action == "run":
        return run(options.folder, options.boards, address, firmware)
    count = options.count or "4"
    if not re.fullmatch(r"[1-9]\d?", count):
        raise UserError(f"N={count} is no number of boards from 1 to 99")
    if firmware and not firmware.is_file():
        raise UserError(f"there is no firmware {firmware}: Debian's is in the package u-boot-qemu (`make lab-deps`)")
    return start(options.folder, choose(options.boards, int(count), firmware), address, firmware)


if __name__ == "__main__":
    entry(main)
