# SPDX-License-Identifier: GPL-2.0-only
"""labgrid's coordinator with as many places as a large lab has: our own use of it stays quick."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import coordinator
from tools.common import UserError

BIN = Path(sys.executable).parent
PLACES = 200
# Exporters, and places at each of them
EXPORTERS = 4
# How long a reservation may take, in seconds
ANSWER = 1.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A coordinator with 200 places, of which each has its resources from one of several exporters."""
    folder = tmp_path_factory.mktemp("coordinator")
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
    processes = []
    with (folder / "log").open("wb") as log:

        def start(*command: str) -> None:
            processes.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log))

        try:
            start(str(BIN / "labgrid-coordinator"), "-l", where)
            wait_for(where)
            for number in range(EXPORTERS):
                content = {
                    f"board-{place}": {"NetworkSerialPort": {"host": "127.0.0.1", "port": 1, "protocol": "raw"}}
                    for place in range(number, PLACES, EXPORTERS)
                }
                file = folder / f"exporter-{number}.yaml"
                file.write_text(json.dumps(content))
                start(str(BIN / "labgrid-exporter"), "-c", where, "--name", f"bench-{number}", str(file))
            asyncio.run(furnish(where))
            yield where
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(timeout=30)


def wait_for(where: str) -> None:
    host, _, port = where.partition(":")
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


async def furnish(where: str) -> None:
    async with coordinator.session(where) as session:
        for place in range(PLACES):
            tags = {"board": "orangepi_pc" if place % 2 else "imx7d_sabre", "lpae": "yes"}
            await session.make_place(f"place-{place}", f"bench-{place % EXPORTERS}/board-{place}/*", tags)
        deadline = time.monotonic() + 60
        while sum(map(len, session.client.resources.values())) < PLACES:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


def test_a_reservation_is_answered_in_less_than_a_second(address: str) -> None:
    async def reserve_all() -> list[float]:
        times = []
        async with coordinator.session(address) as session:
            for _ in range(20):
                start = time.monotonic()
                token, place = await session.reserve({"board": "orangepi_pc"}, 10)
                times.append(time.monotonic() - start)
                assert session.place(place).tags["board"] == "orangepi_pc"
                assert await session.acquire(place)
                await session.release(place)
                await session.cancel(token)
        return times

    times = sorted(asyncio.run(reserve_all()))
    print(
        f"{PLACES} places, {EXPORTERS} exporters: a reservation took {times[len(times) // 2]:.3f} s, at most {times[-1]:.3f} s"
    )
    # labgrid allocates at the poll of the reservation, or by its own clock each second at the latest
    assert times[len(times) // 2] < ANSWER


def test_a_place_can_be_had_once(address: str) -> None:
    async def twice() -> None:
        async with coordinator.session(address) as session:
            assert await session.acquire("place-7")
            assert not await session.acquire("place-7")
            await session.release("place-7")
            with pytest.raises(UserError, match="cannot be given back.*is not acquired"):
                await session.release("place-7")

    asyncio.run(twice())


@pytest.mark.parametrize(
    ("words", "tags"),
    [("board=a", {"board": "a"}), ("board=a,lpae=no", {"board": "a", "lpae": "no"}), ("", {})],
)
def test_tags(words: str, tags: dict[str, str]) -> None:
    assert coordinator.tags_of(words) == tags


@pytest.mark.parametrize("words", ["board", "b=x", "Board=x", "board="])
def test_what_is_no_tag(words: str) -> None:
    with pytest.raises(UserError, match="is no tag"):
        coordinator.tags_of(words)
