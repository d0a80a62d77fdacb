# SPDX-License-Identifier: GPL-2.0-only
"""A session with a labgrid coordinator, in labgrid's own client; its errors are ours, its waits have limits."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from tools.common import UserError

T = TypeVar("T")
DEFAULT = "127.0.0.1:20408"
# How long the coordinator may take for an answer, in seconds
LIMIT = 20
# Where labgrid's ssh can have its control sockets
SOCKET_FOLDER = re.compile(r"[\w./+-]{1,30}", re.ASCII)


def shorten_temporary_folder() -> None:
    """Where TMPDIR is no place for ssh's control sockets, another folder serves this program and its children.

    The path of a socket has 107 bytes at most, and behind TMPDIR come labgrid's folder, the host's name and what ssh adds;
    and ssh splits the option that names it at spaces.
    """
    if not SOCKET_FOLDER.fullmatch(tempfile.gettempdir()):
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        usable = SOCKET_FOLDER.fullmatch(runtime) and os.access(runtime, os.W_OK | os.X_OK)
        tempfile.tempdir = os.environ["TMPDIR"] = runtime if usable else "/tmp"


def address() -> str:
    """LG_COORDINATOR, as labgrid's own programs read it."""
    return os.environ.get("LG_COORDINATOR") or DEFAULT


def tags_of(words: str) -> dict[str, str]:
    """'board=orangepi_pc lpae=yes', as a user gives it; labgrid's tags have keys of two characters or more."""
    tags = {}
    for word in words.replace(",", " ").split():
        key, sign, value = word.partition("=")
        if not sign or not re.fullmatch(r"[a-z][a-z0-9_]+", key) or not re.fullmatch(r"[a-z0-9_-]+", value):
            raise UserError(f"'{word}' is no tag: write key=value in small letters, as in TAGS='board=orangepi_pc'")
        tags[key] = value
    return tags


class Session:
    """What this project does with places."""

    def __init__(self, client: Any, where: str) -> None:
        self.client = client
        self.where = where

    @property
    def me(self) -> str:
        return f"{self.client.gethostname()}/{self.client.getuser()}"

    @property
    def lost(self) -> bool:
        return bool(self.client.stopping.is_set())

    async def _ask(self, what: str, answer: Awaitable[T]) -> T:
        import grpc
        from labgrid.remote.client import Error

        try:
            return await asyncio.wait_for(answer, LIMIT)
        except TimeoutError:
            raise UserError(f"the coordinator {self.where} did not answer within {LIMIT} s ({what})") from None
        except (Error, grpc.aio.AioRpcError) as exc:
            said = exc.details() if isinstance(exc, grpc.aio.AioRpcError) else str(exc)
            raise UserError(f"{what}: {said}") from exc

    def place(self, name: str) -> Any:
        if name not in self.client.places:
            known = ", ".join(sorted(self.client.places)) or "none"
            raise UserError(f"there is no place '{name}' at the coordinator {self.where}: its places are {known}")
        return self.client.places[name]

    def matching(self, tags: Mapping[str, str]) -> list[str]:
        """The places with these tags, whoever holds them."""
        found = [name for name, one in self.client.places.items() if tags.items() <= one.tags.items()]
        if not found:
            words = " ".join(f"{key}={value}" for key, value in tags.items())
            raise UserError(
                f"no place at the coordinator {self.where} has the tags '{words}': see `labgrid-client places`"
            )
        return sorted(found)

    async def acquire(self, name: str) -> bool:
        """Takes a place; False when this very user holds it already, who then keeps it."""
        place = self.place(name)
        if place.acquired == self.me:
            return False
        if place.acquired:
            raise UserError(f"the place '{name}' is held by {place.acquired}: wait, or ask for it")
        from labgrid.remote.client import Error
        from labgrid.remote.generated import labgrid_coordinator_pb2 as pb

        try:
            self.client.check_matches(place)
        except Error as exc:
            raise UserError(f"the place '{name}' lacks hardware: {exc}; does its exporter run?") from exc
        request = pb.AcquirePlaceRequest(placename=name)
        await self._ask(f"the place '{name}' cannot be had", self.client.stub.AcquirePlace(request))
        await self.client.sync_with_coordinator()
        return True

    async def release(self, name: str) -> None:
        from labgrid.remote.generated import labgrid_coordinator_pb2 as pb

        request = pb.ReleasePlaceRequest(placename=name)
        await self._ask(f"the place '{name}' cannot be given back", self.client.stub.ReleasePlace(request))
        await self.client.sync_with_coordinator()

    async def reserve(self, tags: Mapping[str, str], wait: float) -> tuple[str, str]:
        """Token and place of a reservation that came true; labgrid's coordinator is the queue."""
        from labgrid.remote.common import Reservation, ReservationState
        from labgrid.remote.generated import labgrid_coordinator_pb2 as pb

        self.matching(tags)
        request = pb.CreateReservationRequest(filters={"main": pb.Reservation.Filter(filter=tags)}, prio=0.0)
        answer = await self._ask("no reservation", self.client.stub.CreateReservation(request))
        token = answer.reservation.token
        deadline = asyncio.get_running_loop().time() + wait
        try:
            while True:
                poll = pb.PollReservationRequest(token=token)
                answer = await self._ask("the reservation is gone", self.client.stub.PollReservation(poll))
                state = Reservation.from_pb2(answer.reservation)
                if state.state is ReservationState.allocated:
                    return token, state.allocations["main"][0]
                if state.state is not ReservationState.waiting:
                    raise UserError(f"the reservation {token} is {state.state.name}: try again")
                if asyncio.get_running_loop().time() > deadline:
                    holders = {self.place(name).acquired for name in self.matching(tags)} - {None}
                    raise UserError(
                        f"no matching place became free within {wait:.0f} s: "
                        f"{', '.join(self.matching(tags))}; held by {', '.join(sorted(holders)) or 'nobody, but reserved'}"
                    )
                await asyncio.sleep(0.5)
        except BaseException:
            with suppress(UserError):
                await self.cancel(token)
            raise

    async def cancel(self, token: str) -> None:
        from labgrid.remote.generated import labgrid_coordinator_pb2 as pb

        request = pb.CancelReservationRequest(token=token)
        await self._ask("the reservation cannot be cancelled", self.client.stub.CancelReservation(request))

    async def make_place(self, name: str, match: str, tags: Mapping[str, str]) -> None:
        """A place with these tags and this match; what an older rack left under this name is replaced."""
        from labgrid.remote.generated import labgrid_coordinator_pb2 as pb

        stub = self.client.stub
        if name in self.client.places:
            await self.drop_place(name)
        await self._ask(f"the place '{name}' cannot be made", stub.AddPlace(pb.AddPlaceRequest(name=name)))
        await self._ask(
            f"the place '{name}' gets no match",
            stub.AddPlaceMatch(pb.AddPlaceMatchRequest(placename=name, pattern=match)),
        )
        await self._ask(
            f"the place '{name}' gets no tags", stub.SetPlaceTags(pb.SetPlaceTagsRequest(placename=name, tags=tags))
        )
        await self.client.sync_with_coordinator()

    async def drop_place(self, name: str) -> None:
        from labgrid.remote.generated import labgrid_coordinator_pb2 as pb

        await self._ask(f"the place '{name}' stays", self.client.stub.DeletePlace(pb.DeletePlaceRequest(name=name)))


@asynccontextmanager
async def session(where: str = "") -> AsyncIterator[Session]:
    """A session with the coordinator at HOST:PORT."""
    from labgrid.driver.exception import ExecutionError
    from labgrid.remote.client import ClientSession, Error
    from labgrid.util.proxy import proxymanager

    where = where or address()
    try:
        reached = proxymanager.get_grpc_address(where, default_port=20408)
    except (ExecutionError, OSError, subprocess.SubprocessError) as exc:
        said = str(exc).strip("'\"\n").splitlines()[-1]
        raise UserError(
            f"the SSH host '{os.environ.get('LG_PROXY')}' of LG_PROXY cannot be reached ({said}): try `ssh` to it by hand"
        ) from exc
    client = ClientSession(
        reached,
        asyncio.get_running_loop(),
        env=None,
        role=None,
        args=argparse.Namespace(allow_unmatched=False, kick=False, place=None),
        prog="arm-pmem",
    )
    try:
        await asyncio.wait_for(client.start(), LIMIT)
    except (Error, TimeoutError, OSError) as exc:
        await client.close()
        raise UserError(
            f"no labgrid coordinator answers at {where}: start it, or name another by LG_COORDINATOR=host:port "
            "(`make rack` has one of its own)"
        ) from exc
    try:
        yield Session(client, where)
    finally:
        with suppress(Exception):
            await asyncio.wait_for(client.stop(), LIMIT)
        await client.close()
