# SPDX-License-Identifier: GPL-2.0-only
"""What this project adds to a Buildroot image: Buildroot calls it for the root file system, and for the images.

Nothing but Python's standard library is used: whoever runs Buildroot by himself needs no .venv.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tools.boards import Board, board
from tools.common import ROOT, UserError, display, entry, run, say, sha256, write_whole
from tools.source import Series, series

RELEASE = "etc/arm-pmem-release"
START_MARK = "# start-qemu.sh"


def environment(name: str) -> Path:
    """A folder which Buildroot names to its scripts."""
    value = os.environ.get(name)
    if not value:
        raise UserError(f"{name} is not set: this program is called by Buildroot (BR2_ROOTFS_POST_*_SCRIPT)")
    return Path(value)


def source_date_epoch() -> int:
    """What Buildroot says (tools/buildroot.py: of its release); 0 where its configuration has no BR2_REPRODUCIBLE."""
    return int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def buildroot_config() -> dict[str, str]:
    """Buildroot's .config without quotes."""
    text = environment("BR2_CONFIG").read_text()
    return {name: value.strip('"') for name, value in re.findall(r"(?m)^(BR2_\w+)=(.*)$", text)}


def kernel_build(build: Path) -> Path:
    found = [path.parents[2] for path in sorted(build.glob("linux-*/include/config/kernel.release"))]
    if not found:
        raise UserError(f"{build} holds no kernel that was built: BR2_LINUX_KERNEL must be on")
    return found[-1]


def kernel_release(build: Path) -> str:
    return (kernel_build(build) / "include/config/kernel.release").read_text().strip()


def applied(config: dict[str, str]) -> Series:
    """The series which BR2_LINUX_KERNEL_PATCH names."""
    return series(Path(config.get("BR2_LINUX_KERNEL_PATCH", "")).name)


def describe() -> str:
    """Which state of this project made the image, in the same words in any clone; outside git there is none."""
    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        return run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, what="git").strip()
    except UserError as error:
        say(f"note: the manifest will call this project's state unknown: {error}")
        return "unknown"


# --- the root file system ----------------------------------------------------------------------


def do_target(target: Path, chosen: Board) -> None:
    patches = applied(buildroot_config())
    # Images of another state of the tree must not pass for this one's.
    (environment("BINARIES_DIR") / "manifest.json").unlink(missing_ok=True)
    release = {
        "BOARD": chosen.name,
        "IMAGE": "buildroot",
        "KERNEL": kernel_release(environment("BUILD_DIR")),
        "SERIES": patches.name,
        "SERIES_HASH": patches.hash,
        "VARIANT": "none",
    }
    write_whole(target / RELEASE, "".join(f"{name}={value}\n" for name, value in release.items()))


# --- images ------------------------------------------------------------------------------------


def do_images(images: Path, chosen: Board) -> None:
    config = buildroot_config()
    build = environment("BUILD_DIR")
    patches = applied(config)
    try_overlay(chosen, images)
    shutil.copyfile(kernel_build(build) / ".config", images / "kernel.config")
    write_whole(images / "board-id", f"{chosen.name}\n")
    if (chosen.folder / "extlinux.conf").exists():
        shutil.copyfile(chosen.folder / "extlinux.conf", images / "extlinux.conf")
    if (chosen.folder / "genimage.cfg").exists():
        disk_images(chosen.folder / "genimage.cfg", images, build)
    script = start_script(chosen)
    if script:
        write_whole(images / "start-qemu.sh", script)
        (images / "start-qemu.sh").chmod(0o755)
    manifest = {
        "board": chosen.name,
        "image": "buildroot",
        "project": describe(),
        "kernel": {"line": patches.name, "release": kernel_release(build), "variants": []},
        "series": {
            "name": patches.name,
            "sha256": patches.hash,
            "patches": [patch.name for patch in patches.patches],
            "edits": "",
        },
        "source_date_epoch": source_date_epoch(),
        "buildroot": os.environ.get("BR2_VERSION", "unknown"),
        "sources": sources(build),
        "files": {
            path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(images.iterdir())
            if path.is_file() and not path.is_symlink() and path.name != "manifest.json"
        },
    }
    # Last: where there is a manifest, the files beside it belong together.
    write_whole(images / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def compile_overlay(chosen: Board, folder: Path) -> Path:
    overlay = folder / "pmem.dtbo"
    run(
        ["dtc", "-@", "-I", "dts", "-O", "dtb", "-o", overlay, chosen.overlay],
        what=f"{display(chosen.overlay)} does not compile",
    )
    return overlay


def compile_device_tree(source: Path, kernel: Path, folder: Path) -> Path:
    """A board's .dts, with what it includes of a kernel's source (by vendor from Linux 6.5 on)."""
    trees = kernel / "arch/arm/boot/dts"
    places = [trees, *sorted(path for path in trees.iterdir() if path.is_dir()), kernel / "include"]
    includes = [word for place in places for word in ("-I", str(place))]
    # For dtc's own /include/, which a few of the kernel's trees use
    searched = [word for place in places for word in ("-i", str(place))]
    whole, tree = folder / f".{source.name}", folder / f"{source.stem}.dtb"
    what = f"{display(source)} does not compile"
    run(["cpp", "-nostdinc", "-undef", "-x", "assembler-with-cpp", *includes, "-o", whole, source], what=what)
    # The kernel's trees have warnings of their own.
    run(["dtc", "-q", "-@", *searched, "-I", "dts", "-O", "dtb", "-o", tree, whole], what=what)
    whole.unlink()
    return tree


def try_overlay(chosen: Board, images: Path) -> None:
    """pmem.dtbo is tried on each device tree of the board: one that does not fit must not reach a card."""
    overlay = compile_overlay(chosen, images)
    for tree in sorted(images.glob("*.dtb")):
        with tempfile.NamedTemporaryFile() as result:
            run(
                ["fdtoverlay", "-i", tree, "-o", result.name, overlay],
                what=f"{display(chosen.overlay)} does not fit {tree.name}",
            )


def disk_images(description: Path, images: Path, build: Path) -> None:
    """genimage's images, and a bmap of each disk: which of its blocks hold anything."""
    # The time stamps of what is copied into a file system are part of it, and the time at which that is made.
    epoch = source_date_epoch()
    for path in images.iterdir():
        if epoch and path.is_file():
            os.utime(path, (epoch, epoch))
    with tempfile.TemporaryDirectory(dir=build, prefix="genimage-") as name:
        work = Path(name)
        (work / "root").mkdir()
        (work / "out").mkdir()
        run(
            [
                "genimage",
                *("--rootpath", work / "root", "--tmppath", work / "tmp"),
                *("--inputpath", images, "--outputpath", work / "out", "--config", description),
            ],
            what=f"{display(description)} gives no image",
            env={"SOURCE_DATE_EPOCH": str(epoch)} if epoch else {},
        )
        for image in sorted((work / "out").iterdir()):
            if image.name == "sdcard.img":
                run(["bmaptool", "create", "-o", work / "out" / f"{image.name}.bmap", image], what="bmaptool")
        for image in sorted((work / "out").iterdir()):
            # Sparse, as it was made: most of a card is empty.
            part = images / f".{image.name}"
            try:
                run(["cp", "--sparse=always", image, part], what=f"{image.name} cannot be copied")
                part.replace(images / image.name)
            finally:
                part.unlink(missing_ok=True)


def start_script(chosen: Board) -> str:
    """The commands of readme.txt which start the board in QEMU: the indented lines under the mark."""
    lines = (chosen.folder / "readme.txt").read_text().splitlines()
    marks = [number for number, line in enumerate(lines) if line.strip() == START_MARK]
    if not marks:
        return ""
    body = []
    for line in lines[marks[0] + 1 :]:
        if line.strip() and not line.startswith("    "):
            break
        body.append(line[4:])
    head = f'#!/bin/sh\n# The commands of board/{chosen.name}/readme.txt.\nset -e\ncd "$(dirname "$0")"\n'
    return head + "\n".join(body).rstrip() + "\n"


def sources(build: Path) -> dict[str, Any]:
    """Where the sources came from, as tools/buildroot.py left it beside the build."""
    path = build.parent / "sources.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"sources": "as configured"}
    return content


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.product", description=__doc__)
    parser.add_argument("what", choices=["target", "images"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("board")
    options = parser.parse_args()
    {"target": do_target, "images": do_images}[options.what](options.folder, board(options.board))
    return 0


if __name__ == "__main__":
    entry(main)
