# SPDX-License-Identifier: GPL-2.0-only
"""The list of what an image is made of: what Buildroot's facts lack, and that the list is the same each time."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from toyline import ROOT

from tools import boards, buildroot, sbom, source, sources
from tools.common import UserError, cache_folder
from tools.sbom import Facts, Taken
from tools.sources import Override, Pinned

VERSION = buildroot.pin()[0]
TREE = cache_folder() / f"buildroot-{VERSION}"
CPE = "cpe:2.3:a:someone:{}:custom:-:*:*:*:*:*:*"
SERIES = source.series("6.1")


def package(name: str, **more: Any) -> dict[str, Any]:
    """One entry of `make show-info`, for a package from an override folder."""
    facts = {"version": "9", "licenses": "MIT", "downloads": [], "hashes": [], "patches": [], "dependencies": []}
    return {"type": "target", "name": name, "virtual": False, **facts, "cpe-id": CPE.format(name), **more}


INFO = {
    "foo": package("foo", patches=["package/foo/0001-a.patch", "package/foo/0002-b.patch"], ignore_cves=["CVE-2020-1"]),
    "host-foo": package("foo", type="host"),
    "host-bar": package("bar", type="host", patches=["package/bar/0001-c.patch"]),
    "same": package(
        "same", version="1", downloads=[{"source": "same-1.tar.gz", "uris": []}], ignore_cves=["CVE-2020-2"]
    ),
    "linux": package("linux", version="custom"),
    "daxprobe": package("daxprobe", version="local"),
    sbom.TOOLCHAIN: package(sbom.TOOLCHAIN, version=""),
}
KNOWN = Facts(
    board="board",
    project="v1-2-gabc",
    sources="debian",
    kernel_version="6.1.9",
    kernel_release="6.1.9-arm-pmem",
    kernel_package="6.1.9-1",
    series=SERIES,
    taken={
        "foo": Taken("1:2.3+ds-4", "", ("0002-b.patch",), ("main/f/foo.debian.tar.xz#debian/patches/x",)),
        "host-bar": Taken("30+20221128-1", "bar-tools"),
    },
    identical={"same-1.tar.gz": "same_1.orig.tar.gz"},
    toolchain=("libc6=2.36-9+deb12u14", "libgcc-s1-armhf-cross=12.2.0-14cross1"),
)


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {one["name"].removeprefix("arm-pmem:"): one["value"] for one in component["properties"]}


# --- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("debian", "upstream"),
    [
        ("2025.89-1~deb13u1", "2025.89"),
        ("0.18+ds-1", "0.18"),
        ("1:4.4.38-1", "4.4.38"),
        ("30+20221128-1", "30"),
        ("2.41.5-0+deb13u1", "2.41.5"),
        ("5.2~rc1-1", "5.2rc1"),
        ("59", "59"),
        ("", ""),
    ],
)
def test_the_upstream_part_of_a_version(debian: str, upstream: str) -> None:
    assert sbom.upstream(debian) == upstream


def test_a_cpe_name_gets_the_version_and_keeps_the_rest() -> None:
    assert sbom.with_version(CPE.format("x"), "1.2") == "cpe:2.3:a:someone:x:1.2:-:*:*:*:*:*:*"
    assert sbom.with_version(r"cpe:2.3:a:c\:d:x:custom:-", "1+2") == r"cpe:2.3:a:c\:d:x:1\+2:-"


# --- Buildroot's facts -------------------------------------------------------------------------


def test_an_overridden_package_has_its_own_version_and_patches() -> None:
    foo = sbom.corrected(INFO, KNOWN)["foo"]
    assert (foo["version"], foo["cpe-id"].split(":")[5]) == ("2.3", "2.3")
    assert foo["patches"] == ["main/f/foo.debian.tar.xz#debian/patches/x", "package/foo/0002-b.patch"]
    # built for the host, it is the same source
    assert sbom.corrected(INFO, KNOWN)["host-foo"]["version"] == "2.3"


def test_what_buildroot_ignores_in_its_version_is_not_said_of_another() -> None:
    right = sbom.corrected(INFO, KNOWN)
    assert "ignore_cves" not in right["foo"]
    assert right["same"]["ignore_cves"] == ["CVE-2020-2"]
    # the facts that were given stay as they were
    assert INFO["foo"]["ignore_cves"] == ["CVE-2020-1"]


def test_an_installed_program_has_no_patch_of_buildroots() -> None:
    bar = sbom.corrected(INFO, KNOWN)["host-bar"]
    assert (bar["version"], bar["patches"]) == ("30", [])


def test_the_kernel_the_toolchain_and_our_programs_have_versions() -> None:
    right = sbom.corrected(INFO, KNOWN)
    assert right["linux"]["cpe-id"].split(":")[5] == right["linux"]["version"] == "6.1.9"
    assert right["daxprobe"]["version"] == "v1-2-gabc"
    assert right[sbom.TOOLCHAIN]["version"] == "12.2.0"


def test_the_c_library_of_the_toolchain_is_a_part_of_its_own() -> None:
    right = sbom.corrected(INFO, KNOWN)
    assert right["glibc"]["cpe-id"] == "cpe:2.3:a:gnu:glibc:2.36:-:*:*:*:*:*:*"
    assert right[sbom.TOOLCHAIN]["dependencies"] == ["glibc", "gcc-runtime"]


def test_upstreams_sources_are_as_buildroot_says() -> None:
    known = Facts("board", "v1", "upstream", "6.1.183")
    right = sbom.corrected({"foo": INFO["foo"]}, known)
    assert right == {"foo": {**INFO["foo"], "cpe-id": sbom.with_version(CPE.format("foo"), "9")}}


# --- the document ------------------------------------------------------------------------------


def bare() -> dict[str, Any]:
    """What a generator makes of INFO, as far as it matters here."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {"component": {"type": "firmware", "name": "x"}},
        "components": [
            {"bom-ref": ref, "type": "library", "name": ref, "version": "1"} for ref in sbom.corrected(INFO, KNOWN)
        ],
    }


def complete() -> dict[str, Any]:
    return sbom.completed(bare(), KNOWN, sbom.corrected(INFO, KNOWN))


def component(document: dict[str, Any], ref: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in document["components"] if one["bom-ref"] == ref)
    return found


def test_the_kernels_pedigree_is_the_series_in_order() -> None:
    linux = component(complete(), "linux")
    patches = linux["pedigree"]["patches"]
    assert [one["diff"]["url"] for one in patches] == [str(one.relative_to(ROOT)) for one in SERIES.patches]
    for patch, entry in zip(SERIES.patches, patches, strict=True):
        taken = re.search(r"(?m)^Upstream: http", patch.read_text())
        assert entry["type"] == ("backport" if taken else "unofficial"), patch.name
    assert {"backport", "unofficial"} == {one["type"] for one in patches}
    assert linux["pedigree"]["commits"][0]["url"].endswith(linux["pedigree"]["commits"][0]["uid"])


def test_the_kernel_says_its_series_and_its_release() -> None:
    told = properties(component(complete(), "linux"))
    assert (told["series"], told["series:sha256"]) == ("6.1", SERIES.hash)
    assert (told["kernel:release"], told["debian:version"]) == ("6.1.9-arm-pmem", "6.1.9-1")


def test_each_source_of_debians_is_named() -> None:
    document = complete()
    assert properties(component(document, "foo"))["debian:version"] == "1:2.3+ds-4"
    assert properties(component(document, "host-bar"))["debian:package"] == "bar-tools"
    assert properties(component(document, "same"))["debian:file"] == "same_1.orig.tar.gz"
    assert properties(component(document, "glibc"))["debian:version"] == "2.36-9+deb12u14"


def test_the_same_input_gives_the_same_bytes() -> None:
    text = sbom.sealed(complete())
    assert text == sbom.sealed(complete())
    # sealing what is sealed changes nothing, another content has another number
    assert sbom.sealed(json.loads(text)) == text
    other = json.loads(text)
    other["components"][0]["version"] = "2"
    assert json.loads(sbom.sealed(other))["serialNumber"] != json.loads(text)["serialNumber"]


def test_the_document_is_valid_and_a_broken_one_is_refused() -> None:
    sbom.validate(sbom.sealed(complete()))
    broken = complete()
    broken["components"][0]["typ"] = "x"
    with pytest.raises(UserError, match="is not valid CycloneDX 1.6, and was not written: .*typ"):
        sbom.validate(sbom.sealed(broken))


@pytest.mark.skipif(not TREE.is_dir(), reason="no tree of Buildroot in the cache")
def test_buildroots_own_generator_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # what a make around this leaves behind must not reach Buildroot's
    monkeypatch.setenv("MAKEFLAGS", "n -- O=/nonexistent")
    build = buildroot.Build(boards.board("board"), "6.1", tmp_path, TREE, "debian", tmp_path)
    info = sbom.corrected(INFO, KNOWN)
    texts = [sbom.sealed(sbom.completed(sbom.generate(build, info, KNOWN), KNOWN, info)) for _ in range(2)]
    assert texts[0] == texts[1]
    sbom.validate(texts[0])
    document = json.loads(texts[0])
    foo = component(document, "foo")
    assert (foo["version"], foo["licenses"]) == ("2.3", [{"license": {"id": "MIT"}}])
    assert foo["pedigree"]["patches"][0]["diff"]["url"] == "main/f/foo.debian.tar.xz#debian/patches/x"
    assert [one["id"] for one in document["vulnerabilities"]] == ["CVE-2020-2"]
    assert document["metadata"]["tools"]["components"][0]["version"] == VERSION


def test_buildroot_is_asked_as_from_a_fresh_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Makefile").write_text('show-info: ; @echo; echo \'{"board": "$(BOARD)", "o": "$(O)"}\'\n')
    monkeypatch.setenv("MAKEFLAGS", " -- O=/elsewhere BOARD=other")
    monkeypatch.setenv("BOARD", "other")
    build = buildroot.Build(boards.board("board"), "6.1", tmp_path / "out", tmp_path, "debian", tmp_path)
    assert sbom.show_info(build) == {"board": "", "o": f"{tmp_path}/out"}
    (tmp_path / "Makefile").write_text("show-info: ; @echo nothing\n")
    with pytest.raises(UserError, match="show-info lists no package: nothing"):
        sbom.show_info(build)


# --- what was built ----------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path: Path) -> buildroot.Build:
    out = tmp_path / "out"
    out.mkdir()
    origin = {
        "sources": "debian",
        "kernel": "linux-source-6.1.9-1.tar.xz",
        "override": {},
        "tool": {"host-bar": "bar=3-1"},
    }
    (out / "sources.json").write_text(json.dumps(origin))
    (out / ".config").write_text(f'BR2_LINUX_KERNEL_PATCH="{ROOT}/patches/linux/6.1"\n')
    return buildroot.Build(boards.board("board"), "6.1", out, tmp_path, "debian", tmp_path / "store")


def test_the_facts_of_a_build_that_has_not_run(build: buildroot.Build) -> None:
    known = sbom.facts(build)
    assert (known.kernel_version, known.kernel_package, known.kernel_release) == ("6.1.9", "6.1.9-1", "")
    assert known.series == SERIES
    assert known.taken == {"host-bar": Taken("3-1", "bar")}


def test_the_facts_of_upstreams_sources(build: buildroot.Build) -> None:
    (build.out / "sources.json").write_text('{"sources": "upstream"}')
    (build.out / ".config").write_text('BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE="6.1.183"\n')
    known = sbom.facts(build)
    assert (known.kernel_version, known.kernel_package, known.series.name) == ("6.1.183", "", "none")


def release(build: buildroot.Build, text: str) -> None:
    folder = build.out / "build/linux-custom/include/config"
    folder.mkdir(parents=True)
    (folder / "kernel.release").write_text(f"{text}\n")


def test_a_kernel_that_was_built_is_named(build: buildroot.Build) -> None:
    release(build, "6.1.9-arm-pmem")
    assert sbom.facts(build).kernel_release == "6.1.9-arm-pmem"


@pytest.mark.parametrize("other", ["6.1.8-arm-pmem", "6.1.90-arm-pmem"])
def test_a_kernel_of_another_source_is_an_error(build: buildroot.Build, other: str) -> None:
    release(build, other)
    with pytest.raises(UserError, match=f"is {other}, and its source is Linux 6.1.9 now: run `make` first"):
        sbom.facts(build)


def test_an_override_that_left_the_manifest_is_an_error(build: buildroot.Build) -> None:
    (build.out / "sources.json").write_text('{"sources": "debian", "override": {"kmod": "1-1"}}')
    with pytest.raises(UserError, match=r"debian.yaml has no kmod 1-1 any more: run `make` first"):
        sbom.facts(build)


def test_debians_patches_are_named_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    pinned = Pinned("main/x/x_1-1.debian.tar.xz", "0")
    with tarfile.open(tmp_path / "pool/x_1-1.debian.tar.xz", "w:xz") as tar:
        for name, data in {"series": b"# why\na.patch -p1\n\ngone.patch\n", "a.patch": b""}.items():
            member = tarfile.TarInfo(f"debian/patches/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    used = Override("x", Pinned("main/x/x_1.tar.xz", "0"), "1-1", pinned, ("0001-b.patch",))
    found = sbom.taken({"override": {"x": "1-1"}}, sources.Manifest([], [used], []), tmp_path)
    place = "main/x/x_1-1.debian.tar.xz#debian/patches/a.patch"
    assert found == {"x": Taken("1-1", "", ("0001-b.patch",), (place,))}
    (tmp_path / "pool/x_1-1.debian.tar.xz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x_1-1.debian.tar.xz cannot be read \(.*\): remove it, and `make` fetches"):
        sbom.debian_patches(tmp_path, pinned)


def test_every_patch_of_an_override_is_found_in_the_manifest() -> None:
    """A name is all that ties a pedigree to the patches which were applied."""
    for one in sources.read_manifest().overrides:
        assert all(re.fullmatch(r"\d{4}-\S+\.patch", name) for name in one.patches), one.name
