# SPDX-License-Identifier: GPL-2.0-only
"""One emulated board that looks to labgrid like hardware: a serial console on a TCP port, a power switch on another.

This program is the rack around the emulator of labgrid/rack/<board>.yaml. The console's port stays open while the board is
off, what the board said since its power came is kept for who connects late, and all of it is in console.log. The switch
speaks the protocol of labgrid's power model `rest`: PUT 0 or 1, GET says which it is. Switching off is a power cut.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tools.common import ROOT, UserError, entry, say

# What is kept of the console for a client that comes late, in bytes
BACKLOG = 1 << 20
# How long a PUT may take: the start of an emulator on a busy machine, in seconds
SWITCH_LIMIT = 60


def variables(folder: Path) -> dict[str, str]:
    """What the emulator's environment asks for: the board's own folder, and TFTP's as a word of QEMU's command line."""
    tftp = str(folder.resolve() / "tftp").replace(",", ",,")
    return {"LG_RACK_FOLDER": str(folder.resolve()), "LG_RACK_TFTP": shlex.quote(tftp)}


class Board:
    """The emulator, and whoever is at its console. Everything here runs in the loop's thread, which QEMU is a child of."""

    def __init__(self, environment: Path, folder: Path) -> None:
        from labgrid.environment import Environment

        self.loop = asyncio.get_running_loop()
        target = Environment(str(environment)).get_target()
        assert target is not None
        self.machine: Any = target.get_driver("PowerProtocol", activate=False)
        # Its files are this board's: RAM and drive stay from one power-on to the next.
        self.machine.take_slot("machine")
        target.activate(self.machine)
        self.log = (folder / "console.log").open("ab", buffering=0)
        self.backlog = b""
        self.client: asyncio.StreamWriter | None = None
        self.port: socket.socket | None = None

    # Power --------------------------------------------------------------------------------------------------------

    async def switch(self, on: bool) -> None:
        if on and self.port is None:
            self.backlog = b""
            self.log.write(b"\n--- power on\n")
            self.machine.on()
            self.port = self.machine.console_socket
            assert self.port is not None
            self.loop.add_reader(self.port, self._from_board)
        elif not on:
            self.cut()

    def cut(self) -> None:
        import boardlib

        if self.port is not None:
            self.loop.remove_reader(self.port)
            self.port = None
            self.log.write(b"\n--- power off\n")
        # It may have ended by itself: a board that switched itself off.
        with suppress(boardlib.BoardError):
            self.machine.power_cut()
        self.machine.keep()

    # Console ------------------------------------------------------------------------------------------------------

    def _from_board(self) -> None:
        assert self.port is not None
        try:
            data = self.port.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            # Off, by its own doing: until the switch is off and on again it stays so, as hardware would.
            self.loop.remove_reader(self.port)
            self.log.write(b"\n--- the board is off\n")
            return
        self.log.write(data)
        self.backlog = (self.backlog + data)[-BACKLOG:]
        if self.client is not None:
            self.client.write(data)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client; it takes the console over from one that was there before, as that may be long dead."""
        if self.client is not None:
            self.client.close()
        self.client = writer
        writer.write(self.backlog)
        self.backlog = b""
        with suppress(ConnectionError):
            while data := await reader.read(4096):
                if self.client is writer and self.port is not None:
                    with suppress(ConnectionError):
                        await self.loop.sock_sendall(self.port, data)
        if self.client is writer:
            self.client = None
            self.backlog = b""
        writer.close()


def switch_server(port: socket.socket, board: Board) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = SWITCH_LIMIT

        def _answer(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._answer(200, "1" if board.port is not None else "0")

        def do_PUT(self) -> None:
            wanted = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if wanted not in (b"0", b"1"):
                self._answer(400, "0 or 1, please")
                return
            done = asyncio.run_coroutine_threadsafe(board.switch(wanted == b"1"), board.loop)
            try:
                done.result(SWITCH_LIMIT)
            except Exception as exc:
                say(f"cannot switch: {exc}")
                self._answer(500, str(exc))
                return
            self._answer(200, wanted.decode())

        def log_message(self, format: str, *args: object) -> None:
            say(f"power switch: {format % args}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = port
    server.server_address = port.getsockname()
    return server


async def serve(environment: Path, folder: Path, console: int, power: int) -> None:
    board = Board(environment, folder)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        board.loop.add_signal_handler(number, stop.set)
    server = await asyncio.start_server(board.serve, sock=socket.socket(fileno=console))
    switch = switch_server(socket.socket(fileno=power), board)
    threading.Thread(target=switch.serve_forever, daemon=True).start()
    say("ready")
    await stop.wait()
    switch.shutdown()
    server.close()
    board.cut()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.rackboard", description=__doc__)
    parser.add_argument("environment", type=Path, help="the emulator's labgrid environment")
    parser.add_argument("folder", type=Path, help="this board's own")
    parser.add_argument("--console", type=int, required=True, help="number of the inherited listening socket")
    parser.add_argument("--power", type=int, required=True, help="the same for the power switch")
    options = parser.parse_args()
    if not options.environment.is_file():
        raise UserError(f"there is no {options.environment}")
    sys.path.insert(0, str(ROOT / "labgrid"))
    os.environ.update(variables(options.folder))
    asyncio.run(serve(options.environment, options.folder, options.console, options.power))
    return 0


if __name__ == "__main__":
    entry(main)
