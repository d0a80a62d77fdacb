# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the board tests, and the scan of the kernel log which makes each test answer for its own warnings."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from boardtools import CommandFailed, KernelComplaint, KernelLog, Region, Shell, Volumes, find_regions
from labgrid.pytestplugin.hooks import LABGRID_ENV_KEY

from tools import fragments, runs

ROOT = Path(__file__).resolve().parents[2]
LOG = pytest.StashKey[KernelLog]()
# What the kernel said until the first test
START = pytest.StashKey[str]()
# How often the board was started, by the file of the tests
STARTS = pytest.StashKey[Counter[str]]()
# So many files of tests are in the summary.
SLOWEST = 10
# What the kernel said during a test so far
TEXT = pytest.StashKey[str]()
# A test may wait for one whole start of the board and then some; in seconds of the machine's clock.
TEST_LIMIT = 240
# The first line of kernels whose ext2 says: "DAX support has been removed"
NO_DAX_IN_EXT2 = (7, 3)
# Whose tests need a machine that is made otherwise
STARTS_ANEW = ("test_bad_regions.py", "test_virtiofs.py")


# The kernel log ---------------------------------------------------------------------------------------------------


def look(item: pytest.Item, when: str) -> list[str]:
    """Collects the kernel log into the report and a file; returns the complaints in it."""
    log = item.config.stash.get(LOG, None)
    if log is None or not log.stale:
        return []
    text = log.look()
    allowed = [marker.args[0] for marker in item.iter_markers("klog_allows")]
    wrong = log.complaints(text, allowed)
    item.stash[TEXT] = item.stash.get(TEXT, "") + text + "\n"
    if text.strip():
        item.add_report_section(when, "kernel log", "\n".join(text.splitlines()[-100:]))
    folder = Path(item.config.getoption("board_logs")) / "kernel"
    folder.mkdir(exist_ok=True)
    (folder / f"{file_name(item)}.log").write_text(item.stash[TEXT])
    return wrong


def file_name(item: pytest.Item) -> str:
    return runs.file_name(item.nodeid.removeprefix("tests/board/"))


def watched(item: pytest.Item, when: str) -> Generator[None, Any, Any]:
    """Around one phase of a test: what the kernel says in it fails it, or stands beside its own failure."""
    try:
        result = yield
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt) and LOG in item.config.stash:
            # Nobody waits any more for a start of the board, and for what the fixtures would then undo there.
            item.config.stash[LOG].sh.reboot_wanted = True
        # Skipped, failed or interrupted: a second exception must not hide the first.
        try:
            wrong = look(item, when) if isinstance(exc, Exception | pytest.fail.Exception) else []
        except Exception as second:
            wrong = [f"(it cannot be read any more: {str(second).splitlines()[0]})"]
        if wrong:
            exc.add_note("The kernel log complains, too:\n" + "\n".join(wrong[:20]))
        raise
    wrong = look(item, when)
    if wrong:
        raise KernelComplaint(f"During the {when} of this test the kernel complained:\n" + "\n".join(wrong[:20]))
    return result


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    if not item.config.stash[LABGRID_ENV_KEY]:
        pytest.skip("a board test: name a board with --lg-env arm-pmem.yaml")
    log = item.config.stash.get(LOG, None)
    if log is not None:
        log.sh.announce(f"arm-pmem test {item.nodeid}")
    try:
        return (yield)
    except Exception as exc:
        # A warning in the setup is found by the next look, at the end of the test; there is none after an error.
        try:
            wrong = look(item, "setup")
        except Exception:
            wrong = []
        if wrong:
            exc.add_note("The kernel log complains, too:\n" + "\n".join(wrong[:20]))
        raise


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from watched(item, "call"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    try:
        return (yield from watched(item, "teardown"))
    finally:
        save_console(item)
        count_starts(item)


def count_starts(item: pytest.Item) -> None:
    log = item.config.stash.get(LOG, None)
    if log is not None:
        starts = item.config.stash.setdefault(STARTS, Counter())
        starts[item.path.stem] += log.sh.boots - sum(starts.values())


def save_console(item: pytest.Item) -> None:
    """The dialogue of each test; labgrid's console_main has the console of the whole run as it was."""
    log = item.config.stash.get(LOG, None)
    if log is None or not log.sh.transcript:
        return
    folder = Path(item.config.getoption("board_logs")) / "console"
    folder.mkdir(exist_ok=True)
    (folder / f"{file_name(item)}.log").write_text("\n".join(log.sh.transcript) + "\n")
    log.sh.transcript.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What starts the board anew comes first, where the start for one is the end of the other.
    items.sort(key=lambda item: item.path.name not in STARTS_ANEW)
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_LIMIT))
        marker = item.get_closest_marker("series")
        if marker:
            # Into the JUnit report, for tools/regression.py
            item.user_properties.append(("series", " ".join(marker.args)))


def costs(terminalreporter: Any) -> list[tuple[str, float, int, int]]:
    """Of each file its seconds, tests and starts of the board, the slowest first."""
    seconds: dict[str, float] = {}
    tests: dict[str, set[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/board/"):
                file = Path(report.nodeid.partition("::")[0]).stem
                seconds[file] = seconds.get(file, 0.0) + report.duration
                tests.setdefault(file, set()).add(report.nodeid)
    starts: Counter[str] = terminalreporter.config.stash.get(STARTS, Counter())
    ordered = sorted(seconds.items(), key=lambda row: -row[1])
    return [(file, spent, len(tests[file]), starts[file]) for file, spent in ordered]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the time went to, and one line on the campaign of power cuts."""
    spent = costs(terminalreporter)
    if spent:
        terminalreporter.write_line("slowest files: seconds, tests, starts of the board")
        for file, seconds, tests, starts in spent[:SLOWEST]:
            terminalreporter.write_line(f"{seconds:7.1f} {tests:4} {starts:3}  {file}")
    cuts = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call" and "cycle" in dict(report.user_properties)
    ]
    if cuts:
        passed = [dict(report.user_properties) for report in cuts if report.passed]
        acknowledged, beyond, mended = (
            sum(one[name] for one in passed) for name in ("acknowledged", "beyond", "mended")
        )
        terminalreporter.write_line(
            f"power cuts: {len(cuts)}, {len(cuts) - len(passed)} failed; before the others {acknowledged} records were "
            f"acknowledged, all of them found, and {beyond} more; {mended} needed `e2fsck -p` before the mount"
        )


# The target -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _shell(strategy: Any, request: pytest.FixtureRequest) -> Iterator[Shell]:
    shell = Shell(strategy)
    import boardlib

    try:
        shell.ready()
    except boardlib.BoardError as exc:
        # A board that has never come up: there is nothing to test.
        pytest.exit(f"{type(exc).__name__}: {exc}", returncode=3)
    # The tests make and mount file systems themselves, after a reset too; where the root file system forgets, the
    # kernel's command line says the same.
    shell("[ ! -e /etc/default/pmem ] || { sed -i 's/^PMEM_MOUNT=.*/PMEM_MOUNT=no/' /etc/default/pmem && sync; }")
    shell.free_pmem()
    log = request.config.stash[LOG] = KernelLog(shell)
    request.config.stash[START] = log.look()
    logs = request.config.getoption("board_logs")
    runs.record(Path(logs), target=runs.target_facts(request.config.stash[START]))
    yield shell
    # The last look, before labgrid switches the board off. A kernel with kmemleak says now what it finds; twice, as an object
    # counts when no scan has seen it for a while.
    if not shell.reboot_wanted:
        leaks = "/sys/kernel/debug/kmemleak"
        shell(
            f"[ ! -w {leaks} ] || {{ echo scan >{leaks}; sleep 6; echo scan >{leaks}; cat {leaks} >/dev/kmsg; }}",
            timeout=300,
        )
    del request.config.stash[LOG]
    wrong = [] if shell.reboot_wanted else log.complaints(log.look(), [])
    if wrong:
        raise KernelComplaint("When the last test was over the kernel complained:\n" + "\n".join(wrong[:20]))


@pytest.fixture
def sh(_shell: Shell, strategy: Any) -> Shell:
    """The target's shell: sh("cmd") returns the output of a command which must succeed."""
    _shell.ready()
    return _shell


@pytest.fixture(scope="session")
def start_log(_shell: Shell, request: pytest.FixtureRequest) -> str:
    """What the kernel said from its start to the first test."""
    return request.config.stash[START]


@pytest.fixture(scope="session")
def regions(_shell: Shell) -> list[Region]:
    """The pmem regions of the board, by address."""
    found = find_regions(_shell)
    if not found:
        raise CommandFailed("the target's device tree has no pmem-region")
    return found


@pytest.fixture(scope="session")
def pmem(regions: list[Region]) -> Region:
    """The persistent region; where there are several, the largest."""
    return max((region for region in regions if not region.volatile), key=lambda region: region.size)


@pytest.fixture(scope="session")
def volatile_pmem(regions: list[Region]) -> Region:
    """A region which the device tree calls volatile: only with the feature two-regions."""
    return next(region for region in regions if region.volatile)


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    """What the build wrote about the images."""
    path = ROOT / os.environ["LG_BUILDDIR"] / "manifest.json"
    data: dict[str, Any] = json.loads(path.read_text())
    return data


@pytest.fixture(scope="session")
def fs_dax(manifest: dict[str, Any]) -> bool:
    """Whether the kernel was asked for FS_DAX, had or not: there is none to ask for on cores before ARMv6."""
    board = ROOT / "board" / manifest["board"] / "linux.config"
    asked = fragments.read(fragments.for_kernel(board, manifest["kernel"]["line"], manifest["kernel"]["variants"]))
    return asked["FS_DAX"].value == "y"


@pytest.fixture(scope="session")
def ext2_has_dax(manifest: dict[str, Any]) -> bool:
    """Whether this line of kernels has DAX in ext2."""
    return tuple(int(part) for part in manifest["kernel"]["line"].split(".")) < NO_DAX_IN_EXT2


@pytest.fixture
def kind_with_dax(kind: str, ext2_has_dax: bool) -> str:
    """The file system `kind` of a parametrised test, where this line of kernels has DAX in it."""
    if kind == "ext2" and not ext2_has_dax:
        pytest.skip("ext2 of this kernel has no DAX any more")
    return kind


@pytest.fixture(scope="session")
def kernel_config(_shell: Shell) -> dict[str, str]:
    """The configuration of the kernel that runs."""
    lines = _shell("gzip -dc /proc/config.gz | grep -E '^CONFIG_(ARM_LPAE|TRANSPARENT_HUGEPAGE)='; true").splitlines()
    return dict(line.removeprefix("CONFIG_").split("=", 1) for line in lines)


@pytest.fixture(scope="session")
def dax_2mib(kernel_config: dict[str, str]) -> None:
    """Only where the kernel's configuration promises mappings of 2 MiB; there they must be had."""
    missing = [name for name in ("ARM_LPAE", "TRANSPARENT_HUGEPAGE") if kernel_config.get(name) != "y"]
    if missing:
        pytest.skip(f"no mappings of 2 MiB without {' and '.join(f'CONFIG_{name}' for name in missing)}")


@pytest.fixture
def disk(sh: Shell, scratch: Volumes) -> str:
    """A folder on a disk without DAX, beside what the test mounts by hand."""
    scratch.make("ext4", "/dev/ram0")
    point = scratch.mount("ext4", "/dev/ram0")
    sh(f"mkdir -p {point}/t")
    return f"{point}/t"


class Machine:
    """Operations on the whole board, which do not lose the kernel log of the time before."""

    def __init__(self, strategy: Any, log: KernelLog) -> None:
        self._strategy = strategy
        self._log = log

    def _before(self) -> None:
        wrong = self._log.complaints(self._log.look(), [])
        if wrong:
            raise KernelComplaint("Before the board went down the kernel complained:\n" + "\n".join(wrong[:20]))

    def reset(self) -> None:
        self._before()
        self._strategy.reset()

    def reboot(self) -> None:
        self._before()
        self._strategy.reboot()

    def power_cut(self) -> None:
        self._before()
        self._strategy.power_cut()

    def read_memory(self, address: int, size: int) -> bytes:
        """Physical memory from outside: only with the feature host-memory."""
        data: bytes = self._strategy.power.read_memory(address, size)
        return data


@pytest.fixture(scope="session")
def machine(_shell: Shell, strategy: Any, request: pytest.FixtureRequest) -> Machine:
    """Resets and power cuts."""
    return Machine(strategy, request.config.stash[LOG])


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Its seed is in the report; --seed repeats what was random on this side, not what the machine's clock did."""
    seed = f"{request.config.getoption('seed')}-{request.node.name}"
    request.node.user_properties.append(("seed", seed))
    return random.Random(seed)  # noqa: S311


# File systems -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _volumes(_shell: Shell) -> Iterator[Volumes]:
    volumes = Volumes(_shell)
    yield volumes
    if not _shell.reboot_wanted:
        volumes.clean_up()


@pytest.fixture
def volumes(sh: Shell, _volumes: Volumes) -> Volumes:
    """Makes and mounts file systems, and keeps them for the next test which wants the same."""
    return _volumes


@pytest.fixture
def scratch(sh: Shell, volumes: Volumes) -> Iterator[Volumes]:
    """For tests which work on the devices by hand: nothing is mounted before, nothing is left after."""
    volumes.release_all()
    yield volumes
    if not sh.reboot_wanted:
        volumes.clean_up()


@pytest.fixture
def ext4_dax(volumes: Volumes, pmem: Region) -> str:
    """An empty folder on ext4 with DAX for all files."""
    return volumes.get("ext4", pmem.device, "dax=always")


@pytest.fixture
def nodax_dir(volumes: Volumes) -> str:
    """An empty folder on a RAM disk's ext4: a disk like any other, without DAX."""
    return volumes.get("ext4", "/dev/ram0")
