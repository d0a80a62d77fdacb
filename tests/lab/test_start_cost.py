# SPDX-License-Identifier: GPL-2.0-only
"""What the services of the Buildroot image add to the start: guest instructions, the same on every machine.

Under `-icount shift=0,sleep=off` guest time is the count of instructions, and the kernel's time stamps tell it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from boardlib import scaled

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240
SHELL = '-- -c "mount -t devtmpfs none /dev; echo arm-pmem: shell >/dev/kmsg; exec sleep 9999"'


@pytest.fixture(scope="module")
def images() -> Path:
    folder = ROOT / os.environ.get("LG_BUILDDIR", "output/board/images")
    manifest = folder / "manifest.json"
    if not manifest.exists() or json.loads(manifest.read_text())["image"] != "buildroot":
        pytest.skip("no Buildroot image here: `make board_defconfig && make IMAGE=buildroot` builds it")
    if not (folder / "rootfs.cpio.gz").exists():
        pytest.skip("this board's image has no initramfs")
    return folder


def stamp(images: Path, log: Path, arguments: str, text: str) -> float:
    """The kernel's time stamp of a message, in seconds of guest time."""
    command = ["qemu-system-arm", "-M", "virt", "-cpu", "cortex-a15", "-m", "1G", "-nic", "none", "-display", "none"]
    command += ["-icount", "shift=0,sleep=off", "-kernel", str(images / "zImage")]
    command += ["-initrd", str(images / "rootfs.cpio.gz"), "-serial", f"file:{log}", "-monitor", "none"]
    # rdinit comes last: what follows `--` is for it
    command += ["-append", f"console=ttyAMA0 ignore_loglevel {arguments}"]
    machine = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + scaled(LIMIT)
        while time.monotonic() < deadline and machine.poll() is None:
            console = log.read_text(errors="replace") if log.exists() else ""
            found = re.search(rf"\[\s*(\d+\.\d+)\] {text}", console)
            if found:
                return float(found[1])
            time.sleep(0.2)
    finally:
        machine.kill()
        machine.wait(timeout=20)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "(nothing)"
    raise AssertionError(f"'{text}' did not come within {scaled(LIMIT):.0f} s; the console said last:\n{tail}")


@pytest.mark.timeout(2 * LIMIT + 60)
def test_the_login_costs_less_than_half_of_what_the_kernel_alone_does(images: Path, tmp_path: Path) -> None:
    alone = stamp(images, tmp_path / "shell.log", f"rdinit=/bin/sh {SHELL}", "arm-pmem: shell")
    whole = stamp(images, tmp_path / "login.log", "pmem_mount=no", "arm-pmem: ready")
    print(
        f"guest instructions, in billions: {alone:.3f} to init=/bin/sh, {whole:.3f} to the login, {whole / alone:.2f} times"
    )
    assert whole < 1.5 * alone
