# SPDX-License-Identifier: GPL-2.0-only
"""The minimal root file system: programs of Debian's armhf or armel packages, as an initramfs.

Two steps. The first (slow, cached in output/cache by its inputs) lets mmdebstrap resolve, fetch, verify and unpack
the packages of board/common/packages.txt, and keeps the listed files and the libraries they need.
The second adds our own files and writes the cpio archive, the same bytes for the same input.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from tools.common import (
    CROSS_COMPILE,
    OUTPUT,
    ROOT,
    UserError,
    display,
    need_tools,
    run,
    say,
    sha256,
    write_whole,
)
from tools.debian import SUITE, Archive, archives
from tools.environment import child_environment

FOLDERS = ["bin", "dev", "etc", "lib", "mnt", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"]


@dataclass(frozen=True)
class Arch:
    """One of Debian's architectures of 32-bit ARM."""

    name: str
    triplet: str
    loader: str

    @property
    def cross(self) -> str:
        return f"{self.triplet}-"

    @property
    def library_folders(self) -> tuple[str, ...]:
        return (f"lib/{self.triplet}", f"usr/lib/{self.triplet}", "lib", "usr/lib")


# ARMv7 with VFP
ARMHF = Arch("armhf", "arm-linux-gnueabihf", "lib/ld-linux-armhf.so.3")
# ARMv5TE and newer
ARMEL = Arch("armel", "arm-linux-gnueabi", "lib/ld-linux.so.3")


@dataclass(frozen=True)
class Wanted:
    """What packages.txt asks for."""

    packages: tuple[str, ...]
    paths: tuple[str, ...]
    stubs: tuple[str, ...]


def read_packages(file: Path, arch: Arch = ARMHF) -> Wanted:
    packages: dict[str, None] = {}
    paths: list[str] = []
    stubs: list[str] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        package, colon, files = text.partition(":")
        if not colon or not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package) or not files.split():
            raise UserError(f"{display(file)}:{number}: expected 'package: path …', found '{text}'")
        packages[package] = None
        for name in files.replace("$triplet", arch.triplet).split():
            if name.startswith("-"):
                stubs.append(name[1:])
            else:
                paths.append(name)
    return Wanted(tuple(packages), tuple(paths), tuple(stubs))


# --- the archive -----------------------------------------------------------------------------


@dataclass
class Picked:
    """The result of the slow step, as it stands in the cache."""

    folder: Path
    packages: list[str] = field(default_factory=list)
    suites: list[str] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)

    @property
    def tree(self) -> Path:
        return self.folder / "tree"


def debian(packages_file: Path, arch: Arch, cache: Path = OUTPUT / "cache") -> Picked:
    """The files of the Debian packages, from the cache or by mmdebstrap."""
    wanted = read_packages(packages_file, arch)
    key = sha256(json.dumps([asdict(wanted), SUITE, arch.name, sha256(Path(__file__))]).encode())[:16]
    folder = cache / f"debian-{arch.name}-{key}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".debian-") as name:
            work = Path(name)
            tarball = work / "root.tar"
            suites = fetch(wanted.packages, tarball, arch, cache / f"debian-{arch.name}.log")
            picked = Picker(tarball, work / "result", wanted, arch).pick()
            picked.suites = suites
            content = {
                "packages": picked.packages,
                "suites": picked.suites,
                "modes": dict(sorted(picked.modes.items())),
            }
            write_whole(picked.folder / "picked.json", json.dumps(content, indent=1) + "\n")
            picked.folder.rename(folder)
        for old in cache.glob(f"debian-{arch.name}-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
    content = json.loads((folder / "picked.json").read_text())
    return Picked(folder, content["packages"], content["suites"], content["modes"])


def fetch(packages: Iterable[str], tarball: Path, arch: Arch, log: Path) -> list[str]:
    """Let mmdebstrap make a tarball of the packages; return the suites it used. What it says of a failure is in the log."""
    need_tools(["mmdebstrap"])
    sources = archives()
    say(f"fetching {arch.name} packages from {', '.join(one.suite for one in sources)}")
    try:
        mmdebstrap(packages, tarball, sources, arch, log)
    except UserError:
        # A mirror may be behind with one architecture of the security or updates suite: the image
        # is then made of the release alone, and says so here and in its manifest.
        said = "\n".join(complaints(log.read_text(errors="replace")))
        broken = [one for one in sources[1:] if f"/{one.suite}/" in said]
        if not broken:
            raise
        names = ", ".join(one.suite for one in broken)
        say(f"warning: {names} left out, the mirror's {arch.name} index of it is broken ({display(log)})")
        sources = [one for one in sources if one not in broken]
        mmdebstrap(packages, tarball, sources, arch, log.with_suffix(".main.log"))
    return [one.suite for one in sources]


def complaints(said: str) -> list[str]:
    """The lines of apt and mmdebstrap which are about an error."""
    return [line.strip() for line in said.splitlines() if line.startswith(("E: ", "Err:"))]


def mmdebstrap(packages: Iterable[str], tarball: Path, sources: list[Archive], arch: Arch, log: Path) -> None:
    command = [
        "mmdebstrap",
        "--variant=extract",
        # the packages are only unpacked: that needs neither root nor namespaces, which a container may not have
        "--mode=chrootless",
        # no script of a package runs, which could do harm as root outside of a chroot
        "--skip=check/chrootless",
        f"--architectures={arch.name}",
        f"--include={','.join(packages)}",
        "--format=tar",
        # the names of the .deb files are the packages with their versions
        '--extract-hook=ls "$1/var/cache/apt/archives" > "$1/arm-pmem-packages"',
        SUITE,
        str(tarball),
        *(one.line for one in sources),
    ]
    done = subprocess.run(
        command,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=900,
        check=False,
    )
    if done.returncode:
        write_whole(log, done.stderr)
        reasons = complaints(done.stderr) or done.stderr.splitlines()[-1:] or [f"exit status {done.returncode}"]
        reason = textwrap.shorten(reasons[0], 160, placeholder=" …")
        raise UserError(f"the {arch.name} packages cannot be had by mmdebstrap: {reason} ({display(log)})")


# --- picking ---------------------------------------------------------------------------------


class Picker:
    """Takes the wanted files out of mmdebstrap's tarball, with the libraries they need."""

    def __init__(self, tarball: Path, folder: Path, wanted: Wanted, arch: Arch = ARMHF) -> None:
        self.arch = arch
        self.wanted = wanted
        self.result = Picked(folder)
        self.tar = tarfile.open(tarball)  # noqa: SIM115 (closed by pick())
        self.members = {os.path.normpath(one.name): one for one in self.tar}
        self.stub_users: dict[str, list[Path]] = {}

    def pick(self) -> Picked:
        with self.tar:
            self.result.tree.mkdir(parents=True)
            listing = self.tar.extractfile(self.members["arm-pmem-packages"])
            assert listing
            names = [name for name in listing.read().decode().split() if name.endswith(".deb")]
            self.result.packages = sorted("=".join(name.replace("%3a", ":").split("_")[:2]) for name in names)
            for path in self.wanted.paths:
                if path not in self.members:
                    raise UserError(f"no package of board/common/packages.txt holds '{path}'")
                self.take(path)
            for name, users in self.stub_users.items():
                self.make_stub(name, users)
        return self.result

    def take(self, path: str) -> None:
        """Extract one file; then what it points to, or the libraries it needs."""
        if path in self.result.modes:
            return
        member = self.members[path]
        target = self.result.tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # Unpacked by an unprivileged user, a file is without its setuid bit; on the board everybody is root.
        self.result.modes[path] = member.mode & 0o777
        if member.issym():
            target.symlink_to(member.linkname)
            self.take(resolve(path, member.linkname))
            return
        content = self.tar.extractfile(member)
        if content is None:
            raise UserError(f"'{path}' of board/common/packages.txt is not a file")
        target.write_bytes(content.read())
        for library in needed(target):
            if library in self.wanted.stubs:
                self.stub_users.setdefault(library, []).append(target)
            else:
                self.take(self.find_library(library, path))
        if has_interpreter(target):
            self.take(self.arch.loader)

    def find_library(self, name: str, user: str) -> str:
        for folder in self.arch.library_folders:
            if f"{folder}/{name}" in self.members:
                return f"{folder}/{name}"
        raise UserError(f"{user} needs {name}, which no Debian package of the image holds")

    def make_stub(self, name: str, users: list[Path]) -> None:
        """A library with the symbols which its users want from it, and no code behind."""
        real = self.members[self.find_library(name, name)]
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / name
            content = self.tar.extractfile(real)
            assert content
            library.write_bytes(content.read())
            offered = {symbol for symbol, defined in dynamic_symbols(library) if defined}
        wanted: dict[str, set[str]] = {}
        for user in users:
            for symbol, defined in dynamic_symbols(user):
                if not defined and symbol in offered:
                    bare, _, version = symbol.partition("@")
                    wanted.setdefault(version.lstrip("@"), set()).add(bare)
        path = f"{self.arch.library_folders[1]}/{name}"
        target = self.result.tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        build_stub(name, wanted, target, self.arch)
        self.result.modes[path] = 0o755


def resolve(path: str, link: str) -> str:
    base = PurePosixPath("/") / PurePosixPath(path).parent / link
    return os.path.normpath(str(base)).lstrip("/")


def is_elf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def readelf(path: Path, *options: str) -> str:
    return run(
        [f"{CROSS_COMPILE}readelf", "--wide", *options, path],
        what=f"{path.name} cannot be read",
    )


def needed(path: Path) -> list[str]:
    if not is_elf(path):
        return []
    return re.findall(r"\(NEEDED\).*\[(.+)\]", readelf(path, "--dynamic"))


def has_interpreter(path: Path) -> bool:
    return is_elf(path) and "Requesting program interpreter" in readelf(path, "--program-headers")


def dynamic_symbols(path: Path) -> list[tuple[str, bool]]:
    """(name@VERSION, is it defined here) of every dynamic symbol."""
    symbols = []
    for line in readelf(path, "--dyn-syms").splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].rstrip(":").isdigit() and fields[4] != "LOCAL":
            symbols.append((fields[7].replace("@@", "@"), fields[6] != "UND"))
    return symbols


def build_stub(name: str, wanted: dict[str, set[str]], target: Path, arch: Arch) -> None:
    """`wanted` maps a symbol version ('' for none) to the symbols under it."""
    code = "".join(
        f"void {symbol}(void) {{ __builtin_trap(); }}\n"
        for symbols in (wanted[version] for version in sorted(wanted))
        for symbol in sorted(symbols)
    )
    script = "".join(
        f"{version} {{ global: {' '.join(f'{one};' for one in sorted(wanted[version]))} }};\n"
        for version in sorted(wanted)
        if version
    )
    with tempfile.TemporaryDirectory() as folder:
        source, versions = Path(folder) / "stub.c", Path(folder) / "stub.map"
        source.write_text(code)
        versions.write_text(script)
        run(
            [
                f"{arch.cross}gcc",
                *("-shared", "-nostdlib", "-fPIC", "-Os", "-fno-builtin", "-s"),
                *("-Wl,--build-id=none", f"-Wl,-soname,{name}"),
                *([f"-Wl,--version-script={versions}"] if script else []),
                *("-o", target, source),
            ],
            what=f"the stub of {name}",
        )


# --- the archive -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One name in the cpio archive. `file` is where a regular file's bytes are."""

    path: str
    mode: int
    file: Path | None = None
    link: str = ""

    def line(self) -> str:
        if self.link:
            return f"slink /{self.path} {self.link} {self.mode:o} 0 0"
        if self.file:
            return f"file /{self.path} {self.file} {self.mode:o} 0 0"
        return f"dir /{self.path} {self.mode:o} 0 0"


def entries_of(tree: Path, modes: dict[str, int] | None = None) -> dict[str, Entry]:
    """The files of a folder; without given modes only the executable bit counts."""
    found: dict[str, Entry] = {}
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_symlink():
            found[name] = Entry(name, 0o777, link=os.readlink(path))
        elif path.is_file():
            executable = path.stat().st_mode & stat.S_IXUSR
            mode = (modes or {}).get(name, 0o755 if executable else 0o644)
            found[name] = Entry(name, mode, file=path)
    return found


def with_folders(entries: dict[str, Entry]) -> list[Entry]:
    """All entries in archive order: each folder before what it holds."""
    everything = dict(entries)
    for name in [*FOLDERS, *(path for entry in entries for path in parents(entry))]:
        everything.setdefault(name, Entry(name, 0o1777 if name == "tmp" else 0o755))
    return [everything[name] for name in sorted(everything)]


def parents(path: str) -> list[str]:
    return [str(one) for one in PurePosixPath(path).parents if str(one) != "."]


def write_cpio(entries: dict[str, Entry], gen_init_cpio: Path, stage: Path, epoch: int, target: Path) -> None:
    """Write the gzip-packed cpio by the kernel's own tool, which needs no root for device nodes."""
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    lines = ["nod /dev/console 600 0 0 c 5 1"]
    for number, entry in enumerate(with_folders(entries)):
        if not entry.file:
            lines.append(entry.line())
            continue
        # gen_init_cpio takes the time stamp of a file from the file
        copy = stage / f"{number:04}"
        shutil.copyfile(entry.file, copy)
        os.utime(copy, (epoch, epoch))
        lines.append(replace(entry, file=copy).line())
    # the node must come after the folder that holds it
    lines.sort(key=lambda line: line.split()[1])
    spec = stage / "cpio-list"
    spec.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [gen_init_cpio, "-t", str(epoch), spec],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise UserError(f"gen_init_cpio failed: {done.stderr.decode(errors='replace').strip()}")
    write_whole(target, gzip.compress(done.stdout, 6, mtime=0))
    shutil.rmtree(stage)


def build(
    *,
    work: Path,
    target: Path,
    gen_init_cpio: Path,
    epoch: int,
    release: dict[str, str],
    programs: dict[str, Path],
    arch: Arch = ARMHF,
    packages_file: Path = ROOT / "board/common/packages.txt",
    overlay: Path = ROOT / "board/common/rootfs",
) -> Picked:
    """Make `target` unless it was made of the same input."""
    picked = debian(packages_file, arch)
    work.mkdir(parents=True, exist_ok=True)
    release_file = work / "arm-pmem-release"
    write_whole(release_file, "".join(f"{name}={value}\n" for name, value in release.items()))

    entries = entries_of(picked.tree, picked.modes)
    entries["bin/sh"] = Entry("bin/sh", 0o777, link="busybox")
    entries["init"] = Entry("init", 0o777, link="bin/busybox")
    entries |= entries_of(overlay)
    entries["etc/arm-pmem-release"] = Entry("etc/arm-pmem-release", 0o644, file=release_file)
    for name, file in programs.items():
        entries[name] = Entry(name, 0o755, file=file)

    described = [
        (entry.path, entry.mode, entry.link, sha256(entry.file) if entry.file else "") for entry in entries.values()
    ]
    key = sha256(json.dumps([described, epoch, FOLDERS, sha256(Path(__file__))]).encode())
    stamp = work / ".made"
    made = stamp.read_text().split() if stamp.exists() else []
    if target.exists() and made == [key, sha256(target)]:
        return picked
    write_cpio(entries, gen_init_cpio, work / "stage", epoch, target)
    write_whole(stamp, f"{key} {sha256(target)}\n")
    return picked
