# SPDX-License-Identifier: GPL-2.0-only
"""`make hosts-check` and the check `hosts`: which hosts there are, and one sentence for what is wrong with one."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from toyline import ROOT

from tools import hosts
from tools.common import UserError
from tools.debian import template_mirror
from tools.hosts import HOSTS, Machine, NotRun, choose, resolve_pins

DEBIAN_12, DEBIAN_13, UBUNTU = HOSTS


def test_they_are_the_hosts_of_make_deps() -> None:
    command = [str(ROOT / "tools/deps"), "--names", "unknown"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stderr
    assert text.endswith(f"the hosts are {', '.join(host.codename for host in HOSTS)}\n")


def test_hosts_are_chosen_by_name() -> None:
    assert choose("") == list(HOSTS)
    assert [host.codename for host in choose("debian-13 debian-12")] == ["bookworm", "trixie"]
    with pytest.raises(UserError, match="unknown HOSTS 'mars': the hosts are debian-12, debian-13, ubuntu-24.04"):
        choose("debian-13 mars")


def test_ubuntus_archive_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "UBUNTU_KEYRING", tmp_path / "keyring.gpg")
    monkeypatch.delenv("UBUNTU_MIRROR", raising=False)
    with pytest.raises(NotRun, match="name a mirror of Ubuntu with UBUNTU_MIRROR="):
        UBUNTU.archives()
    monkeypatch.setenv("UBUNTU_MIRROR", "mirror:/ubuntu/")
    with pytest.raises(NotRun, match="keyring.gpg is not there: install the package ubuntu-keyring"):
        UBUNTU.archives()
    (tmp_path / "keyring.gpg").touch()
    option = f"[signed-by={tmp_path}/keyring.gpg]"
    assert [source.line for source in UBUNTU.archives()] == [
        f"deb {option} mirror:/ubuntu {suite} main universe" for suite in ("noble", "noble-updates", "noble-security")
    ]


@pytest.mark.parametrize("name", ["Debian.info", "debian.info"])
def test_a_host_whose_apt_knows_no_debian_has_its_mirror_from_python_apt(tmp_path: Path, name: str) -> None:
    """Debian 12 and Ubuntu 24.04 spell the name of the file with a capital, Debian 13 does not."""
    assert template_mirror(tmp_path) == ""
    (tmp_path / name).write_text("Suite: stable\nBaseURI: mirror:/security\n\nBaseURI: mirror:/debian/\n")
    assert template_mirror(tmp_path) == "mirror:/debian"
    # as it is on this machine
    assert template_mirror().endswith("/debian")


# --- the pins --------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, requires: str = "", tag: str = "py3-none-any") -> None:
    with zipfile.ZipFile(folder / f"{name}-1-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{requires}")
        wheel.writestr(f"{name}-1.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{name}-1.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose requirements.txt needs `top`, and an index with that; `top` needs `Below_It`."""
    monkeypatch.setattr(hosts, "ROOT", tmp_path)
    monkeypatch.setattr(hosts, "CHECK", tmp_path / "check")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    make_wheel(tmp_path, "top", "Requires-Dist: Below_It\n")
    (tmp_path / "requirements.txt").write_text("top==1\nbelow.it==1\n")
    return tmp_path


def test_pins_that_are_complete_are_looked_at_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, "below_it")
    resolve_pins(DEBIAN_12)
    monkeypatch.delattr(subprocess, "run")
    resolve_pins(DEBIAN_12)


def test_a_pin_without_a_wheel_for_the_hosts_python_is_named(index: Path) -> None:
    make_wheel(index, "below_it", tag="cp313-none-any")
    resolve_pins(DEBIAN_13)
    with pytest.raises(UserError, match=r"requirements.txt for Python 3.11: ERROR: .*below.it==1"):
        resolve_pins(DEBIAN_12)


def test_what_others_need_must_be_pinned(index: Path) -> None:
    make_wheel(index, "below_it")
    (index / "requirements.txt").write_text("top==1\n")
    with pytest.raises(UserError, match="requirements.txt pins no version of below_it, which others in it need"):
        resolve_pins(DEBIAN_12)


def test_without_network_the_pins_are_not_looked_at(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    # nobody listens there
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(NotRun, match="the index of Python packages cannot be reached: .*refused"):
        resolve_pins(DEBIAN_12)


# --- a fresh machine ---------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(hosts, "FOLDER", tmp_path)
    (tmp_path / "debian-13").mkdir()
    return Machine(DEBIAN_13)


def test_a_step_that_fails_says_its_last_line(machine: Machine) -> None:
    script = "echo 'error: no such thing' >&2; echo 'make: *** [Makefile:1: all] Error 1' >&2; exit 2"
    with pytest.raises(UserError, match=r"^image failed after 0 s: error: no such thing$"):
        machine.step("image", ["sh", "-c", script], 60, "make")
    assert machine.log.read_text().splitlines()[0] == "=== make"


def test_a_step_without_an_end_is_ended(machine: Machine) -> None:
    with pytest.raises(UserError, match=r"boot has no end after 1 s: see .*/debian-13/log"):
        machine.step("boot", ["sleep", "60"], 1)
