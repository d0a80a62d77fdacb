# SPDX-License-Identifier: GPL-2.0-only
"""The Buildroot image: Buildroot's tree, its configuration for a board, and its targets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools import sources
from tools.boards import Board
from tools.common import (
    ROOT,
    UserError,
    cache_folder,
    check_path,
    display,
    end_groups,
    locked,
    run,
    say,
    sha256,
    write_whole,
)
from tools.environment import child_environment
from tools.kernel import first_error

EXTERNAL = ROOT / "br2-external"
PIN = EXTERNAL / "buildroot.yaml"
# Wait so long for a server to say whether it has the release, and for the clone, in seconds
ASK_LIMIT = 30
CLONE_LIMIT = 900
# What configuration was made of, in the output folder
STAMP = ".arm-pmem-config.json"
# What a path of Buildroot's may be made of: it gets into patterns of sed, options of linkers, and names of targets.
PLAIN = r"[A-Za-z0-9_./+~-]"


class NoTree(UserError):
    """Buildroot's tree cannot be had here."""


# --- Buildroot's tree --------------------------------------------------------------------------


def pin() -> tuple[str, str]:
    """(version, URL) of the release which this project is made for."""
    content = yaml.safe_load(PIN.read_text())
    return str(content["version"]), str(content["url"])


def version_of(tree: Path) -> str:
    makefile = tree / "Makefile"
    found = re.search(r"(?m)^export BR2_VERSION := (\S+)$", makefile.read_text()) if makefile.is_file() else None
    if not found or not (tree / "package").is_dir():
        raise NoTree(f"{tree} is not a tree of Buildroot: name one with BUILDROOT=, or leave that out")
    return found[1]


def find_tree() -> Path:
    """Buildroot at the pinned release: BUILDROOT=, else the cache, else a clone into the cache."""
    version, url = pin()
    named = os.environ.get("BUILDROOT", "")
    if named:
        tree = Path(named).absolute()
        check_path(tree, "name another tree with BUILDROOT=", PLAIN)
        found = version_of(tree)
        if found != version:
            raise UserError(
                f"{tree} is Buildroot {found}, and this project needs {version}: check that tag out there, "
                "or leave BUILDROOT= out"
            )
        return tree
    tree = cache_folder() / f"buildroot-{version}"
    busy = f"another make has been cloning Buildroot to {tree} for {CLONE_LIMIT} s: wait until that has ended"
    with locked(tree.with_name(".clone.lock"), busy, wait=CLONE_LIMIT):
        if not tree.exists():
            clone(os.environ.get("BUILDROOT_URL") or url, version, tree)
    return tree


def clone(url: str, version: str, tree: Path) -> None:
    """A shallow clone of one tag; it appears whole or not at all."""
    if os.path.isdir(url):
        # git copies a whole local repository, unless it is asked as a server
        url = f"file://{os.path.abspath(url)}"
    environment = {"GIT_TERMINAL_PROMPT": "0"}
    mend = "name one with BUILDROOT_URL=<repository> or BUILDROOT=<tree>, or use IMAGE=minimal"
    try:
        listed = run(
            ["git", "ls-remote", url, f"refs/tags/{version}"],
            env=environment,
            what=f"Buildroot cannot be reached at {url}",
            timeout=ASK_LIMIT,
        )
    except UserError as error:
        raise NoTree(f"{error}: {mend}") from error
    if not listed.strip():
        raise NoTree(f"{url} has no tag {version}: {mend}")
    say(f"cloning Buildroot {version} from {url} to {tree} (once)")
    tree.parent.mkdir(parents=True, exist_ok=True)
    part = tree.with_name(f".{tree.name}.{os.getpid()}")
    try:
        run(
            [
                "git",
                "-c",
                "advice.detachedHead=false",
                "clone",
                "--quiet",
                "--depth=1",
                f"--branch={version}",
                url,
                part,
            ],
            env=environment,
            what=f"Buildroot cannot be cloned from {url}",
            timeout=CLONE_LIMIT,
        )
        if version_of(part) != version:
            raise UserError(f"the tag {version} at {url} holds Buildroot {version_of(part)}: {mend}")
        part.replace(tree)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- one board's build -------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """One output folder of Buildroot's."""

    board: Board
    kernel: str
    out: Path
    tree: Path
    # debian, upstream or archive:<tar>
    sources: str
    # Where the inputs are kept
    store: Path

    @property
    def config(self) -> Path:
        return self.out / ".config"

    def command(self, *words: str) -> list[str]:
        return ["make", f"--directory={self.tree}", f"O={self.out}", f"BR2_EXTERNAL={EXTERNAL}", *words]

    def environment(self) -> dict[str, str]:
        # The host's own programs, and not those of a .venv or of somebody's home.
        kept = child_environment(PATH="/usr/bin:/bin:/usr/sbin:/sbin")
        # Buildroot itself would ask git, and an unpacked tree may lie in a repository of somebody's.
        epoch = re.search(r"(?m)^BR2_VERSION_EPOCH = (\d+)$", (self.tree / "Makefile").read_text())
        return kept | ({"SOURCE_DATE_EPOCH": epoch[1]} if epoch else {})


def make_build(board: Board, kernel: str, out: Path, wanted_sources: str) -> Build:
    """Finds the tree; a request which cannot be met is an error before anything is touched."""
    kind, _, archive = wanted_sources.partition(":")
    if not (archive if kind == "archive" else kind in ("debian", "upstream") and not archive):
        raise UserError(f"unknown SOURCES '{wanted_sources}': it is debian, upstream or archive:<tar>")
    check_path(ROOT, "move this project to a folder with a plain name, or use IMAGE=minimal", PLAIN)
    check_path(out, "choose another folder with O=, or IMAGE=minimal", PLAIN)
    check_path(cache_folder(), "name another folder for caches with XDG_CACHE_HOME", PLAIN)
    if kind == "archive":
        store, tree = sources.open_archive(Path(archive))
        version, _ = pin()
        if version_of(tree) != version:
            raise UserError(f"{archive} holds Buildroot {version_of(tree)}, and this project needs {version}")
        return Build(board, kernel, out, tree, wanted_sources, store)
    return Build(board, kernel, out, find_tree(), kind, cache_folder())


def default_sources() -> str:
    return "debian" if shutil.which("apt-get") else "upstream"


# --- configuration -----------------------------------------------------------------------------


def assignments(text: str) -> dict[str, str]:
    """Values by symbol of a defconfig or .config; of two lines for one symbol, the last one counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(BR2_\w+)=(.*)|# (BR2_\w+) is not set", line.strip())
        if match:
            found[match[1] or match[3]] = match[2] if match[1] else "n"
    return found


def defconfig(board: Board) -> Path:
    if not board.defconfig.exists():
        raise UserError(
            f"there is no {display(board.defconfig)}: this board has the minimal image only (IMAGE=minimal)"
        )
    return board.defconfig


def configure(build: Build) -> None:
    """Makes .config of the board's defconfig, unless it is there; every line of it must be granted."""
    source = defconfig(build.board)
    fragment, origin = "", {"sources": build.sources}
    if build.sources != "upstream":
        prepared = sources.prepare(
            build.store,
            build.tree,
            build.out,
            build.kernel,
            global_patches(source),
            offline=build.sources.startswith("archive"),
        )
        fragment = prepared.fragment
        origin |= prepared.origin
    write_whole(build.out / "sources.json", json.dumps(origin, indent=1) + "\n")
    wanted = merged(source.read_text(), fragment)
    stamp = build.out / STAMP
    inputs = sha256(wanted.encode())
    known: dict[str, str] = json.loads(stamp.read_text()) if stamp.exists() else {}
    if build.config.exists() and known:
        if known["inputs"] == inputs:
            return
        if known["made"] != sha256(build.config):
            raise UserError(
                f"{display(build.config)} was edited, and {display(source)} or its sources changed since: keep your "
                f"edits with `make savedefconfig`, then `make {build.board.name}_defconfig` starts anew"
            )
    stamp.unlink(missing_ok=True)
    make_config(build, wanted)
    check_granted(build, wanted, source)
    write_whole(stamp, json.dumps({"inputs": inputs, "made": sha256(build.config)}))


def global_patches(defconfig_file: Path) -> str:
    return assignments(defconfig_file.read_text()).get("BR2_GLOBAL_PATCH_DIR", '""').strip('"')


def make_config(build: Build, wanted: str) -> None:
    """Buildroot's .config of a defconfig's text."""
    text = build.out / "defconfig"
    write_whole(text, wanted)
    run(
        build.command("--silent", f"BR2_DEFCONFIG={text}", "defconfig"),
        environment=build.environment(),
        what="Buildroot cannot be configured",
    )


def merged(defconfig_text: str, fragment: str) -> str:
    """A defconfig with the lines of a fragment in the place of its own; a string that is `not set` just goes."""
    before, later = assignments(defconfig_text), assignments(fragment)
    strings = {name for name, value in later.items() if value == "n" and before.get(name, "").startswith('"')}
    kept = [line for line in defconfig_text.splitlines() if not set(assignments(line)) & set(later)]
    kept += [line for line in fragment.splitlines() if not set(assignments(line)) & strings]
    return "\n".join(kept) + "\n"


def check_granted(build: Build, wanted: str, source: Path) -> None:
    """Buildroot drops what cannot be, without a word: here that is an error."""
    got = assignments(build.config.read_text())
    missed = {
        name: value for name, value in assignments(wanted).items() if got.get(name, "n") != value and value != '""'
    }
    if missed:
        build.config.unlink()
        reasons = [why_not(build, name, value) for name, value in missed.items()]
        raise UserError(f"Buildroot does not grant what {display(source)} asks for: {'; '.join(reasons)}")


def why_not(build: Build, name: str, value: str) -> str:
    """The reason why a symbol has not its value, from the Config.in which defines it."""
    definition = re.compile(rf"(?m)^\s*(?:menu)?config {name}$((?:\n(?!\s*(?:menu)?config |source |endmenu|endif).*)*)")
    for base in (build.tree, EXTERNAL):
        for path in sorted(base.rglob("Config.in*")):
            found = definition.search(path.read_text(errors="replace"))
            if not found:
                continue
            if path.name == "Config.in.legacy":
                return f"{name}={value} (Buildroot {version_of(build.tree)} has dropped it, see its Config.in.legacy)"
            needs = " && ".join(re.findall(r"(?m)^\s*depends on (.+?)(?:\s*#.*)?$", found[1]))
            place = path.relative_to(base)
            return f"{name}={value} ({place}: " + (f"it depends on {needs})" if needs else "it is set otherwise)")
    return f"{name}={value} (no Config.in defines it: is it misspelt?)"


# --- building ----------------------------------------------------------------------------------


def parts(build: Build) -> dict[str, str]:
    """A hash of what each package is made of that Buildroot does not look at again by itself."""
    config = assignments(build.config.read_text())

    def files(*names: str) -> list[Path]:
        found: list[Path] = []
        for name in names:
            for word in config.get(name, '""').strip('"').split():
                path = Path(word.replace("$(BR2_EXTERNAL_ARM_PMEM_PATH)", str(EXTERNAL)))
                found += sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        return found

    def global_files(package: str) -> list[Path]:
        return [one for one in files("BR2_GLOBAL_PATCH_DIR") if one.parent.name == package]

    external = [EXTERNAL / "external.mk"]
    inputs: dict[str, list[Path]] = {
        "linux": [*files("BR2_LINUX_KERNEL_PATCH", "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES"), *external],
        "uboot": [*files("BR2_TARGET_UBOOT_CONFIG_FRAGMENT_FILES"), *external, *global_files("uboot")],
        "daxprobe": sorted(path for path in (ROOT / "tests/daxprobe").iterdir() if path.is_file()),
    }
    for folder in sorted((EXTERNAL / "package").iterdir()):
        inputs.setdefault(folder.name, []).extend(sorted(path for path in folder.iterdir() if path.is_file()))
    keys = {name: sha256("".join(sha256(p) for p in paths if p.is_file()).encode()) for name, paths in inputs.items()}
    keys["linux"] += config.get("BR2_LINUX_KERNEL_CUSTOM_TARBALL_LOCATION", "")
    overrides = build.out / "sources.mk"
    if overrides.exists():
        for name, folder in re.findall(r"(?m)^([A-Z0-9_]+)_OVERRIDE_SRCDIR = (\S+)$", overrides.read_text()):
            package = name.lower().replace("_", "-")
            keys[package] = folder
            # The folder of an unpacked source has a name of its own for each content; that of an installed program has not.
            if Path(folder).parent.name == "tools":
                wrappers = sorted(path for path in Path(folder).glob("*") if path.is_file())
                keys[package] += " " + sha256("".join(sha256(path) for path in wrappers).encode())
            # The host's variant of a package inherits its source.
            keys.setdefault(f"host-{package.removeprefix('host-')}", folder)
    for folder in sorted((build.out / "build").glob("*-*/.stamp_configured")):
        # Buildroot leaves a package as it is when its options change.
        name = folder.parent.name.rpartition("-")[0]
        heads = tuple(f"BR2_{kind}_{sources.variable(name)}_" for kind in ("PACKAGE", "TARGET"))
        mine = [f"{symbol}={value}" for symbol, value in config.items() if f"{symbol}_".startswith(heads)]
        keys[f"{name} options"] = sha256("\n".join(mine).encode())
    return keys


def drop_stale(build: Build) -> None:
    """Packages whose patches, fragments or sources changed are built from the start."""
    stamp = build.out / ".arm-pmem-parts.json"
    known: dict[str, str] = json.loads(stamp.read_text()) if stamp.exists() else {}
    now = parts(build)
    stale = sorted({name.split()[0] for name, key in known.items() if now.get(name, key) != key})
    # A version, or what stands for it where the source is a folder of somebody's
    built = [
        name
        for name in stale
        for kind in ("[0-9]*", "custom", "local")
        if list((build.out / "build").glob(f"{name}-{kind}"))
    ]
    targets = [f"{name}-dirclean" for name in built]
    if targets:
        say(f"changed since the last build, so built anew: {', '.join(built)}")
        run(build.command("--silent", *targets), environment=build.environment(), what="Buildroot", timeout=900)
    write_whole(stamp, json.dumps(now, indent=1))


def build_images(build: Build) -> None:
    configure(build)
    drop_stale(build)
    say(f"building the Buildroot image of {build.board.name} in {display(build.out)}")
    run_make(build, [f"-j{len(os.sched_getaffinity(0)) + 1}", "--output-sync=line"], build.out / "build.log")


def pass_through(build: Build, target: str) -> None:
    """One of Buildroot's own targets, on this terminal."""
    configure(build)
    drop_stale(build)
    if subprocess.run(build.command(target), env=build.environment(), check=False).returncode:
        raise UserError(f"Buildroot's target '{target}' failed: see above")


def run_make(build: Build, words: list[str], log: Path) -> None:
    """Buildroot's output goes to the log, and a line for each step of each package to the terminal."""
    process = subprocess.Popen(
        build.command(*words),
        env=build.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=3000)
    shown = 0.0
    assert process.stdout
    try:
        with log.open("w") as stream:
            for line in process.stdout:
                stream.write(line)
                last.append(line.rstrip())
                step = re.match(r"(?:\x1b\[[0-9;]*m)*>>> (.+?)(?:\x1b\[[0-9;]*m)*$", line.rstrip())
                # All steps on a terminal would scroll by; one in two seconds shows that it goes on.
                if step and (time.monotonic() - shown > 2 or "Building" in step[1]):
                    shown = time.monotonic()
                    say(f"  {step[1].strip()}")
        status = process.wait()
    except BaseException:
        end_groups([process], signal.SIGTERM)
        raise
    if status:
        raise UserError(f"Buildroot failed: {cause(list(last))} ({display(log)})")


def cause(lines: list[str]) -> str:
    """The most telling line of a failed build: our own error, a compiler's, or make's."""
    for pattern in (
        *(r"^error: ", r"No space left on device", r"\bERROR: ", r"\berror:", r"undefined reference"),
        r"\*\*\* \[",
    ):
        for line in lines:
            if re.search(pattern, line):
                return line.strip().removeprefix("error: ")
    return first_error(lines[-200:])
