# SPDX-License-Identifier: GPL-2.0-only
"""Debian's archive under a private apt configuration: where it is, and packages of any of its suites.

The host may be another release of Debian, or a relative of it: nothing here depends on what its own apt offers, and
nothing of its own apt is changed.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.common import UserError, run
from tools.environment import child_environment

# The release whose packages the minimal image and Buildroot's toolchain are made of
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Debian's own mirror, as python-apt-common knows it, for a host whose apt has none of Debian: Debian.info, since its
# version 3 debian.info
TEMPLATES = Path("/usr/share/python-apt/templates")
UPDATE_LIMIT_S = 300
DOWNLOAD_LIMIT_S = 900


@dataclass(frozen=True)
class Archive:
    """One suite of the archive."""

    uri: str
    suite: str
    key: str = ""
    components: str = "main"

    @property
    def line(self) -> str:
        option = f"[signed-by={self.key}] " if self.key else ""
        return f"deb {option}{self.uri} {self.suite} {self.components}"


@functools.cache
def mirrors() -> tuple[str, str]:
    """The URIs of Debian's main and security archive: DEBIAN_MIRROR, the host's own, or Debian's own.

    The host's mirror serves all suites, whichever of them the host itself uses. The project names no host.
    """
    named = os.environ.get("DEBIAN_MIRROR", "").rstrip("/")
    if named:
        return named, f"{named}-security"
    form = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)"
    listed = run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        what="apt's list of archives",
    )
    main = security = ""
    for line in listed.splitlines():
        origin, codename, uri = line.split("|", 2)
        if origin == "Debian" and codename.endswith("-security"):
            security = security or uri.rstrip("/")
        elif origin == "Debian":
            main = main or uri.rstrip("/")
    main = main or template_mirror()
    if not main:
        raise UserError(
            "no mirror of Debian is known on this machine: name one with DEBIAN_MIRROR=<address>, "
            "or install python-apt-common (`make deps`)"
        )
    # By convention the security archive lies beside the main one.
    return main, security or f"{main}-security"


def template_mirror(templates: Path = TEMPLATES) -> str:
    """Debian's own mirror as python-apt-common has it; '' where that is not installed."""
    for template in templates.glob("[Dd]ebian.info"):
        match = re.search(r"(?m)^BaseURI: (\S+/debian)/?$", template.read_text())
        if match:
            return match[1]
    return ""


def archives(suite: str = SUITE) -> list[Archive]:
    """A suite, then its updates and security updates, which override it by version; backports have neither."""
    main, security = mirrors()
    if not KEYRING.exists():
        raise UserError(f"{KEYRING} is not there: install the package debian-archive-keyring (`make deps`)")
    key = str(KEYRING)
    if "-" in suite or suite == "sid":
        return [Archive(main, suite, key)]
    return [
        Archive(main, suite, key),
        Archive(main, f"{suite}-updates", key),
        Archive(security, f"{suite}-security", key),
    ]


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


def newer(version: str, other: str) -> bool:
    """Whether a package version comes after another one; each comes after ''."""
    command = ["dpkg", "--compare-versions", version, "gt", other]
    environment = child_environment()
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, timeout=30, check=False).returncode == 0


def private_apt(folder: Path, sources: Sequence[Archive], architectures: Sequence[str] = ()) -> dict[str, str]:
    """An apt of its own in a folder, with these sources; returns the environment that selects it.

    The host's lists, cache and configuration stay as they are, and need not know the other architectures.
    """
    for name in ("lists/partial", "cache/archives/partial", "state"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    (folder / "sources.list").write_text("".join(f"{source.line}\n" for source in sources))
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
    text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
    names = dict.fromkeys([native, *architectures])
    text += "APT::Architectures { " + " ".join(f'"{name}";' for name in names) + " };\n"
    (folder / "apt.conf").write_text(text)
    return {"APT_CONFIG": str(folder / "apt.conf")}


def download(packages: Sequence[str], folder: Path) -> list[Path]:
    """The .deb files of packages (name or name:arch) of SUITE into a folder, verified by apt.

    Only the release's main suite is used: of the others a mirror may have an inconsistent index.
    """
    foreign = sorted({name.partition(":")[2] for name in packages if ":" in name})
    environment = private_apt(folder, archives()[:1], foreign)
    read_indexes(environment)
    fetch_packages(packages, folder, environment)
    return sorted(folder.glob("*.deb"))


def read_indexes(environment: dict[str, str]) -> None:
    """What the sources of a private apt offer now."""
    run(["apt-get", "--quiet=2", "update"], env=environment, what="apt-get update", timeout=UPDATE_LIMIT_S)


def fetch_packages(packages: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    run(
        ["apt-get", "--quiet=2", "download", *packages],
        cwd=folder,
        env=environment,
        what=f"apt-get download {' '.join(packages)}",
        timeout=DOWNLOAD_LIMIT_S,
    )


def offered_versions(package: str, environment: dict[str, str]) -> list[str]:
    """The versions of exactly this package that a private apt can fetch, newest first."""
    listed = run(["apt-cache", "madison", package], env=environment, what=f"apt-cache madison {package}")
    rows = [[word.strip() for word in line.split("|")] for line in listed.splitlines()]
    return list(dict.fromkeys(row[1] for row in rows if len(row) == 3 and row[0] == package))


def download_version(package: str, suites: Sequence[str], preferred: str, folder: Path) -> tuple[Path, str, str]:
    """The .deb of a package from the first of these suites that has it: in the preferred version, else its newest.

    Returns the file, its version, and the newest version on offer.
    """
    for suite in suites:
        environment = private_apt(folder, archives(suite))
        try:
            read_indexes(environment)
            complaint = ""
        except UserError as error:
            # One part of a suite that the mirror lacks, or has broken, does not matter if another has the package.
            complaint = f" ({error})"
        versions = offered_versions(package, environment)
        if versions:
            version = preferred if preferred in versions else versions[0]
            fetch_packages([f"{package}={version}"], folder, environment)
            return next(folder.glob(f"{package}_*.deb")), version, versions[0]
    raise UserError(
        f"Debian's {' or '.join(suites)} at {mirrors()[0]} has no package {package}{complaint}: "
        "name a mirror that has it with DEBIAN_MIRROR=<address>"
    )


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
