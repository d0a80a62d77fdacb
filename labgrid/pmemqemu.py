# SPDX-License-Identifier: GPL-2.0-only
# labgrid has no types to build on.
# mypy: disable-error-code="untyped-decorator,misc,var-annotated,has-type"
"""A QEMU machine with persistent memory, for boards which QEMU gives none.

All RAM of the guest is backed by a shared file, which the host can read at its physical address. The device tree, QEMU's
own or the kernel's for this machine, gets the board's overlays applied: a region of RAM which an overlay calls a
pmem-region then survives the emulator's death. A machine which boots from a drive has its device tree from the boot
loader there, and its RAM is plain DRAM.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import gzip
import mmap
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import attr
import fdt
from boardlib import (
    BoardError,
    ConsoleTail,
    DeviceTreeError,
    ImageMissing,
    Limit,
    MachineDied,
    QemuOptionError,
    QemuTooOld,
    ToolMissing,
    forget_unread,
    scaled,
)
from labgrid.driver import QEMUDriver
from labgrid.factory import target_factory
from labgrid.protocol import ResetProtocol
from labgrid.step import step
from labgrid.util.qmp import QMPError, QMPMonitor
from pexpect import TIMEOUT

# How a file begins that gzip made
GZIP = b"\x1f\x8b"
# Time limits in seconds, before the scale factor
CHECK_LIMIT = 30
START_LIMIT = 20
QUIT_LIMIT = 10
MONITOR_LIMIT = 30


class Region(NamedTuple):
    """One range of physical memory, as the device tree has it."""

    address: int
    size: int
    volatile: bool = False


def option_value(path: Path | str) -> str:
    """A path within one of QEMU's options of many parts, which it splits at commas."""
    return str(path).replace(",", ",,")


def run_tool(cmd: list[str], mend: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a host program to its end, in bounded time; it reads what is said to it."""
    try:
        return subprocess.run(cmd, input=said, capture_output=True, text=True, timeout=scaled(CHECK_LIMIT), check=False)
    except (FileNotFoundError, PermissionError) as exc:
        raise ToolMissing(f"The program '{cmd[0]}' cannot be run ({exc.strerror}): {mend}.") from exc
    except subprocess.TimeoutExpired as exc:
        raise BoardError(
            f"'{shlex.join(cmd[:1])} …' did not end within {exc.timeout:.0f} s: "
            "raise LG_TIMEOUT_SCALE if this machine is slow."
        ) from exc


def device_tree_regions(dtb: Path) -> tuple[list[Region], list[Region]]:
    """The ranges of RAM, and the pmem regions, of a device tree."""

    try:
        root = fdt.parse_dtb(dtb.read_bytes()).root
    except Exception as exc:  # the module fdt raises bare Exceptions, too
        raise DeviceTreeError(f"{dtb} cannot be read ({exc}): start the machine first.") from exc

    def cells(name: str, default: int) -> int:
        return int(root.get_property(name).value) if root.exist_property(name) else default

    # The defaults are those of the Devicetree Specification, 2.3.5.
    widths = cells("#address-cells", 2), cells("#size-cells", 1)

    def number(words: list[int]) -> int:
        return sum(word << 32 * place for place, word in enumerate(reversed(words)))

    def place(node: fdt.Node) -> tuple[int, int]:
        words = list(node.get_property("reg").data)
        if len(words) != sum(widths):
            raise DeviceTreeError(
                f"{node.name} in {dtb} has {len(words)} cells in reg: one range, of {sum(widths)} cells, was expected."
            )
        return number(words[: widths[0]]), number(words[widths[0] :])

    ram = [Region(*place(node)) for node in root.nodes if node.name.startswith("memory@")]
    regions = [
        Region(*place(node), volatile=node.exist_property("volatile"))
        for node in root.nodes
        if node.exist_property("compatible") and "pmem-region" in node.get_property("compatible").data
    ]
    return ram, sorted(regions)


@target_factory.reg_driver
@attr.s(eq=False)
class PmemQEMUDriver(QEMUDriver, ResetProtocol):
    """QEMUDriver with file-backed RAM, device-tree overlays, a drive to boot from, power cuts and warm resets.

    Args (besides those of QEMUDriver):
        run_dir (str): folder for the RAM file and the device tree; each running machine has a numbered slot there
        initrd (str): optional, images key of the initial RAM file system
        dtb (str): optional, images key of the device tree, for machines for which QEMU makes none
        overlays (list of str): images keys of the device-tree overlays, applied in this order; without any, and
            without a kernel, QEMU gets no device tree, and a power cut takes all RAM
        drive (str): optional, images key of a raw image to boot from; the machine works on a copy of its own
        drive_opts (str): how QEMU attaches the drive
        min_version (str): the oldest QEMU which can emulate this machine
        build_hint (str): the command which builds the images, for the error message
    """

    # What labgrid's class has without types
    status: int
    _child: subprocess.Popen[bytes] | None
    _clientsocket: socket.socket | None

    run_dir = attr.ib(default="run", validator=attr.validators.instance_of(str))
    initrd = attr.ib(default=None, validator=attr.validators.optional(attr.validators.instance_of(str)))
    overlays = attr.ib(factory=list, validator=attr.validators.instance_of(list))
    drive = attr.ib(default=None, validator=attr.validators.optional(attr.validators.instance_of(str)))
    drive_opts = attr.ib(default="if=sd", validator=attr.validators.instance_of(str))
    min_version = attr.ib(default="5.0", validator=attr.validators.instance_of(str))
    build_hint = attr.ib(default="build it first", validator=attr.validators.instance_of(str))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.tail = ConsoleTail(self)
        # What the console said while nobody read
        self._early = b""
        # For tests which need other regions: paths of .dtbo files, honoured by the next start.
        self.extra_overlays: list[str] = []
        # What was found out about the emulator and the images, by what it depends on
        self._versions: dict[str, tuple[int, int, int]] = {}
        self._dumped: list[str] = []
        self._unpacked: tuple[str, int, int] | None = None
        self._started = False
        self._slot: Path | None = None
        self._slot_lock: int | None = None
        self._keep = False
        self._ram: Region | None = None
        self._stderr: Path | None = None

    # The machine's files ------------------------------------------------------------------------------------------

    @property
    def slot(self) -> Path:
        """This machine's own folder: the first which no other process holds, so that leftovers are used again."""
        if self._slot is None:
            base = Path(self.target.env.config.resolve_path(self.run_dir))
            for number in range(64):
                if self._take_slot(base / str(number)):
                    break
            else:
                raise BoardError(f"64 machines run from {base} already: end some of them.")
        assert self._slot is not None
        return self._slot

    def _take_slot(self, folder: Path) -> bool:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise BoardError(
                f"The run folder {folder} cannot be made ({exc.strerror}): make its parent writable."
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._slot, self._slot_lock = folder, lock
        return True

    def take_slot(self, name: str) -> None:
        """Uses a slot by its name, which keeps its files for the next who asks for it (the interactive machine)."""
        base = Path(self.target.env.config.resolve_path(self.run_dir))
        if not self._take_slot(base / name):
            raise BoardError(f"Another machine already runs from {base / name}: end it first.")
        self._keep = True

    def keep(self) -> None:
        """The next on() starts from what a power cut leaves of RAM and drive, however the last machine ended."""
        self._keep = True

    @property
    def console_socket(self) -> socket.socket | None:
        """The serial port of the running machine, for who serves it to others; non-blocking."""
        return self._clientsocket

    @property
    def ram_file(self) -> Path:
        return self.slot / "ram"

    @property
    def dtb_file(self) -> Path:
        return self.slot / "board.dtb"

    @property
    def drive_file(self) -> Path:
        return self.slot / "drive"

    @property
    def loader_has_device_tree(self) -> bool:
        """Whether QEMU has nothing to do with the device tree: the boot loader brings its own."""
        return self.kernel is None and not self.overlays and not self.extra_overlays

    def image(self, key: str) -> str:
        path: str = self.target.env.config.get_image_path(key)
        if not os.path.isfile(path):
            raise ImageMissing(f"There is no image {path}: {self.build_hint}.")
        return path

    # The command line ---------------------------------------------------------------------------------------------

    def get_qemu_version(self, qemu_bin: str) -> tuple[int, int, int]:
        if qemu_bin in self._versions:
            return self._versions[qemu_bin]
        mend = "install the package qemu-system-arm, or name another program under tools: in the environment file"
        result = run_tool([qemu_bin, "-version"], mend)
        match = re.search(r"version (\d+)\.(\d+)\.(\d+)", result.stdout)
        if result.returncode or not match:
            raise QemuTooOld(f"'{qemu_bin} -version' names no version, so it is no QEMU that can be used: {mend}.")
        version = (int(match[1]), int(match[2]), int(match[3]))
        if version < tuple(int(part) for part in self.min_version.split(".")):
            raise QemuTooOld(
                f"QEMU {match[1]}.{match[2]}.{match[3]} ({qemu_bin}) is too old for this board, "
                f"which needs {self.min_version} or newer: install a newer one (Debian 12 has 7.2)."
            )
        self._versions[qemu_bin] = version
        return version

    def _machine_args(self) -> list[str]:
        """Everything but the device tree."""
        for key in (self.kernel, self.initrd, self.dtb, self.drive, *self.overlays):
            if key is not None:
                self.image(key)
        cmd: list[str] = super().get_qemu_base_args()
        if self.initrd is not None:
            cmd += ["-initrd", str(self._initrd_file())]
        if self.drive is not None:
            cmd += ["-drive", f"file={option_value(self.drive_file)},format=raw,{self.drive_opts}"]
        # A second -machine adds to the first. labgrid compares self.machine with names, so it must stay a bare name.
        cmd += ["-machine", "memory-backend=ram"]
        ram = f"memory-backend-file,id=ram,size={self.memory},share=on"
        cmd += ["-object", f"{ram},mem-path={option_value(self.ram_file)}"]
        return cmd

    def _initrd_file(self) -> Path:
        """The first start boots the initial RAM file system as it was built; for the others it is unpacked.

        A guest takes twenty times as long for that as this machine.
        """
        assert self.initrd is not None
        image, unpacked = Path(self.image(self.initrd)), self.slot / "initrd"
        about = image.stat()
        key = (str(image), about.st_mtime_ns, about.st_size)
        if self._started and self._unpacked != key:
            with image.open("rb") as packed:
                if packed.read(2) != GZIP:
                    return image
                packed.seek(0)
                with gzip.open(packed) as stream, unpacked.open("wb") as target:
                    shutil.copyfileobj(stream, target)
            self._unpacked = key
        return unpacked if self._started else image

    def get_qemu_base_args(self) -> list[str]:
        # Of two -dtb the last one counts.
        return self._machine_args() + ([] if self.loader_has_device_tree else ["-dtb", str(self.dtb_file)])

    def prepare(self) -> None:
        """Makes all files which the command line names, and checks it."""
        self.prepare_drive()
        if self.loader_has_device_tree:
            self._start_and_quit()
        else:
            self.make_device_tree()
        self.prepare_ram()
        self._keep = False

    def _start_and_quit(self) -> None:
        """Starts this very machine, which does nothing, for the place of its RAM, and to check the command line.

        labgrid would wait for ever for a QEMU which refuses an option.
        """
        cmd = [*self._machine_args(), "-S", "-serial", "null", "-monitor", "stdio"]
        result = run_tool(cmd, "install the package qemu-system-arm", "info mtree -f\nquit\n")
        # Something else may lie over its first bytes: the rest then says where in RAM it begins.
        found = re.search(r"^ *([0-9a-f]+)-[0-9a-f]+ \(.*, ram\): ram(?: @([0-9a-f]+))?\b", result.stdout, re.MULTILINE)
        if result.returncode or not found:
            self._raise_refusal(result)
        self._ram = Region(int(found[1], 16) - int(found[2] or "0", 16), self.ram_file.stat().st_size)

    def _raise_refusal(self, result: subprocess.CompletedProcess[str]) -> NoReturn:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        said = " / ".join(lines) or f"it said nothing of use and ended with status {result.returncode}"
        raise QemuOptionError(
            f"QEMU refuses its command line: {said}; mend extra_args, machine, cpu, memory or drive_opts in "
            f"{self.target.env.config.filename} (the whole line: pytest --lg-env … --dry-run)."
        )

    def make_device_tree(self) -> None:
        """This machine's device tree, QEMU's or the given one, with the overlays applied."""
        base, new = self.slot / "base.dtb", self.slot / "new.dtb"
        mend = "install the package device-tree-compiler"
        if self.dtb is None:
            self._dump_device_tree(base)
        else:
            shutil.copyfile(self.image(self.dtb), base)
            self._start_and_quit()
        self._seed(base, mend)
        overlays = [self.image(key) for key in self.overlays] + self.extra_overlays
        if overlays:
            result = run_tool(["fdtoverlay", "-i", str(base), "-o", str(new), *overlays], mend)
            if result.returncode or not new.is_file():
                said = " / ".join(line for line in result.stderr.splitlines() if line.strip())
                raise DeviceTreeError(
                    f"The overlays {' '.join(overlays)} do not fit the device tree of this machine ({said}): "
                    "mend them, or build them anew."
                )
        else:
            shutil.copyfile(base, new)
        new.replace(self.dtb_file)
        if self.dtb is None:
            ram, _ = device_tree_regions(self.dtb_file)
            if len(ram) != 1:
                raise DeviceTreeError(f"{self.dtb_file} has {len(ram)} /memory nodes, and not one, as QEMU's own has.")
            self._ram = ram[0]

    def _seed(self, dtb: Path, mend: str) -> None:
        """A seed for the kernel's random numbers, as in QEMU's own trees: without one the first read may take 20 seconds."""
        seed = os.urandom(32).hex(" ").split()
        result = run_tool(["fdtput", "-p", "-t", "bx", str(dtb), "/chosen", "rng-seed", *seed], mend)
        if result.returncode:
            raise DeviceTreeError(f"{dtb} takes no rng-seed ({result.stderr.strip()}): is it a device tree?")

    def _dump_device_tree(self, dtb: Path) -> None:
        """Has QEMU dump this very machine's device tree; that checks the command line, too. Once for each of them."""
        asked = self._machine_args()
        if asked == self._dumped and dtb.is_file():
            return
        self._dumped = []
        dtb.unlink(missing_ok=True)
        cmd = [*asked, "-machine", f"dumpdtb={option_value(dtb)}", "-S", "-serial", "null", "-monitor", "stdio"]
        # A machine for which QEMU makes no device tree dumps nothing, and waits; since 10.0 it says so, and ends.
        result = run_tool(cmd, "install the package qemu-system-arm", "quit\n")
        if result.returncode and "machine doesn't have an FDT" not in result.stderr:
            self._raise_refusal(result)
        if not dtb.is_file():
            raise DeviceTreeError(
                f"QEMU makes no device tree for the machine {self.machine}, and overlays need one: name the kernel's "
                f"by 'dtb' in {self.target.env.config.filename}."
            )
        self._dumped = asked

    def prepare_drive(self) -> None:
        """A fresh copy of the drive's image, unless a power cut asked for the old one."""
        if self.drive is None or (self._keep and self.drive_file.is_file()):
            return
        new = self.slot / "new.drive"
        cmd = ["cp", "--sparse=always", "--reflink=auto", "--no-preserve=all", self.image(self.drive), str(new)]
        result = run_tool(cmd, "install the package coreutils")
        if result.returncode:
            raise BoardError(f"The drive cannot be copied: {result.stderr.strip()}.")
        if "if=sd" in self.drive_opts.split(","):
            # A card has a power of two of bytes, says QEMU.
            os.truncate(new, 1 << (new.stat().st_size - 1).bit_length())
        new.replace(self.drive_file)

    def prepare_ram(self) -> None:
        """A fresh RAM file, unless a power cut asked for the old one: then only what a power cut leaves."""
        if self._keep and self.ram_file.is_file():
            self._forget_volatile()
        else:
            self.ram_file.unlink(missing_ok=True)

    def _forget_volatile(self) -> None:
        """Punches everything but the persistent regions out of the RAM file: a power cut takes that away."""
        if self.loader_has_device_tree:
            self.ram_file.unlink()
            return
        ram = self._ram
        assert ram is not None
        _, regions = device_tree_regions(self.dtb_file)
        start = ram.address
        for region in [r for r in regions if not r.volatile] + [Region(ram.address + ram.size, 0)]:
            if region.address > start:
                cmd = ["fallocate", "--punch-hole", "--offset", str(start - ram.address)]
                cmd += ["--length", str(region.address - start), str(self.ram_file)]
                result = run_tool(cmd, "install the package util-linux")
                if result.returncode:
                    raise BoardError(f"The RAM file cannot lose its volatile part: {result.stderr.strip()}.")
            start = max(start, region.address + region.size)

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes at a physical address, from the host's side: what the next start would find, if it finds anything."""
        offset = self._offset(address)
        with self.ram_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            return memory[offset : offset + size]

    def write_memory(self, address: int, data: bytes) -> None:
        """Changes bytes at a physical address behind the guest's back."""
        offset = self._offset(address)
        with self.ram_file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[offset : offset + len(data)] = data

    def _offset(self, address: int) -> int:
        """Where in the RAM file a physical address is."""
        if self._ram is None or not 0 <= address - self._ram.address < self._ram.size:
            raise BoardError(f"{address:#x} is no address in the RAM of a running machine: switch it on first.")
        return address - self._ram.address

    # labgrid's life cycle ---------------------------------------------------------------------------------------------

    def on_activate(self) -> None:
        """Nothing: the serial port of labgrid's class is a socket in TMPDIR, whose path may be too long for one."""

    def on_deactivate(self) -> None:
        try:
            if self.status:
                self.off()
        finally:
            self._close_client()
            if self._slot is not None and not self._keep:
                self.ram_file.unlink(missing_ok=True)
                self.drive_file.unlink(missing_ok=True)
                (self.slot / "initrd").unlink(missing_ok=True)
            # The next slot may be another one, or have been somebody else's.
            self._dumped, self._unpacked = [], None
            if self._slot_lock is not None:
                os.close(self._slot_lock)
            self._slot = self._slot_lock = None

    def _atexit(self) -> None:
        # Runs before the target's own clean-up, which must then find a machine that is off.
        self._kill()

    @step()
    def on(self) -> None:
        if self.status:
            return
        # The images may have been built anew since the last start, and a test may have changed the arguments.
        self.prepare()
        self._cmd = [*self.get_qemu_base_args(), "-S", "-qmp", "stdio"]
        # The serial port is one end of a connected pair, which QEMU inherits: it needs no path.
        self._clientsocket, port = socket.socketpair()
        self._clientsocket.setblocking(False)
        self._cmd += ["-chardev", f"socket,id=serialsocket,fd={port.fileno()}"]
        self._cmd += ["-serial", "chardev:serialsocket"]
        self.tail.clear()
        self.logger.debug("Starting with: %s", shlex.join(self._cmd))
        self._stderr = self.slot / "stderr"
        try:
            with port, self._stderr.open("wb") as stderr:
                self._child = subprocess.Popen(
                    # setpriv: the kernel kills QEMU when this process is gone, however it ended. A session of its
                    # own: a Ctrl-C is for pytest, which then ends QEMU in order.
                    ["setpriv", "--pdeathsig", "KILL", "--", *self._cmd],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                    pass_fds=[port.fileno()],
                )
            self._await_monitor()
            try:
                self.qmp = QMPMonitor(self._child.stdout, self._child.stdin)
                self.status = 1
            except (QMPError, OSError, ValueError) as exc:
                self._raise_death(exc)
            for forward in self._forwarded_ports.values():
                self._add_port_forward(*forward)
            self.monitor_command("cont")
        except BaseException:
            self._kill()
            raise
        self._started = True
        forget_unread(self)

    def _await_monitor(self) -> None:
        """Waits for QEMU's greeting, or its end, not longer than the limit."""
        assert self._child is not None and self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], scaled(START_LIMIT))[0]:
            raise MachineDied(
                f"QEMU did not open its monitor within {scaled(START_LIMIT):.0f} s: "
                "raise LG_TIMEOUT_SCALE if this machine is slow."
            )

    def _raise_death(self, cause: BaseException | None = None) -> NoReturn:
        """Says how QEMU ended, and puts this driver into the state `off`."""
        assert self._child is not None
        try:
            code = self._child.wait(timeout=scaled(QUIT_LIMIT))
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            how = "closed its monitor or its serial port, but still runs"
        said = self._stderr.read_text(errors="replace").strip() if self._stderr and self._stderr.exists() else ""
        said = f" and said: {' / '.join(said.splitlines())}" if said else ""
        self._kill()
        raise MachineDied(
            f"The emulator {how}{said}, though nobody switched the machine off: its last console lines and "
            "the kernel log saved with the test say what it was doing.",
            self.tail.lines(),
        ) from cause

    def _close_client(self) -> None:
        if self._clientsocket is not None:
            self._clientsocket.close()
            self._clientsocket = None
        self._early = b""

    def _kill(self) -> None:
        child, self._child = self._child, None
        self.status = 0
        if child is not None:
            child.kill()
            child.wait(timeout=scaled(QUIT_LIMIT))
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        self._close_client()

    @step()
    def off(self) -> None:
        """Ends the emulator; RAM, the pmem regions too, and drive are forgotten: power_cut() is what keeps them."""
        if not self.status:
            return
        assert self._child is not None
        if self._child.poll() is not None:
            self._raise_death()
        try:
            self.monitor_command("quit")
            self._child.wait(timeout=scaled(QUIT_LIMIT))
        except (QMPError, subprocess.TimeoutExpired):
            self.logger.warning("QEMU did not quit by itself and is killed")
        except MachineDied as exc:
            # It was alive when asked to quit: it may well be gone before its answer is.
            self.logger.debug("QEMU ended before it answered: %s", exc)
        self._kill()

    @step()
    def power_cut(self) -> None:
        """Kills the emulator on the spot. The next on() starts from what the persistent regions and the drive held then."""
        if not self.status or self._child is None:
            raise BoardError("There is no running machine whose power could be cut: switch it on first.")
        if self._child.poll() is not None:
            self._raise_death()
        self._kill()
        self._keep = True

    @step()
    def reset(self) -> None:
        """A warm reset, as by the board's reset line: RAM keeps what it holds."""
        self.monitor_command("system_reset")

    @step(result=True, args=["command", "arguments"])
    def monitor_command(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        if not self.status:
            raise BoardError(f"The machine is switched off and cannot do '{command}': switch it on.")
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def ask() -> None:
            try:
                answer.set_result(self.qmp.execute(command, arguments or {}))
            except Exception as exc:
                answer.set_exception(exc)

        threading.Thread(target=ask, daemon=True).start()
        limit = Limit(MONITOR_LIMIT)
        # A guest who talks and is not read fills the socket, and then all of QEMU waits, its monitor too.
        while not concurrent.futures.wait([answer], timeout=0.01).done:
            self._drain()
            if not limit.left:
                self._kill()
                raise MachineDied(
                    f"QEMU did not answer '{command}' within {limit.waited} and was killed: "
                    "raise LG_TIMEOUT_SCALE if this machine is slow.",
                    self.tail.lines(),
                )
        try:
            return answer.result()
        except (OSError, ValueError) as exc:
            self._raise_death(exc)
        except QMPError as exc:
            if exc.msg != "Received empty response":
                raise
            self._raise_death(exc)

    def _drain(self) -> None:
        """Keeps for the next reader what the console has said."""
        if self._clientsocket is not None:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._early += self._clientsocket.recv(65536)

    def _read(self, size: int = 1, timeout: float = 10, max_size: int | None = None) -> bytes:
        if self._clientsocket is None:
            raise MachineDied(
                "The machine is switched off, so its console says nothing: switch it on.", self.tail.lines()
            )
        most = min(max_size, 4096) if max_size else 4096
        if self._early:
            early, self._early = self._early[:most], self._early[most:]
            return early
        if not select.select([self._clientsocket], [], [], timeout)[0]:
            raise TIMEOUT(f"Timeout of {timeout:.2f} seconds exceeded")
        try:
            data: bytes = self._clientsocket.recv(most)
        except ConnectionError:
            data = b""
        if not data:
            self._raise_death()
        return data

    def _write(self, data: bytes) -> int:
        if self._clientsocket is None:
            raise MachineDied(
                "The machine is switched off, so its console takes nothing: switch it on.", self.tail.lines()
            )
        view = memoryview(data)
        while view:
            if not select.select([], [self._clientsocket], [], scaled(START_LIMIT))[1]:
                raise TIMEOUT(f"The console took no input for {scaled(START_LIMIT):.0f} seconds")
            try:
                view = view[self._clientsocket.send(view) :]
            except ConnectionError as exc:
                self._raise_death(exc)
        return len(data)

    # By hand ------------------------------------------------------------------------------------------------------

    def interactive_command(self) -> list[str]:
        """The same machine with its console on the terminal; the files which the command names are made."""
        self.take_slot("interactive")
        if self.drive is not None and self.drive_file.is_file():
            # What was built anew since the last time shall be seen.
            self._keep = self.drive_file.stat().st_mtime > os.stat(self.image(self.drive)).st_mtime
        self.prepare()
        self._keep = True
        return [*self.get_qemu_base_args(), "-serial", "mon:stdio"]
