# SPDX-License-Identifier: GPL-2.0-only
"""virtio-fs without a DAX window: it mounts and works, and a mount that asks for DAX is told no."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boardtools import Shell

pytestmark = pytest.mark.lg_feature("virtio-fs")
# QEMU's own; Debian 12 has it in qemu-system-common.
SERVER = Path("/usr/lib/qemu/virtiofsd")
POINT = "/mnt/host"


@pytest.fixture(scope="module")
def shared(_shell: Shell, strategy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the host's which the board, started anew, can mount by the tag `host`."""
    if not SERVER.exists():
        pytest.fail(f"{SERVER} is not there: install the package qemu-system-common of Debian 12")
    if os.geteuid():
        pytest.skip("virtiofsd needs root")
    base: Path = tmp_path_factory.mktemp("virtiofs")
    folder, path = base / "shared", base / "socket"
    folder.mkdir()
    # The server ends with each QEMU, and the driver starts one to look at its device tree before the real one: the
    # socket is ours, so that there is one to connect to whenever a QEMU comes.
    with socket.socket(socket.AF_UNIX) as listening, (base / "log").open("w") as log:
        listening.bind(str(path))
        listening.listen()
        number = listening.fileno()
        loop = f"while :; do {SERVER} --fd={number} -o source={folder} -o sandbox=chroot -o cache=auto; done"
        server = subprocess.Popen(["sh", "-c", loop], stdout=log, stderr=log, start_new_session=True, pass_fds=[number])
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
