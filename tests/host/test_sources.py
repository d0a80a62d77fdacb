# SPDX-License-Identifier: GPL-2.0-only
"""Where the Buildroot image's sources come from: a manifest, an archive's pool, one tar. apt itself does the fetching."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from toyline import ROOT

from tools import buildroot, common, debian, source, sources
from tools.common import UserError, cache_folder, sha256
from tools.sources import Identical, Manifest, Override, Pinned, Tool


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in a folder: apt's method `copy` takes it for one."""
    folder = tmp_path / "mirror"
    (folder / "pool").mkdir(parents=True)
    monkeypatch.setattr(debian, "archives", lambda: [debian.Archive(f"copy:{folder}", "bookworm")])
    return folder


def publish(mirror: Path, name: str, content: bytes) -> Pinned:
    (mirror / "pool" / name).write_bytes(content)
    return Pinned(name, sha256(content))


def tarball(path: Path, files: dict[str, str]) -> bytes:
    source = path / "source"
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    subprocess.run(["tar", "-czf", path / "made.tar.gz", "-C", path, "source"], check=True, timeout=30)
    return (path / "made.tar.gz").read_bytes()


# --- the manifest ------------------------------------------------------------------------------


def test_the_manifest_names_hash_and_place_of_each_file() -> None:
    manifest = sources.read_manifest()
    files = [one.file for one in manifest.identical] + [file for one in manifest.overrides for file in one.files]
    assert len(files) > 10
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) and file.pool.startswith("main/") for file in files)


def test_the_packages_of_all_tools_are_installed_by_make_deps() -> None:
    listed = (ROOT / "tools/debian-packages.txt").read_text().split()
    essential = {"libacl1", "libattr1", "tar", "util-linux"}
    assert {one.package for one in sources.read_manifest().tools} - set(listed) - essential == set()


def test_every_patch_of_buildroots_is_applied_or_skipped_with_a_reason() -> None:
    tree = cache_folder() / "buildroot-2026.02.3"
    if not tree.is_dir():
        pytest.skip("Buildroot's tree is not on this machine: `make` clones it")
    import yaml

    content = yaml.safe_load(sources.MANIFEST.read_text())["override"]
    for name, entry in content.items():
        there = {path.name for path in sources.find_package(tree, name).glob("*.patch")}
        assert there == set(entry.get("patches", [])) | set(entry.get("skipped", {})), name


@pytest.mark.parametrize("text", ["identical: [", "identical: {a: {pool: x}}\noverride: {}\ntool: {}", "nothing"])
def test_a_broken_manifest_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "debian.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="is no source manifest: "):
        sources.read_manifest(path)


# --- fetching ----------------------------------------------------------------------------------


def test_a_file_is_fetched_once(mirror: Path, tmp_path: Path) -> None:
    one = Identical("name-1.tar.gz", publish(mirror, "name_1.orig.tar.gz", b"source"))
    assert sources.obtain(one, tmp_path) == one
    assert (tmp_path / "site/name-1.tar.gz").read_bytes() == b"source"
    (mirror / "pool/name_1.orig.tar.gz").unlink()
    assert sources.obtain(one, tmp_path) == one


def test_a_file_with_another_hash_is_refused_and_not_kept(mirror: Path, tmp_path: Path) -> None:
    wanted = publish(mirror, "name_1.tar.gz", b"source")
    (mirror / "pool/name_1.tar.gz").write_bytes(b"evil!!")
    with pytest.raises(
        UserError, match="name_1.tar.gz cannot be had from Debian's archive: it has another sha256 than"
    ):
        sources.obtain(Identical("name-1.tar.gz", wanted), tmp_path)
    assert list((tmp_path / "site").iterdir()) == []


def test_a_spoilt_file_in_the_cache_is_fetched_again(mirror: Path, tmp_path: Path) -> None:
    one = Identical("name-1.tar.gz", publish(mirror, "name_1.tar.gz", b"source"))
    sources.obtain(one, tmp_path)
    (tmp_path / "site/name-1.tar.gz").write_bytes(b"half")
    sources.obtain(one, tmp_path)
    assert (tmp_path / "site/name-1.tar.gz").read_bytes() == b"source"


def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server answers for a file which it does not have; apt's `copy` has no such answer."""
    real = common.run

    def run(command: list[object], **options: object) -> str:
        try:
            return real(command, **options)  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{error} 404 Not Found") from error

    monkeypatch.setattr(sources, "run", run)


def test_another_version_takes_the_place_of_one_that_is_gone(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone(monkeypatch)
    older = Override("name", publish(mirror, "name_1.tar.gz", b"old"), "1-1")
    wanted = Override("name", Pinned("name_2.tar.gz", "0" * 64), "2-1", fallback=older)
    assert sources.obtain(wanted, tmp_path) == older
    assert "name_2.tar.gz is not in Debian's archive (any more), name 1-1 takes its place" in capsys.readouterr().out
    # and from then on without asking again
    (mirror / "pool/name_1.tar.gz").unlink()
    assert sources.obtain(wanted, tmp_path) == older


def test_without_another_version_the_mend_is_said(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone(monkeypatch)
    with pytest.raises(UserError, match=r"is not in Debian's archive .*: mend br2-external/sources/debian.yaml, or"):
        sources.obtain(Override("name", Pinned("name_2.tar.gz", "0" * 64), "2-1"), tmp_path)


# --- override folders --------------------------------------------------------------------------


PATCH = "--- a/file\n+++ b/file\n@@ -1 +1 @@\n-{old}\n+new\n"


def override(mirror: Path, store: Path, tree: Path, tmp_path: Path, old: str) -> Override:
    (tree / "package/name").mkdir(parents=True)
    (tree / "package/name/0001.patch").write_text(PATCH.format(old=old))
    file = publish(mirror, "name_1.tar.gz", tarball(tmp_path, {"file": "old\n"}))
    one = Override("name", file, "1-1", patches=("0001.patch",), empty=("m4/none.m4",))
    sources.obtain(one, store)
    return one


def test_an_override_is_unpacked_and_patched(mirror: Path, tmp_path: Path) -> None:
    store, tree = tmp_path / "store", tmp_path / "tree"
    one = override(mirror, store, tree, tmp_path, "old")
    folder = sources.override_folder(one, store, tree)
    assert (folder / "file").read_text() == "new\n"
    assert (folder / "m4/none.m4").read_text() == ""
    assert sources.override_folder(one, store, tree) == folder
    # another patch is another folder, and the first one goes
    (tree / "package/name/0001.patch").write_text(PATCH.format(old="old").replace("+new", "+newer"))
    assert (sources.override_folder(one, store, tree) / "file").read_text() == "newer\n"
    assert not folder.exists()


def test_a_patch_that_does_not_apply_leaves_nothing(mirror: Path, tmp_path: Path) -> None:
    store, tree = tmp_path / "store", tmp_path / "tree"
    one = override(mirror, store, tree, tmp_path, "other")
    with pytest.raises(UserError, match="0001.patch does not apply to name 1-1"):
        sources.override_folder(one, store, tree)
    assert list((store / "overrides").iterdir()) == []


def test_a_missing_program_says_make_deps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-such-tool \(package no-such\) not found .*: run `make deps`"):
        sources.tool_folder(Tool("host-no", "no-such", ("no-such-tool",)), tmp_path)


def test_what_buildroot_is_given_of_a_tool_cannot_be_changed_by_its_package() -> None:
    tool = {
        "variable": "HOST_X",
        "folder": "/f",
        "package": "x",
        "version": "1-1",
        "programs": ["/usr/bin/x"],
        "wrapper": "",
        "depends": "",
        "hooks": False,
    }
    text = sources.render("debian.mk.j2", overrides=[], tools=[tool], toolchain=[], licences=[])
    makefile = f"{text}\nHOST_X_DEPENDENCIES += host-y\nHOST_X_EXTRACT_DEPENDENCIES += host-lzip\ndefine HOST_X_INSTALL_CMDS\n\tfalse\nendef\nall:\n\t@echo '[$(HOST_X_DEPENDENCIES)$(HOST_X_EXTRACT_DEPENDENCIES)]'; echo '$(findstring false,$(HOST_X_INSTALL_CMDS))'\n"
    done = subprocess.run(
        ["make", "-f", "-", "all"], input=makefile, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["[]"]


# --- licences ----------------------------------------------------------------------------------

TREE = cache_folder() / f"buildroot-{buildroot.pin()[0]}"

# What Buildroot has around the variables of a package whose licences are collected, and its own two lines for each
# licence file (package/pkg-utils.mk).
LEGAL = """
Q = @
override define sep


endef
legal-warning-pkg = echo "WARNING: $(1): $(2)" >>{work}/warnings
X_RAWNAME = x
X_PKGDIR = {work}/package
X_DIR = {work}/build
X_VERSION = custom
X_BASENAME_RAW = x-custom
X_HASH_FILES = {work}/package/x.hash
X_LICENSE_FILES = COPYING lib/COPYING
X_DL_VERSION := 2
all: PKG = X
all:
	$(foreach hook,$(X_PRE_LEGAL_INFO_HOOKS),$(call $(hook))$(sep))
	$(foreach F,$(X_LICENSE_FILES),support/download/check-hash $(X_DIR)/$(F) $(F) $(X_HASH_FILES)$(sep))
	@echo '[$(X_DL_VERSION)] [$(X_ACTUAL_SOURCE_TARBALL)] [$(X_ACTUAL_SOURCE_SITE)]'
"""


def collect_licences(work: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As `make x-legal-info` does it for an override, whose folder is work/source, built in work/build."""
    one = {"variable": "X", "folder": work / "source", "version": "1:1-1", "files": ["main/x/x_1.tar.gz"], "host": {}}
    text = sources.render("debian.mk.j2", overrides=[{**one, "set": variables}], tools=[], toolchain=[], licences=[])
    return subprocess.run(
        ["make", "-f", "-", "all"],
        cwd=TREE,
        input=text + LEGAL.format(work=work),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def licences(tmp_path: Path) -> Path:
    if not TREE.is_dir():
        pytest.skip("no tree of Buildroot in the cache")
    for place in ("source", "build"):
        (tmp_path / place / "lib").mkdir(parents=True)
        (tmp_path / place / "COPYING").write_text("ours")
        (tmp_path / place / "lib/COPYING").write_text("same")
    (tmp_path / "package").mkdir()
    known = {"COPYING": b"Buildroot's", "lib/COPYING": b"same"}
    text = "".join(f"sha256  {sha256(data)}  {name}\n" for name, data in known.items())
    (tmp_path / "package/x.hash").write_text(text)
    return tmp_path


def test_a_licence_of_another_version_is_collected_with_a_warning(licences: Path) -> None:
    done = collect_licences(licences)
    assert done.returncode == 0, done.stderr
    warned = "WARNING: x 1:1-1: COPYING is not as Buildroot knows it: see whether LICENSE is right\n"
    assert (licences / "warnings").read_text() == warned
    assert done.stdout.splitlines()[-1] == "[1:1-1] [x-custom.tar.gz] [Debian: main/x/x_1.tar.gz]"


def test_a_licence_which_changed_since_the_source_was_laid_out_is_an_error(licences: Path) -> None:
    (licences / "build/COPYING").write_text("edited")
    done = collect_licences(licences)
    assert done.returncode != 0
    assert "ERROR: COPYING has wrong sha256 hash" in done.stderr


def test_a_licence_file_that_is_not_there_is_an_error(licences: Path) -> None:
    (licences / "source/lib/COPYING").unlink()
    done = collect_licences(licences)
    assert done.returncode != 0
    assert "lib/COPYING: No such file" in done.stderr


def test_the_manifest_can_name_other_licence_files(licences: Path) -> None:
    (licences / "source/lib/COPYING").unlink()
    assert collect_licences(licences, LICENSE_FILES="COPYING").returncode == 0


def test_the_licence_of_an_installed_package_is_kept(tmp_path: Path) -> None:
    assert "GPL" in sources.keep_licence("dpkg", tmp_path / "a").read_text()
    assert (
        sources.keep_licence("no-such-package", tmp_path / "b").read_text()
        == "see the Debian package no-such-package\n"
    )


def test_the_toolchains_licences_are_on_a_debian_host() -> None:
    assert all((Path("/usr/share/doc") / name / "copyright").exists() for name in sources.RUNTIME_LICENCES)


# --- the kernel's hash -------------------------------------------------------------------------


def test_the_tested_kernel_needs_no_further_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(name for name in source.tested_hashes() if name.startswith("linux-source-"))
    sources.kernel_hash(tmp_path / name, tmp_path / "hashes")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "hashes/linux/linux.hash").exists()


def test_another_kernel_gets_its_hash(tmp_path: Path) -> None:
    kernel = tmp_path / "linux-source-6.1.999-1.tar.xz"
    kernel.write_bytes(b"newer")
    sources.kernel_hash(kernel, tmp_path / "hashes")
    assert (tmp_path / "hashes/linux/linux.hash").read_text() == f"sha256  {sha256(b'newer')}  {kernel.name}\n"


def test_an_installed_tool_is_told_with_its_version() -> None:
    assert re.match(r"\d", debian.installed("dpkg"))
    assert debian.installed("no-such-package") == ""


# --- one tar -----------------------------------------------------------------------------------


@pytest.fixture
def archive(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive as `make sources-archive` writes it, of a manifest with one file, and of a small tree."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = Identical("name-1.tar.gz", publish(mirror, "name_1.tar.gz", b"source"))
    monkeypatch.setattr(sources, "read_manifest", lambda: Manifest([one], [], []))
    store, tree = tmp_path / "store", tmp_path / "tree"
    (store / "site").mkdir(parents=True)
    (store / "site/toolchain.json").write_text(json.dumps({"name": "gcc.tar.gz", "packages": []}))
    for name in ("gcc.tar.gz", "linux-source-6.1.tar.xz"):
        (store / "site" / name).write_bytes(name.encode())
    monkeypatch.setattr(source, "tarball", lambda line, site: site / "linux-source-6.1.tar.xz")
    monkeypatch.setattr(sources, "toolchain_tarball", lambda store: store / "site/gcc.tar.gz")
    tree.mkdir()
    (tree / "Makefile").write_text("export BR2_VERSION := 1\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["init", "--quiet"], ["add", "-A"], ["commit", "--quiet", "-m", "tree"]):
        subprocess.run([*git, *words], cwd=tree, check=True, timeout=30)
    target = tmp_path / "sources.tar"
    sources.write_archive(target, store, tree, "6.1")
    return target


def test_an_archive_gives_back_all_inputs(archive: Path) -> None:
    store, tree = sources.open_archive(archive)
    assert (store / "site/name-1.tar.gz").read_bytes() == b"source"
    assert (tree / "Makefile").exists()
    assert [path.name for path in sources.packed_tarballs(store)] == ["linux-source-6.1.tar.xz", "gcc.tar.gz"]
    assert [one.name for one in sources.packed_manifest(store).identical] == ["name-1.tar.gz"]


def cache(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache/arm-pmem"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_no_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no archive .*: `make sources-archive` writes one"):
        sources.open_archive(tmp_path / "none.tar")


def test_a_cut_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:6000])
    with pytest.raises(UserError, match="is broken: tar: Unexpected EOF"):
        sources.open_archive(archive)
    assert cache(tmp_path) == []


def test_a_changed_byte_in_an_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"linux-source-6.1.tar.xz\0\0", b"linux-SOURCE-6.1.tar.xz\0\0"))
    with pytest.raises(UserError, match="is broken"):
        sources.open_archive(archive)
    assert cache(tmp_path) == []


def test_something_else_is_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.add(Path(__file__), "file")
    with pytest.raises(UserError, match="is broken or no archive of `make sources-archive`"):
        sources.open_archive(other)
    assert cache(tmp_path) == []
