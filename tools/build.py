# SPDX-License-Identifier: GPL-2.0-only
"""Build what a board boots: the minimal image here, the Buildroot image by tools/buildroot.py."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tools import buildroot, cve, fragments, rootfs, sbom, sources
from tools.boards import Board, board, boards
from tools.common import (
    CROSS_COMPILE,
    OUTPUT,
    ROOT,
    UserError,
    cache_folder,
    check_path,
    copy_whole,
    display,
    entry,
    locked,
    need_tools,
    run,
    say,
    sha256,
    write_whole,
)
from tools.kernel import Kernel
from tools.product import compile_device_tree, compile_overlay, describe
from tools.source import NO_SERIES, Repository, Series, series, without

DEFAULT_KERNEL = "6.1"
DEFAULT_BOARD = "board"
TOOLS = [f"{CROSS_COMPILE}gcc", "gcc", "make", "git", "flex", "bison", "bc", "dtc", "xz"]


@dataclass(frozen=True)
class Product:
    """What is to be built, and where."""

    board: Board
    kernel: str
    out: Path
    variants: tuple[str, ...] = ()
    unpatched: bool = False
    # numbers of patches to leave out
    drop: tuple[str, ...] = ()

    @property
    def images(self) -> Path:
        return self.out / "images"


def flavour(variants: tuple[str, ...], unpatched: bool, drop: tuple[str, ...]) -> list[str]:
    return [*variants, *(["unpatched"] if unpatched else []), *(["drop", *drop] if drop else [])]


def build(product: Product) -> None:
    start = time.monotonic()
    need_tools(TOOLS)
    # Everything that may be wrong with the request, before anything is touched
    patches = series(product.kernel)
    if not patches.patches and not product.unpatched:
        raise UserError(f"there are no patches for Linux {product.kernel} yet: SERIES=none builds it without")
    files = fragments.for_kernel(product.board.kernel_fragment, product.kernel, product.variants)
    fragments.read(files)
    check_path(ROOT, "move this project to a folder with a plain name")
    check_path(product.out, "choose another folder with O=")
    project, worktree = describe(), ""
    if product.unpatched:
        patches, worktree = NO_SERIES, "unpatched"
    elif product.drop:
        patches, worktree = without(patches, product.drop), "drop"
    repository = Repository(product.kernel, worktree)
    source = repository.prepare(patches)
    with repository.in_use(shared=True), building(product.out):
        build_in(product, repository, source, patches, files, project)
    budget(product.out, time.monotonic() - start)


def building(out: Path) -> AbstractContextManager[None]:
    """Nobody else builds in this folder meanwhile."""
    return locked(out / ".lock", f"{display(out)} is being built by another make: wait until that has ended")


def build_in(
    product: Product, repository: Repository, source: Path, patches: Series, requests: list[Path], project: str
) -> None:
    epoch = repository.epoch()
    kernel = Kernel(
        source=source,
        build=product.out / "linux",
        epoch=epoch,
        localversion="" if product.unpatched else "-arm-pmem",
        misses_allowed=product.unpatched or bool(product.drop),
    )
    kernel.configure(requests)
    say(f"building Linux {product.kernel} in {display(kernel.build)}")
    kernel.make(product.out / "kernel.log")
    overlay = compile_overlay(product.board, product.out)
    archive = product.out / "rootfs/rootfs.cpio.gz"
    arch = architecture(requests)
    picked = rootfs.build(
        work=product.out / "rootfs",
        target=archive,
        gen_init_cpio=kernel.build / "usr/gen_init_cpio",
        epoch=epoch,
        release={
            "BOARD": product.board.name,
            "IMAGE": "minimal",
            "KERNEL": kernel.release,
            "SERIES": patches.name,
            "SERIES_HASH": patches.hash,
            "VARIANT": ",".join(product.variants) or "none",
        },
        programs=target_programs(product, arch),
        arch=arch,
    )
    files = {
        "zImage": kernel.image,
        "rootfs.cpio.gz": archive,
        "pmem.dtbo": overlay,
        "kernel.config": kernel.config,
    }
    if product.board.device_tree:
        tree = compile_device_tree(product.board.device_tree, source, product.out)
        files[tree.name] = tree
    manifest = {
        "board": product.board.name,
        "image": "minimal",
        "project": project,
        "kernel": {"line": product.kernel, "release": kernel.release, "variants": product.variants},
        "series": {
            "name": patches.name,
            "sha256": patches.hash,
            "patches": [patch.name for patch in patches.patches],
            # a developer's own work in the source tree, which the hash above does not cover
            "edits": repository.edits(),
        },
        "source_date_epoch": epoch,
        "files": {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()},
        "debian": {"suites": picked.suites, "packages": picked.packages},
    }
    publish(product.images, files, json.dumps(manifest, indent=2) + "\n")


def publish(images: Path, files: dict[str, Path], manifest: str) -> None:
    """Fill images/. The manifest comes last: where there is one, the files beside it belong together."""
    target = images / "manifest.json"
    clear_other(images.parent, "minimal")
    if not (target.exists() and target.read_text() == manifest):
        target.unlink(missing_ok=True)
    for name, path in files.items():
        copy_whole(path, images / name)
    write_whole(target, manifest)


def clear_other(out: Path, kind: str) -> None:
    """Images of the other kind must not lie beside those of this one."""
    marker = out / ".arm-pmem-image"
    if marker.exists() and marker.read_text() != kind:
        shutil.rmtree(out / "images", ignore_errors=True)
        # Buildroot thinks that what it installed there once is there.
        for stamp in out.glob("build/*/.stamp_images_installed"):
            stamp.unlink()
    write_whole(marker, kind)


def architecture(requests: list[Path]) -> rootfs.Arch:
    """Debian's armhf programs are for ARMv7; a kernel for older cores gets armel."""
    v7 = fragments.read(requests).get("ARCH_MULTI_V7")
    return rootfs.ARMHF if v7 and v7.value == "y" else rootfs.ARMEL


def target_programs(product: Product, arch: rootfs.Arch) -> dict[str, Path]:
    """Our own programs for the target, by their place there."""
    need_tools([f"{arch.cross}gcc"])
    folder = product.out / "rootfs/daxprobe"
    if not (ROOT / "tests/daxprobe/Makefile").exists():
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    run(
        [
            "make",
            f"--directory={ROOT / 'tests/daxprobe'}",
            f"CROSS_COMPILE={arch.cross}",
            f"O={folder}",
        ],
        what="tests/daxprobe does not build",
    )
    return {"usr/bin/daxprobe": folder / "daxprobe"}


def budget(out: Path, seconds: float) -> None:
    size = run(["du", "-sm", out], what="du").split()[0]
    free = shutil.disk_usage(out).free >> 30
    say(
        f"{display(out / 'images')} is ready: {seconds:.0f} s, {display(out)} takes {size} MiB ({free} GiB of disk left)"
    )


# --- what the Makefile calls -------------------------------------------------------------------


def check_image(wanted: str) -> None:
    if wanted not in ("auto", "minimal", "buildroot"):
        raise UserError(f"unknown IMAGE '{wanted}': it is auto, minimal or buildroot")


@dataclass(frozen=True)
class Configured:
    """An output folder and what `make <board>_defconfig` chose for it."""

    out: Path
    board: Board
    kernel: str
    image: str
    sources: str


def with_buildroot(chosen: Configured) -> buildroot.Build | None:
    """The Buildroot build of a configured folder; None where the image is to be the minimal one."""
    if chosen.image == "minimal":
        return None
    if chosen.image == "auto" and not chosen.board.defconfig.exists():
        return None
    try:
        return buildroot.make_build(chosen.board, chosen.kernel, chosen.out, chosen.sources)
    except buildroot.NoTree as error:
        if chosen.image == "buildroot":
            raise
        say(f"note: {error}")
        return None


def say_image(wanted: str, kind: str, verb: str) -> None:
    """What `auto` came to is said at the start and at the end, and stands in the manifest."""
    if wanted == "auto":
        say(f"IMAGE=auto: this {verb} the {kind} image")


def configuration(out: Path) -> Path:
    return out / "board.json"


def current() -> Path:
    """Which output folder the last `make <board>_defconfig` without O= configured."""
    return OUTPUT / "current"


def do_list(options: argparse.Namespace) -> None:
    for one in boards():
        say(f"{one.name:20} {one.summary}")


def do_configure(options: argparse.Namespace) -> None:
    chosen = board(options.board)
    check_image(options.image)
    series(options.kernel)
    if options.out:
        check_path(options.out, "choose another folder with O=")
    out = (options.out or OUTPUT / chosen.name).resolve()
    settings = {
        "board": chosen.name,
        "kernel": options.kernel,
        "image": options.image,
        "sources": options.sources or buildroot.default_sources(),
    }
    write_whole(configuration(out), json.dumps(settings) + "\n")
    # Buildroot's configuration is made of the defconfig again by the next make.
    (out / buildroot.STAMP).unlink(missing_ok=True)
    (out / ".config").unlink(missing_ok=True)
    if options.out is None:
        write_whole(current(), f"{chosen.name}\n")
    say(f"{display(out)} is configured for {chosen.name}: {chosen.summary}")


def configured(options: argparse.Namespace) -> Configured:
    """What is configured in the folder that is meant; what the command line says goes first."""
    out = options.out
    if out is None:
        if options.board:
            out = OUTPUT / board(options.board).name
        elif current().exists():
            out = OUTPUT / current().read_text().strip()
    if out is None or not configuration(out).exists():
        names = " or ".join(f"`make {one.name}_defconfig`" for one in boards())
        where = f" in {display(out)}" if out else ""
        raise UserError(f"no board is configured{where}: run {names} first")
    settings = json.loads(configuration(out).read_text())
    image = options.image or settings["image"]
    check_image(image)
    return Configured(
        out.resolve(),
        board(settings["board"]),
        options.kernel or settings["kernel"],
        image,
        options.sources or settings["sources"],
    )


def do_board(options: argparse.Namespace) -> None:
    """The product of the configured board."""
    chosen = configured(options)
    found = with_buildroot(chosen)
    kind = "buildroot" if found else "minimal"
    say_image(chosen.image, kind, "is")
    if found:
        build_product(found)
    else:
        build(Product(chosen.board, chosen.kernel, chosen.out))
    say_image(chosen.image, kind, "was")


def build_product(found: buildroot.Build) -> None:
    start = time.monotonic()
    with building(found.out):
        clear_other(found.out, "buildroot")
        # Said before hours of building, not only at their end.
        describe()
        buildroot.build_images(found)
    budget(found.out, time.monotonic() - start)


def do_target(options: argparse.Namespace) -> None:
    """One of Buildroot's own targets, for the configured board."""
    chosen = configured(options)
    found = with_buildroot(chosen)
    if found is None:
        raise UserError(
            f"there is no target '{options.target}' here (`make help`); Buildroot's own need a board with the Buildroot "
            f"image, and {display(chosen.out)} has the minimal one"
        )
    with building(found.out):
        buildroot.pass_through(found, options.target)


def with_lock(options: argparse.Namespace, use: Callable[[buildroot.Build], object]) -> None:
    """Something about the Buildroot image of the configured board, while nobody builds there."""
    chosen = configured(options)
    found = with_buildroot(chosen)
    if found is None:
        raise UserError(f"this is about the Buildroot image, and {display(chosen.out)} has the minimal one")
    with building(found.out):
        use(found)


def do_sbom(options: argparse.Namespace) -> None:
    """What the image is made of, as CycloneDX."""
    with_lock(options, sbom.write)


def do_cve(options: argparse.Namespace) -> None:
    """Which known CVEs name a version that the image is made of."""
    with_lock(options, cve.write)


def do_sources_archive(options: argparse.Namespace) -> None:
    """All inputs of a Buildroot build in one tar."""
    kernel = options.kernel or DEFAULT_KERNEL
    target = (options.out or OUTPUT) / f"arm-pmem-sources-{kernel}.tar"
    tree = buildroot.find_tree()
    sources.write_archive(target, cache_folder(), tree, kernel)


def do_kernel(options: argparse.Namespace) -> None:
    """The kernel developer's loop."""
    # What another program's variable of that name holds (`false`, `app:*`) is not taken for a request.
    if options.debug not in ("", "0", "1"):
        raise UserError(f"unknown DEBUG '{options.debug}': it is 1 for the debug variant, or 0, or unset")
    if options.series not in ("", "none"):
        raise UserError(f"unknown SERIES '{options.series}': it is none for the unpatched kernel, or unset")
    variants = tuple(dict.fromkeys([*(["debug"] if options.debug == "1" else []), *words(options.variant)]))
    unpatched, drop = options.series == "none", words(options.drop)
    if unpatched and drop:
        raise UserError("SERIES=none has no patch to drop: give SERIES=none or DROP, not both")
    # Every flavour has a folder of its own, so that switching costs nothing.
    name = "-".join(["kernel", options.kernel, *flavour(variants, unpatched, drop)])
    out = options.out or OUTPUT / name
    chosen = board(options.board or DEFAULT_BOARD)
    build(Product(chosen, options.kernel, out.resolve(), variants, unpatched, drop))


def words(listed: str) -> tuple[str, ...]:
    return tuple(listed.replace(",", " ").split())


def do_clean(options: argparse.Namespace) -> None:
    """Remove what was built; kernel sources and fetched packages stay."""
    made = [OUTPUT / one.name for one in boards()]
    made += [path for path in OUTPUT.glob("*/") if path.name.startswith("kernel-")]
    made += [OUTPUT / "check", OUTPUT / "test", OUTPUT / "repro", *([options.out] if options.out else [])]
    for path in made:
        if (path / "images").is_dir() or path.parent == OUTPUT:
            shutil.rmtree(path, ignore_errors=True)
    current().unlink(missing_ok=True)


def do_distclean(options: argparse.Namespace) -> None:
    """Remove everything that is not in git; but nobody's edits in a kernel source tree."""
    for path in sorted(OUTPUT.glob("linux-*/.git")):
        kernel, _, worktree = path.parent.name.removeprefix("linux-").partition("-")
        edits = Repository(kernel, worktree).edits()
        if edits:
            raise UserError(f"{display(path.parent)} holds {edits}: save them, or remove that folder yourself")
    if list(OUTPUT.glob("container/linux-*/.git")):
        raise UserError(
            "output/container/ holds a kernel source tree: run `make container CMD='make distclean'` first, "
            "which looks for edits there"
        )
    shutil.rmtree(OUTPUT, ignore_errors=True)
    shutil.rmtree(ROOT / ".venv", ignore_errors=True)


def out_folder(name: str) -> Path | None:
    return Path(name).absolute() if name else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.build", description=__doc__)
    # The Makefile hands every variable over as it is: empty means not given.
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=out_folder, default=None, metavar="DIR")
    common.add_argument("--board", default="")
    common.add_argument("--kernel", default="")
    common.add_argument("--image", default="")
    common.add_argument("--sources", default="", help="debian, upstream or archive:<tar>")
    common.add_argument("--target", default="", help="one of Buildroot's")
    common.add_argument("--variant", default="", help="debug, nohighmem, or both")
    common.add_argument("--drop", default="", help="numbers of patches to leave out: 0022,0027")
    common.add_argument("--debug", default="", help="1: the variant debug")
    common.add_argument("--series", default="", help="none: the unpatched kernel")
    commands = parser.add_subparsers(required=True)
    for name, function in {
        "list": do_list,
        "configure": do_configure,
        "board": do_board,
        "kernel": do_kernel,
        "target": do_target,
        "sources-archive": do_sources_archive,
        "sbom": do_sbom,
        "cve": do_cve,
        "clean": do_clean,
        "distclean": do_distclean,
    }.items():
        command = commands.add_parser(name, parents=[common], help=function.__doc__)
        command.set_defaults(function=function)
    options = parser.parse_args()
    if options.function in (do_configure, do_kernel):
        options.kernel = options.kernel or DEFAULT_KERNEL
    if options.function is do_configure:
        options.image = options.image or "auto"
    options.function(options)
    return 0


if __name__ == "__main__":
    entry(main)
