# SPDX-License-Identifier: GPL-2.0-only
"""CVEs of an image, with Buildroot's own cve-check on a small NVD made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toyline import ROOT

from tools import boards, buildroot, cve, sbom
from tools.common import UserError, cache_folder

VERSION = buildroot.pin()[0]
TREE = cache_folder() / f"buildroot-{VERSION}"

needs_tree = pytest.mark.skipif(not TREE.is_dir(), reason="no tree of Buildroot in the cache")


def component(ref: str, version: str, vendor: str = "") -> dict[str, Any]:
    cpe = {"cpe": f"cpe:2.3:a:{vendor}:{ref}:{version}:-:*:*:*:*:*:*"} if vendor else {}
    return {"bom-ref": ref, "type": "library", "name": ref, "version": version, **cpe}


LIST = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "components": [
        component("kmod", "34.2", "kernel"),
        component("busybox", "1.37.0", "busybox"),
        component("json-c", "0.18", "json-c"),
        component("fio", "3.41"),
    ],
    "vulnerabilities": [
        {"id": "CVE-2022-9", "analysis": {"state": "resolved_with_pedigree"}, "affects": [{"ref": "busybox"}]}
    ],
}


def entry(nvd: Path, name: str, vendor: str, product: str, severity: str = "", **bounds: str) -> None:
    """A CVE where the feed has it, for versions of a product between bounds."""
    year, number = name.split("-")[1:]
    folder = nvd / "git" / f"CVE-{year}" / f"CVE-{year}-{number[:-2]}xx"
    folder.mkdir(parents=True, exist_ok=True)
    match = {"vulnerable": True, "criteria": f"cpe:2.3:a:{vendor}:{product}:*:*:*:*:*:*:*:*", **bounds}
    metrics = {"cvssMetricV31": [{"cvssData": {"baseScore": 7.5, "baseSeverity": severity.upper()}}]}
    content = {
        "id": name,
        "descriptions": [{"lang": "en", "value": "something"}],
        "published": "2024-01-01T05:00:00.000",
        "configurations": [{"nodes": [{"cpeMatch": [match]}]}],
        **({"metrics": metrics} if severity else {}),
    }
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def nvd(tmp_path: Path) -> Path:
    folder = tmp_path / "nvd"
    entry(folder, "CVE-2024-10002", "kernel", "kmod", "high", versionEndExcluding="35")
    entry(folder, "CVE-2024-9001", "kernel", "kmod", versionStartIncluding="34", versionEndIncluding="34.2")
    entry(folder, "CVE-2023-1001", "kernel", "kmod", "critical", versionEndExcluding="34.2")
    entry(folder, "CVE-2023-1002", "other", "kmod", "critical", versionEndExcluding="99")
    entry(folder, "CVE-2022-9", "busybox", "busybox", "low", versionEndIncluding="1.37.0")
    return folder


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> buildroot.Build:
    """A build whose list is LIST."""
    out = tmp_path / "out"

    def write(build: buildroot.Build) -> Path:
        out.mkdir(exist_ok=True)
        (out / sbom.NAME).write_text(sbom.sealed(LIST))
        return out / sbom.NAME

    monkeypatch.setattr(sbom, "write", write)
    return buildroot.Build(boards.board("board"), "6.1", out, TREE, "debian", tmp_path)


@needs_tree
def test_a_line_for_each_component(
    build: buildroot.Build, nvd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVD", str(nvd))
    cve.write(build)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "kmod 34.2 2 to look at (1 high, 1 unrated)",
        "busybox 1.37.0 0 to look at; 1 resolved_with_pedigree",
        "json-c 0.18 0 to look at",
        "not looked up, for they have no CPE name: fio",
    ]
    assert f"cve.cdx.json has the details, with NVD's data of {nvd}" in lines[4]


@needs_tree
def test_the_result_is_valid_sorted_and_the_same_each_time(
    build: buildroot.Build, nvd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVD", str(nvd))
    text = cve.write(build).read_text()
    sbom.validate(text)
    assert sbom.sealed(json.loads(text)) == text
    found = [one["id"] for one in json.loads(text)["vulnerabilities"]]
    assert found == ["CVE-2022-9", "CVE-2024-9001", "CVE-2024-10002"]
    assert cve.write(build).read_text() == text
    # the list itself stays what it was
    assert (build.out / sbom.NAME).read_text() == sbom.sealed(LIST)


def test_the_order_is_not_the_file_systems(
    build: buildroot.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = [{"id": f"CVE-{name}"} for name in ("2024-10002", "2022-9", "2024-9001")]
    monkeypatch.setattr(cve, "run", lambda *words, **more: json.dumps({"vulnerabilities": mixed}))
    found = cve.check(build, tmp_path / "list", tmp_path)["vulnerabilities"]
    assert [one["id"] for one in found] == ["CVE-2022-9", "CVE-2024-9001", "CVE-2024-10002"]


@needs_tree
def test_the_network_is_left_alone(
    build: buildroot.Build, nvd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cve-check would run `git pull` in the feed."""
    called = tmp_path / "called"
    monkeypatch.setenv("NVD", str(nvd))
    monkeypatch.setattr(
        buildroot.Build, "environment", lambda self: {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLED": str(called)}
    )
    (tmp_path / "git").write_text('#!/bin/sh\necho "$@" >>"$CALLED"\n')
    (tmp_path / "git").chmod(0o755)
    cve.write(build)
    assert not called.exists()


@pytest.mark.parametrize("content", [None, "git", "git/CVE-2024/CVE-2024-10xx"])
def test_without_data_it_says_where_and_how(
    build: buildroot.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    tree = tmp_path / "tree"
    (tree / "support/scripts").mkdir(parents=True)
    (tree / "support/scripts/cve.py").write_text('NVD_BASE_URL = "https://feed.example/"\n')
    build = buildroot.Build(build.board, "6.1", build.out, tree, "debian", tmp_path)
    folder = tmp_path / "empty"
    if content:
        (folder / content).mkdir(parents=True)
    monkeypatch.setenv("NVD", str(folder))
    with pytest.raises(UserError) as error:
        cve.write(build)
    assert str(error.value) == (
        f"there is no NVD data in {folder}: on a machine with a network run `git clone --depth=1 "
        f"https://feed.example/ {folder}/git` and bring that folder here, or name another with NVD=<folder>"
    )
    assert not build.out.exists()


@needs_tree
def test_buildroot_still_says_where_the_feed_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"git clone --depth=1 https://\S+/ "):
        cve.check_data(tmp_path, TREE)


@needs_tree
def test_a_broken_entry_is_one_sentence(build: buildroot.Build, nvd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVD", str(nvd))
    next(nvd.glob("git/*/*/CVE-2024-9001.json")).write_text("{")
    with pytest.raises(UserError, match=r"^Buildroot's cve-check with .*JSONDecodeError"):
        cve.write(build)
    assert not (build.out / cve.NAME).exists()


def test_without_a_name_the_data_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVD", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cve.data() == tmp_path / "arm-pmem/nvd"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NVD", "mine")
    assert cve.data() == tmp_path / "mine"


def test_make_hands_the_folder_over() -> None:
    assert "export NVD" in (ROOT / "Makefile").read_text().splitlines()
