# SPDX-License-Identifier: GPL-2.0-only
"""`make check`: linters, patches, fragments. No board and no build; seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import buildroot, fragments, hosts, matrix, sources
from tools.boards import board, boards, products
from tools.common import OUTPUT, ROOT, UserError, display, entry, need_tools, run, say, sha256, write_whole
from tools.environment import child_environment
from tools.kernel import Kernel
from tools.source import BASE, GIT, IDENTITY, Repository, Series, git_am, kernel_lines, series

BIN = Path(sys.executable).parent
# Kinds of checkpatch complaints which do not apply here; patches/linux/README.md says why, per patch.
CHECKPATCH_IGNORE = (
    # a stable series does not touch MAINTAINERS
    "FILE_PATH_CHANGES",
    # The kernel names the functions of its page flags so.
    "CAMELCASE",
    # upstream commits are named, and this tree (Debian's source package) has no history to find them in
    "UNKNOWN_COMMIT_ID",
)


class Skipped(Exception):
    """This check has nothing to look at on this machine."""


def linter(*words: str | Path, cwd: Path = ROOT, env: dict[str, str]) -> str | None:
    """Run a linter; what it prints when it is not content, else None."""
    done = subprocess.run(
        words,
        cwd=cwd,
        env=child_environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout.rstrip() if done.returncode else None


def command(*words: str | Path, **environment: str) -> None:
    """Run a linter from the project's root; its complaints are the message."""
    said = linter(*words, env=environment)
    if said is not None:
        raise UserError(said or f"{words[0]} failed")


def shell_scripts() -> list[str]:
    """Everything in git that is a shell script, by its first line."""
    found = []
    for name in run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, what="git").splitlines():
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as stream:
            first = stream.readline(100)
        if re.match(rb"#!.*\b(ba|da)?sh\b|# shellcheck shell=", first):
            found.append(name)
    return found


def check_ruff() -> None:
    command(BIN / "ruff", "check", "--quiet", ".")


def check_format() -> None:
    command(BIN / "ruff", "format", "--check", "--quiet", "--output-format=concise", ".")


def check_types() -> None:
    command(BIN / "mypy", "--no-error-summary")
    # On its own: there can be only one module named conftest at a time.
    command(BIN / "mypy", "--no-error-summary", *sorted(ROOT.glob("tests/board/*.py")), MYPYPATH="labgrid:tests/board")
    command(BIN / "mypy", "--no-error-summary", *sorted(ROOT.glob("labgrid/*.py")), "conftest.py", MYPYPATH="labgrid")
    command(BIN / "mypy", "--no-error-summary", *sorted(ROOT.glob("tests/lab/*.py")), MYPYPATH="labgrid:tests/lab")


def check_shell() -> None:
    need_tools(["shellcheck"])
    command("shellcheck", *shell_scripts())


def kernel_sources() -> list[tuple[Repository, Series]]:
    """Each kernel line that has patches, and whose source is here."""
    lines = [(Repository(kernel), series(kernel)) for kernel in kernel_lines()]
    found = [(tree, patches) for tree, patches in lines if patches.patches and (tree.path / ".git").exists()]
    if not found:
        raise Skipped("no kernel source here: `make kernel` unpacks it")
    return found


def check_checkpatch() -> None:
    need_tools(["perl"])
    jobs = [(repository.path, patch) for repository, patches in kernel_sources() for patch in patches.patches]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        complaints = [one for one in pool.map(checkpatch, *zip(*jobs, strict=True)) if one]
    if complaints:
        raise UserError("\n".join(complaints))


def checkpatch(tree: Path, patch: Path) -> str:
    """What the kernel's own scripts/checkpatch.pl has to say about a patch; '' for nothing."""
    # A clean patch is not looked at again until it, or what it is held against, changes.
    state = [sha256(patch), sha256(tree / "scripts/checkpatch.pl"), *CHECKPATCH_IGNORE]
    passed = OUTPUT / "check/checkpatch" / sha256("\n".join(state).encode())
    if passed.exists():
        return ""
    said = linter(
        tree / "scripts/checkpatch.pl",
        *("--strict", "--terse", "--no-summary", "--quiet", f"--root={tree}"),
        *("--ignore", ",".join(CHECKPATCH_IGNORE)),
        patch,
        cwd=tree,
        # its helper spdxcheck.py wants the system's Python, which has the modules of python3-ply and -git
        env={"PATH": f"/usr/bin:{os.environ['PATH']}"},
    )
    if said is not None:
        return said.replace(f"{ROOT}/", "")
    write_whole(passed, f"{patch.name}\n")
    return ""


def touched(patch: Path) -> set[str]:
    """The files which a patch reads or writes."""
    names = re.findall(r"(?m)^(?:---|\+\+\+) (?:[ab]/)?(\S+)", patch.read_text(errors="replace"))
    return {name for name in names if name != "/dev/null"}


def check_patches() -> None:
    """Each patch applies without fuzz by patch(1) and by git am, in a tree of just the touched files."""
    need_tools(["patch", "git"])
    for repository, patches in kernel_sources():
        names = sorted({name for patch in patches.patches for name in touched(patch)})
        present = repository.git("ls-tree", "-r", "--name-only", BASE, "--", *names).splitlines()
        for apply in (apply_by_patch, apply_by_git):
            with tempfile.TemporaryDirectory() as name:
                tree = Path(name)
                if present:
                    archive = subprocess.run(
                        [*GIT, "archive", BASE, "--", *present],
                        cwd=repository.path,
                        env=child_environment(),
                        stdout=subprocess.PIPE,
                        timeout=60,
                        check=True,
                    )
                    subprocess.run(
                        ["tar", "xf", "-"],
                        cwd=tree,
                        env=child_environment(),
                        input=archive.stdout,
                        timeout=60,
                        check=True,
                    )
                apply(tree, repository, patches)


def apply_by_patch(tree: Path, repository: Repository, patches: Series) -> None:
    for patch in patches.patches:
        done = subprocess.run(
            ["patch", "-p1", "-F0", "--batch", "--no-backup-if-mismatch", "-i", patch],
            cwd=tree,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            failed = [line for line in done.stdout.splitlines() if "FAILED" in line] or done.stdout.splitlines()[-1:]
            file = re.findall(r"patching file (\S+)", done.stdout)
            raise UserError(
                f"{display(patch)} does not apply to Linux {repository.kernel} by `patch -p1 -F0`: "
                f"{file[-1] if file else ''} {' '.join(failed)}"
            )


def apply_by_git(tree: Path, repository: Repository, patches: Series) -> None:
    environment = child_environment(**IDENTITY)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--allow-empty", "-m", BASE]):
        subprocess.run([*GIT, *words], cwd=tree, env=environment, timeout=60, check=True)
    for patch in patches.patches:
        reason = git_am(tree, patch.read_bytes())
        if reason:
            raise UserError(f"{display(patch)} does not apply to Linux {repository.kernel}: {reason}")


def check_fragments() -> None:
    """Every request of every board, and of the variants that the matrix builds, is granted by the patched kernel."""
    jobs = []
    for repository, patches in kernel_sources():
        source = repository.prepare(patches)
        wanted: set[tuple[str, tuple[str, ...]]] = {(one.name, ()) for one in boards()}
        wanted |= {(lane.board, lane.variants) for lane in matrix.lanes() if lane.kernel == repository.kernel}
        for name, variants in sorted(wanted):
            files = fragments.for_kernel(board(name).kernel_fragment, repository.kernel, variants)
            fragments.read(files)
            build = OUTPUT / "check" / "-".join([name, repository.kernel, *variants])
            jobs.append((Kernel(source, build, epoch=0, localversion=""), files))
    # The first of each line alone: what make writes into the source tree is then there for all.
    first = {kernel.source: (kernel, files) for kernel, files in reversed(jobs)}
    for kernel, files in first.values():
        kernel.configure(files)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda job: job[0].configure(job[1]), jobs))


def buildroot_tree() -> Path:
    try:
        return buildroot.find_tree()
    except buildroot.NoTree as error:
        raise Skipped(str(error)) from error


def check_package() -> None:
    """Buildroot's own linter on all that Buildroot reads of this project."""
    tree = buildroot_tree()
    names = run(["git", "ls-files", "--", "br2-external", "patches", "board/*/patches"], cwd=ROOT, what="git").split()
    command(
        "/usr/bin/python3", tree / "utils/check-package", "--br2-external", *(n for n in names if not n.endswith(".md"))
    )


def check_defconfigs() -> None:
    """Each defconfig, as it stands and with what SOURCES=debian changes in it, is granted by Buildroot to the letter."""
    tree = buildroot_tree()
    for product in products():
        for origin in ("upstream", "debian"):
            out = OUTPUT / "check" / f"buildroot-{product.name}-{origin}"
            build = buildroot.Build(product, kernel_lines()[0], out, tree, origin, OUTPUT / "check/store")
            lines = ""
            if origin == "debian":
                patches = buildroot.global_patches(buildroot.defconfig(product))
                lines = sources.fragment(build.store, out, "kernel.tar.xz", "gcc.tar.gz", patches)
            (out / "hashes").mkdir(parents=True, exist_ok=True)
            buildroot.make_config(build, buildroot.merged(buildroot.defconfig(product).read_text(), lines))
            command(tree / "support/scripts/check-dotconfig.py", build.config, out / "defconfig")


def check_hosts() -> str:
    """What `make deps` would install can be had on each host, from the archive and from the index of Python packages."""
    jobs = [(step, host) for step in (hosts.resolve, hosts.resolve_pins) for host in hosts.HOSTS]
    with ThreadPoolExecutor(len(jobs)) as pool:
        results = [(host, pool.submit(step, host)) for step, host in jobs]
    left_out = []
    for host, result in results:
        try:
            result.result()
        except hosts.NotRun as reason:
            left_out.append(f"{host.name} not run: {reason}")
    if len(left_out) == len(jobs):
        raise Skipped("; ".join(left_out))
    return "; ".join(left_out)


# A check may return what it left out.
CHECKS: dict[str, Callable[[], str | None]] = {
    "ruff": check_ruff,
    "ruff format": check_format,
    "mypy": check_types,
    "shellcheck": check_shell,
    "hosts": check_hosts,
    "checkpatch": check_checkpatch,
    "patches apply": check_patches,
    "fragments": check_fragments,
    "check-package": check_package,
    "defconfigs": check_defconfigs,
}


def main() -> int:
    failed = 0
    for name, check in CHECKS.items():
        start = time.monotonic()
        try:
            note = check()
            result = f"ok ({note})" if note else "ok"
        except Skipped as reason:
            result = f"skipped ({reason})"
        except UserError as error:
            failed += 1
            result = f"FAILED\n{error}"
        say(f"{name:14} {time.monotonic() - start:5.1f} s  {result}")
    say(f"{failed} of {len(CHECKS)} checks failed" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    entry(main)
