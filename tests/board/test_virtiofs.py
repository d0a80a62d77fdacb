# SPDX-License-Identifier: GPL-2.0-only
"""virtio-fs without a DAX window: it mounts and works, and a mount that asks for DAX is told no."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boardlib import scaled
from boardtools import Shell

pytestmark = pytest.mark.lg_feature("virtio-fs")
# Where distributions have virtiofsd: a program of its own since Debian 13, before that a part of QEMU
FOLDERS = ("/usr/libexec", "/usr/lib", "/usr/lib/qemu")
POINT = "/mnt/host"


def server_options(program: str, folder: str) -> list[str]:
    """How to share a folder through a chroot: QEMU's old virtiofsd, in C, has other options than the one in Rust."""
    asked = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=scaled(30), check=False)
    if "--shared-dir" in asked.stdout:
        return ["--shared-dir", folder, "--sandbox", "chroot", "--cache", "auto"]
    return ["-o", f"source={folder}", "-o", "sandbox=chroot", "-o", "cache=auto"]


@pytest.fixture(scope="module")
def shared(_shell: Shell, strategy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the host's which the board, started anew, can mount by the tag `host`."""
    program = shutil.which("virtiofsd", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *FOLDERS]))
    if program is None:
        pytest.fail("There is no virtiofsd: install the package virtiofsd, or Debian 12's qemu-system-common")
    if os.geteuid():
        pytest.skip("virtiofsd needs root")
    base: Path = tmp_path_factory.mktemp("virtiofs")
    folder = base / "shared"
    folder.mkdir()
    # The folder's own path may be too long for a socket's, or have a comma; this way to it is short.
    anchor = os.open(base, os.O_PATH | os.O_DIRECTORY)
    short = f"/proc/{os.getpid()}/fd/{anchor}"
    path = f"{short}/socket"
    # The server ends with each QEMU, and the driver starts one to look at its device tree before the real one: the
    # socket is ours, so that there is one to connect to whenever a QEMU comes.
    with socket.socket(socket.AF_UNIX) as listening, (base / "log").open("w") as log:
        listening.bind(path)
        listening.listen()
        number = listening.fileno()
        words = shlex.join([program, f"--fd={number}", *server_options(program, f"{short}/{folder.name}")])
        server = subprocess.Popen(
            ["sh", "-c", f"while :; do {words} || sleep 0.1; done"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[number],
        )
    power = strategy.power
    before = power.extra_args
    try:
        strategy.transition("off")
        power.extra_args = f"{before} -global virtio-mmio.force-legacy=false -chardev socket,id=fs,path={path} -device vhost-user-fs-device,chardev=fs,tag=host"
        yield folder
    finally:
        power.extra_args = before
        _shell.reboot_wanted = True
        strategy.transition("off")
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=10)
        os.close(anchor)


@pytest.fixture
def mounted(sh: Shell, shared: Path) -> Iterator[Path]:
    sh(f"mkdir -p {POINT} && mount -t virtiofs host {POINT}")
    yield shared
    sh(f"umount {POINT}")


def test_it_mounts_and_both_sides_see_the_same(sh: Shell, mounted: Path) -> None:
    (mounted / "from-host").write_text("hello board\n")
    assert sh(f"cat {POINT}/from-host") == "hello board"
    digest = sh(f"dd if=/dev/urandom of={POINT}/file bs=64k count=32 conv=fsync 2>/dev/null; sha256sum <{POINT}/file")
    told = subprocess.run(["sha256sum", mounted / "file"], capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.split()[0] == digest.split()[0]


def test_mapped_stores_reach_the_host(sh: Shell, mounted: Path) -> None:
    sh(
        f"xfs_io -f -c 'truncate 64k' -c 'mmap -rw 0 64k' -c 'mwrite -S 0x6b 100 60000' -c 'msync -s 0 64k' {POINT}/mapped"
    )
    data = (mounted / "mapped").read_bytes()
    assert data == bytes(100) + b"k" * 60000 + bytes(65536 - 60100)


def test_a_mount_with_dax_is_refused(sh: Shell, shared: Path) -> None:
    status, said = sh.run(
        f"mkdir -p {POINT}; echo mark >/dev/kmsg; mount -t virtiofs -o dax host {POINT}; s=$?; dmesg | tail -n 3; exit $s"
    )
    assert status
    assert "dax" in said.lower()
