# SPDX-License-Identifier: GPL-2.0-only
"""tools/deps: which hosts it accepts, what it reads in its lists, and that it believes neither apt nor an old .venv."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from toyline import ROOT

UBUNTU = 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n'
MINT = 'NAME="Linux Mint"\nID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n'
ACCEPTED = {
    "Debian 12": ('NAME="Debian GNU/Linux"\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n', "bookworm"),
    "Debian 13": ('NAME="Debian GNU/Linux"\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n', "trixie"),
    "Ubuntu 24.04": (UBUNTU, "noble"),
    "Linux Mint 22": (MINT, "noble"),
    "LMDE 7": ("ID=linuxmint\nID_LIKE=debian\nVERSION_CODENAME=gigi\nDEBIAN_CODENAME=trixie\n", "trixie"),
}
REFUSED = {
    "Fedora Linux 43": 'PRETTY_NAME="Fedora Linux 43"\nID=fedora\nVERSION_CODENAME=""\n',
    "Debian GNU/Linux forky/sid": 'PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian\nVERSION_CODENAME=forky\n',
    "Ubuntu 22.04.5 LTS": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=jammy\n',
    "Debian GNU/Linux 11": 'PRETTY_NAME="Debian GNU/Linux 11"\nID=debian\nVERSION_CODENAME=bullseye\n',
    # the name of a release is not enough
    "Noble OS": 'PRETTY_NAME="Noble OS"\nID=noble\nVERSION_CODENAME=noble\n',
}


def deps(*words: str, project: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "tools/deps", *words],
        env={**os.environ, "PATH": path or os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with nothing but tools/deps, a list of one package that every Debian has, and no Python packages."""
    folder = tmp_path / "project"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools/deps", folder / "tools")
    (folder / "tools/debian-packages.txt").write_text("dpkg\n")
    (folder / "requirements.txt").write_text("")
    return folder


@pytest.fixture
def fake_apt(tmp_path: Path) -> str:
    """A PATH whose apt-get does nothing but write down what it is asked for, as root or not; and no sudo."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "env", "dirname", "readlink", "awk", "sed", "grep", "cat", "mktemp", "rm"):
        (programs / name).symlink_to(shutil.which(name) or "/bin/false")
    for name in ("dpkg", "dpkg-query", "apt-cache"):
        (programs / name).symlink_to(shutil.which(name) or "/bin/false")
    (programs / "apt-get").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    (programs / "id").write_text("#!/bin/sh\necho 0\n")
    for name in ("apt-get", "id"):
        (programs / name).chmod(0o755)
    return str(programs)


@pytest.mark.parametrize("host", ACCEPTED)
def test_a_host_is_one_of_the_releases_or_made_of_one(tmp_path: Path, host: str) -> None:
    (tmp_path / "os-release").write_text(ACCEPTED[host][0])
    assert deps("--release", str(tmp_path / "os-release")).stdout == f"{ACCEPTED[host][1]}\n"


@pytest.mark.parametrize("host", REFUSED)
def test_another_host_is_told_the_releases_and_the_container(tmp_path: Path, host: str) -> None:
    (tmp_path / "os-release").write_text(REFUSED[host])
    text = complaint(deps("--release", str(tmp_path / "os-release")))
    assert f"this host is {host}, " in text
    assert all(name in text for name in ("Debian 12", "Debian 13", "Ubuntu 24.04", "`make container`"))


def test_a_host_without_os_release_is_told_the_container(tmp_path: Path) -> None:
    assert "`make container` works anywhere" in complaint(deps("--release", str(tmp_path / "none")))


def test_a_line_may_name_its_releases(project: Path) -> None:
    (project / "tools/debian-packages.txt").write_text(
        "# all\n\ng++  # the compiler\nnew [!bookworm]\nold [bookworm]\nboth [trixie noble]\nnone [!trixie !noble]"
    )
    (project / "tools/debian-packages-more.txt").write_text("more\n")
    names = {host: deps("--names", host, "more", project=project).stdout.split() for host in ("bookworm", "trixie")}
    assert names["bookworm"] == ["g++", "old", "none", "more"]
    assert names["trixie"] == ["g++", "new", "both", "more"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("linux-source-*", "expected 'package' or 'package [release …]', found 'linux-source-*'"),
        ("gcc make", "expected 'package' or 'package [release …]', found 'gcc make'"),
        ("gcc [trixie", "expected 'package' or 'package [release …]', found 'gcc [trixie'"),
        ("gcc []", "expected 'package' or 'package [release …]', found 'gcc []'"),
        ("gcc [!sid]", "unknown release 'sid': the hosts are bookworm, trixie, noble"),
        ("gcc [trixie !noble]", "releases are either named or excluded, not both: 'trixie !noble'"),
    ],
)
def test_a_line_that_is_none_is_named(project: Path, line: str, reason: str) -> None:
    (project / "tools/debian-packages.txt").write_text(f"make\n{line}\n")
    done = deps("--names", "trixie", project=project)
    assert complaint(done) == f"error: tools/debian-packages.txt:2: {reason}"


def test_unknown_words(project: Path) -> None:
    assert "unknown release 'sid'" in complaint(deps("--names", "sid", project=project))
    assert "there is no list tools/debian-packages-toys.txt" in complaint(deps("toys", project=project))
    assert "unknown option '--fast'" in complaint(deps("--fast", project=project))


def test_virtiofsd_is_a_package_of_its_own_since_debian_13() -> None:
    names = {host: deps("--names", host).stdout.split() for host in ("bookworm", "trixie", "noble")}
    assert [("virtiofsd" in found) for found in names.values()] == [False, True, True]


def test_no_list_has_the_source_of_a_kernel() -> None:
    for host in ("bookworm", "trixie", "noble"):
        names = deps("--names", host, "lab", "series").stdout
        assert "make\n" in names and "linux-source" not in names


def test_a_name_that_apt_would_take_for_a_pattern_is_refused(project: Path, fake_apt: str) -> None:
    """As a regular expression, `python.` is most of the archive: apt-get would install that."""
    (project / "tools/debian-packages.txt").write_text("dpkg\npyth.n3\n")
    text = complaint(deps("--packages", project=project, path=fake_apt))
    assert "apt offers no pyth.n3, and nothing was installed" in text
    asked = (Path(fake_apt).parent / "asked").read_text().splitlines()
    assert [words.split()[0] for words in asked] == ["update"]


def test_what_apt_did_not_install_is_said(project: Path, fake_apt: str) -> None:
    (project / "tools/debian-packages.txt").write_text("dpkg\nhello-traditional\n")
    text = complaint(deps("--packages", project=project, path=fake_apt))
    assert "apt-get ended well, and hello-traditional is not installed" in text


def test_without_root_and_sudo_the_command_is_said(project: Path, fake_apt: str) -> None:
    (Path(fake_apt) / "id").write_text("#!/bin/sh\necho 1000\n")
    (project / "tools/debian-packages.txt").write_text("dpkg\nhello-traditional\n")
    text = complaint(deps("--packages", project=project, path=fake_apt))
    assert "run `apt-get update && apt-get install --no-install-recommends hello-traditional`" in text
    assert not (Path(fake_apt).parent / "asked").exists()


def test_a_virtual_environment_of_another_python_or_place_is_made_anew(project: Path) -> None:
    """As after an upgrade of the host, or in a container with the same checkout; then the checkout is moved."""
    venv = project / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/usr/bin/python3.2")
    (venv / ".requirements").write_text("cpython-32 linux-x86_64 /elsewhere 0\n")
    (venv / "old").touch()
    done = deps(project=project)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["installing Python packages into .venv"])
    assert not (venv / "old").exists()
    subprocess.run([venv / "bin/pip", "--version"], capture_output=True, timeout=60, check=True)
    assert deps(project=project).stdout.splitlines()[1:] == ["all Python packages are in .venv"]
    moved = project.rename(project.with_name("moved"))
    assert deps(project=moved).stdout.splitlines()[1:] == ["installing Python packages into .venv"]
    subprocess.run([moved / ".venv/bin/pip", "--version"], capture_output=True, timeout=60, check=True)
