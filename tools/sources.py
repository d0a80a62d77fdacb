# SPDX-License-Identifier: GPL-2.0-only
"""SOURCES=debian: every input of a Buildroot build from Debian's archive, kept in the user's cache folder.

br2-external/sources/debian.yaml says where each one is and what its sha256 must be. What a build needs is laid out
as Buildroot's primary site, as override folders, and as one file for BR2_PACKAGE_OVERRIDE_FILE. All of it together
is one tar (`make sources-archive`), from which SOURCES=archive:<tar> builds without a network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

from tools import debian, toolchain
from tools.common import ROOT, UserError, display, locked, run, say, sha256, write_whole
from tools.common import cache_folder as cache_folder

FOLDER = ROOT / "br2-external/sources"
MANIFEST = FOLDER / "debian.yaml"
# The hash of the kernel source that was tested stands there, by Buildroot's rules.
LINUX_HASH = ROOT / "patches/linux/linux.hash"
ARCHIVE_INDEX = "arm-pmem-sources.json"
# Where the host has the licence texts of what Debian's toolchain brings: the same source packages, made for the host
RUNTIME_LICENCES = ("libc6", "libgcc-s1", "linux-libc-dev")
TRIES = 3
# How long one make waits for another to fetch what both need, in seconds
STORE_LIMIT = 900
# apt warns where its own user cannot enter the folder: it need not.
APT_HELPER = ["/usr/lib/apt/apt-helper", "-o", "APT::Sandbox::User=root"]


@dataclass(frozen=True)
class Pinned:
    """One file of the archive's pool."""

    pool: str
    sha256: str

    @property
    def name(self) -> str:
        return self.pool.rpartition("/")[2]


@dataclass(frozen=True)
class Override:
    """A package which Buildroot builds from an unpacked folder."""

    name: str
    file: Pinned
    version: str
    debian: Pinned | None = None
    patches: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    set: dict[str, str] = field(default_factory=dict)
    # The same for the host's variant of it
    host: dict[str, str] = field(default_factory=dict)
    # What is taken where the file cannot be had
    fallback: Override | None = None

    @property
    def files(self) -> list[Pinned]:
        return [self.file, *([self.debian] if self.debian else [])]


@dataclass(frozen=True)
class Identical:
    """A file which Buildroot knows by its hash, under the name which it has there."""

    name: str
    file: Pinned
    fallback: Override | None = None


@dataclass(frozen=True)
class Tool:
    """A host package which an installed program stands in for."""

    name: str
    package: str
    programs: tuple[str, ...] = ()
    wrapper: str = ""
    depends: str = ""
    hooks: bool = False


@dataclass(frozen=True)
class Manifest:
    identical: list[Identical]
    overrides: list[Override]
    tools: list[Tool]

    @property
    def wanted(self) -> list[Identical | Override]:
        return [*self.identical, *self.overrides]


def pinned(entry: dict[str, Any]) -> Pinned:
    return Pinned(entry["pool"], entry["sha256"])


def override(name: str, entry: dict[str, Any]) -> Override:
    return Override(
        name,
        pinned(entry),
        str(entry["version"]),
        pinned(entry["debian"]) if "debian" in entry else None,
        tuple(entry.get("patches", ())),
        tuple(entry.get("empty", ())),
        entry.get("set", {}),
        entry.get("host", {}),
        fallback(entry),
    )


def fallback(entry: dict[str, Any]) -> Override | None:
    return override(entry["or"]["name"], entry["or"]) if "or" in entry else None


def read_manifest(path: Path = MANIFEST) -> Manifest:
    try:
        content = yaml.safe_load(path.read_text())
        return Manifest(
            [Identical(name, pinned(entry), fallback(entry)) for name, entry in content["identical"].items()],
            [override(name, entry) for name, entry in content["override"].items()],
            [
                Tool(
                    name,
                    entry["package"],
                    tuple(entry.get("programs", ())),
                    entry.get("wrapper", ""),
                    entry.get("depends", ""),
                    "hooks" in entry,
                )
                for name, entry in content["tool"].items()
            ],
        )
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{display(path)} is no source manifest: {reason}") from error


# --- fetching --------------------------------------------------------------------------------


class Gone(UserError):
    """The archive does not have a file (any more)."""


def held(file: Pinned, target: Path) -> bool:
    return target.exists() and sha256(target) == file.sha256


def fetch(file: Pinned, target: Path) -> None:
    """One file of the pool, by apt's own downloader (the host's proxies and mirrors), verified."""
    target.parent.mkdir(parents=True, exist_ok=True)
    uri = f"{debian.archives()[0].uri.rstrip('/')}/pool/{file.pool}"
    say(f"fetching {file.name}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        part = Path(folder) / file.name
        for attempt in range(1, TRIES + 1):
            try:
                run([*APT_HELPER, "download-file", uri, part], what=file.name, timeout=600)
                if sha256(part) != file.sha256:
                    raise UserError(f"it has another sha256 than {display(MANIFEST)} says")
                break
            except UserError as error:
                if " 404 " in str(error):
                    raise Gone(f"{file.name} is not in Debian's archive (any more)") from error
                if attempt == TRIES:
                    raise UserError(f"{file.name} cannot be had from Debian's archive: {error}") from error
        part.replace(target)


def fetch_all(manifest: Manifest, store: Path) -> Manifest:
    """Everything into the store; returns the manifest of what is there, which has fallbacks in their place."""
    taken = [obtain(one, store) for one in manifest.wanted]
    return sorted_manifest(taken, manifest.tools)


def sorted_manifest(found: list[Identical | Override], tools: list[Tool]) -> Manifest:
    return Manifest(
        [one for one in found if isinstance(one, Identical)],
        [one for one in found if isinstance(one, Override)],
        tools,
    )


def places(one: Identical | Override, store: Path) -> list[tuple[Pinned, Path]]:
    if isinstance(one, Override):
        return [(file, store / "pool" / file.name) for file in one.files]
    return [(one.file, store / "site" / one.name)]


def obtain(wanted: Identical | Override, store: Path) -> Identical | Override:
    missing = [(file, target) for file, target in places(wanted, store) if not held(file, target)]
    if missing and wanted.fallback and all(held(*pair) for pair in places(wanted.fallback, store)):
        # It took its place before: what was built once is built the same again.
        return wanted.fallback
    try:
        for file, target in missing:
            fetch(file, target)
    except Gone as error:
        if wanted.fallback is None:
            raise UserError(
                f"{error}: mend {display(MANIFEST)}, or build from SOURCES=archive:<tar> of a machine which has it"
            ) from error
        say(f"note: {error}, {wanted.fallback.name} {wanted.fallback.version} takes its place")
        return obtain(wanted.fallback, store)
    return wanted


# --- the kernel and the toolchain ------------------------------------------------------------


def kernel_tarball(line: str, store: Path) -> Path:
    """Debian's kernel source under a name with its version, so that Buildroot never mistakes one for another."""
    source = Path(os.environ.get("KERNEL_TARBALLS", "/usr/src")) / f"linux-source-{line}.tar.xz"
    package = f"linux-source-{line}"
    if not source.exists():
        raise UserError(f"{source} not found on this machine: run `make deps`")
    version = run(["dpkg-query", "--show", "--showformat", "${Version}", package], what=f"the version of {package}")
    target = store / "site" / f"linux-source-{version.replace(':', '-')}.tar.xz"
    # dpkg gives the file the date of its package: another package is another date or size.
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        for old in target.parent.glob("linux-source-*"):
            old.unlink()
        copy_whole_file(source, target)
    return target


def copy_whole_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def tested_kernel() -> dict[str, str]:
    """sha256 by file name, as patches/linux/linux.hash has them."""
    found = re.findall(r"(?m)^sha256\s+([0-9a-f]{64})\s+(\S+)", LINUX_HASH.read_text())
    return {name: digest for digest, name in found}


def kernel_hash(tarball: Path, folder: Path) -> None:
    """A patch folder with the hash of a kernel source which is not the tested one; apt has verified that one, too."""
    target = folder / "linux/linux.hash"
    target.parent.mkdir(parents=True, exist_ok=True)
    tested = tested_kernel()
    if tarball.name in tested:
        target.unlink(missing_ok=True)
        return
    names = ", ".join(name for name in tested if name.startswith("linux-source-"))
    say(f"note: the kernel source is {tarball.name}, and {names} is what was tested")
    write_whole(target, f"sha256  {sha256(tarball)}  {tarball.name}\n")


def toolchain_tarball(store: Path, epoch: int = 1700000000) -> Path:
    """The toolchain, made once of Debian's packages; its name has a part of its hash."""
    index = store / "site/toolchain.json"
    key = sha256(Path(toolchain.__file__))
    if index.exists():
        known = json.loads(index.read_text())
        if known["made_by"] == key and (store / "site" / known["name"]).exists():
            return store / "site" / str(known["name"])
    (store / "site").mkdir(parents=True, exist_ok=True)
    made = store / "site" / toolchain.NAME
    packages = toolchain.make(made, epoch)
    target = made.with_name(toolchain.NAME.replace(".tar", f"-{sha256(made)[:8]}.tar"))
    made.replace(target)
    write_whole(index, json.dumps({"name": target.name, "made_by": key, "packages": packages}, indent=1) + "\n")
    return target


# --- override folders ------------------------------------------------------------------------


def variable(name: str) -> str:
    return name.upper().replace("-", "_")


def override_folder(one: Override, store: Path, tree: Path) -> Path:
    """The unpacked and patched source of an override; made once for the same input."""
    patches = [find_package(tree, one.name) / name for name in one.patches]
    key = sha256("\n".join([repr(one), *(sha256(patch) for patch in patches)]).encode())[:12]
    folder = store / "overrides" / f"{one.name}-{key}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{one.name}-") as name:
        work = Path(name) / "source"
        unpack(store / "pool" / one.file.name, work)
        series = []
        if one.debian:
            run(
                ["tar", "-xf", store / "pool" / one.debian.name, "-C", name],
                what=f"{one.debian.name} cannot be unpacked",
            )
            listed = (Path(name) / "debian/patches/series").read_text().splitlines()
            series = [Path(name) / "debian/patches" / line.split()[0] for line in listed if line.strip(" #")]
            series = [patch for patch in series if patch.is_file()]
        for patch in [*series, *patches]:
            run(
                ["patch", "-p1", "-F0", "--batch", "--no-backup-if-mismatch", "--silent", "-i", patch],
                cwd=work,
                what=f"{patch.name} does not apply to {one.name} {one.version}",
            )
        for empty in one.empty:
            (work / empty).parent.mkdir(parents=True, exist_ok=True)
            (work / empty).touch()
        for old in folder.parent.glob(f"{one.name}-*"):
            if re.fullmatch(rf"{re.escape(one.name)}-[0-9a-f]{{12}}", old.name):
                shutil.rmtree(old, ignore_errors=True)
        work.rename(folder)
    return folder


def find_package(tree: Path, name: str) -> Path:
    return tree / "package" / name.removeprefix("host-")


def unpack(tarball: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    run(
        ["tar", "-xf", tarball, "-C", folder, "--strip-components=1", "--no-same-owner"],
        what=f"{tarball.name} cannot be unpacked",
    )


def tool_folder(one: Tool, store: Path) -> tuple[Path, list[str]]:
    """A folder with the licence of the package in place of a source, and where its programs are."""
    programs = []
    for name in one.programs:
        path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if path is None:
            raise UserError(f"{name} (package {one.package}) not found on this machine: run `make deps`")
        programs.append(path)
    folder = store / "tools" / one.name
    folder.mkdir(parents=True, exist_ok=True)
    keep_licence(one.package, folder / "copyright")
    if one.wrapper:
        shutil.copy2(FOLDER / one.wrapper, folder / one.wrapper)
    return folder, programs


def keep_licence(package: str, target: Path) -> Path:
    """The licence text of an installed package."""
    licence = Path("/usr/share/doc") / package / "copyright"
    text = licence.read_text(errors="replace") if licence.exists() else f"see the Debian package {package}\n"
    if not target.exists() or target.read_text() != text:
        write_whole(target, text)
    return target


# --- what a build is given -------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What belongs into the build's configuration, and what its result was made of."""

    fragment: str
    origin: dict[str, Any]


def render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def fragment(store: Path, out: Path, kernel: str, compiler: str, patches: str) -> str:
    """The lines of a defconfig which say where everything comes from; `patches` is its BR2_GLOBAL_PATCH_DIR."""
    return render(
        "debian.config.j2",
        site=store / "site",
        toolchain=compiler,
        downloads=store / "dl",
        override_file=out / "sources.mk",
        hashes=out / "hashes",
        kernel=kernel,
        patches=patches,
    )


def prepare(store: Path, tree: Path, out: Path, kernel_line: str, patches: str, *, offline: bool) -> Prepared:
    """Lay out all inputs; returns the lines which the defconfig gets in addition."""
    # Two boards may be built side by side, and the store is one.
    busy = f"another make has been fetching sources to {store} for {STORE_LIMIT} s: wait until that has ended"
    with locked(store / ".lock", busy, wait=STORE_LIMIT):
        return lay_out(store, tree, out, kernel_line, patches, offline)


def lay_out(store: Path, tree: Path, out: Path, kernel_line: str, patches: str, offline: bool) -> Prepared:
    if offline:
        manifest = packed_manifest(store)
        kernel, compiler = packed_tarballs(store)
    else:
        manifest = fetch_all(read_manifest(), store)
        kernel, compiler = kernel_tarball(kernel_line, store), toolchain_tarball(store)
    overrides = [
        {
            "variable": variable(one.name),
            "folder": override_folder(one, store, tree),
            "version": one.version,
            "files": [file.pool for file in one.files],
            "set": one.set,
            "host": one.host,
        }
        for one in manifest.overrides
    ]
    tools = []
    for one in manifest.tools:
        folder, programs = tool_folder(one, store)
        tools.append(
            {
                "variable": variable(one.name),
                "folder": folder,
                "package": one.package,
                "version": debian.installed(one.package),
                "programs": programs,
                "wrapper": one.wrapper,
                "depends": one.depends,
                "hooks": one.hooks,
            }
        )
    override_file = out / "sources.mk"
    packages = json.loads((store / "site/toolchain.json").read_text())["packages"]
    licences = [keep_licence(name, store / "tools/toolchain" / f"{name}.copyright") for name in RUNTIME_LICENCES]
    text = render("debian.mk.j2", overrides=overrides, tools=tools, toolchain=packages, licences=licences)
    if not override_file.exists() or override_file.read_text() != text:
        write_whole(override_file, text)
    kernel_hash(kernel, out / "hashes")
    origin = {
        "kernel": kernel.name,
        "toolchain": packages,
        "identical": {one.name: one.file.name for one in manifest.identical},
        "override": {one.name: one.version for one in manifest.overrides},
        "tool": {one.name: f"{one.package}={debian.installed(one.package)}" for one in manifest.tools},
    }
    return Prepared(fragment(store, out, kernel.name, compiler.name, patches), origin)


# --- the archive -----------------------------------------------------------------------------


def packed_manifest(store: Path) -> Manifest:
    """What of the manifest an archive holds, fallbacks included; nothing is fetched."""

    def there(one: Identical | Override) -> Identical | Override:
        paths = [path for _, path in places(one, store)]
        if all(path.exists() for path in paths):
            return one
        if one.fallback is None:
            raise UserError(f"the archive lacks {', '.join(path.name for path in paths)}: pack it anew from this tree")
        return there(one.fallback)

    full = read_manifest()
    return sorted_manifest([there(one) for one in full.wanted], full.tools)


def packed_tarballs(store: Path) -> tuple[Path, Path]:
    site = store / "site"
    kernels = sorted(site.glob("linux-source-*.tar.xz"))
    index = site / "toolchain.json"
    if not kernels or not index.exists():
        raise UserError(f"{store} lacks the kernel source or the toolchain: pack the archive anew")
    return kernels[-1], site / str(json.loads(index.read_text())["name"])


def write_archive(target: Path, store: Path, tree: Path, kernel_line: str) -> None:
    """All inputs of a build (but the installed programs) in one tar, with the sha256 of each."""
    manifest = fetch_all(read_manifest(), store)
    names = [f"site/{one.name}" for one in manifest.identical]
    names += [f"pool/{file.name}" for one in manifest.overrides for file in one.files]
    names += [f"site/{kernel_tarball(kernel_line, store).name}", f"site/{toolchain_tarball(store).name}"]
    names += ["site/toolchain.json"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".archive-") as folder:
        buildroot = Path(folder) / "buildroot.tar"
        run(["git", "archive", f"--output={buildroot}", "HEAD"], cwd=tree, what="Buildroot's tree cannot be packed")
        files = {name: store / name for name in names} | {"buildroot.tar": buildroot}
        index = {name: sha256(path) for name, path in files.items()}
        part = Path(folder) / target.name
        with tarfile.open(part, "w") as tar:
            listed = Path(folder) / ARCHIVE_INDEX
            listed.write_text(json.dumps(index, indent=1) + "\n")
            tar.add(listed, ARCHIVE_INDEX)
            for number, (name, path) in enumerate(files.items(), 1):
                say(f"packing {number}/{len(files)}: {name}")
                tar.add(path, name)
        part.replace(target)
    say(f"{display(target)} is ready: build from it with SOURCES=archive:{display(target)}")


def open_archive(archive: Path) -> tuple[Path, Path]:
    """Unpack an archive into the cache, once; returns (the store, Buildroot's tree)."""
    if not archive.is_file():
        raise UserError(f"there is no archive {archive}: `make sources-archive` writes one")
    status = archive.stat()
    stamp = f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}"
    store = cache_folder() / f"archive-{sha256(stamp.encode())[:12]}"
    if not store.exists():
        store.parent.mkdir(parents=True, exist_ok=True)
        with broken_as_error(archive), tempfile.TemporaryDirectory(dir=store.parent, prefix=".archive-") as name:
            work = Path(name) / "store"
            say(f"unpacking {archive}")
            work.mkdir()
            run(["tar", "-xf", archive, "-C", work, "--no-same-owner"], what=f"{archive} is broken")
            index = json.loads((work / ARCHIVE_INDEX).read_text())
            for file, digest in index.items():
                if sha256(work / file) != digest:
                    raise UserError(f"{archive} is broken: {file} has another sha256 than it was packed with")
            tree = work / "buildroot"
            tree.mkdir()
            run(["tar", "-xf", work / "buildroot.tar", "-C", tree], what="Buildroot's tree cannot be unpacked")
            (work / "buildroot.tar").unlink()
            work.rename(store)
    return store, store / "buildroot"


@contextmanager
def broken_as_error(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, KeyError, ValueError, FileNotFoundError) as error:
        raise UserError(f"{archive} is broken or no archive of `make sources-archive` ({error})") from error
