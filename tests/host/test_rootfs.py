# SPDX-License-Identifier: GPL-2.0-only
"""The minimal root file system: what is taken from Debian, and the same bytes each time."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from toyline import ROOT

from tools import rootfs
from tools.common import CROSS_COMPILE, UserError
from tools.debian import Archive
from tools.rootfs import Entry, Picker, Wanted


@pytest.fixture(scope="session")
def gen_init_cpio(kernel_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("usr") / "gen_init_cpio"
    subprocess.run(["gcc", "-o", program, kernel_tree / "usr/gen_init_cpio.c"], check=True, timeout=60)
    return program


# --- packages.txt ------------------------------------------------------------------------------


def packages(tmp_path: Path, text: str) -> Wanted:
    file = tmp_path / "packages.txt"
    file.write_text(text)
    return rootfs.read_packages(file)


def test_packages_with_their_files_and_stubs(tmp_path: Path) -> None:
    wanted = packages(tmp_path, "# comment\n\nacl: bin/a usr/bin/b  # why\nfio: usr/bin/fio -librbd.so.1\nacl: bin/c\n")
    assert wanted == Wanted(("acl", "fio"), ("bin/a", "usr/bin/b", "usr/bin/fio", "bin/c"), ("librbd.so.1",))


@pytest.mark.parametrize("line", ["busybox", "busybox:", "Busy Box: bin/busybox", ": bin/busybox"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match=r"packages\.txt:2: expected 'package: path …'"):
        packages(tmp_path, f"acl: bin/a\n{line}\n")


# --- taking files ------------------------------------------------------------------------------


def armhf(folder: Path, name: str, code: str, *options: str) -> bytes:
    folder.mkdir(exist_ok=True)
    source = folder / "source.c"
    source.write_text(code)
    subprocess.run(
        [f"{CROSS_COMPILE}gcc", "-nostdlib", "-o", name, source.name, *options], cwd=folder, check=True, timeout=60
    )
    return (folder / name).read_bytes()


@pytest.fixture
def debian_tree(tmp_path: Path) -> Path:
    """A tarball as mmdebstrap makes it: a program with one wanted and one unwanted library."""
    work = tmp_path / "elf"
    libraries = {
        "libone.so.1": armhf(work, "libone.so.1", "int one(void) { return 1; }", "-shared", "-Wl,-soname,libone.so.1"),
        "libbig.so.2": armhf(
            work,
            "libbig.so.2",
            "int big(void) { return 2; } char pad[99999] = {1};",
            "-shared",
            "-Wl,-soname,libbig.so.2",
        ),
    }
    program = armhf(
        work,
        "program",
        "int one(void); int big(void); void _start(void) { one(); big(); for (;;); }",
        "libone.so.1",
        "libbig.so.2",
        "-Wl,-dynamic-linker,/lib/ld-linux-armhf.so.3",
    )
    loader = armhf(work, "ld.so", "void _start(void) {}", "-shared")
    with tarfile.open(tmp_path / "root.tar", "w") as tarball:

        def add(name: str, content: bytes = b"", link: str = "", mode: int = 0o644) -> None:
            member = tarfile.TarInfo(f"./{name}")
            member.mode, member.size = mode, len(content)
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, link
            tarball.addfile(member, io.BytesIO(content))

        add("arm-pmem-packages", b"lock\npartial\nprogram_1.2-3_armhf.deb\nlibone_2%3a4_armhf.deb\n")
        add("usr/bin/program", program, mode=0o4755)
        add("usr/bin/name", link="program")
        add("usr/bin/other", b"not wanted")
        add("lib/arm-linux-gnueabihf/libone.so.1.0", libraries["libone.so.1"])
        add("lib/arm-linux-gnueabihf/libone.so.1", link="libone.so.1.0")
        add("usr/lib/arm-linux-gnueabihf/libbig.so.2", libraries["libbig.so.2"])
        add("lib/arm-linux-gnueabihf/ld.so", loader, mode=0o755)
        add("lib/ld-linux-armhf.so.3", link="arm-linux-gnueabihf/ld.so")
    return tmp_path / "root.tar"


def test_a_program_brings_what_it_needs_and_nothing_else(debian_tree: Path, tmp_path: Path) -> None:
    picked = Picker(debian_tree, tmp_path / "picked", Wanted(("program",), ("usr/bin/name",), ())).pick()
    assert picked.modes == {
        "usr/bin/name": 0o644,
        # not 4755: as an unprivileged user unpacks it
        "usr/bin/program": 0o755,
        "lib/arm-linux-gnueabihf/libone.so.1": 0o644,
        "lib/arm-linux-gnueabihf/libone.so.1.0": 0o644,
        "usr/lib/arm-linux-gnueabihf/libbig.so.2": 0o644,
        "lib/ld-linux-armhf.so.3": 0o644,
        "lib/arm-linux-gnueabihf/ld.so": 0o755,
    }
    assert os.readlink(picked.tree / "usr/bin/name") == "program"
    assert picked.packages == ["libone=2:4", "program=1.2-3"]


def test_a_stub_has_the_symbols_that_are_used_and_no_weight(debian_tree: Path, tmp_path: Path) -> None:
    wanted = Wanted(("program",), ("usr/bin/program",), ("libbig.so.2",))
    picked = Picker(debian_tree, tmp_path / "picked", wanted).pick()
    stub = picked.tree / "usr/lib/arm-linux-gnueabihf/libbig.so.2"
    assert ("big", True) in rootfs.dynamic_symbols(stub)
    assert "soname: [libbig.so.2]" in rootfs.readelf(stub, "--dynamic")
    assert stub.stat().st_size < 10000


def test_a_stub_keeps_symbol_versions(tmp_path: Path) -> None:
    rootfs.build_stub(
        "libv.so.1", {"V_1": {"one"}, "V_2": {"two", "three"}, "": set()}, tmp_path / "libv.so.1", rootfs.ARMHF
    )
    assert {name for name, defined in rootfs.dynamic_symbols(tmp_path / "libv.so.1") if defined} >= {
        "one@V_1",
        "two@V_2",
        "three@V_2",
    }


def test_a_file_that_no_package_holds(debian_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no package of .*packages\.txt holds 'usr/bin/nothing'"):
        Picker(debian_tree, tmp_path / "picked", Wanted(("program",), ("usr/bin/nothing",), ())).pick()


# --- mirrors -----------------------------------------------------------------------------------

MAIN = Archive("http://mirror.example/debian", "bookworm", "/usr/share/keyrings/debian-archive-keyring.gpg")
SECURITY = Archive("http://mirror.example/debian-security", "bookworm-security")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An mmdebstrap that says what the real one says of a mirror with a broken index, of the suites in a file."""
    program, broken = tmp_path / "bin/mmdebstrap", tmp_path / "broken"
    program.parent.mkdir()
    program.write_text(f"""#!/bin/sh
status=0
for suite in $(cat {broken}); do
	case "$*" in
	*" $suite main"*) ;;
	*) continue ;;
	esac
	for part in Packages.xz Packages.gz Packages; do
		url=http://mirror.example/debian/dists/$suite/main/binary-armhf/$part
		echo "Err:7 $url File has unexpected size (2469 != 2470). Mirror sync in progress? [IP: 192.0.2.1 80]"
		echo "E: Failed to fetch $url  File has unexpected size (2469 != 2470). Mirror sync in progress? [IP: 192.0.2.1 80]"
	done >&2
	status=25
done
exit $status
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(rootfs, "archives", lambda: [MAIN, SECURITY])
    return broken


def test_a_broken_security_index_is_left_out_and_said_in_a_short_line(
    mirror: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mirror.write_text("bookworm-security")
    assert rootfs.fetch(["a"], tmp_path / "t", rootfs.ARMHF, tmp_path / "log") == ["bookworm"]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert told == [f"warning: bookworm-security left out, the mirror's armhf index of it is broken ({tmp_path}/log)"]
    assert (tmp_path / "log").read_text().count("Mirror sync in progress?") == 6


@pytest.mark.parametrize("broken", ["bookworm", "bookworm-security bookworm"])
def test_a_broken_main_index_is_an_error(mirror: Path, tmp_path: Path, broken: str) -> None:
    mirror.write_text(broken)
    with pytest.raises(UserError) as told:
        rootfs.fetch(["a"], tmp_path / "t", rootfs.ARMHF, tmp_path / "log")
    assert re.fullmatch(
        r"the armhf packages cannot be had by mmdebstrap: Err:7 .*/dists/bookworm/main/.{,90} \(.*log\)",
        str(told.value),
    )


def test_a_failed_fetch_leaves_nothing_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(packages: object, tarball: Path, arch: rootfs.Arch, log: Path) -> list[str]:
        tarball.write_bytes(b"half")
        raise UserError("no network")

    monkeypatch.setattr(rootfs, "fetch", fetch)
    with pytest.raises(UserError, match="no network"):
        rootfs.debian(ROOT / "board/common/packages.txt", rootfs.ARMHF, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_sources_line_names_suite_and_key() -> None:
    assert MAIN.line == (
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main"
    )


# --- the archive -------------------------------------------------------------------------------


def cpio_listing(archive: Path) -> list[str]:
    done = subprocess.run(
        ["cpio", "--list", "--verbose", "--numeric-uid-gid", "--quiet"],
        input=gzip.decompress(archive.read_bytes()),
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    )
    return done.stdout.decode().splitlines()


def make_entries(folder: Path, names: list[str]) -> dict[str, Entry]:
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / names[0]).chmod(0o755)
    (folder / "bin/link").symlink_to("a")
    return rootfs.entries_of(folder)


def test_two_archives_of_the_same_files_are_the_same_bytes(gen_init_cpio: Path, tmp_path: Path) -> None:
    """Whatever the order of creation, the time stamps and the place."""
    first = make_entries(tmp_path / "one", ["bin/a", "etc/b", "etc/deep/c"])
    second = make_entries(tmp_path / "other-place", ["bin/a", "etc/deep/c", "etc/b"])
    os.utime(tmp_path / "other-place/etc/b", (5, 5))
    rootfs.write_cpio(first, gen_init_cpio, tmp_path / "s1", 1700000000, tmp_path / "1.gz")
    rootfs.write_cpio(dict(reversed(second.items())), gen_init_cpio, tmp_path / "s2", 1700000000, tmp_path / "2.gz")
    assert (tmp_path / "1.gz").read_bytes() == (tmp_path / "2.gz").read_bytes()
    # the time in gzip's own header
    assert (tmp_path / "1.gz").read_bytes()[4:8] == bytes(4)


def test_the_archive_belongs_to_root_and_has_a_console(gen_init_cpio: Path, tmp_path: Path) -> None:
    entries = make_entries(tmp_path / "one", ["bin/a", "etc/b"])
    rootfs.write_cpio(entries, gen_init_cpio, tmp_path / "s", 1700000000, tmp_path / "1.gz")
    listing = {line.split()[-1]: line.split() for line in cpio_listing(tmp_path / "1.gz")}
    assert all(line[2:4] == ["0", "0"] for line in listing.values())
    assert listing["dev/console"][0] == "crw-------"
    assert listing["bin/a"][0] == "-rwxr-xr-x"
    assert listing["etc/b"][0] == "-rw-r--r--"
    assert listing["tmp"][0] == "drwxrwxrwt"
    assert listing["etc/b"][5:8] == ["Nov", "14", "2023"]


def test_a_folder_comes_before_what_it_holds(gen_init_cpio: Path, tmp_path: Path) -> None:
    entries = make_entries(tmp_path / "one", ["bin/a", "etc/deep/er/c"])
    rootfs.write_cpio(entries, gen_init_cpio, tmp_path / "s", 0, tmp_path / "1.gz")
    names = [line.split()[8] for line in cpio_listing(tmp_path / "1.gz")]
    assert all(parent in names[:number] for number, name in enumerate(names) for parent in rootfs.parents(name))


def test_a_failing_tool_leaves_the_old_archive(tmp_path: Path) -> None:
    (tmp_path / "1.gz").write_bytes(b"old")
    with pytest.raises(UserError, match="gen_init_cpio failed"):
        rootfs.write_cpio({}, Path("/bin/false"), tmp_path / "s", 0, tmp_path / "1.gz")
    assert (tmp_path / "1.gz").read_bytes() == b"old"
