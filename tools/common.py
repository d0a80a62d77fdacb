# SPDX-License-Identifier: GPL-2.0-only
"""What all tools share: places, errors for the user, child processes, files written whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tools import environment
from tools.environment import child_environment

ROOT = environment.ROOT
CROSS_COMPILE = "arm-linux-gnueabihf-"
# For what is told to end, in seconds
END_LIMIT = 30


def cache_folder() -> Path:
    """Where downloads outlive a clone of this project."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "arm-pmem"


def output_folder(root: Path = ROOT) -> Path:
    """Where everything goes that is made, but for what O= names: a project which can only be read has a place in the cache."""
    folder = root / "output"
    if os.access(folder if folder.exists() else root, os.W_OK):
        return folder
    return cache_folder() / f"output-{sha256(str(root).encode())[:12]}"


class UserError(Exception):
    """One sentence for the user: the cause, and how to mend it."""


def entry(main: Callable[[], int]) -> None:
    """Run a program's main(); errors for the user become one line and exit status 1.

    SIGTERM is taken as Ctrl-C: what was started is ended, and what is half done tidied up.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # What is made is for everybody to read, and the same in archives, whatever the user's umask is.
    os.umask(0o022)
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `… | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def say(text: str) -> None:
    print(text, flush=True)


def display(path: Path) -> str:
    """A path as the user would type it from the project's root."""
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError:
        return str(path)


def bounded(
    command: Sequence[str | Path],
    limit: float,
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    output: IO[str] | None = None,
) -> int | None:
    """A command's exit status, or None when it had to be ended, with all that it started; limit in seconds.

    Its output goes to a file, or to where ours goes.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=child_environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_groups([process])


def end_groups(processes: Iterable[subprocess.Popen[Any]], first: signal.Signals = signal.SIGINT) -> None:
    """Ends processes that have sessions of their own, with all that they started: in order by `first`, or else by force.

    SIGINT: what has started a Buildroot or an emulator ends that in order.
    """
    left = list(processes)
    for number in (first, signal.SIGKILL):
        left = [process for process in left if process.poll() is None]
        for process in left:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + END_LIMIT
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0, deadline - time.monotonic()))


def check_path(path: Path, fix: str, harmless: str = r"[\w./+~,@-]") -> None:
    """A folder whose name Kbuild, which quotes no path, would trip over is an error before anything is touched."""
    odd = " ".join("a space" if one.isspace() else one for one in sorted(set(re.sub(harmless, "", str(path)))))
    if odd:
        raise UserError(f"nothing can be built in {path}, because of {odd} in its name: {fix}")


def need_tools(names: Iterable[str]) -> None:
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not found on this machine: run `make deps`")


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 600,
) -> str:
    """Run a short command and return its standard output; its failure is an error for the user.

    `env` adds to what every child sees (tools/environment.py), `environment` takes its place.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**(child_environment() if environment is None else environment), **(env or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} not found on this machine: run `make deps`") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{what}: no end after {timeout:.0f} s ({command[0]})") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"{what}: {' / '.join(lines[-3:]) or f'exit status {done.returncode}'}")
    return done.stdout


def sha256(data: bytes | Path) -> str:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


OUTPUT = output_folder()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file; untouched (with its time stamp) when the bytes are the same."""
    data = source.read_bytes()
    if not target.exists() or target.read_bytes() != data:
        write_whole(target, data)


@contextmanager
def locked(path: Path, busy: str, *, shared: bool = False, wait: float = 0) -> Iterator[None]:
    """Hold a lock file; when somebody else holds it for longer than `wait` seconds, `busy` is the error.

    Ends with the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    with path.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UserError(busy) from None
            time.sleep(0.5)
        yield
