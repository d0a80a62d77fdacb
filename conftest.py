# SPDX-License-Identifier: GPL-2.0-only
"""What `pytest --lg-env arm-pmem.yaml` does besides running tests: images, logs, the machine by hand."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tools import coordinator, runs

if TYPE_CHECKING:
    from labgrid.environment import Environment

ROOT = Path(__file__).resolve().parent
BOARD_TESTS = ROOT / "tests" / "board"
# The drivers of this project, for tests which use them without an environment
sys.path.insert(0, str(ROOT / "labgrid"))
# On Debian only root has the folders of e2fsck, debugfs and sfdisk on the PATH.
os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
# So many runs keep their logs.
KEEP = 20
# How long a program may take to say its version
VERSION_LIMIT_S = 30
# The variables of labgrid's and ours that were set when this began, by their names
EXPORTED = {name: value for name, value in os.environ.items() if name.startswith("LG_") and value}
# What labgrid reads itself where an environment names a RemotePlace
REMOTE = ("LG_COORDINATOR", "LG_PROXY", "LG_HOSTNAME", "LG_USERNAME")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("arm-pmem")
    group.addoption("--interactive", action="store_true", help="no tests: the machine's console on this terminal")
    group.addoption("--dry-run", action="store_true", help="no tests: print the command of the emulator")
    group.addoption("--cycles", type=int, default=20, metavar="N", help="how many power cuts under load (20)")
    group.addoption("--minutes", type=int, default=0, metavar="N", help="how long the soak takes (one short round)")
    group.addoption("--seed", default=str(int(time.time())), help="of what is random in both (default: the time)")
    group.addoption(
        "--board-logs", metavar="DIR", help="where the logs go (default: logs/<time>/ beside the images folder)"
    )


def image_folder() -> Path:
    """LG_BUILDDIR, absolute or relative to the project's root."""
    return ROOT / os.environ.get("LG_BUILDDIR", "output/board/images")


def manifest() -> dict[str, Any]:
    """What the images are made of; nothing where none has been built."""
    path = image_folder() / "manifest.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def dax_memory() -> str:
    """Whether the kernel of the images has pages for persistent memory, by its configuration beside them."""
    config = image_folder() / "kernel.config"
    lines = config.read_text().splitlines() if config.is_file() else []
    return "struct-pages" if "CONFIG_ZONE_DEVICE=y" in lines else "page-less"


def features(built: dict[str, Any]) -> dict[str, str]:
    """What the features of an environment depend on: the kind of image (`none` where there is none), what the kernel
    takes the data cache for (`dcache-aliasing` in VARIANT=aliasing, else it can do `dax`), whether persistent memory has
    `struct-pages` or is `page-less`, and what a board in a lab can do: tools/lab.py knows that from the place's tags."""
    variants = built["kernel"]["variants"] if built else []
    return {
        "LG_IMAGE": str(built["image"]) if built else "none",
        "LG_DCACHE": "dcache-aliasing" if "aliasing" in variants else "dax",
        "LG_DAX_MEMORY": dax_memory(),
        "LG_WARM_RESET": os.environ.get("LG_WARM_RESET", "warm-reset"),
        "LG_REBOOT": os.environ.get("LG_REBOOT", "reboot"),
        "LG_CPU_HOTPLUG": os.environ.get("LG_CPU_HOTPLUG", "cpu-hotplug"),
    }


def board_of(env_file: str | None) -> str:
    """labgrid/<board>-….yaml has its board's name; any other environment is one of the default board."""
    name = Path(env_file or "").stem.partition("-")[0]
    return name if name and (ROOT / "board" / name / "readme.txt").exists() else "board"


def build_command(images: Path) -> str:
    """The make command which fills an images folder."""
    match = re.fullmatch(r"kernel-([\d.]+)((?:-[a-z]+)*)", images.parent.name)
    if not match:
        name = images.parent.name
        return f"make {name if (ROOT / 'board' / name / 'readme.txt').exists() else 'board'}_defconfig && make"
    words = ["make", "kernel", f"KERNEL={match[1]}"]
    for flavour in match[2].split("-")[1:]:
        words.append({"debug": "DEBUG=1", "unpatched": "SERIES=none"}.get(flavour, f"VARIANT={flavour}"))
    return " ".join(words)


def missing_images(env: Environment) -> str:
    """One sentence when an image of the environment is not there, else nothing."""
    missing = [path for path in env.config.get_images().values() if not os.path.isfile(path)]
    if not missing:
        return ""
    folder = Path(missing[0]).parent
    named = " (LG_BUILDDIR is set to that folder)" if "LG_BUILDDIR" in EXPORTED and folder == image_folder() else ""
    return f"There is no image {missing[0]}{named}: `{build_command(folder)}` builds it."


def environment_file(config: pytest.Config) -> str | None:
    return config.getoption("lg_env") or os.environ.get("LG_ENV")


def asks_for_boards(config: pytest.Config) -> bool:
    """Whether the tests on a board are among what pytest was told to run."""
    words = [(config.invocation_params.dir / word.partition("::")[0]).resolve() for word in config.args]
    return any(word == BOARD_TESTS or BOARD_TESTS in word.parents or word in BOARD_TESTS.parents for word in words)


def forget_exported() -> None:
    """Tests on the host start what they need: they are none of another project's places, boards and images."""
    from labgrid.util.proxy import ProxyManager

    for name in EXPORTED:
        if name not in ("LG_TIMEOUT_SCALE", "LG_BUILDDIR") or (name == "LG_BUILDDIR" and not manifest()):
            del os.environ[name]
    # labgrid read LG_PROXY when it was imported.
    ProxyManager._force_proxy = None


def emulator(config: pytest.Config) -> str:
    """The emulator which the environment names, with its version; nothing where it names none, or none can be run."""
    from labgrid.pytestplugin.hooks import LABGRID_ENV_KEY

    env = config.stash.get(LABGRID_ENV_KEY, None)
    if env is None or "qemu" not in env.config.data.get("tools", {}):
        return ""
    command = [env.config.get_tool("qemu"), "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""  # The driver says what is wrong with it.
    version = re.search(r"version (\S+)", done.stdout)
    return f"QEMU {version[1]}" if version else ""


def taken(config: pytest.Config) -> dict[str, str]:
    """Of the exported variables those that this run depends on."""
    env_file = environment_file(config)
    text = Path(env_file).read_text(errors="replace") if env_file else ""
    names = {"LG_BUILDDIR", "LG_TIMEOUT_SCALE", *re.findall(r"\$\{?(LG_\w+)", text)}
    if "RemotePlace" in text:
        names.update(REMOTE)
    if not config.getoption("lg_env"):
        names.add("LG_ENV")
    return {name: value for name, value in sorted(EXPORTED.items()) if name in names}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """--interactive and --dry-run: nothing is collected, no test runs."""
    import boardlib

    try:
        boardlib.chosen_scale()
    except boardlib.SettingError as exc:
        raise pytest.UsageError(str(exc)) from exc
    if not config.getoption("lg_env") and not asks_for_boards(config):
        forget_exported()
    env_file = environment_file(config)
    os.environ.setdefault("LG_BUILDDIR", f"output/{board_of(env_file)}/images")
    os.environ["LG_BUILDDIR"] = str(image_folder())
    os.environ.update(features(manifest()))
    if env_file and not os.path.isfile(env_file):
        named = "" if config.getoption("lg_env") else " (LG_ENV is set to that)"
        raise pytest.UsageError(
            f"There is no environment {env_file}{named}: name a labgrid YAML, such as --lg-env arm-pmem.yaml."
        )
    if env_file and os.path.expandvars(image_folder()) != str(image_folder()):
        raise pytest.UsageError(
            f"In the path {image_folder()} labgrid takes what follows a $ for a variable that is set: "
            "name the images by a path without it, in LG_BUILDDIR."
        )
    if env_file and "RemotePlace" in Path(env_file).read_text(errors="replace"):
        coordinator.shorten_temporary_folder()
    if not (config.getoption("interactive") or config.getoption("dry_run")):
        return None
    if not env_file:
        raise pytest.UsageError("Which machine? Add --lg-env arm-pmem.yaml.")
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture:
        capture.suspend_global_capture(in_=True)
    return by_hand(env_file, dry_run=config.getoption("dry_run"))


def by_hand(env_file: str, dry_run: bool) -> int:
    from labgrid.environment import Environment

    env = Environment(env_file)
    sentence = missing_images(env)
    if sentence:
        raise pytest.UsageError(sentence)
    target = env.get_target()
    machine = target.get_driver("PowerProtocol", activate=False) if target else None
    if not hasattr(machine, "interactive_command"):
        raise pytest.UsageError(f"{env_file} has no emulated machine: use labgrid-client console for a real board.")
    assert machine is not None
    import boardlib

    try:
        cmd = machine.interactive_command()
    except boardlib.BoardError as exc:
        raise pytest.UsageError(str(exc)) from exc
    if dry_run:
        print(shlex.join(cmd))
        return 0
    print(
        f"Ctrl-A x ends the machine, as a power cut would: its files are in {machine.slot}, and the next --interactive "
        "finds there what a power cut leaves of RAM and drive; delete that folder for a fresh start.",
        flush=True,
    )
    try:
        return subprocess.run(["setpriv", "--pdeathsig", "KILL", "--", *cmd], check=False).returncode
    except KeyboardInterrupt:
        return 130


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "series(patch): shows behaviour which the kernel series brings: fails on an unpatched kernel"
    )
    config.addinivalue_line("markers", "klog_allows(regex): what the kernel may complain about in this test")
    # labgrid's own log of a console stumbles over one which is written to before it ever said a word.
    config.addinivalue_line("filterwarnings", "ignore:unhandled exception during event notification")
    if config.option.help or config.option.version or config.option.collectonly:
        return
    logs = new_log_folder(config)
    config.option.board_logs = str(logs)
    if config.option.xmlpath is None:
        config.option.xmlpath = str(logs / "junit.xml")
    if environment_file(config):
        if config.option.lg_log is None:
            config.option.lg_log = str(logs)
        # What the report says of this run later; a run without a status has not ended.
        options = config.option
        chosen = [text for text in (options.keyword, options.markexpr, *(options.deselect or [])) if text]
        if any(ROOT / word != BOARD_TESTS for word in config.args):
            chosen += config.args
        runs.record(
            logs,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment_file(config),
            place=taken(config).get("LG_PLACE", ""),
            tags=os.environ.get("LG_PLACE_TAGS", ""),
            manifest=manifest(),
            junit=str(Path(config.option.xmlpath).resolve()),
            selection=[word for word in chosen if word != "not slow"],
            status=None,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """pytest-timeout's limits, too, are in seconds of the machine's clock: where it is busy, a test has more time."""
    import boardlib
    import pytest_timeout

    if settings.method != "signal":
        return None
    limit = boardlib.Limit(settings.timeout)

    def look(number: int, frame: object) -> None:
        left = limit.left
        if left:
            # 0 would switch it off.
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.01))
        else:
            pytest_timeout.timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, limit.left)
    return True


def pytest_sessionstart(session: pytest.Session) -> None:
    logs = session.config.getoption("board_logs")
    if logs and (Path(logs) / runs.NAME).exists():
        runs.record(Path(logs), emulator=emulator(session.config))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    import boardlib

    logs = session.config.getoption("board_logs")
    if logs and (Path(logs) / runs.NAME).exists():
        clock = boardlib.machine_clock()
        runs.record(
            Path(logs),
            status=int(exitstatus),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            timeout_scale=[round(clock.lowest, 2), round(clock.highest, 2)],
        )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    import boardlib

    clock = boardlib.machine_clock()
    terminalreporter.write_line(f"timeout scale: {clock.lowest:.1f} to {clock.highest:.1f} during the run")


def new_log_folder(config: pytest.Config) -> Path:
    """A folder for this run; `latest` beside it leads to the newest one."""
    if config.option.board_logs:
        logs = Path(config.option.board_logs).resolve()
        logs.mkdir(parents=True, exist_ok=True)
        return logs
    # Beside images that are not there nothing is made: the run will not come far.
    with_images = environment_file(config) and image_folder().is_dir()
    base = (image_folder().parent if with_images else ROOT / "output" / "host") / "logs"
    try:
        logs = runs.new_folder(base, KEEP)
    except OSError as exc:
        raise pytest.UsageError(f"No log folder can be made in {base} ({exc.strerror}): use --board-logs.") from exc
    link = base / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(logs.name)
    link.replace(base / "latest")
    return logs


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from labgrid.pytestplugin.hooks import LABGRID_ENV_KEY

    env = config.stash.get(LABGRID_ENV_KEY, None)
    if env is None or config.option.collectonly:
        return
    if any(BOARD_TESTS in item.path.parents for item in items):
        sentence = missing_images(env)
        if sentence:
            raise pytest.UsageError(sentence)


def pytest_report_header(config: pytest.Config) -> list[str]:
    logs = config.getoption("board_logs")
    import boardlib

    header = [f"logs: {os.path.relpath(logs, ROOT)}"] if logs else []
    header.append(f"timeout scale: {boardlib.machine_clock().explain()}")
    if environment_file(config):
        header += [f"images: {os.path.relpath(image_folder(), ROOT)}", f"seed: {config.getoption('seed')}"]
        header += [f"emulator: {name}" for name in [emulator(config)] if name]
        variables = taken(config)
        if variables:
            header.append("from the environment: " + " ".join(f"{name}={value}" for name, value in variables.items()))
    return header
