# SPDX-License-Identifier: GPL-2.0-only
"""Buildroot's tree, its configuration for a board, and what this project adds to its images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from toyline import ROOT, in_plain_folder

from tools import boards, build, buildroot, product
from tools.boards import Board
from tools.common import UserError, cache_folder, sha256

VERSION = buildroot.pin()[0]


def make_tree(folder: Path, version: str = VERSION) -> Path:
    """What find_tree() takes for Buildroot: its Makefile's version and a folder package/."""
    (folder / "package").mkdir(parents=True)
    (folder / "package/Config.in").write_text(
        "config BR2_PACKAGE_FOO\n\tbool\n\tdepends on BR2_USE_MMU # fork()\n\tdepends on BR2_BAR\n\nconfig BR2_FREE\n\tbool\n"
    )
    (folder / "Config.in.legacy").write_text("config BR2_PACKAGE_OLD\n\tbool\n")
    (folder / "Makefile").write_text(f"export BR2_VERSION := {version}\n")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("BUILDROOT", "BUILDROOT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/arm-pmem"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the pinned tag, and others."""
    folder = make_tree(tmp_path / "repository")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["init", "--quiet"], ["add", "-A"], ["commit", "--quiet", "-m", "release"], ["tag", VERSION]):
        subprocess.run([*git, *words], cwd=folder, check=True, timeout=30)
    return folder


# --- Buildroot's tree --------------------------------------------------------------------------


def test_a_clone_is_made_once(repository: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDROOT_URL", str(repository))
    tree = buildroot.find_tree()
    assert tree == own_cache / f"buildroot-{VERSION}"
    shutil.rmtree(repository)
    assert buildroot.find_tree() == tree
    assert sorted(os.listdir(own_cache)) == [".clone.lock", tree.name]


def test_a_named_tree_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "mine")
    monkeypatch.setenv("BUILDROOT", str(tree))
    assert buildroot.find_tree() == tree


def test_a_tree_of_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDROOT", str(make_tree(tmp_path / "mine", "2020.02")))
    with pytest.raises(
        UserError, match=rf"mine is Buildroot 2020.02, and this project needs {VERSION}: check that tag"
    ):
        buildroot.find_tree()


def test_something_else_is_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDROOT", str(tmp_path))
    with pytest.raises(UserError, match="is not a tree of Buildroot: name one with BUILDROOT="):
        buildroot.find_tree()


def test_a_repository_without_the_release_is_named(
    repository: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "tag", "-d", VERSION], cwd=repository, check=True, capture_output=True, timeout=30)
    monkeypatch.setenv("BUILDROOT_URL", str(repository))
    with pytest.raises(UserError, match=f"has no tag {VERSION}: name one with BUILDROOT_URL="):
        buildroot.find_tree()
    assert os.listdir(own_cache) == [".clone.lock"]


def test_a_tag_with_another_release_behind_it_leaves_nothing(
    repository: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "Makefile").write_text("export BR2_VERSION := 2020.02\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["commit", "-qam", "other"], ["tag", "-f", VERSION]):
        subprocess.run([*git, *words], cwd=repository, check=True, capture_output=True, timeout=30)
    monkeypatch.setenv("BUILDROOT_URL", str(repository))
    with pytest.raises(UserError, match=f"the tag {VERSION} at .* holds Buildroot 2020.02"):
        buildroot.find_tree()
    assert os.listdir(own_cache) == [".clone.lock"]


def configured(image: str, tmp_path: Path, origin: str = "debian") -> build.Configured:
    return build.Configured(tmp_path / "out", boards.board("board"), "6.1", image, origin)


@in_plain_folder
def test_without_a_tree_auto_means_minimal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUILDROOT_URL", str(tmp_path / "nowhere"))
    assert build.with_buildroot(configured("auto", tmp_path)) is None
    assert "note: Buildroot cannot be reached at " in capsys.readouterr().out


@in_plain_folder
def test_without_a_tree_the_buildroot_image_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDROOT_URL", str(tmp_path / "nowhere"))
    with pytest.raises(
        UserError, match="Buildroot cannot be reached at .*: name one with BUILDROOT_URL=.* IMAGE=minimal"
    ):
        build.with_buildroot(configured("buildroot", tmp_path))


@pytest.mark.parametrize("origin", ["moon", "archive", "debian:x", "archive:"])
def test_unknown_sources_are_named(tmp_path: Path, origin: str) -> None:
    with pytest.raises(UserError, match="unknown SOURCES '.*': it is debian, upstream or archive:<tar>"):
        build.with_buildroot(configured("auto", tmp_path, origin))


# --- configuration -----------------------------------------------------------------------------


def test_a_fragment_takes_the_place_of_the_defconfigs_lines() -> None:
    text = buildroot.merged("# why\nBR2_A=y\nBR2_B=y\n", "# BR2_A is not set\nBR2_C=y\n")
    assert text == "# why\nBR2_B=y\n# BR2_A is not set\nBR2_C=y\n"
    assert buildroot.merged('BR2_A="x"\nBR2_B=y\n', "# BR2_A is not set\n") == "BR2_B=y\n"


def a_build(tmp_path: Path, granted: str) -> buildroot.Build:
    tree = make_tree(tmp_path / "tree")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".config").write_text(granted)
    return buildroot.Build(boards.board("board"), "6.1", out, tree, "upstream", tmp_path / "store")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("BR2_PACKAGE_FOO=y", r"BR2_PACKAGE_FOO=y \(package/Config.in: it depends on BR2_USE_MMU && BR2_BAR\)"),
        ("BR2_PACKAGE_OLD=y", r"BR2_PACKAGE_OLD=y \(Buildroot .* has dropped it, see its Config.in.legacy\)"),
        ("BR2_PAKCAGE_FOO=y", r"BR2_PAKCAGE_FOO=y \(no Config.in defines it: is it misspelt\?\)"),
        ("# BR2_FREE is not set", r"BR2_FREE=n \(package/Config.in: it is set otherwise\)"),
    ],
)
def test_a_symbol_that_buildroot_drops_is_an_error_with_the_reason(tmp_path: Path, asked: str, reason: str) -> None:
    made = a_build(tmp_path, "BR2_A=y\nBR2_FREE=y\n")
    with pytest.raises(UserError, match=f"does not grant what .*board_defconfig asks for: {reason}"):
        buildroot.check_granted(made, f"BR2_A=y\n{asked}\n", buildroot.defconfig(made.board))
    assert not made.config.exists()


def test_an_edited_configuration_is_not_thrown_away(tmp_path: Path) -> None:
    made = a_build(tmp_path, "BR2_A=y\n")
    (made.out / buildroot.STAMP).write_text(json.dumps({"inputs": "older", "made": "other"}))
    with pytest.raises(UserError, match="was edited, and .* changed since: keep your edits with `make savedefconfig`"):
        buildroot.configure(made)
    assert made.config.read_text() == "BR2_A=y\n"


@pytest.mark.parametrize("folder", ["daxprobe-local", "daxprobe-custom", "daxprobe-1.2"])
def test_what_changed_is_built_anew(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_build(tmp_path, "BR2_A=y\n")
    (made.out / "build" / folder).mkdir(parents=True)
    called: list[str] = []
    monkeypatch.setattr(buildroot, "run", lambda command, **rest: called.extend(command[-1:]))
    buildroot.drop_stale(made)
    assert called == []
    stamp = made.out / ".arm-pmem-parts.json"
    known = json.loads(stamp.read_text())
    # ndctl has changed as well, and was never built here
    stamp.write_text(json.dumps(known | {"daxprobe": "older", "linux": known["linux"], "ndctl": "older"}))
    buildroot.drop_stale(made)
    assert called == ["daxprobe-dirclean"]
    assert json.loads(stamp.read_text()) == known


def test_every_board_has_a_defconfig_that_names_its_own_files() -> None:
    for one in boards.products():
        text = buildroot.defconfig(one).read_text()
        named = re.findall(r"/\.\./(board/[^ \"]+)", text)
        assert f"board/{one.name}/linux.config" in named
        assert all((ROOT / name).exists() for name in named), named
        others = {other.name for other in boards.boards()} - {one.name}
        assert not [name for name in named if name.split("/")[1] in others]
        assert re.search(rf'BR2_ROOTFS_POST_SCRIPT_ARGS="{one.name}"', text)


def test_all_common_fragments_are_in_each_defconfig() -> None:
    common = {path.name for path in (ROOT / "board/common").glob("*.config")}
    for one in boards.products():
        line = re.search(r"(?m)^BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES=.*$", buildroot.defconfig(one).read_text())
        assert line
        assert all(f"board/common/{name}" in line[0] for name in common)


def test_every_download_of_every_board_has_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SOURCES=upstream cannot be run where there is no network: what it would fetch, and check, is looked at."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    tree = cache_folder() / f"buildroot-{VERSION}"
    if not tree.is_dir():
        pytest.skip("Buildroot's tree is not on this machine: `make` clones it")
    folders = [tree / name for name in ("package", "boot", "linux", "toolchain")] + [
        ROOT / "br2-external",
        ROOT / "patches",
    ]
    known: set[str] = set()
    for folder in folders:
        for path in folder.rglob("*.hash"):
            known |= {fields[2] for fields in map(str.split, path.read_text().splitlines()) if len(fields) == 3}
    for one in boards.products():
        made = buildroot.Build(one, "6.1", tmp_path / one.name, tree, "upstream", tmp_path)
        buildroot.make_config(made, buildroot.defconfig(one).read_text())
        assert "BR2_DOWNLOAD_FORCE_CHECK_HASHES=y" in made.config.read_text()
        told = subprocess.run(
            made.command("--silent", "show-info"),
            env=made.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        packages = json.loads(told.stdout)
        files = [file for package in packages.values() for file in package.get("downloads", [])]
        wanted = {file["source"] for file in files if not file["uris"][0].startswith("local+")}
        assert {"linux-6.1.183.tar.xz", "ndctl-81.tar.gz"} <= wanted
        assert wanted - known == set()


# --- errors of a build -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["x", "error: the board's own words", "make: *** [x] Error 1"], "the board's own words"),
        (["cc1: No space left on device", "make: *** Error"], "No space left on device"),
        (["ERROR: expected: a", "make: *** [x] Error 1"], "ERROR: expected: a"),
        (["a.c:1: error: no", "make: *** [x] Error 1"], "error: no"),
        (["make: *** [x] Error 127"], "Error 127"),
    ],
)
def test_the_telling_line_of_a_failed_build(lines: list[str], told: str) -> None:
    assert told in buildroot.cause(lines)


# --- what is added to the images ---------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders which Buildroot names to its scripts, with a kernel that was built; returns images/."""
    kernel = tmp_path / "build/linux-custom"
    (kernel / "include/config").mkdir(parents=True)
    (kernel / "include/config/kernel.release").write_text("6.1.0-arm-pmem\n")
    (kernel / ".config").write_text("CONFIG_FS_DAX=y\n")
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / ".config").write_text(f'BR2_LINUX_KERNEL_PATCH="{ROOT}/patches/linux/6.1"\n')
    for name, path in {"BUILD_DIR": "build", "BINARIES_DIR": "images", "BR2_CONFIG": ".config"}.items():
        monkeypatch.setenv(name, str(tmp_path / path))
    return images


@pytest.fixture
def small_board(tmp_path: Path) -> Board:
    """A board with a region, a script in its readme, and a disk of 4 MiB."""
    folder = tmp_path / "board/small"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "board/board/pmem.dtso", folder)
    (folder / "readme.txt").write_text("Small\n\n    # start-qemu.sh\n    echo it \\\n        starts\n\nMore\n    no\n")
    (folder / "genimage.cfg").write_text(
        "image sdcard.img {\n\thdimage {\n\t\tdisk-signature = 0x1\n\t}\n\tpartition a {\n\t\tpartition-type = 0x83\n"
        '\t\timage = "rootfs.ext4"\n\t}\n}\n'
    )
    return Board("small", folder)


def manifest(images: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((images / "manifest.json").read_text())
    return content


def test_the_images_get_a_manifest_a_script_and_a_bmap(environment: Path, small_board: Board) -> None:
    (environment / "rootfs.ext4").write_bytes(os.urandom(4096) + bytes(4 << 20))
    product.do_images(environment, small_board)
    told = manifest(environment)
    assert (told["board"], told["image"], told["kernel"]["release"]) == ("small", "buildroot", "6.1.0-arm-pmem")
    assert told["series"]["name"] == "6.1"
    assert set(told["files"]) == {path.name for path in environment.iterdir()} - {"manifest.json"}
    assert {"sdcard.img", "sdcard.img.bmap", "pmem.dtbo", "board-id", "kernel.config"} <= set(told["files"])
    assert all(facts["sha256"] == sha256(environment / name) for name, facts in told["files"].items())
    script = environment / "start-qemu.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run([script], capture_output=True, text=True, timeout=10, check=True).stdout == "it starts\n"


def test_the_bmap_leads_to_the_same_disk(environment: Path, small_board: Board, tmp_path: Path) -> None:
    (environment / "rootfs.ext4").write_bytes(os.urandom(4096) + bytes(4 << 20))
    product.do_images(environment, small_board)
    copy = tmp_path / "card"
    subprocess.run(["bmaptool", "copy", environment / "sdcard.img", copy], check=True, capture_output=True, timeout=60)
    assert sha256(copy) == sha256(environment / "sdcard.img")


def test_the_root_file_system_says_what_it_is(environment: Path, small_board: Board, tmp_path: Path) -> None:
    (environment / "manifest.json").write_text("{}")
    product.do_target(tmp_path / "target", small_board)
    told = dict(line.split("=", 1) for line in (tmp_path / "target/etc/arm-pmem-release").read_text().splitlines())
    assert (told["BOARD"], told["IMAGE"], told["KERNEL"]) == ("small", "buildroot", "6.1.0-arm-pmem")
    # Images of the state before must not pass for this one's from now on.
    assert not (environment / "manifest.json").exists()


def test_an_overlay_that_does_not_fit_the_boards_tree_is_named(environment: Path, small_board: Board) -> None:
    (small_board.folder / "pmem.dtso").write_text(
        "/dts-v1/; /plugin/; / { fragment@0 { target = <&nobody>; __overlay__ { a; }; }; };\n"
    )
    subprocess.run(
        ["dtc", "-q", "-O", "dtb", "-o", environment / "small.dtb", "-"], input=b"/dts-v1/; / { };", check=True
    )
    with pytest.raises(UserError, match=r"pmem.dtso does not fit small.dtb"):
        product.do_images(environment, small_board)
    assert not (environment / "manifest.json").exists()


def test_a_full_disk_leaves_no_image_that_passes_for_whole(environment: Path, tmp_path: Path) -> None:
    """The real genimage on a real file system that is too small."""
    script = f"""
set -e
mount -t tmpfs -o size=3m none {environment}
head -c 2m /dev/urandom >{environment}/rootfs.ext4
echo zImage >{environment}/zImage
cd '{ROOT}'
! .venv/bin/python -m tools.product images {environment} board
ls -A {environment}
"""
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^error: (sdcard.img cannot be copied: .*No space left|.*[Nn]o space left)", done.stderr, re.M), (
        done.stderr
    )
    assert "manifest.json" not in done.stdout
    assert "sdcard.img" not in [name for name in done.stdout.split() if not name.startswith(".")]


# --- what make says ----------------------------------------------------------------------------


def test_the_sources_of_an_image_stand_in_its_manifest(environment: Path, small_board: Board) -> None:
    (environment / "rootfs.ext4").write_bytes(bytes(4096))
    (environment.parent / "sources.json").write_text('{"sources": "debian", "override": {"kmod": "34.2"}}')
    product.do_images(environment, small_board)
    assert manifest(environment)["sources"]["override"] == {"kmod": "34.2"}


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/arm-pmem")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/arm-pmem"
