# SPDX-License-Identifier: GPL-2.0-only
"""Boards behind a labgrid coordinator: `make flash PLACE=…`, `make test PLACE=…`, `make lab-test TAGS=…`.

A place which the user holds already stays his; one that is taken here is given back, and its board switched off, whatever
happens in between. labgrid's coordinator is the queue and the lock; this program only waits, starts and cleans up.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from junitparser import JUnitXml

from tools import coordinator, runs
from tools.boards import board as known_board
from tools.common import OUTPUT, ROOT, UserError, display, entry, say
from tools.coordinator import Session
from tools.environment import lab_environment

LABGRID = ROOT / "labgrid"
# In seconds; LG_TIMEOUT_SCALE makes what happens on a board longer.
FLASH_LIMIT = 1800
TEST_LIMIT = 7200
OFF_LIMIT = 60
END_LIMIT = 60
# Features of the environments, as variables, that a tag with the value `no` takes away
LACKS = {"reset": ("LG_WARM_RESET", "LG_REBOOT"), "hotplug": ("LG_CPU_HOTPLUG",)}
# So many runs keep their logs.
KEEP = 100
# How long somebody else may hold all matching places
WAIT = 3600


@dataclass(frozen=True)
class Job:
    """One place, and what is to be done with it."""

    place: str
    board: str
    environment: Path
    images: Path
    logs: Path
    tags: Mapping[str, str]

    def variables(self, where: str) -> dict[str, str]:
        own = {
            "LG_PLACE": self.place,
            "LG_ENV": str(self.environment),
            "LG_COORDINATOR": where,
            "LG_BUILDDIR": str(self.images),
            "PYTHONUNBUFFERED": "1",
            "LG_PLACE_TAGS": " ".join(f"{key}={value}" for key, value in sorted(self.tags.items())),
            # Tags may say what this piece of hardware cannot do.
            **{name: "none" for tag, names in LACKS.items() if self.tags.get(tag) == "no" for name in names},
        }
        return lab_environment(**own)


def scale() -> float:
    """How many times as long as usual a whole run may take."""
    text = os.environ.get("LG_TIMEOUT_SCALE") or "1"
    try:
        return max(1.0, float(text))
    except ValueError:
        raise UserError(f"LG_TIMEOUT_SCALE='{text}' is no factor: give a number above 0, such as 2.5") from None


def job(session: Session, place: str, board: str, logs: Path) -> Job:
    """The place's board is what its tags say; a BOARD of the user's must be the same. LG_ENV is another way to flash it."""
    tags = session.place(place).tags
    tagged = tags.get("board", "")
    if board and tagged and board != tagged:
        raise UserError(f"the place '{place}' has a board '{tagged}', and not '{board}'")
    name = known_board(tagged or board or "(no tag board=)").name
    images = Path(os.environ.get("LG_BUILDDIR") or OUTPUT / name / "images")
    environment = Path(os.environ.get("LG_ENV") or LABGRID / f"{name}.yaml")
    found = Job(place, name, ROOT / environment, ROOT / images, logs / place, dict(tags))
    if not found.environment.is_file():
        known = ", ".join(sorted(path.stem for path in LABGRID.glob("*.yaml") if "-" not in path.stem))
        raise UserError(f"there is no {display(found.environment)}: the boards for a lab are {known}")
    if not (found.images / "manifest.json").is_file():
        raise UserError(f"there is no image in {display(found.images)}: `make {name}_defconfig && make` builds it")
    return found


@asynccontextmanager
async def held(session: Session, place: str) -> AsyncIterator[None]:
    """A place for us alone; given back afterwards if it was not ours before."""
    taken = await session.acquire(place)
    try:
        yield
    finally:
        if taken and not session.lost:
            await session.release(place)


async def child(command: list[str], job: Job, session: Session, limit: float, log: Path | None = None) -> int:
    """A program's exit status. It is ended with all it started when its time is over or the place is lost."""
    stream = log.open("ab") if log else None
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=job.variables(session.where),
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT if stream else None,
        start_new_session=True,
    )
    if stream:
        stream.close()
    ended = asyncio.create_task(process.wait())
    lost = asyncio.create_task(session.client.stopping.wait())
    try:
        await asyncio.wait([ended, lost], timeout=limit * scale(), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        if lost.done():
            raise UserError(
                f"{job.place}: the coordinator {session.where} went away, and with it the right to the place: "
                "what ran was ended; start it again when the coordinator is back"
            )
        raise UserError(f"{job.place}: no end after {limit * scale():.0f} s ({' '.join(command[1:4])} …)")
    finally:
        lost.cancel()
        for number in (signal.SIGINT, signal.SIGKILL):
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                await asyncio.wait([ended], timeout=END_LIMIT)


def self_command(action: str) -> list[str]:
    return [sys.executable, "-m", "tools.lab", action]


async def flash(job: Job, session: Session, log: Path | None = None) -> None:
    start = time.monotonic()
    if await child(self_command("flash-held"), job, session, FLASH_LIMIT, log):
        raise UserError(f"{job.place} was not flashed{f': {last_line(log)}' if log else ', see above'}")
    say(f"{job.place}: flashed, read back and booted in {time.monotonic() - start:.0f} s")


async def run_tests(job: Job, session: Session, arguments: list[str], log: Path | None = None) -> int:
    job.logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "--lg-env", str(job.environment), f"--junitxml={job.logs / 'junit.xml'}"]
    command += [f"--board-logs={job.logs}", "-o", f"junit_suite_name={job.place}", *(arguments or ["tests/board"])]
    return await child(command, job, session, TEST_LIMIT, log)


async def power_off(job: Job, session: Session) -> None:
    """Best effort, at the end: whatever failed before is what the user must hear of."""
    try:
        await child(self_command("off-held"), job, session, OFF_LIMIT, job.logs / "off.log")
    except UserError as error:
        say(f"{job.place}: it could not be switched off: {error}")


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error: ")]
    return (said or lines or ["it said nothing"])[-1].removeprefix("error: ")


async def everything(job: Job, session: Session, arguments: list[str], log: Path | None) -> int:
    """Flash and test a board that is held; it is off afterwards."""
    job.logs.mkdir(parents=True, exist_ok=True)
    try:
        await flash(job, session, log)
        return await run_tests(job, session, arguments, log)
    finally:
        # Not cut short by a second Ctrl-C: it is bounded.
        await asyncio.shield(power_off(job, session))


async def lab_test(session: Session, tags: str, board: str, logs: Path, arguments: list[str], wait: float) -> int:
    """One place, by a reservation: it may have to wait for its turn."""
    wanted = coordinator.tags_of(tags)
    say(f"waiting for a place with {tags}")
    token, place = await session.reserve(wanted, wait)
    try:
        async with held(session, place):
            say(f"{place} is ours")
            status = await everything(job(session, place, board, logs), session, arguments, None)
    finally:
        with suppress(UserError):
            await session.cancel(token)
    say(f"{place}: {'passed' if status == 0 else 'failed'} (logs in {display(logs / place)})")
    return status


async def lab_test_all(session: Session, tags: str, board: str, logs: Path, arguments: list[str]) -> int:
    """All matching places that are free now, at the same time; one that breaks hides no other."""
    matching = session.matching(coordinator.tags_of(tags))
    free = [name for name in matching if not session.place(name).acquired]
    busy = sorted(set(matching) - set(free))
    if busy:
        say(f"not tested, held by others: {', '.join(f'{name} ({session.place(name).acquired})' for name in busy)}")
    if not free:
        raise UserError(f"no place with {tags} is free")
    logs.mkdir(parents=True, exist_ok=True)

    async def one(place: str) -> tuple[str, str]:
        try:
            async with held(session, place):
                log = logs / f"{place}.log"
                status = await everything(job(session, place, board, logs), session, arguments, log)
                result = "passed" if status == 0 else f"failed ({last_line(log)})"
        except UserError as error:
            result = f"broken ({error})"
        say(f"{place}: {result}")
        return place, result

    say(f"testing on {', '.join(free)}; logs in {display(logs)}")
    results = await asyncio.gather(*map(one, free))
    merged = JUnitXml()
    for path in sorted(logs.glob("*/junit.xml")):
        merged += JUnitXml.fromfile(str(path))
    merged.update_statistics()  # type: ignore[no-untyped-call]
    merged.write(str(logs / "junit.xml"))
    good = [place for place, result in results if result == "passed"]
    say(
        f"{len(good)} of {len(results)} places passed: {merged.tests} tests, {merged.failures} failed, {merged.errors} errors, "
        f"{merged.skipped} skipped ({display(logs / 'junit.xml')})"
    )
    return 0 if len(good) == len(results) else 1


# On a place that is held ------------------------------------------------------------------------------------------


@contextmanager
def strategy() -> Iterator[Any]:
    """The strategy of the environment of LG_PLACE's board; its errors become ours."""
    from labgrid.environment import Environment
    from labgrid.remote.client import Error
    from labgrid.strategy import StrategyError

    sys.path.insert(0, str(LABGRID))
    # The environment's features, which matter to tests only
    for name in ("LG_DCACHE", "LG_DAX_MEMORY", "LG_IMAGE", *(name for names in LACKS.values() for name in names)):
        os.environ.setdefault(name, "none")
    env = Environment(os.environ["LG_ENV"])
    # Only now: the environment loads it, and its classes are not those of an import before.
    import boardlib

    try:
        target = env.get_target()
        assert target is not None
        yield target.get_driver("Strategy")
    except boardlib.BoardError as exc:
        for line in exc.console:
            print(f"  | {line}", file=sys.stderr)
        raise UserError(exc.sentence) from exc
    except (StrategyError, Error) as exc:
        raise UserError(str(exc)) from exc
    finally:
        env.cleanup()


def flash_held() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with strategy() as board:
        if board.flasher is not None:
            board.flasher.logger.setLevel(logging.INFO)
        board.transition("flashed")
        say("booting what was written")
        board.transition("shell")
    return 0


def off_held() -> int:
    with strategy() as board:
        board.transition("off")
    return 0


# The user's side --------------------------------------------------------------------------------------------------


async def main_async(options: argparse.Namespace) -> int:
    logs = runs.new_folder(OUTPUT / "lab", KEEP)
    try:
        return await in_session(options, logs)
    finally:
        # Nothing came of it.
        with suppress(OSError):
            logs.rmdir()


async def in_session(options: argparse.Namespace, logs: Path) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    async with coordinator.session() as session:
        if options.action == "lab-test":
            if not options.tags:
                raise UserError("which boards? add TAGS='board=…', as `labgrid-client places` and `show` have them")
            if options.places not in ("", "all"):
                raise UserError(f"unknown PLACES '{options.places}': it is all, for all that are free, or unset")
            if options.places:
                return await lab_test_all(session, options.tags, options.board, logs, options.arguments)
            return await lab_test(session, options.tags, options.board, logs, options.arguments, options.wait)
        if not options.place:
            raise UserError("which place? add PLACE=…, one of `labgrid-client places`")
        one = job(session, options.place, options.board, logs)
        async with held(session, options.place):
            one.logs.mkdir(parents=True, exist_ok=True)
            try:
                if options.action == "flash":
                    await flash(one, session)
                    return 0
                return await run_tests(one, session, options.arguments)
            finally:
                await asyncio.shield(power_off(one, session))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.lab", description=__doc__)
    parser.add_argument("action", choices=["flash", "test", "lab-test", "flash-held", "off-held"])
    parser.add_argument("--place", default="")
    parser.add_argument("--board", default="")
    parser.add_argument("--tags", default="")
    parser.add_argument("--places", default="", help="all: all free places that match, at once")
    parser.add_argument("--wait", type=float, default=WAIT, help="how long a reservation may wait, in seconds")
    parser.add_argument("arguments", nargs="*", help="pytest's, instead of tests/board")
    options = parser.parse_intermixed_args()
    coordinator.shorten_temporary_folder()
    if options.action == "flash-held":
        return flash_held()
    if options.action == "off-held":
        return off_held()
    try:
        return asyncio.run(main_async(options))
    except asyncio.CancelledError:
        say("interrupted: what ran was ended, the board switched off, and places and reservations given back")
        return 130


if __name__ == "__main__":
    entry(main)
