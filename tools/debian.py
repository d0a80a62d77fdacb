# SPDX-License-Identifier: GPL-2.0-only
"""Debian's archive as the host's own apt knows it: where it is, and packages of it under a private configuration."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.common import UserError, run
from tools.environment import child_environment

SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Archive:
    """One suite of the archive."""

    uri: str
    suite: str
    key: str = ""

    @property
    def line(self) -> str:
        option = f"[signed-by={self.key}] " if self.key else ""
        return f"deb {option}{self.uri} {self.suite} main"


def archives() -> list[Archive]:
    """Where this host gets Debian from: the project names no host of its own."""
    form = "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)"
    listed = run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        what="apt's list of archives",
    )
    found: dict[str, Archive] = {}
    for line in listed.splitlines():
        origin, component, codename, uri = line.split("|", 3)
        if origin == "Debian" and component == "main" and codename.split("-")[0] == SUITE:
            found.setdefault(codename, Archive(uri, codename, str(KEYRING) if KEYRING.exists() else ""))
    if SUITE not in found:
        raise UserError(
            f"apt on this machine knows no Debian '{SUITE}' archive: add one to "
            f"/etc/apt/sources.list.d and run `apt-get update`"
        )
    # The main suite first; security and updates override it by version.
    return [found.pop(SUITE), *found.values()]


@functools.cache
def versions() -> dict[str, str]:
    """What dpkg has installed on this machine; nothing where there is no dpkg. One question for all: each takes a while."""
    try:
        form = "${db:Status-Status} ${Package} ${Version}\n"
        listed = run(["dpkg-query", "--show", "--showformat", form], what="dpkg-query")
    except UserError:
        return {}
    rows = [line.split() for line in listed.splitlines()]
    return {row[1]: row[2] for row in rows if len(row) == 3 and row[0] == "installed"}


def installed(package: str) -> str:
    """The version of a package on this machine; '' where there is none, or no dpkg."""
    return versions().get(package, "")


def download(packages: Sequence[str], folder: Path) -> list[Path]:
    """The .deb files of packages (name or name:arch) into a folder, verified by apt.

    apt runs on a configuration, lists and cache of its own: the host's stay as they are, and need not
    know the other architecture. Only the release's main suite is used: of the others a mirror may have an
    inconsistent index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("lists/partial", "cache/archives/partial", "state"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    (folder / "sources.list").write_text(f"{archives()[0].line}\n")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": folder / "state",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        # apt's own user need not be able to enter our folder
        "APT::Sandbox::User": "root",
    }
    native = run(["dpkg", "--print-architecture"], what="dpkg").strip()
    foreign = sorted({name.partition(":")[2] for name in packages if ":" in name} - {native})
    text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
    text += "APT::Architectures { " + " ".join(f'"{one}";' for one in [native, *foreign]) + " };\n"
    (folder / "apt.conf").write_text(text)
    environment = {"APT_CONFIG": str(folder / "apt.conf")}
    run(["apt-get", "--quiet=2", "update"], env=environment, what="apt-get update", timeout=300)
    run(
        ["apt-get", "--quiet=2", "download", *packages],
        cwd=folder,
        env=environment,
        what=f"apt-get download {' '.join(packages)}",
        timeout=900,
    )
    return sorted(folder.glob("*.deb"))


def unpack(package: Path, folder: Path) -> None:
    """The files of a .deb, without installing it."""
    done = subprocess.run(
        ["dpkg-deb", "--extract", package, folder],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{package.name} cannot be unpacked: {done.stderr.strip()}")
