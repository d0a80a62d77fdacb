# SPDX-License-Identifier: GPL-2.0-only
"""What a user's shell may export: the programs that the tools start do not see it, and what they make is the same bytes."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toyline import ROOT, Line, copy_project

from tools import boards, buildroot, environment, product, rootfs
from tools.common import UserError, bounded, run
from tools.environment import child_environment, lab_environment
from tools.fragments import for_kernel
from tools.kernel import Kernel
from tools.source import git_am

# Each of these changes what make, Kbuild, Buildroot, git, tar, a compiler, a shell, perl or Python does.
HOSTILE = dict(
    word.split("=", 1)
    for word in shlex.split("""
        LLVM=1 KCFLAGS='-DHOSTILE -O1' KCPPFLAGS=-DHOSTILE KAFLAGS=-DHOSTILE W=1 V=1 O=/nowhere LOCALVERSION=-hostile
        KCONFIG_CONFIG=/nowhere/.config KCONFIG_ALLCONFIG=/nowhere/all KBUILD_OUTPUT=/nowhere KBUILD_EXTMOD=/nowhere
        KBUILD_VERBOSE=1 KBUILD_BUILD_USER=hostile CROSS_COMPILE=hostile- ARCH=sparc CC=false HOSTCC=false
        CFLAGS='-DHOSTILE -O0' CPPFLAGS=-DHOSTILE HOSTCFLAGS=-DHOSTILE LDFLAGS=-Wl,--hostile DTC_FLAGS=-H
        MAKEFLAGS=k MFLAGS=-k GNUMAKEFLAGS=-k MAKEFILES=/nowhere/Makefile MAKEOVERRIDES=ARCH=sparc
        BR2_DL_DIR=/nowhere BR2_CCACHE=y BR2_EXTERNAL=/nowhere PERL_MM_OPT=hostile PERL5LIB=/nowhere PERL5OPT=-MHostile
        TAR_OPTIONS=--hostile GZIP=-1 XZ_OPT=--hostile XZ_DEFAULTS=--hostile GREP_OPTIONS=--hostile POSIXLY_CORRECT=1
        CDPATH=/ BASH_ENV=/nowhere/rc ENV=/nowhere/rc PYTHONPATH=/nowhere GIT_DIR=/nowhere/.git GIT_WORK_TREE=/nowhere
        GIT_INDEX_FILE=/nowhere/index GIT_OBJECT_DIRECTORY=/nowhere GIT_AUTHOR_DATE=hostile
        CPATH=/nowhere C_INCLUDE_PATH=/nowhere LIBRARY_PATH=/nowhere GCC_EXEC_PREFIX=/nowhere/ COMPILER_PATH=/nowhere
        CCACHE_PREFIX=false CCACHE_SLOPPINESS=everything LD_LIBRARY_PATH=/nowhere LD_PRELOAD=
        SOURCE_DATE_EPOCH=1 TZ=Asia/Kathmandu LANG=tr_TR.UTF-8 LC_ALL=tr_TR.UTF-8 LC_CTYPE=tr_TR.UTF-8 LANGUAGE=tr
        DEBUG=1 BOARD=raspi0 KERNEL=6.12 SERIES=none
    """)
)
# How git is told which repositories it may read
OF_GIT = {"GIT_CONFIG_COUNT", *(f"GIT_CONFIG_{kind}_{number}" for kind in ("KEY", "VALUE") for number in range(9))}
# What Buildroot tells the scripts which it calls
OF_BUILDROOT = {"BR2_VERSION", "SOURCE_DATE_EPOCH"}


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)


def assignments(listed: str) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in listed.split("\0") if entry)


# --- what a child sees -------------------------------------------------------------------------


@pytest.mark.usefixtures("hostile")
def test_a_short_command_sees_what_is_listed_and_nothing_else() -> None:
    seen = assignments(run(["env", "-0"], what="env", env={"MORE": "1"}))
    assert seen.keys() <= environment.PASSED | environment.FIXED.keys() | OF_GIT | {"MORE"}
    assert (seen["LC_ALL"], seen["TZ"], seen["PATH"], seen["MORE"]) == ("C.UTF-8", "UTC", os.environ["PATH"], "1")


@pytest.mark.usefixtures("hostile")
def test_a_long_command_sees_the_same(tmp_path: Path) -> None:
    with (tmp_path / "seen").open("w") as stream:
        assert bounded(["env", "-0"], 30, output=stream) == 0
    assert assignments((tmp_path / "seen").read_text()) == child_environment()


@pytest.mark.usefixtures("hostile")
def test_what_runs_labgrid_has_its_variables_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LG_PROXY", "gateway")
    assert "LG_PROXY" not in child_environment()
    assert lab_environment(LG_PLACE="one").items() >= {"LG_PROXY": "gateway", "LG_PLACE": "one"}.items()
    assert not HOSTILE.items() & lab_environment().items()


@pytest.mark.usefixtures("hostile")
def test_buildroots_make_sees_the_hosts_own_programs_and_the_date_of_its_release(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "Makefile").write_text("export BR2_VERSION := 1\nBR2_VERSION_EPOCH = 1781643700\nall:\n\t@env -0\n")
    made = buildroot.Build(boards.board("board"), "6.1", tmp_path / "out", tmp_path, "debian", tmp_path)
    seen = assignments(run(made.command("--silent", "all"), environment=made.environment(), what="make"))
    assert (seen["SOURCE_DATE_EPOCH"], seen["PATH"]) == ("1781643700", "/usr/bin:/bin:/usr/sbin:/sbin")
    of_make = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKE_TERMERR", "MAKE_TERMOUT"}
    of_command = {"BR2_EXTERNAL", "BR2_VERSION", "O", "PWD", "SHLVL", "OLDPWD", "_", "SOURCE_DATE_EPOCH"}
    assert seen.keys() <= environment.PASSED | environment.FIXED.keys() | OF_GIT | of_make | of_command


# --- no way around it --------------------------------------------------------------------------


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "tools").glob("*.py")):
        yield path, ast.parse(path.read_text())


STARTERS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}
STARTERS |= {"asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "pexpect.spawn"}


def test_every_program_is_started_with_an_environment_that_was_chosen() -> None:
    """By `env=`; what that is made of, the next test looks at."""
    wrong, count = [], 0
    for path, tree in modules():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            name = ast.unparse(node.func)
            starts = name in STARTERS
            forbidden = name.startswith(("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn"))
            count += starts
            if forbidden or (starts and "env" not in {word.arg for word in node.keywords}):
                wrong.append(f"{path.name}:{node.lineno}: {name}")
    assert wrong == []
    assert count > 15


def test_the_environment_is_read_by_names_that_are_listed_and_used_in_no_other_way() -> None:
    """So that nothing which a tool reads is lost on the way to it, and nothing of os.environ is handed on as it is."""
    # What labgrid is told in this very process, and what kconfiglib sees for a while
    apart = {
        "environment.py": ("os.environ",),
        "kconfig.py": ("os.environ", "dict(os.environ)"),
        "lab.py": ("os.environ.setdefault",),
    }
    apart |= {"rackboard.py": ("os.environ.update(variables(",), "product.py": ("os.environ.get(name)",)}
    wrong, count = [], 0
    for path, tree in modules():
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not (
                isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb")
            ):
                continue
            count += 1
            use = parents[node]
            if isinstance(use, ast.Attribute):
                use = parents[use]
            text = ast.unparse(use)
            words = use.args if isinstance(use, ast.Call) else [use.slice] if isinstance(use, ast.Subscript) else []
            name = words[0].value if words and isinstance(words[0], ast.Constant) else ""
            listed = name in environment.PASSED or str(name).startswith("LG_")
            listed |= path.name == "product.py" and name in OF_BUILDROOT
            if not listed and not text.startswith(apart.get(path.name, ())):
                wrong.append(f"{path.name}:{node.lineno}: {text}")
    assert wrong == []
    assert count > 15


# --- the same bytes ----------------------------------------------------------------------------


def test_a_part_of_the_kernel_is_not_built_anew_in_another_environment(
    kernel_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real Kbuild, which keeps the commands that made each file, and repeats what changes."""
    # All that a path of a kernel build may be made of
    out = tmp_path / "A-b_c.d,e@f+g~ü"
    target = out / "lib/argv_split.o"
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    kernel = Kernel(kernel_tree, out, 1700000000, "-arm-pmem", misses_allowed=True)
    kernel.configure(for_kernel(boards.board("board").kernel_fragment, "6.1", ()))
    for repeated in (False, True):
        kernel._run_make([*kernel._make(), "-j4", "lib/argv_split.o"], "a part")
        made = target.stat().st_mtime_ns, (target.parent / ".argv_split.o.cmd").read_text(), kernel.config.read_text()
        if not repeated:
            first = made
            for name in HOSTILE:
                monkeypatch.delenv(name)
    assert made == first


@pytest.mark.usefixtures("hostile")
def test_a_series_gives_the_same_commits(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With GIT_DIR set, as in a hook of git's, and tar's and git's own options."""
    line.repository.prepare(line.series())
    head = line.repository.git("rev-parse", "HEAD")
    assert git_am(line.repository.path, b"nonsense") != ""
    for name in HOSTILE:
        monkeypatch.delenv(name)
    (line.root / "output").rename(tmp_path / "hostile")
    line.repository.prepare(line.series())
    assert line.repository.git("rev-parse", "HEAD") == head


# --- a clone of another user's ------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in the place of this project, which git takes for somebody else's."""
    folder = tmp_path / "clone"
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost"]
    (folder / "inside").mkdir(parents=True)
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], cwd=folder, check=True, timeout=30)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setattr(environment, "PASSED", environment.PASSED | {"GIT_TEST_ASSUME_DIFFERENT_OWNER"})
    monkeypatch.setattr(environment, "ROOT", folder)
    monkeypatch.setattr(product, "ROOT", folder)
    return folder


def test_the_state_of_a_clone_of_another_user_is_known(clone: Path) -> None:
    assert product.describe() == run(["git", "rev-parse", "--short=12", "HEAD"], cwd=clone, what="git").strip()


def test_a_repository_around_or_beside_the_project_stays_anothers(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", clone / "inside")
    with pytest.raises(UserError, match="dubious ownership"):
        run(["git", "status"], cwd=clone / "inside", what="git")


def test_a_clone_that_git_cannot_read_is_said(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a work tree is whose repository is not in the container."""
    (clone / ".git/HEAD").unlink()
    assert product.describe() == "unknown"
    assert re.fullmatch(
        "note: the manifest will call .* unknown: git: .*not a git repository.*\n", capsys.readouterr().out
    )


def test_a_project_without_git_has_no_state(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even that of a repository around it."""
    monkeypatch.setattr(product, "ROOT", clone / "inside")
    assert (product.describe(), capsys.readouterr().out) == ("unknown", "")


# --- umask, and a project that can only be read --------------------------------------------------


def test_what_is_made_is_for_everybody_to_read() -> None:
    """A folder in an archive, a file on a card: their modes are part of the bytes."""
    script = "from tools.common import entry, run\nentry(lambda: print(run(['sh', '-c', 'umask'], what='sh')) or 0)"
    command = ["sh", "-c", 'umask 077 && exec "$@"', "sh", sys.executable, "-c", script]
    assert run(command, cwd=ROOT, what="umask").strip() == "0022"


def test_a_clone_that_was_made_with_another_umask_gives_the_same_entries(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "board/common/rootfs", tmp_path / "overlay", symlinks=True)
    before = [(one.path, one.mode) for one in rootfs.entries_of(tmp_path / "overlay").values()]
    for path in (tmp_path / "overlay").rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    assert [(one.path, one.mode) for one in rootfs.entries_of(tmp_path / "overlay").values()] == before
    assert {mode for _, mode in before} == {0o644, 0o755, 0o777}  # files, programs, links


def test_a_project_that_can_only_be_read_is_not_written(tmp_path: Path) -> None:
    """A board is configured, and the kernel's source goes to the cache."""
    project = copy_project(tmp_path / "project")
    script = f"""
set -e
mount --bind {project} {project}
mount -o remount,bind,ro {project}
cd {project}
! touch written 2>/dev/null
make board_defconfig IMAGE=minimal O={tmp_path}/out
.venv/bin/python -c 'from tools.source import Repository; print(Repository("6.1").path)'
"""
    before = sorted(project.rglob("*"))
    said = run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env={"XDG_CACHE_HOME": str(tmp_path / "cache")},
        what="make",
    )
    assert re.search(rf"out is configured for board.*\n{tmp_path}/cache/arm-pmem/output-[0-9a-f]+/linux-6.1\n", said)
    assert (tmp_path / "out/board.json").exists()
    assert sorted(project.rglob("*")) == before


# --- the Makefile ------------------------------------------------------------------------------


def front_door(*words: str, **variables: str) -> str:
    """`make list` and its siblings with more in their environment; all that it prints."""
    done = subprocess.run(
        ["/usr/bin/make", *words],
        cwd=ROOT,
        env=child_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def test_the_front_door_opens_in_a_hostile_environment(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/__init__.py").write_text("raise SystemExit('another project has a folder tools, too')\n")
    (tmp_path / "sitecustomize.py").write_text("print('a module of somebody')\n")
    (tmp_path / "rc").write_text("echo somebody\n")
    (tmp_path / "before.mk").write_text("PYTHON = false\nbuild = false\nhostile:\n\t@echo hostile\n")
    python = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error"}
    shell = {"BASH_ENV": str(tmp_path / "rc"), "ENV": str(tmp_path / "rc"), "CDPATH": "/"}
    # Variables of the Makefile's own: with -e those of the environment would go first.
    make = {"GNUMAKEFLAGS": "-k", "MAKEFILES": str(tmp_path / "before.mk"), "MAKEFLAGS": "ek"}
    make |= {"PYTHON": "false", "VENV": "/nowhere", "build": "false", "options": "hostile", "needed": "hostile"}
    plain = front_door("list")
    assert "QEMU virt" in plain
    assert front_door("list", **(HOSTILE | python | shell | make)) == plain


def test_what_the_front_door_installs_with_sees_no_options_of_the_users() -> None:
    """tools/deps is started by make itself, and apt by that."""
    seen = assignments(front_door("--eval=show: ; @env -0", "show", **HOSTILE))
    options = ("BASH", "CDPATH", "ENV", "GREP_", "GZIP", "PERL", "POSIXLY_", "PYTHON", "SHELLOPTS", "TAR_", "XZ_")
    assert [name for name in seen if name.startswith(options)] == []
    assert (seen["HOME"], seen["LC_ALL"]) == (os.environ["HOME"], "C.UTF-8")
