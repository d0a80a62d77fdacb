"""Build what a board boots: kernel, minimal root file system, device-tree overlay, manifest."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tools import fragments, rootfs
from tools.boards import Board, board
from tools.common import (
    CROSS_COMPILE,
    OUTPUT,
    ROOT,
    UserError,
    copy_whole,
    display,
    entry,
    need_tools,
    run,
    say,
    sha256,
    write_whole,
)
from tools.kernel import Kernel
from tools.source import Repository, Series, series

DEFAULT_KERNEL = "6.1"
TOOLS = [f"{CROSS_COMPILE}gcc", "gcc", "make", "git", "flex", "bison", "bc", "dtc", "xz"]


@dataclass(frozen=True)
class Product:
    """What is to be built, and where."""

    board: Board
    kernel: str
    out: Path
    variant: str = ""
    unpatched: bool = False

    @property
    def images(self) -> Path:
        return self.out / "images"


def kernel_folder(kernel: str, variant: str, unpatched: bool) -> Path:
    """make kernel: every flavour has a folder of its own, so that switching costs nothing."""
    name = f"kernel-{kernel}{f'-{variant}' if variant else ''}{'-unpatched' if unpatched else ''}"
    return OUTPUT / name


def build(product: Product) -> None:
    start = time.monotonic()
    need_tools(TOOLS)
    patches = series(product.kernel)
    repository = Repository(product.kernel)
    source = repository.pristine() if product.unpatched else repository.prepare(patches)
    if product.unpatched:
        patches = Series("none", ())
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or repository.epoch())
    kernel = Kernel(
        source=source,
        build=product.out / "build",
        epoch=epoch,
        localversion="" if product.unpatched else "-arm-pmem",
        misses_allowed=product.unpatched,
    )
    kernel.configure(fragments.for_kernel(product.board.kernel_fragment, product.variant))
    say(f"building Linux {product.kernel} in {display(kernel.build)}")
    kernel.make(product.out / "kernel.log")
    images = product.images
    images.mkdir(parents=True, exist_ok=True)
    copy_whole(kernel.image, images / "zImage")
    copy_whole(kernel.config, images / "kernel.config")
    overlay = compile_overlay(product)
    picked = rootfs.build(
        work=product.out / "rootfs",
        target=images / "rootfs.cpio.gz",
        gen_init_cpio=kernel.build / "usr/gen_init_cpio",
        epoch=epoch,
        release={
            "BOARD": product.board.name,
            "IMAGE": "minimal",
            "KERNEL": kernel.release,
            "SERIES": patches.name,
            "SERIES_HASH": patches.hash,
            "VARIANT": product.variant or "none",
        },
        programs=target_programs(product),
    )
    made = [images / name for name in ("zImage", "rootfs.cpio.gz", "kernel.config")]
    manifest = {
        "board": product.board.name,
        "image": "minimal",
        "project": describe(),
        "kernel": {"line": product.kernel, "release": kernel.release, "variant": product.variant},
        "series": {
            "name": patches.name,
            "sha256": patches.hash,
            "patches": [patch.name for patch in patches.patches],
        },
        "source_date_epoch": epoch,
        "files": {
            path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
            for path in [*made, overlay]
        },
        "debian": {"suites": picked.suites, "packages": picked.packages},
    }
    write_whole(images / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    budget(product, time.monotonic() - start)


def compile_overlay(product: Product) -> Path:
    target = product.images / "pmem.dtbo"
    work = product.out / "pmem.dtbo.tmp"
    run(
        ["dtc", "-@", "-I", "dts", "-O", "dtb", "-o", work, product.board.overlay],
        what=f"{display(product.board.overlay)} does not compile",
    )
    copy_whole(work, target)
    work.unlink()
    return target


def target_programs(product: Product) -> dict[str, Path]:
    """Our own programs for the target, by their place there."""
    folder = product.out / "rootfs/daxprobe"
    if not (ROOT / "tests/daxprobe/Makefile").exists():
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    run(
        [
            "make",
            f"--directory={ROOT / 'tests/daxprobe'}",
            f"CROSS_COMPILE={CROSS_COMPILE}",
            f"O={folder}",
        ],
        env={"MAKEFLAGS": "", "MAKELEVEL": ""},
        what="tests/daxprobe does not build",
    )
    return {"usr/bin/daxprobe": folder / "daxprobe"}


def describe() -> str:
    """Which state of this project made the image; outside git there is none."""
    try:
        return run(["git", "describe", "--always", "--dirty"], cwd=ROOT, what="git").strip()
    except UserError:
        return "unknown"


def budget(product: Product, seconds: float) -> None:
    size = run(["du", "-sm", product.out], what="du").split()[0]
    free = shutil.disk_usage(product.out).free >> 30
    say(
        f"{display(product.images)} is ready: {seconds:.0f} s, {display(product.out)} takes {size} MiB "
        f"({free} GiB of disk left)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.build", description=__doc__)
    parser.add_argument("--board", default="board")
    parser.add_argument("--kernel", default=DEFAULT_KERNEL)
    parser.add_argument("--out", type=Path, help="default: output/kernel-<kernel>…")
    parser.add_argument("--variant", default="", help="debug, nohighmem …")
    parser.add_argument("--series", choices=["patched", "none"], default="patched")
    options = parser.parse_args()
    unpatched = options.series == "none"
    out = options.out or kernel_folder(options.kernel, options.variant, unpatched)
    build(
        Product(board(options.board), options.kernel, out.resolve(), options.variant, unpatched)
    )
    return 0


if __name__ == "__main__":
    entry(main)
