# SPDX-License-Identifier: GPL-2.0-only
"""What `make series` asks of the series as a whole: the corners of its configuration, and an x86-64 that claims to alias.

The second is the series' own claim: where the data cache aliases, pmem comes up, file-system DAX is refused, and device-dax works.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect

from tools import fragments, rootfs
from tools.common import ROOT, UserError, say
from tools.environment import child_environment
from tools.kernel import first_error

if TYPE_CHECKING:
    from tools.series import Arch, Gate

NAME = "whole series"
FRAGMENT = ROOT / "tools/x86_64.config"
AMD64 = rootfs.Arch("amd64", "x86_64-linux-gnu", "lib64/ld-linux-x86-64.so.2")
PROMPT = "arm-pmem:# "
# In seconds; an emulated x86-64 on a busy machine
BOOT_LIMIT = 180
COMMAND_LIMIT = 120
# Of the NVDIMM in bytes; what is left beside its labels must be aligned to 16 MiB.
NVDIMM, LABELS = 256 << 20, 2 << 20

# Options to disable for each corner, and what is not compiled then
CORNERS: dict[str, tuple[tuple[str, ...], str]] = {
    "DAX=n": (
        ("FS_DAX", "DEV_DAX", "LIBNVDIMM", "ACPI_NFIT", "VIRTIO_PMEM", "FUSE_DAX", "CXL_BUS", "X86_PMEM_LEGACY", "DAX"),
        r"drivers/dax/|drivers/nvdimm/|fs/dax\.|drivers/s390/",
    ),
    "FS_DAX=n": (("FS_DAX", "FUSE_DAX"), r"fs/dax\.|drivers/s390/"),
    "DAX=y": ((), r"drivers/s390/"),
}


def corners(gate: Gate, arch: Arch) -> tuple[str, str]:
    """allyesconfig with DAX=n, with FS_DAX=n, with all: what the series touches compiles. Outcome and text."""
    number = len(gate.series.patches)
    gate.checkout(number)
    lines, failed = [], False
    for name, (disabled, without) in CORNERS.items():
        # Without an =: make would take a target's path for the setting of a variable.
        build = gate.folder / "build" / f"corner-{name.replace('=', '-')}"
        gate.configure(
            arch, build, [word for option in disabled for word in ("--disable", option)], start="allyesconfig"
        )
        config = (build / ".config").read_text()
        symbol, _, value = name.partition("=")
        if bool(re.search(rf"^CONFIG_{symbol}=y$", config, re.MULTILINE)) != (value == "y"):
            raise UserError(f"allyesconfig cannot have {name}: something selects it")
        status, said = gate.make(arch, build, "prepare")
        if status:
            raise UserError(f"{name}: {first_error(said.splitlines())}")
        objects = [one for one in gate.every_object(arch) if not re.match(without, one)]
        found = gate.compile_all(arch, build, objects)
        bad = {one: state["error"] for one, state in found.items() if not state["ok"]}
        failed = failed or bool(bad)
        lines.append(f"{name}: {len(objects) - len(bad)} of {len(objects)} objects compile")
        lines += [f"  {one}: {error}" for one, error in bad.items()]
    return ("failed" if failed else "passed"), "\n".join(lines)


def aliasing(gate: Gate, arch: Arch) -> tuple[str, str]:
    """Boots the x86-64 kernel with an NVDIMM, and asks it. Outcome and text."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise UserError("there is no qemu-system-x86_64: `make series-deps` installs it")
    gate.checkout(len(gate.series.patches))
    build = gate.folder / "build/x86_64-aliasing"
    build.mkdir(parents=True, exist_ok=True)
    for words in (("allnoconfig", f"KCONFIG_ALLCONFIG={FRAGMENT}"), ("bzImage",)):
        status, said = gate.make(arch, build, *words)
        if status:
            raise UserError(f"the x86-64 kernel: make {words[0]} failed: {first_error(said.splitlines())}")
    missed = fragments.missed(fragments.read([FRAGMENT]), fragments.read_config(build / ".config"))
    if missed:
        raise UserError(f"the x86-64 kernel does not have {', '.join(one.text for one in missed)}")
    archive = gate.folder / "x86_64/rootfs.cpio.gz"
    rootfs.build(
        work=archive.parent / "rootfs",
        target=archive,
        gen_init_cpio=build / "usr/gen_init_cpio",
        epoch=gate.repository.epoch(),
        release={"BOARD": "x86_64", "KERNEL": gate.kernel, "SERIES_HASH": gate.series.hash},
        programs={},
        arch=AMD64,
    )
    return ask(qemu, build / "arch/x86/boot/bzImage", archive, gate.folder / "x86_64")


def ask(qemu: str, kernel: Path, archive: Path, folder: Path) -> tuple[str, str]:
    """The machine's answers; each must be as the series says."""
    nvdimm = folder / "nvdimm"
    nvdimm.unlink(missing_ok=True)
    with nvdimm.open("wb") as stream:
        stream.truncate(NVDIMM + LABELS)
    command = ["-M", "q35,nvdimm=on", "-m", "1G,slots=2,maxmem=4G", "-smp", "2", "-nic", "none", "-display", "none"]
    # QEMU splits an option at commas.
    path = str(nvdimm).replace(",", ",,")
    command += ["-object", f"memory-backend-file,id=nv,share=on,mem-path={path},size={NVDIMM + LABELS}"]
    command += [
        "-device",
        f"nvdimm,id=nvdimm0,memdev=nv,label-size={LABELS}",
        "-serial",
        "stdio",
        "-monitor",
        "none",
        "-no-reboot",
    ]
    command += ["-kernel", str(kernel), "-initrd", str(archive), "-append", "console=ttyS0 panic=-1"]
    log = (folder / "console.log").open("w")
    say(f"  booting {kernel} with an NVDIMM")
    machine = pexpect.spawn(
        qemu,
        command,
        env=child_environment(),
        encoding="utf-8",
        codec_errors="replace",
        timeout=COMMAND_LIMIT,
        logfile=log,
    )
    said: list[str] = []

    def run(text: str, wanted: str, what: str) -> None:
        machine.sendline(f"{text}; echo status=$?=")
        machine.expect(r"status=(\d+)=[\r\n]+")
        answer = str(machine.before).replace("\r", "")
        if not re.search(wanted, f"{answer}\nstatus={machine.match[1]}"):
            raise UserError(f"the x86-64 that claims to alias: {what}: '{text}' said {answer.strip()[-400:]}")
        machine.expect_exact(PROMPT)
        said.append(what)

    try:
        machine.expect_exact(PROMPT, timeout=BOOT_LIMIT)
        run("stty -echo", "status=0", "it boots")
        run("test -b /dev/pmem0", "status=0", "pmem comes up")
        run("cat /sys/block/pmem0/queue/dax", r"(?m)^0$", "its queue says that there is no DAX")
        run("mkfs.ext4 -q -F -b 4096 /dev/pmem0", "status=0", "it can be written")
        run(
            "mkdir -p /mnt/p; mount -t ext4 -o dax=always /dev/pmem0 /mnt/p; dmesg | tail -n 4",
            "DAX unsupported by block device",
            "fsdax is refused",
        )
        run(
            "mount -t ext4 /dev/pmem0 /mnt/p && echo words >/mnt/p/f && sync && cat /mnt/p/f && umount /mnt/p",
            r"words[\s\S]*status=0",
            "ext4 works without DAX",
        )
        run(
            "ndctl create-namespace -f -e namespace0.0 --mode=devdax",
            r'"mode":"devdax"[\s\S]*status=0',
            "a devdax namespace is made",
        )
        run("test -c /dev/dax0.0", "status=0", "device-dax comes up")
        mapped = "xfs_io -c 'mmap -rw 0 2m'"
        run(f"{mapped} -c 'mwrite -S 0x5a 4096 4096' /dev/dax0.0", "status=0", "device-dax can be mapped and written")
        run(
            f"{mapped} -c 'mread -v 4088 16' /dev/dax0.0",
            r"00 00 00 00 00 00 00 00 5a 5a 5a 5a 5a 5a 5a 5a[\s\S]*status=0",
            "another process reads what was written",
        )
        run("dmesg | grep -c -e WARNING: -e BUG: -e Oops", r"(?m)^0$", "the kernel has no complaint")
    except (pexpect.TIMEOUT, pexpect.EOF):
        raise UserError(
            f"the x86-64 that claims to alias: no answer after '{said[-1] if said else 'the start'}': see {log.name}"
        ) from None
    finally:
        machine.close(force=True)
        log.close()
        nvdimm.unlink(missing_ok=True)
    return "passed", "; ".join(said)


STEPS: dict[str, Callable[[Gate, Arch], tuple[str, str]]] = {"corners": corners, "x86_64-aliasing": aliasing}
