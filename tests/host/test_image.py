# SPDX-License-Identifier: GPL-2.0-only
"""The image that was built: complete, described by its manifest, and the same each time."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from toyline import ROOT

from tools import buildroot, fragments, rootfs
from tools.boards import board
from tools.common import sha256


@pytest.fixture(scope="module")
def images() -> Path:
    folder = ROOT / os.environ.get("LG_BUILDDIR", "output/board/images")
    if not (folder / "manifest.json").exists():
        pytest.skip("no image here: `make board_defconfig && make` builds it")
    return folder


@pytest.fixture(scope="module")
def manifest(images: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((images / "manifest.json").read_text())
    return content


@pytest.fixture(scope="module")
def minimal(manifest: dict[str, Any]) -> None:
    if manifest["image"] != "minimal":
        pytest.skip("about the minimal image, and this is the Buildroot image")


@pytest.fixture(scope="module")
def of_buildroot(manifest: dict[str, Any]) -> None:
    if manifest["image"] != "buildroot":
        pytest.skip("about the Buildroot image, and this is the minimal image")


@pytest.fixture(scope="module")
def target(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root file system, unpacked (but for the device node, which wants root)."""
    folder = tmp_path_factory.mktemp("target")
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories", "--nonmatching", "dev/console"],
        cwd=folder,
        input=gzip.decompress((images / "rootfs.cpio.gz").read_bytes()),
        check=True,
        timeout=60,
    )
    return folder


def test_the_manifest_tells_size_and_hash_of_every_file(images: Path, manifest: dict[str, Any]) -> None:
    files = {path.name for path in images.iterdir()} - {"manifest.json"}
    assert {"zImage", "rootfs.cpio.gz", "pmem.dtbo", "kernel.config"} <= files
    for name, facts in manifest["files"].items():
        assert facts == {"size": (images / name).stat().st_size, "sha256": sha256(images / name)}


def test_the_manifest_names_what_the_image_is_made_of(manifest: dict[str, Any]) -> None:
    assert manifest["image"] in ("minimal", "buildroot")
    assert manifest["kernel"]["release"].startswith(f"{manifest['kernel']['line']}.")
    assert manifest["series"]["name"].split("-")[0] in (manifest["kernel"]["line"], "none")


@pytest.mark.usefixtures("minimal")
def test_the_manifest_of_the_minimal_image_names_its_debian_packages(manifest: dict[str, Any]) -> None:
    assert any(one.startswith("fio=") for one in manifest["debian"]["packages"])
    assert "bookworm" in manifest["debian"]["suites"]


@pytest.mark.usefixtures("of_buildroot")
def test_the_manifest_of_the_buildroot_image_names_release_and_sources(manifest: dict[str, Any]) -> None:
    assert manifest["buildroot"] == buildroot.pin()[0]
    assert manifest["sources"]["sources"].partition(":")[0] in ("debian", "upstream", "archive")


@pytest.mark.usefixtures("of_buildroot")
def test_the_root_file_system_is_small(target: Path) -> None:
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < 48 << 20


@pytest.mark.usefixtures("of_buildroot")
def test_no_password_and_no_key_of_ours_is_in_the_image(target: Path) -> None:
    """root has an empty password on the serial line; the network's login takes keys only, and knows none."""
    assert "root::" in (target / "etc/shadow").read_text()
    assert (target / "etc/default/dropbear").read_text() == 'DROPBEAR_ARGS="-s"\n'
    if not os.environ.get("ARM_PMEM_AUTHORIZED_KEYS"):
        assert not (target / "root/.ssh/authorized_keys").exists()


@pytest.mark.usefixtures("of_buildroot")
def test_a_user_cannot_read_what_is_roots(target: Path) -> None:
    assert (target / "root").stat().st_mode & 0o777 == 0o700


def test_the_image_says_the_same_on_the_target(target: Path, manifest: dict[str, Any]) -> None:
    lines = (target / "etc/arm-pmem-release").read_text().splitlines()
    told = dict(line.split("=", 1) for line in lines)
    assert told["IMAGE"] == manifest["image"]
    assert told["SERIES"] == manifest["series"]["name"]
    assert told["SERIES_HASH"] == manifest["series"]["sha256"]
    assert told["KERNEL"] == manifest["kernel"]["release"]


@pytest.mark.usefixtures("minimal")
def test_everything_in_packages_txt_is_there(target: Path) -> None:
    wanted = rootfs.read_packages(ROOT / "board/common/packages.txt")
    assert [path for path in wanted.paths if not (target / path).exists()] == []


def test_our_own_programs_and_files_are_there(target: Path, manifest: dict[str, Any]) -> None:
    assert os.access(target / "usr/bin/daxprobe", os.X_OK)
    overlay = ROOT / "board/common" / ("rootfs" if manifest["image"] == "minimal" else "overlay")
    names = [path.relative_to(overlay) for path in overlay.rglob("*") if path.is_file() and not path.is_symlink()]
    assert names
    for name in names:
        assert (target / name).read_bytes() == (overlay / name).read_bytes()


def test_every_program_finds_its_libraries(target: Path) -> None:
    present = {path.name for path in target.rglob("*.so*")}
    missing = {
        str(path.relative_to(target)): library
        for path in target.rglob("*")
        if path.is_file() and not path.is_symlink()
        for library in rootfs.needed(path)
        if library not in present
    }
    assert missing == {}


def test_no_link_leads_nowhere(target: Path) -> None:
    """What is below /proc, /run and /tmp is made at run time."""
    dangling = []
    for path in target.rglob("*"):
        if path.is_symlink():
            place = rootfs.resolve(str(path.relative_to(target)), os.readlink(path))
            if not place.startswith(("proc/", "run/", "var/run/", "tmp/")) and not (target / place).exists():
                dangling.append(str(path.relative_to(target)))
    assert dangling == []


def test_every_request_of_the_fragments_is_granted(images: Path, manifest: dict[str, Any]) -> None:
    if manifest["series"]["name"] != manifest["kernel"]["line"]:
        pytest.skip("without the whole series a kernel cannot grant everything")
    kernel = manifest["kernel"]
    files = fragments.for_kernel(board(manifest["board"]).kernel_fragment, kernel["line"], kernel["variants"])
    missed = fragments.missed(fragments.read(files), fragments.read_config(images / "kernel.config"))
    assert [one.text for one in missed] == []


@pytest.mark.usefixtures("minimal")
def test_the_root_file_system_is_made_the_same_way_twice(images: Path, target: Path, tmp_path: Path) -> None:
    """The second step of the build alone: seconds. The whole of it is the slow test below."""
    out = images.parent
    made = []
    for number in (1, 2):
        result = tmp_path / f"{number}.gz"
        rootfs.build(
            work=tmp_path / f"work{number}",
            target=result,
            gen_init_cpio=out / "linux/usr/gen_init_cpio",
            epoch=1700000000,
            release={"IMAGE": "minimal"},
            programs={"usr/bin/daxprobe": target / "usr/bin/daxprobe"},
        )
        made.append(sha256(result))
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """Kernel and all, in different folders, without a compiler cache."""
    drop = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
    environ = {name: value for name, value in os.environ.items() if name not in drop}
    made = []
    for name in ("first", "the-second"):
        subprocess.run(
            ["make", "kernel", f"O={tmp_path / name}"],
            cwd=ROOT,
            env={**environ, "CCACHE_DISABLE": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        files: dict[str, Any] = json.loads((tmp_path / name / "images/manifest.json").read_text())["files"]
        made.append(files)
    assert made[0] == made[1]
