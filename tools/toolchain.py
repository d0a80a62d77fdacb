# SPDX-License-Identifier: GPL-2.0-only
"""Debian's cross compiler in the shape which Buildroot takes: one relocatable folder with a sysroot, as a tarball.

Buildroot refuses the installed one ("Distribution toolchains are unsuitable"): its gcc is configured with `/` as
sysroot. Here the packages are unpacked, libraries and headers laid into one classic sysroot, and gcc called through
a wrapper which names it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tools import debian
from tools.common import CROSS_COMPILE, UserError, run, say

TRIPLET = CROSS_COMPILE.rstrip("-")
GCC = "12"
# What Buildroot is told of it: br2-external/sources/debian.config
PACKAGES = [
    *(f"{name}-{GCC}-{TRIPLET}" for name in ("gcc", "g++", "cpp")),
    f"binutils-{TRIPLET}",
    *(
        f"{name}-armhf-cross"
        for name in ("libgcc-12-dev", "libgcc-s1", "libstdc++-12-dev", "libstdc++6", "libatomic1", "libgomp1")
    ),
    # the shared libraries which these programs need are those of the host's gcc, which `make deps` installs
    # The C library of the target itself: the one which Debian packs for cross building lags behind with mends.
    *(f"{name}:armhf" for name in ("libc6", "libc6-dev", "libc-bin", "linux-libc-dev")),
]
NAME = f"{TRIPLET}-gcc{GCC}-debian.tar.gz"

# A later --sysroot, Buildroot's, wins. `gcc -v` is where Buildroot looks for the sysroot it was configured with.
WRAPPER = """#!/bin/sh
# Debian's driver is configured with the sysroot `/`: this one has its own.
here=$(dirname "$(readlink -f "$0")")/..
real=$here/usr/bin/$(basename "$0")-@GCC@
if [ "$*" = -v ]; then
	"$real" --sysroot="$here/sysroot" -v 2>&1 | sed "s#--with-sysroot=/ #--with-sysroot=$here/sysroot #" >&2
	exit 0
fi
exec "$real" --sysroot="$here/sysroot" "$@"
"""
PLAIN = "addr2line ar as c++filt elfedit ld ld.bfd nm objcopy objdump ranlib readelf size strings strip"


def make(target: Path, epoch: int) -> list[str]:
    """Write the tarball; returns its packages with their versions."""
    say(f"making the toolchain {target.name} of Debian's packages (once)")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".toolchain-") as name:
        work = Path(name)
        packages = debian.download(PACKAGES, work / "apt")
        tree = work / "toolchain"
        native = work / "armhf"
        for package in packages:
            foreign = package.stem.rpartition("_")[2] == "armhf"
            debian.unpack(package, native if foreign else tree)
        lay_sysroot(tree, native)
        lay_programs(tree)
        check(tree, work)
        pack(tree, work / target.name, epoch)
        (work / target.name).replace(target)
        return sorted("=".join(one.name.replace("%3a", ":").split("_")[:2]) for one in packages)


def merge(source: Path, target: Path) -> None:
    """Everything below source into target, links as links."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def lay_sysroot(tree: Path, native: Path) -> None:
    """lib, usr/lib and usr/include as a C library without Debian's architecture folders would install them."""
    sysroot = tree / "sysroot"
    libraries, development = sysroot / "lib", sysroot / "usr/lib"
    for folder in (libraries, development):
        folder.mkdir(parents=True)
    for source in (native / "lib" / TRIPLET, native / "usr/lib" / TRIPLET, tree / "usr" / TRIPLET / "lib"):
        for path in sorted(source.glob("*")) if source.is_dir() else []:
            if path.is_dir():
                continue
            # what a program needs at run time has a number behind .so
            runtime = ".so." in path.name
            path.rename((libraries if runtime else development) / path.name)
    shutil.rmtree(tree / "usr" / TRIPLET / "lib", ignore_errors=True)
    merge(native / "usr/include", sysroot / "usr/include")
    merge(native / "usr/include" / TRIPLET, sysroot / "usr/include")
    shutil.rmtree(sysroot / "usr/include" / TRIPLET)
    (sysroot / "usr/bin").mkdir()
    for name in ("usr/bin/ldd", "sbin/ldconfig"):
        if (native / name).exists():
            (sysroot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(native / name, sysroot / name)

    gcc = tree / "usr/lib/gcc-cross" / TRIPLET / GCC
    for path in sorted(gcc.glob("lib*")):
        if path.is_symlink():
            # they lead to libraries which lie in the sysroot now
            path.unlink()
            found = sorted(libraries.glob(f"{path.name}.*"))
            if found:
                (development / path.name).symlink_to(f"../../lib/{found[0].name}")
        elif path.name in ("libstdc++.a", "libsupc++.a", "libstdc++fs.a", "libatomic.a", "libgomp.a"):
            # outside of the sysroot Buildroot would take the whole folder for one of libraries
            path.rename(development / path.name)
        elif "san" in path.name:
            path.unlink()
    for path in sorted(development.glob("*.so")):
        if path.is_symlink():
            name = os.path.basename(os.readlink(path))
            if (libraries / name).exists():
                path.unlink()
                path.symlink_to(f"../../lib/{name}")
            elif not path.exists():
                path.unlink()
        elif path.stat().st_size < 2000 and b"GNU ld script" in path.read_bytes():
            text = path.read_text().replace(f"/usr/lib/{TRIPLET}/", "/usr/lib/").replace(f"/lib/{TRIPLET}/", "/lib/")
            path.write_text(text)


def lay_programs(tree: Path) -> None:
    programs = tree / "bin"
    programs.mkdir()
    for name in ("gcc", "g++", "cpp"):
        wrapper = programs / f"{CROSS_COMPILE}{name}"
        wrapper.write_text(WRAPPER.replace("@GCC@", GCC))
        wrapper.chmod(0o755)
    for name in ("gcc-ar", "gcc-nm", "gcc-ranlib", "gcov"):
        (programs / f"{CROSS_COMPILE}{name}").symlink_to(f"../usr/bin/{CROSS_COMPILE}{name}-{GCC}")
    for name in PLAIN.split():
        (programs / f"{CROSS_COMPILE}{name}").symlink_to(f"../usr/bin/{CROSS_COMPILE}{name}")
    shutil.rmtree(tree / "usr/share", ignore_errors=True)


def check(tree: Path, work: Path) -> None:
    """It compiles and links a program against its own sysroot, or it is not packed."""
    source = work / "hello.c"
    source.write_text('#include <stdio.h>\n#include <pthread.h>\nint main(void) { return puts("hello") < 0; }\n')
    plus = work / "hello.cc"
    plus.write_text('#include <iostream>\nint main() { std::cout << "hello\\n"; }\n')
    for compiler, file in (("gcc", source), ("g++", plus)):
        program = tree / "bin" / f"{CROSS_COMPILE}{compiler}"
        run(
            [program, "-pthread", "-o", work / "hello", file],
            what=f"{compiler} of the toolchain does not link a program",
        )
    dangling = [path for path in tree.rglob("*") if path.is_symlink() and not path.exists()]
    if dangling:
        raise UserError(f"the toolchain has links which lead nowhere: {', '.join(str(one) for one in dangling[:3])}")


def pack(tree: Path, target: Path, epoch: int) -> None:
    """The same bytes for the same packages."""
    run(
        [
            *("tar", "--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", f"--mtime=@{epoch}"),
            *("--use-compress-program=gzip -n -6", f"--file={target}", "-C", tree.parent, tree.name),
        ],
        what="the toolchain cannot be packed",
    )
