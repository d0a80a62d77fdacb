# SPDX-License-Identifier: GPL-2.0-only
# labgrid has no types to build on.
# mypy: disable-error-code="untyped-decorator,misc,var-annotated,has-type"
"""Drivers for boards behind a coordinator: a bounded power switch, a serial port, U-Boot, and three ways to flash.

Whatever the way, an image is checked on this side first (its manifest names its board and its hash), and what was
written is read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import socket
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, NamedTuple

import attr
from boardlib import BoardError, BootFailed, ConsoleTail, FlashProtocol, ImageMissing, scaled
from labgrid.driver import (
    AndroidFastbootDriver,
    Driver,
    NetworkPowerDriver,
    SerialDriver,
    TFTPProviderDriver,
    UBootDriver,
)
from labgrid.driver.exception import ExecutionError
from labgrid.driver.usbstoragedriver import Mode
from labgrid.factory import target_factory
from labgrid.step import step
from pexpect import TIMEOUT
from serial import SerialException

BLOCK = 512
MIB = 1 << 20
# Time limits in seconds, before the scale factor
POWER_LIMIT = 20
COMMAND_LIMIT = 30
# What a serial port may have ready, in bytes
AT_ONCE = 1 << 16
# The slowest that a card or a TFTP server may be, in bytes a second
SLOWEST = MIB // 4


class PowerFailed(BoardError):
    """The power switch did not do what it was asked to."""


class WrongImage(BoardError):
    """The image is not for this board, or not what its manifest says."""


class ImageTooLarge(BoardError):
    """The image does not fit on the board's medium."""


class FlashFailed(BoardError):
    """The image could not be written, or what was written is not what is there."""


@target_factory.reg_driver
@attr.s(eq=False)
class BoardPowerDriver(NetworkPowerDriver):
    """NetworkPowerDriver that waits for its switch no longer than the limit: most of labgrid's models wait for ever."""

    @Driver.check_active
    @step()
    def on(self) -> None:
        self._set(True)

    @Driver.check_active
    @step()
    def off(self) -> None:
        self._set(False)

    def _set(self, on: bool) -> None:
        what = "on" if on else "off"
        failed: list[BaseException] = []

        def run() -> None:
            try:
                self.backend.power_set(self._host, self._port, self.port.index, on)
            except Exception as exc:
                failed.append(exc)

        # A daemon: it must not keep the program when the switch never answers.
        thread = threading.Thread(target=run, name=f"power {what}", daemon=True)
        thread.start()
        thread.join(scaled(POWER_LIMIT))
        where = f"the power switch {self.port.model} at {self.port.host}"
        if thread.is_alive():
            raise PowerFailed(
                f"Cannot switch the board {what}: {where} did not answer within {scaled(POWER_LIMIT):.0f} s; "
                "check its network and its own power."
            )
        if failed:
            raise PowerFailed(
                f"Cannot switch the board {what}: {where} failed ({failed[0]}); check that it is reachable, and the "
                "exporter's host and index."
            ) from failed[0]


@target_factory.reg_driver
@attr.s(eq=False)
class BoardSerialDriver(SerialDriver):
    """SerialDriver that takes all that has come: of a socket, pyserial only says that there is something, and labgrid then
    reads byte by byte, each with its own search for the prompt."""

    def _read(self, size: int = 1, timeout: float = 0.0, max_size: int | None = None) -> bytes:
        data: bytes = super()._read(size, timeout, max_size)
        if not max_size:
            self.serial.timeout = 0
            # A line that breaks now breaks at the next read, too: what came before is not lost.
            with contextlib.suppress(SerialException):
                data += self.serial.read(AT_ONCE)
        return data


@target_factory.reg_driver
@attr.s(eq=False)
class BoardUBootDriver(UBootDriver):
    """UBootDriver whose limits follow LG_TIMEOUT_SCALE, and whose failures have names."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._login_limit_s = self.login_timeout
        self.tail = ConsoleTail(self.console)

    def on_activate(self) -> None:
        self.login_timeout = max(1, round(scaled(self._login_limit_s)))
        super().on_activate()

    def do(self, command: str, limit: float = COMMAND_LIMIT) -> list[str]:
        """The output of a command which must succeed, within limit seconds (before the scale factor)."""
        try:
            lines, _, status = self.run(command, timeout=scaled(limit))
        except TIMEOUT as exc:
            # The prompt back, for whoever comes next
            with contextlib.suppress(Exception):
                self.console.write(b"\x03")
            raise FlashFailed(
                f"U-Boot did not end '{command}' within {scaled(limit):.0f} s: check the board's network and medium, or "
                "raise LG_TIMEOUT_SCALE.",
                self.tail.lines(),
            ) from exc
        except ValueError as exc:
            raise BootFailed("U-Boot's answer cannot be read: is its prompt right?", self.tail.lines()) from exc
        if status:
            said = " / ".join(line.strip() for line in lines[-3:] if line.strip())
            raise FlashFailed(f"U-Boot's '{command}' failed: {said or f'status {status}'}.", self.tail.lines())
        return list(lines)


def on_this_machine(host: str) -> bool:
    """Whether an exporter's host is the one where this runs: labgrid itself goes there by SSH."""
    return host in ("localhost", "127.0.0.1", "::1", socket.gethostname())


@target_factory.reg_driver
@attr.s(eq=False)
class BoardTFTPDriver(TFTPProviderDriver):
    """TFTPProviderDriver that needs no SSH where the server's folder is on this very machine."""

    @property
    def is_local(self) -> bool:
        return on_this_machine(self.provider.host)

    def unstage(self, filename: str) -> None:
        """Takes a file away again; on another host labgrid's own cache keeps it."""
        if self.is_local:
            (Path(self.provider.internal) / Path(filename).name).unlink(missing_ok=True)

    def stage(self, filename: str) -> str:
        if self.is_local:
            link = Path(self.provider.internal) / Path(filename).name
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(filename)
            except OSError as exc:
                raise FlashFailed(
                    f"The TFTP server's folder {self.provider.internal} cannot be written ({exc.strerror}): is the server "
                    "there, and are you in its group?"
                ) from exc
            return str(self.provider.external) + link.name
        try:
            name: str = super().stage(filename)
        except ExecutionError as exc:
            raise FlashFailed(f"{filename} cannot be put on the TFTP server {self.provider.host}: {exc}.") from exc
        return name


@target_factory.reg_driver
@attr.s(eq=False)
class BoardFastbootDriver(AndroidFastbootDriver):
    """AndroidFastbootDriver which waits no longer than its limit, and needs no SSH where the exporter is on this machine."""

    # `timeout` ends with it when it had to end the program: on the exporter's host, too.
    OVERDUE = 124

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.limit = float(COMMAND_LIMIT)

    @property
    def is_local(self) -> bool:
        return on_this_machine(getattr(self.fastboot, "host", "localhost"))

    def _get_fastboot_prefix(self) -> list[str]:
        resource = self.fastboot
        if hasattr(resource, "address"):
            where = f"{resource.protocol}:{resource.address}:{resource.port}"
        else:
            where = f"usb:{resource.path}"
        prefix = [] if self.is_local else resource.command_prefix
        sparse = ["-S", self.sparse_size] if self.sparse_size is not None else []
        return [*prefix, "timeout", f"{scaled(self.limit):.0f}", self.tool, "-s", where, *sparse]

    @Driver.check_active
    def write(self, partition: str, file: Path, limit: float) -> None:
        """Writes a file, within limit seconds (before the scale factor)."""
        try:
            # Where nobody answers it would wait as long as the whole image may take.
            self.limit = COMMAND_LIMIT
            self("getvar", "max-download-size")
            self.limit = limit
            if self.is_local:
                self("flash", partition, str(file))
            else:
                self.flash(partition, str(file))
        except CalledProcessError as exc:
            said = [line for line in (exc.output or b"").decode(errors="replace").splitlines() if line.strip()]
            why = f"no end after {scaled(self.limit):.0f} s" if exc.returncode == self.OVERDUE else "it failed"
            raise FlashFailed(
                f"fastboot cannot write {file.name}: {why}{f' ({said[-1].strip()})' if said else ''}; check the cable or "
                "the network."
            ) from exc
        except (OSError, ExecutionError) as exc:
            raise FlashFailed(f"fastboot cannot write {file.name} ({exc}): is the program installed there?") from exc


# Images -----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A piece of an image, in bytes from its beginning; both are whole blocks."""

    start: int
    size: int


class Image:
    """A whole medium's image, with the manifest and the block map beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bmap = Path(f"{path}.bmap")
        if not path.is_file():
            raise ImageMissing(f"There is no image {path}: build it first.")
        self.size = path.stat().st_size
        if self.size == 0 or self.size % BLOCK:
            raise WrongImage(f"{path} has {self.size} bytes, which is not a number of blocks: build it anew.")

    def check(self, board: str) -> None:
        """The image is one for this board, and is what the build wrote down."""
        file = self.path.parent / "manifest.json"
        try:
            manifest = json.loads(file.read_text())
            of, known = manifest["board"], manifest["files"][self.path.name]["sha256"]
        except (OSError, ValueError, KeyError) as exc:
            raise WrongImage(
                f"{file} does not say what {self.path.name} is ({exc!r}): build the image anew, nothing was written."
            ) from exc
        if of != board:
            raise WrongImage(f"{self.path} is an image of '{of}', and this board is '{board}': nothing was written.")
        with self.path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != known:
                raise WrongImage(
                    f"{self.path} is not what {file.name} says (another hash): build it anew, nothing was written."
                )

    def parts(self, limit: int, gap: int = MIB) -> list[Part]:
        """What must be written, in pieces of at most limit bytes; holes of less than gap bytes are written, too."""
        found: list[tuple[int, int]] = []
        for start, end in self._mapped():
            if found and start - found[-1][1] < gap:
                found[-1] = found[-1][0], end
            else:
                found.append((start, end))
        return [Part(at, min(limit, end - at)) for start, end in found for at in range(start, end, limit)]

    def _mapped(self) -> Iterator[tuple[int, int]]:
        """The ranges that hold data, by bmaptool's file of version 2.0; without one, all of it."""
        if not self.bmap.is_file():
            yield 0, self.size
            return
        root = ElementTree.parse(self.bmap).getroot()
        unit = int(root.findtext("BlockSize", "0"))
        if int(root.findtext("ImageSize", "0")) != self.size or not unit:
            raise WrongImage(f"{self.bmap} is not of this image (another size): build it anew, nothing was written.")
        for one in root.iterfind("BlockMap/Range"):
            first, _, last = (one.text or "").strip().partition("-")
            yield int(first) * unit, min((int(last or first) + 1) * unit, self.size)

    def read(self, part: Part) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(part.start)
            return stream.read(part.size)


@attr.s(eq=False)
class FlashDriver(Driver, FlashProtocol):
    """What all ways to flash share.

    Args:
        board (str): which board this is, as the image's manifest and U-Boot's `board_id` say it
        image (str): images key of the image of the whole medium
    """

    board = attr.ib(default="", validator=attr.validators.instance_of(str))
    image = attr.ib(default="card", validator=attr.validators.instance_of(str))

    def _image(self) -> Image:
        return Image(Path(self.target.env.config.get_image_path(self.image)))

    def check(self) -> None:
        self._image().check(self.board)

    def _progress(self, text: str) -> None:
        self.logger.info("%s: %s", self.board, text)


@attr.s(eq=False)
class UBootMedium(FlashDriver):
    """A medium as U-Boot sees it: written and read through RAM.

    Args:
        device (str): interface and number, as U-Boot's commands want them: 'mmc 0', 'virtio 0'
        address (int): RAM for twice `chunk` bytes, which neither U-Boot nor a pmem region uses
        chunk (int): how many bytes are handled at once
        compatible (str): optional, for a U-Boot that knows no `board_id`, such as a vendor's or a distribution's: what the
            root of its own device tree must be compatible with
    """

    device = attr.ib(default="mmc 0", validator=attr.validators.matches_re(r"\w+ \d+"))
    address = attr.ib(default=0x42000000, validator=attr.validators.instance_of(int))
    chunk = attr.ib(default=32 * MIB, validator=attr.validators.instance_of(int))
    compatible = attr.ib(default="", validator=attr.validators.instance_of(str))

    needs_bootloader = True

    def _identify(self) -> None:
        said = self.uboot.do("echo ${board_id}")
        board = said[-1].strip() if said else ""
        mend = "check the place's tags and its environment; nothing was written"
        if not board and self.compatible:
            self.uboot.do("fdt addr ${fdtcontroladdr}")
            found = re.findall(r'"([^"]+)"', "\n".join(self.uboot.do("fdt print / compatible")))
            if self.compatible not in found:
                raise WrongImage(
                    f"The board has no board_id, and by its device tree it is '{' '.join(found)}', and not "
                    f"'{self.compatible}': {mend}."
                )
        elif board != self.board:
            raise WrongImage(f"The board says by its board_id that it is '{board}', and not '{self.board}': {mend}.")

    def _select(self, image: Image) -> None:
        """The right board with a large enough medium, or an error before anything is written."""
        self._identify()
        interface, number = self.device.split()
        self.uboot.do(f"{interface} dev {number}")
        last = image.size // BLOCK - 1
        lines, _, status = self.uboot.run(
            f"{interface} read {self.address:#x} {last:#x} 1", timeout=scaled(COMMAND_LIMIT)
        )
        if status:
            raise ImageTooLarge(
                f"{image.path} has {image.size} bytes, and the medium '{self.device}' no block {last} "
                f"({' / '.join(line.strip() for line in lines if line.strip())}): nothing was written."
            )

    def _join_network(self) -> None:
        # Without these U-Boot tries for ever when the server is gone.
        self.uboot.do("setenv autoload no; setenv netretry no; setenv tftptimeout 2000; setenv tftptimeoutcountmax 5")
        self.uboot.do("dhcp", 60)

    def _crc(self, address: int, size: int) -> int:
        said = "\n".join(self.uboot.do(f"crc32 {address:#x} {size:#x}", 30 + size / SLOWEST))
        match = re.search(r"==> ([0-9a-f]{8})", said)
        if not match:
            raise FlashFailed(f"U-Boot's crc32 says no sum: {said}")
        return int(match[1], 16)

    def _read_back(self, part: Part, wanted: int) -> None:
        """Compares a part of the medium with what was to be written."""
        interface = self.device.split()[0]
        back = self.address + self.chunk
        # What an earlier run left there must not look like what is read now.
        self.uboot.do(f"mw.b {back:#x} 0 {min(part.size, 4096):#x}")
        self.uboot.do(
            f"{interface} read {back:#x} {part.start // BLOCK:#x} {part.size // BLOCK:#x}", 30 + part.size / SLOWEST
        )
        if self._crc(back, part.size) != wanted:
            raise FlashFailed(
                f"What '{self.device}' holds at block {part.start // BLOCK} is not what was written: is the medium worn out?"
            )


@target_factory.reg_driver
@attr.s(eq=False)
class UBootFlashDriver(UBootMedium):
    """U-Boot fetches the image by TFTP, piece by piece, writes it and reads it back."""

    bindings = {"uboot": BoardUBootDriver, "tftp": BoardTFTPDriver}

    @Driver.check_active
    @step()
    def flash(self) -> None:
        image = self._image()
        self._select(image)
        self._join_network()
        parts = image.parts(self.chunk)
        total, done = sum(part.size for part in parts), 0
        interface = self.device.split()[0]
        with tempfile.TemporaryDirectory(prefix="arm-pmem-flash-") as folder:
            for number, part in enumerate(parts):
                data = image.read(part)
                file = Path(folder) / f"arm-pmem-{self.target.name}-{Path(folder).name[-8:]}-{number}"
                file.write_bytes(data)
                name = self.tftp.stage(str(file))
                try:
                    self.uboot.do(f"tftpboot {self.address:#x} {name}", 30 + part.size / SLOWEST)
                finally:
                    self.tftp.unstage(str(file))
                file.unlink()
                wanted = zlib.crc32(data)
                if self._crc(self.address, part.size) != wanted:
                    raise FlashFailed("TFTP brought other bytes than were sent: check the board's network.")
                self.uboot.do(
                    f"{interface} write {self.address:#x} {part.start // BLOCK:#x} {part.size // BLOCK:#x}",
                    30 + part.size / SLOWEST,
                )
                self._read_back(part, wanted)
                done += part.size
                self._progress(f"{done // MIB} of {total // MIB} MiB written and read back")


@target_factory.reg_driver
@attr.s(eq=False)
class FastbootFlashDriver(UBootMedium):
    """U-Boot takes the image by fastboot; it is read back by U-Boot, too.

    Args:
        command (str): what makes U-Boot listen: 'fastboot usb 0', 'fastboot udp'
        partition (str): U-Boot's name of the whole medium (CONFIG_FASTBOOT_MMC_USER_NAME)
    """

    bindings = {"uboot": BoardUBootDriver, "fastboot": BoardFastbootDriver}
    command = attr.ib(default="fastboot udp", validator=attr.validators.matches_re(r"fastboot (usb \d+|udp)"))
    partition = attr.ib(default="mmc0", validator=attr.validators.instance_of(str))

    @Driver.check_active
    @step()
    def flash(self) -> None:
        image = self._image()
        self._select(image)
        ready = re.escape(self.command)
        if not self.command.startswith("fastboot usb"):
            self._join_network()
            ready = "Listening for fastboot command"
        self.uboot.console.sendline(self.command)
        try:
            self.uboot.console.expect(ready, timeout=scaled(COMMAND_LIMIT))
            self.fastboot.write(self.partition, image.path, 60 + image.size / SLOWEST)
        except TIMEOUT as exc:
            raise FlashFailed(
                f"U-Boot does not listen after '{self.command}': was it built with it?", self.uboot.tail.lines()
            ) from exc
        finally:
            self._end_command()
        self._progress("written, now it is read back")
        for part in image.parts(self.chunk):
            self._read_back(part, zlib.crc32(image.read(part)))

    def _end_command(self) -> None:
        try:
            self.uboot.console.write(b"\x03")
            self.uboot.console.expect(self.uboot.prompt, timeout=scaled(COMMAND_LIMIT))
        except TIMEOUT as exc:
            raise FlashFailed(
                f"U-Boot did not come back from '{self.command}': it crashed, or the board lost its power.",
                self.uboot.tail.lines(),
            ) from exc


@target_factory.reg_driver
@attr.s(eq=False)
class StorageFlashDriver(FlashDriver):
    """A host writes the board's card or stick: by an SD mux, or where the storage is always on the host, too."""

    bindings = {
        "storage": "USBStorageDriver",
        "mux": {"USBSDMuxDriver", "USBSDWireDriver", "USBSDWire3Driver", None},
    }
    needs_bootloader = False

    @Driver.check_active
    @step()
    def flash(self) -> None:
        image = self._image()
        try:
            with self._switched_to_host():
                self.target.activate(self.storage)
                size = self.storage.get_size()
                if size < image.size:
                    raise ImageTooLarge(
                        f"{image.path} has {image.size} bytes, and the medium {size}: nothing was written."
                    )
                self.storage.write_image(str(image.path), mode=Mode.BMAPTOOL if image.bmap.is_file() else Mode.DD)
                self._progress("written, now it is read back")
                self._read_back(image)
        except (ExecutionError, OSError, CalledProcessError) as exc:
            raise FlashFailed(f"The medium cannot be written: {exc}.") from exc

    @contextlib.contextmanager
    def _switched_to_host(self) -> Iterator[None]:
        """The board gets its medium back, whatever happens."""
        if self.mux is None:
            yield
            return
        self.target.activate(self.mux)
        self.mux.set_mode("host")
        try:
            yield
        finally:
            self.target.deactivate(self.storage)
            self.mux.set_mode("dut")

    def _read_back(self, image: Image) -> None:
        parts = image.parts(image.size)
        device = shlex.quote(self._device())
        reads = "; ".join(
            f"dd if={device} bs=1M iflag=skip_bytes,count_bytes skip={part.start} count={part.size} status=none"
            for part in parts
        )
        script = f"blockdev --flushbufs {device} 2>/dev/null; {{ {reads}; }} | sha256sum"
        said = self._on_host(["sh", "-c", script])
        wanted = hashlib.sha256()
        for part in parts:
            wanted.update(image.read(part))
        if said.split()[0] != wanted.hexdigest():
            raise FlashFailed("What the medium holds is not what was written: is it worn out?")

    def _device(self) -> str:
        return str(self.storage.storage.path)

    def _on_host(self, command: list[str]) -> str:
        from labgrid.util.helper import processwrapper

        resource: Any = self.storage.storage
        output: bytes = processwrapper.check_output(resource.wrap_command(command))
        return output.decode()
