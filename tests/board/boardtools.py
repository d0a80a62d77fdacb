# SPDX-License-Identifier: GPL-2.0-only
"""What the board tests work with: the target's shell, its kernel log, its pmem regions, file systems on them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The target's shell edits its lines in a buffer of 1 KiB; what is longer would be cut in silence.
COMMAND_LIMIT = 900

# What must not be in the kernel log, whoever caused it.
COMPLAINTS = re.compile(
    r"WARNING: |BUG: |BUG at |kernel BUG|Oops|Internal error|Unable to handle|Unhandled|Bad page|bad pte|"
    r"possible circular locking|possible recursive locking|suspicious RCU|inconsistent lock state|"
    r"possible irq lock inversion|bad unlock balance|held lock freed|KASAN: |KCSAN: |UBSAN: |"
    r"rcu.*(detected|self-detected) stall|blocked for more than|soft lockup|hard LOCKUP|Kernel panic|"
    r"sleeping function called from invalid context|scheduling while atomic|refcount_t: |list_(add|del) corruption|"
    r"EXT4-fs error|EXT2-fs.*error|XFS.*(Corruption|Internal error|Shutting down)|kmemleak: (\d+ new|.*disabled)|unreferenced object 0x|Call trace:|Backtrace:"
)


# In /proc/sys/kernel/tainted: there was a warning
TAINT_WARN = 1 << 9


class CommandFailed(AssertionError):
    """A command on the target had another outcome than the test needs."""


class KernelComplaint(AssertionError):
    """The kernel log or the taint flags changed for the worse during a test."""


class MountRefused(AssertionError):
    """A file system which a test needs cannot be had."""


class Shell:
    """The target's shell. sh("cmd") gives what cmd prints, both streams, and demands that it succeeds."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._mark = ""
        # What is to run before the next command, and on which start of the target
        self._first: list[tuple[int, str]] = []
        # The dialogue of the present test: the console itself has no echo.
        self.transcript: list[str] = []
        # Counts commands: who wants to know whether a part of a test used the target compares two values.
        self.used = 0
        self.reboot_wanted = False

    @property
    def boots(self) -> int:
        """Another value means: the target has started anew, nothing of the old state is left."""
        return int(self._strategy.boots)

    def ready(self) -> None:
        """Brings the target to its shell; anew, if the last user left it in doubt."""
        anew, self.reboot_wanted = self.reboot_wanted, False
        if anew:
            self._strategy.lost()
        self._strategy.transition("shell")
        if anew:
            self.free_pmem()

    def free_pmem(self) -> None:
        """Where pmem outlives a start, so does what an earlier test left there: mounts and sector modes end here."""
        umount = UMOUNT.format('"${dev#/dev/pmem}" != "$dev"')
        self(
            f"{{ {umount}; }} || exit 1; "
            "for n in /sys/bus/nd/devices/namespace*; do [ -e $n ] && [ ! -e $n/block ] || continue; n=${n##*/}; "
            "ndctl disable-namespace $n; ndctl destroy-namespace -f $n; ndctl enable-namespace $n; done >/dev/null 2>&1; true",
            timeout=60,
        )

    def announce(self, text: str) -> None:
        """A line for the kernel log, sent along with the next command: so it costs no round trip."""
        self._mark = f"echo {shlex.quote(text)} >/dev/kmsg; "

    def before(self, cmd: str) -> None:
        """A command that runs, and must succeed, with the next one: so it costs no round trip either."""
        self._first.append((self.boots, cmd))

    def run(self, cmd: str, timeout: float = 20) -> tuple[int, str]:
        """Exit status and output of a command, which may fail."""
        self.ready()
        first = "".join(f"{{ {one}; }} || exit 1; " for boots, one in self._first if boots == self.boots)
        self._first.clear()
        line = f"{self._mark}exec 2>&1; {first}{cmd}"
        if len(line) > COMMAND_LIMIT:
            raise ValueError(f"a command of {len(line)} characters is too long for the target's shell: {cmd[:80]}…")
        self._mark = ""
        self.used += 1
        self.transcript.append(f"$ {cmd}")
        try:
            out, _, status = self._strategy.shell.run(line, timeout=timeout)
        except BaseException as exc:
            # It hangs or is dead, or nobody waited. The next user gets a new start, not this one's leftovers.
            self.reboot_wanted = True
            self.transcript.append(f"[{exc}]")
            raise
        self.transcript += [*out, f"[{status}]"] if status else out
        return status, "\n".join(out)

    def last_words(self) -> str:
        """The kernel log of a target in doubt, before it is started anew: it may still listen to a Ctrl-C."""
        shell = self._strategy.shell
        try:
            shell.console.sendcontrol("c")
            shell.console.expect(shell.prompt, timeout=5)
            return "\n".join(shell.run("dmesg -c", timeout=20)[0])
        except Exception as exc:
            return f"(the kernel log is lost: {str(exc).splitlines()[0]})"

    def __call__(self, cmd: str, timeout: float = 20) -> str:
        status, out = self.run(cmd, timeout)
        if status:
            raise CommandFailed(f"'{cmd}' ended with status {status} and said:\n{out}")
        return out

    def fails(self, cmd: str, why: str = "", timeout: float = 20) -> str:
        """Runs a command which must fail, and say why."""
        status, out = self.run(cmd, timeout)
        if not status:
            raise CommandFailed(f"'{cmd}' succeeded, but must fail; it said:\n{out}")
        if not re.search(why, out, re.IGNORECASE):
            raise CommandFailed(f"'{cmd}' failed as it must, but '{why}' is not in what it said:\n{out}")
        return out

    def script(self, path: str, text: str) -> None:
        """Writes a longer text to a file on the target."""
        self(f": >{path}")
        for start in range(0, len(text), 500):
            self(f"printf %s {shlex.quote(text[start : start + 500])} >>{path}")


@dataclass
class KernelLog:
    """The kernel log since the last look, and the taint flags."""

    sh: Shell
    taint: int = 0
    _found: int = 0
    _boots: int = 0
    _seen: int = -1

    @property
    def stale(self) -> bool:
        """Whether anybody has used the target since the last look."""
        return self.sh.used != self._seen

    def look(self) -> str:
        """The lines since the last look; the whole log after a new start. One command on the target."""
        if self.sh.reboot_wanted:
            self._seen = self.sh.used
            return self.sh.last_words()
        # The shell's own means: each program that starts takes an emulator as long as all the rest of this. A shell reads
        # byte by byte, and of /proc/sys then only the first.
        flags = "/proc/sys/kernel/tainted"
        out = self.sh(
            f"dmesg -c; read -r taint <{flags}; [ $taint = 0 ] && echo 0 || cat {flags}",
            timeout=60,
        )
        if self.sh.boots != self._boots:
            self._boots, self.taint = self.sh.boots, 0
        self._seen = self.sh.used
        lines, _, taint = out.rpartition("\n")
        self._found = int(taint)
        return lines

    def complaints(self, text: str, allowed: list[str]) -> list[str]:
        """What is wrong in these lines, and with the taint flags of the last look."""
        found = [line for line in text.splitlines() if COMPLAINTS.search(line)]
        wrong = [line for line in found if not any(re.search(regex, line) for regex in allowed)]
        if self._found != self.taint:
            # A warning which is allowed may leave its mark.
            if wrong or self._found ^ self.taint != TAINT_WARN or not any("WARNING: " in line for line in found):
                wrong.append(f"/proc/sys/kernel/tainted changed from {self.taint} to {self._found}")
            self.taint = self._found
            # Once tainted, the kernel warns less; and an oops leaves locks behind.
            self.sh.reboot_wanted = True
        return wrong


@dataclass(frozen=True)
class Region:
    """A pmem region: what the device tree says of it, and the block device which the kernel made of it."""

    address: int
    size: int
    volatile: bool
    name: str

    @property
    def device(self) -> str:
        return f"/dev/{self.name}"


# The kernel's driver of the regions, in sysfs
DRIVER = "/sys/bus/nd/drivers/nd_pmem"
# Takes a processor away and gives it back, as long as the file is there.
HOTPLUG = """
cd /sys/devices/system/cpu
[ -e cpu1/online ] || { echo 'no second processor'; exit 0; }
while [ -e /tmp/soaking ]; do
    for state in 0 1; do echo $state >cpu1/online && read now <cpu1/online && [ $now = $state ] || exit 1; sleep 0.3; done
    turns=$((turns + 1))
done
echo "a processor went and came $turns times"
"""


def namespace_of(sh: Shell, region: Region) -> str:
    return sh(f"basename $(readlink -f /sys/block/{region.name}/device)")


def device_zone(sh: Shell) -> str:
    """What /proc/zoneinfo says of the zone of device pages: nothing of it is free or managed memory."""
    return sh("awk '/zone/ {on = $4 == \"Device\"} on' /proc/zoneinfo")


def find_regions(sh: Shell) -> list[Region]:
    """The regions in the target's device tree, in the order of their addresses."""
    names = {}
    for line in sh('cd /sys/block; for p in pmem*; do echo "$p $(cat $p/device/resource)"; done').splitlines():
        name, resource = line.split()
        names[int(resource, 16)] = name
    regions = []
    for line in sh(
        "cd /proc/device-tree; for n in $(grep -l pmem-region */compatible); do d=${n%/*}; "
        "echo $(od -An -v -tx1 $d/reg) $([ -e $d/volatile ] && echo volatile); done"
    ).splitlines():
        cells = re.findall(r"\b[0-9a-f]{2}\b", line)
        half = len(cells) // 2
        address, size = (int("".join(part), 16) for part in (cells[:half], cells[half:]))
        regions.append(Region(address, size, "volatile" in line, names.get(address, "no-device")))
    return sorted(regions, key=lambda region: region.address)


# Each needs blocks of the page's size; mkfs.xfs refuses small devices unless it takes itself for under test.
MKFS = {
    "ext4": "mkfs.ext4 -q -F -b 4096",
    "ext2": "mkfs.ext2 -q -F -b 4096",
    "xfs": "TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -f -m reflink=0,rmapbt=0 -i nrext64=0",
}
MKFS_REFLINK = MKFS["xfs"].replace("reflink=0", "reflink=1")
# Options of mkfs.ext4: pieces of 2 MiB are allocated at multiples of that, where they can be mapped at once.
HUGE_EXTENTS = "-E stride=512,stripe_width=512"
FSCK = {"ext4": "e2fsck -f -n", "ext2": "e2fsck -f -n", "xfs": "xfs_repair -n"}

# Unmounts what meets a condition, the newest first; with the shell's own means, since programs take time to start.
UMOUNT = 'm=; while read -r dev point rest; do [ {} ] && m="$point $m"; done </proc/mounts; [ -z "$m" ] || umount $m'


@dataclass
class Volumes:
    """File systems on block devices, made and mounted when a test asks, kept as long as nobody asks for another."""

    sh: Shell
    _boots: int = 0
    # device -> (kind, mount options, mkfs options)
    _mounted: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    _refused: dict[tuple[str, str, str, str], str] = field(default_factory=dict)

    def _fresh(self) -> None:
        if self._boots != self.sh.boots:
            self._mounted.clear()
            self._refused.clear()
            self._boots = self.sh.boots

    @staticmethod
    def point(device: str) -> str:
        return "/mnt/" + device.rpartition("/")[2]

    def get(self, kind: str, device: str, options: str = "", mkfs: str = "") -> str:
        """An empty folder on a mounted file system."""
        self.sh.ready()
        self._fresh()
        point, state = self.point(device), (kind, options, mkfs)
        if self._mounted.get(device) == state:
            # Most tests leave nothing in it. A flag that one has set on the folder itself does not show.
            empty = f'set -- {point}/t/* {point}/t/.[!.]*; [ "$*" = "{point}/t/* {point}/t/.[!.]*" ]'
            keep = "" if options == "dax=inode" else f"{empty} || "
            self.sh.before(f"{keep}{{ rm -rf {point}/t && mkdir {point}/t; }}")
            return f"{point}/t"
        # The same mount was refused on this boot: it would be again, and mkfs takes time.
        if (device, *state) in self._refused:
            raise MountRefused(self._refused[device, *state])
        self.release(device)
        self.make(kind, device, mkfs)
        try:
            self.mount(kind, device, options)
            self.sh(f"mkdir {point}/t; echo probe >{point}/probe")
            # ext2 and xfs go on without DAX when they cannot have it.
            if {"dax", "dax=always"} & set(options.split(",")) and not is_dax(self.sh, f"{point}/probe"):
                raise MountRefused(f"mount -t {kind} -o {options} {device} succeeded, but files on it are not DAX")
        except MountRefused as exc:
            self._refused[device, *state] = str(exc)
            self.release(device)
            raise
        self._mounted[device] = state
        return f"{point}/t"

    def make(self, kind: str, device: str, mkfs: str = "", size: str = "") -> None:
        """mkfs; a size (ext2 and ext4 only) leaves the rest of the device unused."""
        self.sh(f"{MKFS[kind]} {mkfs} {device} {size}", timeout=60)

    def mount(self, kind: str, device: str, options: str = "") -> str:
        """Mounts what is on the device; the caller takes care of it with release()."""
        point = self.point(device)
        status, out = self.sh.run(
            f"[ -d {point} ] || mkdir -p {point}; mount -t {kind} -o rw,{options} {device} {point}"
        )
        if status:
            why = self.sh("dmesg | tail -n 3")
            raise MountRefused(f"mount -t {kind} -o {options} {device} was refused: {out.strip()}; kernel log:\n{why}")
        return point

    def try_mount(self, kind: str, device: str, options: str = "") -> tuple[int, str]:
        """A mount which may be refused: exit status of mount, and what the kernel log says of it."""
        point = self.point(device)
        mark = f"mount of {point} {self.sh.used}"
        status, out = self.sh.run(
            f"[ -d {point} ] || mkdir -p {point}; echo '{mark}' >/dev/kmsg; mount -t {kind} -o rw,{options} {device} {point}; s=$?; "
            # Not sed '1,/mark/d': the mark may be the first line, where that does not look for the end of its range.
            f"dmesg | awk 'f; /{mark.replace('/', '.')}/ {{f=1}}'; exit $s"
        )
        return status, out

    def release(self, device: str) -> None:
        """Unmounts whatever is mounted from the device."""
        self._fresh()
        self._mounted.pop(device, None)
        self._or_reboot(UMOUNT.format(f'"$dev" = {device}'))

    def release_all(self) -> None:
        """Unmounts what get() keeps."""
        self._fresh()
        for device in list(self._mounted):
            self.release(device)

    def clean_up(self) -> None:
        """After a test which worked by hand: no mounts, no device-mapper devices, no loop devices are left."""
        self._mounted.clear()
        umount = UMOUNT.format('"${point#/mnt/}" != "$point"')
        self._or_reboot(
            f"{{ {umount}; }} 2>/dev/null; for d in /sys/block/loop*/loop; do "
            f"[ ! -e $d ] || losetup -d /dev/$(basename ${{d%/loop}}); done; {{ {umount}; }} || exit 1; "
            "for d in /sys/block/dm-*; do [ ! -e $d ] || dmsetup remove_all --retry; done; "
            "for d in /sys/block/dm-* /sys/block/loop*/loop; do [ ! -e $d ] || exit 1; done"
        )

    def _or_reboot(self, cmd: str) -> None:
        """Undoes what a test did. When that fails, the next test must not suffer: it gets a board started anew."""
        try:
            self.sh(cmd, timeout=30)
        except BaseException:
            self.sh.reboot_wanted = True
            raise

    def check(self, kind: str, device: str) -> None:
        """Unmounts, and demands that fsck finds nothing to mend."""
        self.release(device)
        self.sh(f"{FSCK[kind]} {device}", timeout=60)


# What the kernel says of a mount with DAX where there is none; all but the first of a kernel without FS_DAX, the last is xfs.
REFUSED = ("DAX unsupported by block device", "dax option not supported", "XFS: unknown mount option [dax]")


def dm_create(sh: Shell, *rows: str, name: str = "t") -> None:
    """A device of the device mapper, /dev/mapper/<name>, by its table: one string for each row."""
    table = "\\n".join(rows)
    sh(f"printf '{table}\\n' | dmsetup create {name} && dmsetup mknodes {name}; test -b /dev/mapper/{name}")


def dax_refused(said: str) -> bool:
    return any(message in said for message in REFUSED)


def is_dax(sh: Shell, path: str) -> bool:
    """STATX_ATTR_DAX (0x200000) of a file, when the file system knows the attribute at all."""
    out = sh(f"xfs_io -r -c 'statx -r' {path}")
    values = {key: int(value, 16) for key, value in re.findall(r"stat\.(attributes\w*) = (0x[0-9a-f]+)", out)}
    return bool(values["attributes"] & 0x200000)


def cached_kib(sh: Shell) -> int:
    """The size of the page cache."""
    return int(sh("awk '$1 == \"Cached:\" {print $2}' /proc/meminfo"))


@dataclass(frozen=True)
class Point:
    """One line of tests/daxprobe/points.def."""

    group: str
    name: str
    needs: str
    memory: str
    text: str


def daxprobe_points(path: Path) -> list[Point]:
    pattern = re.compile(r'^POINT\((\w+),\s*(\w+),\s*(\w+),\s*(\w+),\s*"(.*)"\)', re.MULTILINE)
    return [Point(*match.groups()) for match in pattern.finditer(path.read_text())]
