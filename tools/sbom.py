# SPDX-License-Identifier: GPL-2.0-only
"""`make sbom`: what an image is made of, as CycloneDX, by Buildroot's generator and with what that cannot know.

Buildroot speaks of the versions and patches which its own package files name. SOURCES=debian builds others, so its
facts are put right before the generator sees them. The kernel's series is added to what the generator writes.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools import buildroot, product, sources
from tools.common import ROOT, UserError, display, run, say, write_whole
from tools.source import NO_SERIES, Series, series

NAME = "sbom.cdx.json"
PREFIX = "arm-pmem"
# What the generator wants of the network, and the Python package cyclonedx-python-lib has.
SPDX_NAME = "cyclonedx/spdx-1.6.schema.json"
# Debian's toolchain brings libraries onto the target which no package of Buildroot's stands for.
RUNTIME = {
    "libc6": ("glibc", "cpe:2.3:a:gnu:glibc", "LGPL-2.1-or-later"),
    "libgcc-s1-armhf-cross": ("gcc-runtime", "cpe:2.3:a:gnu:gcc", "GPL-3.0-or-later with GCC-exception-3.1"),
}
# Packages whose source is in this project
OURS = ("arm-pmem", "daxprobe")
TOOLCHAIN = "toolchain-external-custom"

Document = dict[str, Any]


@dataclass(frozen=True)
class Taken:
    """A package whose source is Debian's instead of the one in Buildroot's package file."""

    version: str
    package: str = ""
    # The patches of Buildroot's that are applied to it, by their file names, and those of Debian's by their place
    patches: tuple[str, ...] = ()
    debian_patches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What Buildroot does not know of a build."""

    board: str
    # this project's own version
    project: str
    sources: str
    kernel_version: str
    # '' where no kernel has been built yet
    kernel_release: str = ""
    # of Debian's package
    kernel_package: str = ""
    series: Series = NO_SERIES
    taken: dict[str, Taken] = field(default_factory=dict)
    # Debian's name of a file by Buildroot's, where both are the same bytes
    identical: dict[str, str] = field(default_factory=dict)
    toolchain: tuple[str, ...] = ()


def upstream(version: str) -> str:
    """The version as upstream calls it, of Debian's."""
    version = version.rpartition(":")[2]
    version = version.rpartition("-")[0] or version
    return version.partition("+")[0].replace("~", "")


# --- what was built ----------------------------------------------------------------------------


def facts(build: buildroot.Build) -> Facts:
    """Of a configured build; `make` has not to have run."""
    origin: Document = json.loads((build.out / "sources.json").read_text())
    config = buildroot.assignments(build.config.read_text())
    kernel = str(origin.get("kernel", ""))
    package = kernel.removeprefix("linux-source-").removesuffix(".tar.xz")
    version = upstream(package) or config.get("BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE", "").strip('"')
    name = Path(config.get("BR2_LINUX_KERNEL_PATCH", "").strip('"')).name
    return Facts(
        board=build.board.name,
        project=product.describe(),
        sources=str(origin["sources"]),
        kernel_version=version,
        kernel_release=built_kernel(build, version),
        kernel_package=package,
        series=series(name) if name else NO_SERIES,
        taken=taken(origin, sources.read_manifest(), build.store),
        identical=origin.get("identical", {}),
        toolchain=tuple(origin.get("toolchain", ())),
    )


def built_kernel(build: buildroot.Build, version: str) -> str:
    if not list((build.out / "build").glob("linux-*/include/config/kernel.release")):
        return ""
    release = product.kernel_release(build.out / "build")
    if not re.match(rf"{re.escape(version)}(?!\d)", release):
        raise UserError(
            f"the kernel in {display(build.out)} is {release}, and its source is Linux {version} now: run `make` first"
        )
    return release


def taken(origin: Document, manifest: sources.Manifest, store: Path) -> dict[str, Taken]:
    found: dict[str, Taken] = {}
    every = [one for entry in manifest.wanted for one in (entry, entry.fallback)]
    for name, version in origin.get("override", {}).items():
        used = [
            one for one in every if isinstance(one, sources.Override) and (one.name, one.version) == (name, version)
        ]
        if not used:
            raise UserError(f"{display(sources.MANIFEST)} has no {name} {version} any more: run `make` first")
        patches = debian_patches(store, used[0].debian) if used[0].debian else ()
        found[name] = Taken(version, "", tuple(used[0].patches), patches)
    for name, package in origin.get("tool", {}).items():
        found[name] = Taken(package.partition("=")[2], package.partition("=")[0])
    return found


def debian_patches(store: Path, pinned: sources.Pinned) -> tuple[str, ...]:
    """The patches in Debian's part of a source package, as places in the archive's pool."""
    path = store / "pool" / pinned.name
    try:
        with tarfile.open(path) as tar:
            member = tar.extractfile("debian/patches/series")
            text = member.read().decode() if member else ""
            names = set(tar.getnames())
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        why = str(error).partition(":")[0]
        raise UserError(f"{path} cannot be read ({why}): remove it, and `make` fetches it again") from error
    listed = [line.split()[0] for line in text.splitlines() if line.strip(" #")]
    return tuple(f"{pinned.pool}#debian/patches/{one}" for one in listed if f"debian/patches/{one}" in names)


# --- putting Buildroot's facts right -------------------------------------------------------------


def with_version(cpe: str, version: str) -> str:
    """A CPE name with another version; a `:` or `+` in one is escaped there."""
    parts = re.split(r"(?<!\\):", cpe)
    parts[5] = re.sub(r"([^\w.-])", r"\\\1", version)
    return ":".join(parts)


def corrected(info: Document, known: Facts) -> Document:
    """`make show-info` of what is really built: versions, CPE names, patches, and the toolchain's libraries."""
    result: Document = {}
    for ref, original in info.items():
        package = dict(original)
        own = known.taken.get(ref) or known.taken.get(ref.removeprefix("host-"))
        if own:
            package["version"] = upstream(own.version)
            package["patches"] = [
                *own.debian_patches,
                *(one for one in package.get("patches", []) if Path(one).name in own.patches),
            ]
            # What Buildroot says of a CVE it says of its own version.
            package.pop("ignore_cves", None)
        if ref == "linux" and known.kernel_version:
            package["version"] = known.kernel_version
        if ref in OURS:
            package["version"] = known.project
        if ref == TOOLCHAIN and known.toolchain:
            package["version"] = upstream(versions(known)["libgcc-s1-armhf-cross"])
            package["dependencies"] = [*package.get("dependencies", []), *(name for name, _, _ in RUNTIME.values())]
        if "cpe-id" in package:
            package["cpe-id"] = with_version(package["cpe-id"], package["version"])
        result[ref] = package
    if TOOLCHAIN in info and known.toolchain:
        result |= {
            name: runtime(name, cpe, licence, versions(known)[of]) for of, (name, cpe, licence) in RUNTIME.items()
        }
    return dict(sorted(result.items()))


def versions(known: Facts) -> dict[str, str]:
    return dict(one.split("=", 1) for one in known.toolchain)


def runtime(name: str, cpe: str, licence: str, version: str) -> Document:
    return {
        "type": "target",
        "name": name,
        "virtual": False,
        "version": upstream(version),
        "licenses": licence,
        "dependencies": [],
        "cpe-id": with_version(f"{cpe}:*:-:*:*:*:*:*:*", upstream(version)),
    }


# --- what the generator cannot know -----------------------------------------------------------------


def completed(document: Document, known: Facts, info: Document) -> Document:
    """The generator's document with the kernel's series, and where each source came from."""
    head = document["metadata"]["component"]
    note(head, {"board": known.board, "sources": known.sources})
    components = {one["bom-ref"]: one for one in document["components"]}
    for ref, component in components.items():
        own = known.taken.get(ref) or known.taken.get(ref.removeprefix("host-"))
        if own:
            note(component, {"debian:package": own.package, "debian:version": own.version})
        files = [known.identical.get(one.get("source", "")) for one in info[ref].get("downloads", [])]
        for name in filter(None, files):
            note(component, {"debian:file": name})
    for package, (ref, _, _) in RUNTIME.items():
        if ref in components and known.toolchain:
            note(components[ref], {"debian:package": package, "debian:version": versions(known)[package]})
    if TOOLCHAIN in components:
        for line in known.toolchain:
            note(components[TOOLCHAIN], {"debian:package": line})
    if "linux" in components:
        linux = components["linux"]
        note(linux, {"debian:version": known.kernel_package, "kernel:release": known.kernel_release})
        note(linux, {"series": known.series.name, "series:sha256": known.series.hash if known.series.patches else ""})
        if known.series.patches:
            pedigree = linux.setdefault("pedigree", {})
            patches = [kernel_patch(patch) for patch in known.series.patches]
            pedigree["patches"] = [*pedigree.get("patches", []), *patches]
            pedigree["commits"] = commits(known.series.patches)
    return document


def note(component: Document, values: dict[str, str]) -> None:
    for name, value in values.items():
        if value:
            component.setdefault("properties", []).append({"name": f"{PREFIX}:{name}", "value": value})


def origins(patch: Path) -> list[str]:
    """The commits that a patch of the series is taken from; none for one of our own (`Upstream: N/A, …`)."""
    return re.findall(r"(?m)^Upstream: (https?://\S+)$", patch.read_text(errors="replace").partition("\n---\n")[0])


def kernel_patch(patch: Path) -> Document:
    place = patch.resolve().relative_to(ROOT) if patch.resolve().is_relative_to(ROOT) else patch
    return {"type": "backport" if origins(patch) else "unofficial", "diff": {"url": str(place)}}


def commits(patches: Iterable[Path]) -> list[Document]:
    urls = dict.fromkeys(url for patch in patches for url in origins(patch))
    return [{"uid": url.rpartition("/")[2], "url": url} for url in urls]


def sealed(document: Document) -> str:
    """The text of a document; its serial number is made of what it says, so the same input is the same bytes."""
    body = {name: value for name, value in document.items() if name not in ("serialNumber", "version")}
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(body, sort_keys=True))
    first = {name: body.pop(name) for name in ("$schema", "bomFormat", "specVersion") if name in body}
    return json.dumps({**first, "serialNumber": serial.urn, "version": 1, **body}, indent=2) + "\n"


def validate(text: str) -> None:
    # Only here: all of tools.build would wait for it.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        # its first line is the message; a whole schema follows
        raise UserError(f"the list is not valid CycloneDX 1.6, and was not written: {str(error).splitlines()[0][:300]}")


# --- Buildroot's own programs -----------------------------------------------------------------------


def show_info(build: buildroot.Build) -> Document:
    said = run(
        build.command("--no-print-directory", "--silent", "show-info"),
        environment=build.environment(),
        what="Buildroot's show-info",
    )
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if not lines:
        raise UserError(f"Buildroot's show-info lists no package: {said.strip()[-200:] or 'it says nothing'}")
    content: Document = json.loads(lines[-1])
    return content


def generate(build: buildroot.Build, info: Document, known: Facts) -> Document:
    from cyclonedx.schema import _res

    with tempfile.TemporaryDirectory() as name:
        schema = Path(name) / SPDX_NAME
        schema.parent.mkdir()
        schema.write_bytes(Path(_res.SPDX_JSON).read_bytes())
        said = run(
            [
                *(sys.executable, build.tree / "utils/generate-cyclonedx"),
                *("--project-name", f"{PREFIX}-{build.board.name}", "--project-version", known.project),
            ],
            environment={**build.environment(), "BR2_DL_DIR": name},
            stdin=json.dumps(info),
            what="Buildroot's generate-cyclonedx",
        )
    content: Document = json.loads(said)
    return content


def write(build: buildroot.Build) -> Path:
    """The list of a build, which gets configured where it is not."""
    buildroot.configure(build)
    known = facts(build)
    info = corrected(show_info(build), known)
    text = sealed(completed(generate(build, info, known), known, info))
    validate(text)
    target = build.out / NAME
    write_whole(target, text)
    count = len(json.loads(text)["components"])
    patches = len(known.series.patches)
    say(f"{display(target)}: {count} components; {patches} patches of series {known.series.name} on the kernel")
    return target
