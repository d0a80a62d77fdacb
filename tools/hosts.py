# SPDX-License-Identifier: GPL-2.0-only
"""`make hosts-check`: README's commands on a fresh machine of each host, from nothing to a booted board.

A machine is a root file system by mmdebstrap, with nothing but git, make and ca-certificates, in namespaces of its own:
as root in a mount and a PID namespace, as any other user in a user namespace, too. When those end, so do all mounts and
processes in them. The same hosts are what `make check` resolves the lists of packages for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.common import (
    OUTPUT,
    ROOT,
    UserError,
    bounded,
    cache_folder,
    display,
    entry,
    locked,
    need_tools,
    run,
    say,
    sha256,
    write_whole,
)
from tools.debian import UPDATE_LIMIT_S, Archive, archives, private_apt
from tools.environment import child_environment, lab_environment

FOLDER = OUTPUT / "hosts"
CHECK = OUTPUT / "check/hosts"
UBUNTU_KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
# All lists of packages; the first one has no name
LISTS = ("lab", "series")
# How long the indexes of the archive are good enough for `make check`
INDEX_AGE_LIMIT_S = 24 * 3600
ROOT_LIMIT_S = 900
CLONE_LIMIT_S = 300
# What a new user types, and how long that may take
STEPS = (
    ("deps", "make deps", 1800),
    ("configuration", "make board_defconfig", 120),
    ("image", "make IMAGE=minimal", 3600),
    ("boot", ".venv/bin/python -m pytest --lg-env arm-pmem.yaml tests/board/test_kernel.py", 1200),
    ("versions", "python3 --version; arm-linux-gnueabihf-gcc --version; qemu-system-arm --version", 60),
)
VERSIONS = (
    r"(?m)^Python [\d.]+",
    r"(?m)^arm-linux-gnueabihf-(gcc).* ([\d.]+)$",
    r"(?m)^(QEMU) emulator version ([\d.]+)",
)
# What a fresh machine has of its user's environment
PASSED_VARIABLES = (
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "DEBIAN_MIRROR", "LG_TIMEOUT_SCALE"),
)
CERTIFICATES = Path("/usr/local/share/ca-certificates")
PROJECT = "/root/arm-pmem"


class NotRun(Exception):
    """What this needs is not in reach of this machine."""


@dataclass(frozen=True)
class Host:
    name: str
    codename: str
    # the version of its python3
    python: str

    def archives(self) -> list[Archive]:
        if not self.name.startswith("ubuntu"):
            return archives(self.codename)
        mirror = os.environ.get("UBUNTU_MIRROR", "").rstrip("/")
        if not mirror:
            raise NotRun("name a mirror of Ubuntu with UBUNTU_MIRROR=<address>")
        if not UBUNTU_KEYRING.exists():
            raise NotRun(f"{UBUNTU_KEYRING} is not there: install the package ubuntu-keyring")
        suites = [self.codename, f"{self.codename}-updates", f"{self.codename}-security"]
        return [Archive(mirror, suite, str(UBUNTU_KEYRING), "main universe") for suite in suites]


HOSTS = (
    Host("debian-12", "bookworm", "3.11"),
    Host("debian-13", "trixie", "3.13"),
    Host("ubuntu-24.04", "noble", "3.12"),
)


def choose(words: str) -> list[Host]:
    """The hosts that a user names; all when none is named."""
    unknown = set(words.split()) - {host.name for host in HOSTS}
    if unknown:
        raise UserError(
            f"unknown HOSTS '{' '.join(sorted(unknown))}': the hosts are {', '.join(host.name for host in HOSTS)}"
        )
    return [host for host in HOSTS if not words.split() or host.name in words.split()]


# --- the apt and pip steps of `make deps`, without installing anything ---------------------------


def update(host: Host) -> dict[str, str]:
    """An apt with the indexes of a release, of a day at most; older ones do where the mirror cannot be reached."""
    folder = CHECK / host.codename
    stamp = folder / "updated"
    sources = host.archives()
    state = "\n".join(source.line for source in sources)
    same = stamp.exists() and stamp.read_text() == state
    environment = private_apt(folder, sources)
    if not same or time.time() - stamp.stat().st_mtime > INDEX_AGE_LIMIT_S:
        if not same:
            # apt removes indexes of sources that it no longer has.
            stamp.unlink(missing_ok=True)
        try:
            command = ["apt-get", "--quiet=2", "--error-on=any", "update"]
            run(command, env=environment, what="apt-get update", timeout=UPDATE_LIMIT_S)
            write_whole(stamp, state)
        except UserError as error:
            if not same:
                reason = re.search(r"Failed to fetch \S+\s+(.*?)(?: / |$)", str(error))
                raise NotRun(f"no indexes of {host.codename}: {reason[1] if reason else error}") from error
    return environment


def resolve(host: Host) -> None:
    """All lists of packages can be installed together on a fresh machine of this release."""
    environment = update(host)
    deps: list[str | Path] = [ROOT / "tools/deps"]
    names = run([*deps, "--names", host.codename, *LISTS], what="tools/deps").split()
    indexes = sorted((CHECK / host.codename / "lists").glob("*Release"))
    passed = CHECK / host.codename / sha256("\n".join([*names, *map(sha256, indexes)]).encode())
    if passed.exists():
        return
    unavailable = run([*deps, "--unavailable", host.codename, *LISTS], env=environment, what="tools/deps").split()
    if unavailable:
        raise UserError(
            f"{host.name} has no package {', '.join(unavailable)}: see the lists tools/debian-packages*.txt"
        )
    # Unlike --simulate, this spends no time on the order of installation.
    command = ["apt-get", "install", "--print-uris", "--quiet=2", "--yes", "--no-install-recommends", *names]
    run(command, env=environment, what=f"apt-get install on {host.name}")
    for old in passed.parent.glob("?" * len(passed.name)):
        old.unlink()
    write_whole(passed, "")


def resolve_pins(host: Host) -> None:
    """The pins of requirements.txt are wheels for this host's Python, and all that those need."""
    pins = ROOT / "requirements.txt"
    passed = CHECK / f"pip-{host.python}-{sha256(pins)}"
    if passed.exists():
        return
    CHECK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECK) as name:
        report = Path(name) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check"]
        command += ["--retries", "1", "--report", str(report), "--ignore-installed", "--target", name]
        command += ["--python-version", host.python, "--only-binary", ":all:", "--requirement", str(pins)]
        done = subprocess.run(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            unreachable = re.search(r"after connection broken by '(.*)': ", done.stdout)
            if unreachable:
                raise NotRun(f"the index of Python packages cannot be reached: {unreachable[1]}")
            errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR: ")]
            raise UserError(f"requirements.txt for Python {host.python}: {' / '.join(errors[:2]) or done.stdout}")
        installed = {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]}
    pinned = {normal(line.partition("==")[0]) for line in pins.read_text().splitlines() if "==" in line}
    missing = sorted(name for name in installed if normal(name) not in pinned)
    if missing:
        raise UserError(f"requirements.txt pins no version of {', '.join(missing)}, which others in it need")
    for old in CHECK.glob(f"pip-{host.python}-*"):
        old.unlink()
    write_whole(passed, "")


def normal(name: str) -> str:
    """A Python package's name as the index knows it."""
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


# --- a fresh machine ---------------------------------------------------------------------------------


# In the new namespaces, as their root: $1 is the machine's root, the rest pairs of a folder here and its place there,
# then `--` and the command.
ENTER = r"""
trap 'exit 130' INT TERM
root=$1
shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2
done
shift
chroot "$root" "$@"
"""


def namespaces() -> list[str]:
    """What starts a command as root in namespaces that end with it."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    return ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--"]


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not re.match(r"make(\[\d+\])?: ", line)), "")


class Machine:
    """A fresh machine of a host, in a folder."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = FOLDER / host.name
        self.root = self.folder / "root"
        self.log = self.folder / "log"
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Machine:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.remove()
        self.log.write_text("")
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Nothing is mounted here: what was, was so in namespaces that have ended."""
        if self.root.exists():
            run([*namespaces(), "rm", "-rf", self.root], what=f"{display(self.root)} cannot be removed")

    def step(self, name: str, command: Sequence[str | Path], limit_s: float, title: str = "") -> None:
        start = time.monotonic()
        with self.log.open("a") as stream:
            stream.write(f"=== {title or name}\n")
            stream.flush()
            # Debian's users who are not root have no chroot on their PATH.
            path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
            status = bounded(command, limit_s, env=child_environment(PATH=path), output=stream)
        self.seconds[name] = self.seconds.get(name, 0) + time.monotonic() - start
        if status is None:
            raise UserError(f"{name} has no end after {limit_s:.0f} s: see {display(self.log)}")
        if status:
            raise UserError(f"{name} failed after {self.seconds[name]:.0f} s: {last_line(self.log)}")

    def make(self) -> None:
        """Its root, from the archive."""
        sources = self.host.archives()
        tarball = self.folder / "root.tar"
        try:
            command = ["mmdebstrap", "--variant=minbase", "--include=ca-certificates,git,make", "--format=tar"]
            command += ["--quiet", self.host.codename, str(tarball), *(source.line for source in sources)]
            self.step("root", command, ROOT_LIMIT_S)
            self.root.mkdir()
            # An unprivileged user cannot make devices; those of this machine are mounted there.
            unpack = ["tar", "xf", str(tarball), "-C", str(self.root), "--exclude=./dev/*"]
            self.step("root", [*namespaces(), *unpack], ROOT_LIMIT_S)
        finally:
            tarball.unlink(missing_ok=True)
        shutil.copy("/etc/resolv.conf", self.root / "etc")
        # What this machine trusts beside the usual certificates, the fresh one trusts, too.
        for certificate in CERTIFICATES.glob("*.crt"):
            shutil.copy(certificate, f"{self.root}{CERTIFICATES}")
        bundle = self.root / "root/project.bundle"
        run(["git", "-C", ROOT, "bundle", "create", "--quiet", bundle, "HEAD"], what="git bundle")
        self.shell("clone", f"update-ca-certificates && git clone /root/project.bundle {PROJECT}", CLONE_LIMIT_S)

    def shell(self, name: str, script: str, limit_s: float) -> None:
        """Run a line of shell on the machine, as its root, where the project is."""
        variables = [f"{key}={value}" for key, value in lab_environment().items() if key in PASSED_VARIABLES]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = ["env", "--ignore-environment", "HOME=/root", "USER=root", "LANG=C.UTF-8", path, *variables]
        enter: list[str | Path] = [*namespaces(), "bash", "-euc", ENTER, "enter", self.root, *shared(), "--", *command]
        self.step(name, [*enter, "bash", "-c", script], limit_s, script)


def shared() -> list[str]:
    """What outlives the machine: the caches of its user, each with its place there."""
    caches = {cache_folder(): "/root/.cache/arm-pmem"}
    if shutil.which("ccache"):
        caches[Path(run(["ccache", "--get-config", "cache_dir"], what="ccache").strip())] = "/root/.cache/ccache"
    for folder in caches:
        folder.mkdir(parents=True, exist_ok=True)
    return [str(word) for pair in caches.items() for word in pair]


def check(host: Host) -> str:
    """From nothing to a booted board; returns what was seen."""
    with (
        locked(FOLDER / host.name / ".lock", f"another `make hosts-check` runs for {host.name}"),
        Machine(host) as machine,
    ):
        machine.make()
        for name, command, limit_s in STEPS:
            machine.shell(name, f"cd {PROJECT} && {command}", limit_s)
        text = machine.log.read_text(errors="replace")
        matches = [re.search(pattern, text) for pattern in VERSIONS]
        versions = ", ".join(" ".join(match.groups() or [match[0]]) for match in matches if match)
        steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in machine.seconds.items() if seconds >= 1)
        return f"{sum(machine.seconds.values()):.0f} s ({steps}): {versions}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.hosts", description=__doc__)
    parser.add_argument("--hosts", default="", help="some of " + ", ".join(host.name for host in HOSTS))
    options = parser.parse_args()
    chosen = choose(options.hosts)
    need_tools(["mmdebstrap", "unshare", "git", "tar"])
    failed = 0
    for host in chosen:
        try:
            host.archives()
            say(f"{host.name}: log in {display(FOLDER / host.name / 'log')}")
            say(f"{host.name}: passed, {check(host)}")
        except NotRun as reason:
            say(f"{host.name}: not run: {reason}")
        except UserError as error:
            failed += 1
            say(f"{host.name}: FAILED: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    entry(main)
