# SPDX-License-Identifier: GPL-2.0-only
"""Sites that reach each other by SSH only: `--isolated` exporters, TFTP by SSH, LG_PROXY. A real sshd, on loopback."""

from __future__ import annotations

import getpass
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from racks import Rack, free_port, needs_lab_deps, needs_u_boot, running, said

SSHD = Path("/usr/sbin/sshd")

pytestmark = [
    pytest.mark.timeout(600),
    needs_u_boot,
    needs_lab_deps("sshd", SSHD.exists()),
]


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server of its own; the folder of an `ssh` for which every host is this server, and which logs where it went."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=30)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nMaxStartups 100\nMaxSessions 100\n"
    )
    (folder / "config").write_text(
        f"Host nowhere\n  HostName 127.0.0.1\n  Port {free_port()}\n"
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n"
        f"  IdentitiesOnly yes\n  BatchMode yes\n  UserKnownHostsFile {folder}/known\n"
        "  ConnectTimeout 10\n"
    )
    (folder / "known").write_text(f"* {(folder / 'host.pub').read_text()}")
    (folder / "bin").mkdir()
    program = folder / "bin/ssh"
    program.write_text(f'#!/bin/sh\necho "$*" >>{folder}/calls\nexec /usr/bin/ssh -F {folder}/config "$@"\n')
    program.chmod(0o755)
    with suppress(PermissionError):
        # Where sshd, started by root, wants to be when it is nobody
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            assert time.monotonic() < deadline and server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield folder
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def rack(ssh: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with running(tmp_path_factory.mktemp("rack"), 1) as one:
        one.environ["PATH"] = f"{ssh / 'bin'}:{one.environ['PATH']}"
        yield one


def calls(ssh: Path) -> str:
    file = ssh / "calls"
    return file.read_text() if file.exists() else ""


def test_a_board_of_an_isolated_exporter_is_flashed_and_tested_through_ssh(
    rack: Rack, ssh: Path, tmp_path: Path
) -> None:
    before = calls(ssh)
    with rack.exporter(
        "bench", tmp_path, {"far": rack.hardware(1)}, "--hostname", "bench", "--isolated", board="board"
    ):
        # ssh has its control sockets in it.
        unusable = tmp_path / ("long and, " * 15)
        unusable.mkdir()
        done = rack.lab("flash", "--place", "far", TMPDIR=str(unusable))
        assert done.returncode == 0, said(done)
        done = rack.lab("test", "--place", "far", "tests/board/test_pmem.py", TMPDIR=str(unusable))
        assert done.returncode == 0, said(done)
        assert "acquired: None" in rack.client("-p", "far", "show") and rack.power(1) == "0"
    made = calls(ssh)[len(before) :]
    # Serial port and power switch through forwards to the exporter's host, TFTP by a command on the host named `bench`
    assert len(set(re.findall(r"-L\d+:(127\.0\.0\.1:\d+)", made))) == 2, made
    assert re.search(r"bench ln -sfn \S+/arm-pmem-\S+", made), made


def test_a_coordinator_behind_a_jump_host(rack: Rack, ssh: Path) -> None:
    before = calls(ssh)
    done = rack.lab("test", "--place", "rack-1", "tests/board/test_network.py", LG_PROXY="jump")
    assert done.returncode == 0, said(done)
    assert re.search(rf"-L\d+:{rack.coordinator}\b.* jump", calls(ssh)[len(before) :])
    assert rack.is_idle(1)


def test_a_jump_host_that_does_not_answer(rack: Rack) -> None:
    done = rack.lab("flash", "--place", "rack-1", LG_PROXY="nowhere")
    assert re.search(r"error: the SSH host 'nowhere' of LG_PROXY cannot be reached", said(done)), said(done)
    assert done.returncode == 1
    assert rack.is_idle(1)
