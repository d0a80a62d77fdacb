# SPDX-License-Identifier: GPL-2.0-only
"""`make repro-check`: the same commit, built in two folders, gives the same bytes; or the files which differ are named."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tools import build
from tools.common import OUTPUT, ROOT, UserError, bounded, display, entry, run, say, sha256
from tools.environment import child_environment

FOLDER = OUTPUT / "repro"
# Paths of different length: one that gets into a file moves what is behind it.
PLACES = ("1", "a-second-folder-with-a-longer-name")
# For one build, and for diffoscope on one file, in seconds
BUILD_LIMIT = 6 * 3600
DIFF_LIMIT = 600
# What two builds and what they are made from take of the disk, in GiB
ROOM = 12


# --- comparing ---------------------------------------------------------------------------------


def manifest(images: Path) -> dict[str, object]:
    path = images / "manifest.json"
    try:
        content: dict[str, object] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the build is not whole") from error
    return content


def hashes(images: Path) -> dict[str, str]:
    """sha256 by file name, as the manifest has them; a file must be what the manifest says."""
    files = manifest(images)["files"]
    assert isinstance(files, dict)
    for name, facts in files.items():
        path = images / name
        if not path.is_file() or sha256(path) != facts["sha256"]:
            raise UserError(f"{path} is not what its manifest.json says: something wrote there after the build")
    return {name: facts["sha256"] for name, facts in files.items()}


def compare(first: Path, second: Path) -> dict[str, str]:
    """What differs between two folders of images: how, by file name."""
    one, two = hashes(first), hashes(second)
    found = dict.fromkeys(sorted(one.keys() ^ two.keys()), "only in one of the builds")
    found |= {name: "differs" for name in sorted(one.keys() & two.keys()) if one[name] != two[name]}
    others = [manifest(folder) for folder in (first, second)]
    keys = sorted({key for other in others for key in other if key != "files"})
    wrong = [key for key in keys if others[0].get(key) != others[1].get(key)]
    if wrong:
        found["manifest.json"] = f"differs in {', '.join(wrong)}"
    return found


def explain(first: Path, second: Path, names: Sequence[str], reports: Path) -> None:
    """diffoscope's report on each file that both builds have."""
    if shutil.which("diffoscope") is None:
        say("diffoscope is not installed, so nothing says in what they differ: `apt-get install diffoscope-minimal`")
        return
    for name in names:
        one, two = first / name, second / name
        if not (one.exists() and two.exists()):
            continue
        report = reports / f"{name}.txt"
        say(f"diffoscope on {name} (at most {DIFF_LIMIT} s)")
        status = bounded(["diffoscope", "--no-progress", "--text", report, one, two], DIFF_LIMIT, cwd=reports)
        if report.exists():
            say(f"  {display(report)}")
        else:
            say(f"  no report: {f'no end after {DIFF_LIMIT} s' if status is None else f'exit status {status}'}")


# --- building ----------------------------------------------------------------------------------


def clone(place: Path, commit: str) -> None:
    """One commit of this repository, whatever is edited here."""
    run(["git", "clone", "--quiet", "--no-checkout", ROOT, place], what=f"{display(ROOT)} cannot be cloned")
    run(["git", "checkout", "--quiet", "--detach", commit], cwd=place, what="git checkout")
    (place / ".venv").symlink_to(ROOT / ".venv")


def build_in(place: Path, chosen: build.Configured) -> Path:
    """Builds in a clone what is configured here; returns its images."""
    kind, _, archive = chosen.sources.partition(":")
    origin = f"archive:{Path(archive).absolute()}" if kind == "archive" else chosen.sources
    words = [f"KERNEL={chosen.kernel}", f"IMAGE={chosen.image}", f"SOURCES={origin}"]
    for command in (["make", f"{chosen.board.name}_defconfig", *words], ["make"]):
        # The second build must not be handed the first one's objects.
        status = bounded(command, BUILD_LIMIT, cwd=place, env=child_environment(CCACHE_DISABLE="1"))
        if status is None:
            raise UserError(f"no end of `{command[0]}` in {display(place)} after {BUILD_LIMIT} s")
        if status:
            raise UserError(f"the build in {display(place)} failed: see above")
    return place / "output" / chosen.board.name / "images"


def check(chosen: build.Configured) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    free = shutil.disk_usage(FOLDER).free >> 30
    if free < ROOM:
        raise UserError(f"two builds need {ROOM} GiB of disk, and {display(OUTPUT)} has {free}: make room first")
    if run(["git", "status", "--porcelain"], cwd=ROOT, what="git").strip():
        say("note: what is not committed here is not a part of it")
    # Once: somebody may commit meanwhile.
    commit = run(["git", "rev-parse", "HEAD"], cwd=ROOT, what="git").strip()
    images = []
    for number, name in enumerate(PLACES, 1):
        start = time.monotonic()
        clone(FOLDER / name, commit)
        say(f"build {number} of {len(PLACES)}: {chosen.board.name} at {commit[:12]} in {display(FOLDER / name)}")
        images.append(build_in(FOLDER / name, chosen))
        say(f"build {number} of {len(PLACES)} took {time.monotonic() - start:.0f} s")
    conclude(*images)


def conclude(first: Path, second: Path) -> None:
    found = compare(first, second)
    count = len(hashes(first).keys() | hashes(second).keys())
    if found:
        for name, how in found.items():
            say(f"{name}: {how}")
        explain(first, second, [name for name in found if name != "manifest.json"], FOLDER)
        raise UserError(
            f"two builds of the same commit are not the same: {', '.join(found)}; both are left in {display(FOLDER)}"
        )
    shutil.rmtree(FOLDER)
    say(f"both builds are the same: {count} files, byte for byte")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.repro", description=__doc__)
    for name in ("board", "kernel", "image", "sources"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--out", type=build.out_folder, default=None)
    check(build.configured(parser.parse_args()))
    return 0


if __name__ == "__main__":
    entry(main)
