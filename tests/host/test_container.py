# SPDX-License-Identifier: GPL-2.0-only
"""`make container`: which engine it takes, what it asks of it, and one sentence where there is none.

The engines here are stand-ins that write down what they are asked for: no machine has both, and many have none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from toyline import ROOT

PROGRAMS = (
    "bash",
    "env",
    "dirname",
    "readlink",
    "cat",
    "sha256sum",
    "cut",
    "mktemp",
    "cp",
    "rm",
    "mkdir",
    "id",
    "grep",
    "git",
)


class Checkout:
    """A copy of what the container is made of, and a PATH for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in PROGRAMS:
            (self.programs / name).symlink_to(shutil.which(name) or "/bin/false")
        (self.folder / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "Containerfile", self.folder)
        for path in [ROOT / "tools/container", ROOT / "tools/deps", *ROOT.glob("tools/debian-packages*.txt")]:
            shutil.copy(path, self.folder / "tools")
        self.asked = folder / "asked"

    def engine(self, name: str, script: str) -> None:
        program = self.programs / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.asked}\n{script}\n')
        program.chmod(0o755)

    def run(self, command: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "tools/container", command],
            env={"PATH": str(self.programs), "HOME": str(self.folder.parent), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def runs(self) -> list[str]:
        return [line for line in self.asked.read_text().splitlines() if " run " in line]

    def builds(self) -> list[str]:
        return [line for line in self.asked.read_text().splitlines() if " build " in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


# `image inspect` knows what `build` has made.
BUILDS = 'built=$0.built; case $1 in image) [ -e "$built" ];; build) touch "$built";; run) exit 7;; esac'


def test_without_an_engine_it_is_said_what_to_install(checkout: Checkout) -> None:
    done = checkout.run("true")
    assert done.returncode == 1
    assert done.stderr.startswith("error: neither podman nor docker is on this machine: install podman")
    assert done.stderr.count("\n") == 1


def test_a_docker_without_its_daemon_is_said(checkout: Checkout) -> None:
    checkout.engine("docker", "echo long complaints >&2; exit 1")
    done = checkout.run("true")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "docker is on this machine, and cannot reach its daemon" in done.stderr


def test_the_image_is_built_once_and_the_exit_status_is_the_commands(checkout: Checkout) -> None:
    checkout.programs.joinpath("touch").symlink_to(shutil.which("touch") or "")
    checkout.engine("podman", BUILDS)
    checkout.engine("docker", "exit 1")
    first, second = checkout.run("exit 7"), checkout.run("exit 7")
    assert (first.returncode, second.returncode) == (7, 7), first.stderr
    assert len(checkout.builds()) == 1 and "--build-arg BASE=debian:13" in checkout.builds()[0]
    asked = checkout.runs()[1]
    place, own = checkout.folder, checkout.folder / "output/container"
    for option in (f"{place}:{place}", f"{own}:{place}/output", f"{own}/venv:{place}/.venv"):
        assert f"--volume {option} " in asked
    assert f"--volume {place.parent}/.cache/arm-pmem:/cache/arm-pmem " in asked
    assert "--tty" not in asked and "--user" not in asked
    assert asked.endswith(" bash -c exit 7")
    # Another list of packages, or another base, is another image.
    with (checkout.folder / "tools/debian-packages.txt").open("a") as stream:
        stream.write("hello\n")
    (checkout.programs / "podman.built").unlink()
    checkout.run("exit 7")
    (checkout.programs / "podman.built").unlink()
    checkout.run("exit 7", CONTAINER_BASE="debian:12")
    assert len({line.partition("--tag ")[2].split()[0] for line in checkout.builds()}) == 3
    assert "--build-arg BASE=debian:12" in checkout.builds()[2]


def test_docker_runs_it_as_the_caller(checkout: Checkout) -> None:
    checkout.engine("docker", "")
    assert checkout.run("true").returncode == 0
    assert f"--user {os.getuid()}:{os.getgid()} --env USER=" in checkout.runs()[0]


def test_a_rootless_docker_maps_the_caller_itself(checkout: Checkout) -> None:
    checkout.engine("docker", '[ "$1" != info ] || echo "[name=seccomp name=rootless]"')
    assert checkout.run("true").returncode == 0
    assert "--user" not in checkout.runs()[0]


def test_a_base_that_cannot_be_had_is_said(checkout: Checkout) -> None:
    checkout.engine("podman", "exit 1")
    done = checkout.run("true", CONTAINER_BASE="nothing:1")
    assert done.returncode == 1
    assert "error: podman cannot build the image from nothing:1: see above" in done.stderr.splitlines()[-1]


def test_what_the_user_has_set_reaches_the_engine(checkout: Checkout, tmp_path: Path) -> None:
    checkout.engine("podman", "")
    checkout.run(
        "true",
        CONTAINER_OPTIONS="--network=host --cgroups=disabled",
        SSL_CERT_FILE="/certificates",
        DEBIAN_MIRROR="mirror",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    asked = checkout.runs()[0]
    assert "--network=host --cgroups=disabled arm-pmem:" in asked
    assert "--volume /certificates:/etc/ssl/certs/ca-certificates.crt:ro " in asked
    assert "--env DEBIAN_MIRROR " in asked
    assert f"--volume {tmp_path}/cache/arm-pmem:/cache/arm-pmem " in asked
