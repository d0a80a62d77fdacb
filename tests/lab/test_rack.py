# SPDX-License-Identifier: GPL-2.0-only
"""The whole way through a lab: labgrid's coordinator and exporter, emulated boards as hardware, flash, boot, test, faults.

Each fault gets a named error in bounded time, and the place is free and the board off afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "output/board/images"
Done = subprocess.CompletedProcess[str]
# A flash and a boot on a busy machine, in seconds
LIMIT = 240

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (IMAGES / "u-boot.bin").exists(), reason="the rack boots by U-Boot: it needs the Buildroot image of `board`"
    ),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Rack:
    """A rack of its own for these tests, and labgrid's and our programs as a user of it calls them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.coordinator = f"127.0.0.1:{free_port()}"
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(("LG_", "MAKE"))}
        self.environ |= {
            "LG_COORDINATOR": self.coordinator,
            "LG_TIMEOUT_SCALE": os.environ.get("LG_TIMEOUT_SCALE", "1"),
        }
        self.count = count

    def program(self, *command: str, **environ: str) -> Done:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def rack(self, action: str, *options: str) -> Done:
        return self.program(sys.executable, "-m", "tools.rack", action, "--folder", str(self.folder), *options)

    def start(self) -> None:
        done = self.rack("start", "--count", str(self.count), "--boards", "board")
        assert done.returncode == 0, done.stdout + done.stderr

    def lab(self, action: str, *options: str, **environ: str) -> Done:
        return self.program(sys.executable, "-m", "tools.lab", action, *options, **environ)

    def background(self, action: str, *options: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.lab", action, *options],
            cwd=ROOT,
            env={**self.environ, "PYTHONUNBUFFERED": "1", **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def client(self, *words: str, **environ: str) -> str:
        done = self.program(str(Path(sys.executable).parent / "labgrid-client"), *words, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def power(self, number: int) -> str:
        places = json.loads((self.folder / "rack.json").read_text())["places"]
        return requests.get(places[number - 1]["power"], timeout=20).text

    def console(self, number: int) -> str:
        path = self.folder / f"rack-{number}/console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def is_idle(self, number: int) -> bool:
        """The place is free, and its board off."""
        return "acquired: None" in self.client("-p", f"rack-{number}", "show") and self.power(number) == "0"

    def processes(self) -> str:
        return subprocess.run(
            ["pgrep", "-a", "-f", str(self.folder)], capture_output=True, text=True, check=False
        ).stdout


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    one = Rack(tmp_path_factory.mktemp("rack"), 2)
    one.start()
    yield one
    done = one.rack("stop")
    assert done.returncode == 0, done.stdout + done.stderr
    # The kernel may take a moment for those that it kills.
    deadline = time.monotonic() + 10
    while left := one.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the image that a test may spoil: images(change) has a manifest that fits what change() left."""

    def make(change: Callable[[Path], Any] = lambda card: None, board: str = "board") -> Path:
        from tools.common import sha256

        folder = tmp_path / "images"
        folder.mkdir()
        manifest = json.loads((IMAGES / "manifest.json").read_text())
        for name in ("sdcard.img", "sdcard.img.bmap"):
            subprocess.run(["cp", "--sparse=always", IMAGES / name, folder], check=True, timeout=60)
        card = folder / "sdcard.img"
        change(card)
        manifest["board"] = board
        manifest["files"]["sdcard.img"] = {"size": card.stat().st_size, "sha256": sha256(card)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


def said(done: Done) -> str:
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    return text


def follow(process: subprocess.Popen[str], until: str) -> str:
    """Reads what a program says, to a line that matches."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if re.search(until, line):
            return text
    raise AssertionError(f"'{until}' was never said:\n{text}")


def interrupt(process: subprocess.Popen[str], at: str, number: signal.Signals) -> str:
    """Sends a signal when a line matches; all that was said to the end."""
    text = follow(process, at)
    process.send_signal(number)
    return text + process.communicate(timeout=LIMIT)[0]


# Faults that need a board on which nothing was written come first --------------------------------------------------


def test_a_board_that_was_never_flashed_stays_in_its_boot_loader(rack: Rack) -> None:
    done = rack.lab("test", "--place", "rack-2", "tests/board/test_kernel.py", LG_TIMEOUT_SCALE="0.3")
    assert "StuckInBootLoader: The board stayed at its boot loader's prompt" in said(done)
    assert done.returncode == 3
    assert rack.is_idle(2)


def test_an_image_of_another_board_is_refused_before_power_comes(rack: Rack, images: Callable[..., Path]) -> None:
    before = rack.console(2)
    done = rack.lab("flash", "--place", "rack-2", LG_BUILDDIR=str(images(board="orangepi_pc")))
    assert "is an image of 'orangepi_pc', and this board is 'board': nothing was written" in said(done)
    assert done.returncode == 1
    assert rack.console(2) == before
    assert rack.is_idle(2)


def test_an_image_that_is_not_what_its_manifest_says(rack: Rack, images: Callable[..., Path]) -> None:
    folder = images()
    with (folder / "sdcard.img").open("r+b") as card:
        card.seek(5000)
        card.write(b"damaged")
    done = rack.lab("flash", "--place", "rack-2", LG_BUILDDIR=str(folder))
    assert "is not what manifest.json says (another hash)" in said(done)
    assert rack.is_idle(2)


def test_an_image_that_is_larger_than_the_medium(rack: Rack, images: Callable[..., Path]) -> None:
    def grow(card: Path) -> None:
        os.truncate(card, 300 << 20)
        Path(f"{card}.bmap").unlink()

    done = rack.lab("flash", "--place", "rack-2", LG_BUILDDIR=str(images(grow)))
    assert re.search(
        r"has 314572800 bytes, and the medium 'virtio 0' no block 614399 .*: nothing was written", said(done)
    )
    assert rack.is_idle(2)


def test_a_tftp_server_that_goes_away_half_way(rack: Rack) -> None:
    folder = rack.folder / "rack-2/tftp"
    process = rack.background("flash", "--place", "rack-2")
    try:
        text = follow(process, r"MiB written and read back")
        folder.rename(f"{folder}.gone")
        text += process.communicate(timeout=LIMIT)[0]
    finally:
        Path(f"{folder}.gone").rename(folder)
    assert process.returncode == 1
    assert "error: rack-2 was not flashed" in text
    assert re.search(r"error: (The TFTP server's folder .* cannot be written|U-Boot's 'tftpboot .* failed)", text), text
    assert rack.is_idle(2)


def test_a_flash_that_is_interrupted_frees_the_place_and_is_repeated_from_the_start(rack: Rack) -> None:
    process = rack.background("flash", "--place", "rack-1")
    text = interrupt(process, r"MiB written and read back", signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted: " in text and "Traceback" not in text, text
    assert rack.is_idle(1)
    done = rack.lab("flash", "--place", "rack-1")
    assert done.returncode == 0, said(done)
    assert re.search(r"1 of \d+ MiB written|\d of \d+ MiB written", done.stdout + done.stderr)
    assert "rack-1: flashed, read back and booted" in done.stdout
    assert rack.is_idle(1)


# Good ways ---------------------------------------------------------------------------------------------------------


def test_reserve_flash_test_and_free(rack: Rack) -> None:
    done = rack.lab("lab-test", "--tags", "board=board lpae=yes", "tests/board/test_kernel.py")
    assert done.returncode == 0, said(done)
    assert re.search(r"\d+ passed", done.stdout)
    assert re.search(r"rack-\d: passed \(logs in ", done.stdout)
    assert rack.is_idle(1) and rack.is_idle(2)


def test_all_free_places_at_once_with_one_report(rack: Rack) -> None:
    done = rack.lab("lab-test", "--tags", "board=board", "--all", "tests/board/test_pmem.py")
    assert done.returncode == 0, said(done)
    match = re.search(r"2 of 2 places passed: (\d+) tests, 0 failed, 0 errors, \d+ skipped \((.*)\)", done.stdout)
    assert match, done.stdout
    report = (ROOT / match[2]).read_text()
    assert 'name="rack-1"' in report and 'name="rack-2"' in report
    assert rack.is_idle(1) and rack.is_idle(2)


def test_two_who_want_the_same_place_get_it_one_after_the_other(rack: Rack) -> None:
    rack.client("-p", "rack-2", "acquire", LG_USERNAME="somebody")
    try:
        words = ["--tags", "board=board", "tests/board/test_network.py"]
        clients = [rack.background("lab-test", *words, LG_USERNAME=name) for name in ("alice", "bob")]
        texts = [client.communicate(timeout=LIMIT)[0] for client in clients]
    finally:
        rack.client("-p", "rack-2", "release", LG_USERNAME="somebody")
    assert [client.returncode for client in clients] == [0, 0], texts
    assert all("rack-1 is ours" in text for text in texts)
    assert rack.is_idle(1)


# Faults ------------------------------------------------------------------------------------------------------------


def test_a_place_that_somebody_else_holds(rack: Rack) -> None:
    rack.client("-p", "rack-2", "acquire", LG_USERNAME="bob")
    try:
        done = rack.lab("flash", "--place", "rack-2")
        assert re.search(r"error: the place 'rack-2' is held by \S+/bob: wait, or ask for it", said(done))
        assert done.returncode == 1
    finally:
        rack.client("-p", "rack-2", "release", LG_USERNAME="bob")


def test_a_reservation_does_not_wait_for_ever(rack: Rack) -> None:
    for number in (1, 2):
        rack.client("-p", f"rack-{number}", "acquire", LG_USERNAME="bob")
    try:
        done = rack.lab("lab-test", "--tags", "board=board", "--wait", "2")
        assert re.search(r"no matching place became free within 2 s: rack-1, rack-2; held by \S+/bob", said(done))
    finally:
        for number in (1, 2):
            rack.client("-p", f"rack-{number}", "release", LG_USERNAME="bob")
    assert "Reservation" not in rack.client("reservations")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["flash", "--place", "nowhere"],
            "there is no place 'nowhere' at the coordinator .*: its places are rack-1, rack-2",
        ),
        (["flash"], "which place\\? add PLACE="),
        (["flash", "--place", "rack-1", "--board", "orangepi_pc"], "has a board 'board', and not 'orangepi_pc'"),
        (["lab-test", "--tags", "board=nothing"], "no place at the coordinator .* has the tags 'board=nothing'"),
        (["lab-test"], "which boards\\? add TAGS="),
        (["lab-test", "--tags", "board"], "'board' is no tag: write key=value"),
    ],
)
def test_wishes_that_cannot_be_met(rack: Rack, words: list[str], error: str) -> None:
    done = rack.lab(words[0], *words[1:])
    assert re.search(f"error: .*{error}", said(done)), done.stderr
    assert done.returncode == 1


def test_no_coordinator_at_all(rack: Rack) -> None:
    done = rack.lab("flash", "--place", "rack-1", LG_COORDINATOR="127.0.0.1:1")
    assert "no labgrid coordinator answers at 127.0.0.1:1: start it, or name another by LG_COORDINATOR" in said(done)


def test_a_kernel_that_panics_at_boot(rack: Rack, images: Callable[..., Path], tmp_path: Path) -> None:
    def spoil(card: Path) -> None:
        text = (ROOT / "board/board/extlinux.conf").read_text()
        broken = tmp_path / "extlinux.conf"
        broken.write_text(re.sub(r"root=\S+ rootwait", "root=/dev/nothing", text))
        command = ["mcopy", "-o", "-i", f"{card}@@1M", str(broken), "::extlinux/extlinux.conf"]
        subprocess.run(command, check=True, timeout=60)

    done = rack.lab("flash", "--place", "rack-2", LG_BUILDDIR=str(images(spoil)), LG_TIMEOUT_SCALE="0.5")
    assert "The kernel gave up (" in said(done) and "Kernel panic - not syncing: VFS" in done.stderr
    assert rack.is_idle(2)


def test_an_interrupted_test_run_switches_the_board_off_and_frees_it(rack: Rack) -> None:
    process = rack.background("test", "--place", "rack-1")
    text = interrupt(process, r"^tests/board/", signal.SIGTERM)
    assert process.returncode == 130
    assert "interrupted: what ran was ended" in text
    assert rack.is_idle(1)


def test_a_coordinator_that_restarts_during_a_run(rack: Rack) -> None:
    process = rack.background("test", "--place", "rack-1")
    text = follow(process, r"^tests/board/")
    found = subprocess.run(
        ["pgrep", "-f", f"labgrid-coordinator -l {rack.coordinator}"], capture_output=True, text=True, check=True
    )
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    text += process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 1
    assert re.search(r"error: rack-1: the coordinator \S+ went away, and with it the right to the place", text), text
    deadline = time.monotonic() + 60
    while True:
        with suppress(AssertionError):
            if rack.is_idle(1) and "rack/rack-1/NetworkPowerPort" in rack.client("resources"):
                break
        assert time.monotonic() < deadline, "the rack did not come back"
        time.sleep(1)
    # Places and tags are there again, and nobody holds anything.
    done = rack.lab("lab-test", "--tags", "board=board", "tests/board/test_network.py")
    assert done.returncode == 0, said(done)


@pytest.fixture(scope="module")
def broken(rack: Rack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Places whose hardware is partly dead, by an exporter of their own."""
    silent = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept_and_say_nothing, args=(silent,), daemon=True).start()
    port = silent.getsockname()[1]
    url = json.loads((rack.folder / "rack.json").read_text())["places"][1]["power"]
    serial = {"host": "127.0.0.1", "port": port, "protocol": "raw"}
    tftp = {"internal": f"{rack.folder}/rack-2/tftp/", "external": ""}
    groups = {
        "dead-serial": {"model": "rest", "host": f"{url}/{{index}}", "index": 2},
        "deaf-switch": {"model": "rest", "host": f"http://127.0.0.1:{port}/{{index}}", "index": 2},
        "no-switch": {"model": "rest", "host": f"http://127.0.0.1:{free_port()}/{{index}}", "index": 2},
    }
    file = tmp_path_factory.mktemp("exporter") / "exporter.yaml"
    content = {
        name: {"NetworkSerialPort": serial, "NetworkPowerPort": power, "TFTPProvider": tftp}
        for name, power in groups.items()
    }
    file.write_text(json.dumps(content))
    with (file.parent / "log").open("wb") as log:
        exporter = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "labgrid-exporter"),
                "--name",
                "broken",
                "--hostname",
                "127.0.0.1",
                str(file),
            ],
            env=rack.environ,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while "broken/no-switch" not in rack.client("resources"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        for name in groups:
            rack.client("-p", name, "create")
            rack.client("-p", name, "add-match", f"broken/{name}/*")
            rack.client("-p", name, "set-tags", "board=board")
        yield
        for name in groups:
            rack.client("-p", name, "delete")
    finally:
        exporter.terminate()
        exporter.wait(timeout=30)
        silent.close()


def accept_and_say_nothing(server: socket.socket) -> None:
    kept = []
    with suppress(OSError):
        while True:
            kept.append(server.accept()[0])


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("dead-serial", "The board was started, but its console stayed silent"),
        (
            "deaf-switch",
            r"Cannot switch the board off: the power switch rest at http://\S+ did not answer within \d+ s",
        ),
        ("no-switch", r"Cannot switch the board off: the power switch rest at http://\S+ failed"),
    ],
)
@pytest.mark.usefixtures("broken")
def test_dead_hardware(rack: Rack, place: str, error: str) -> None:
    done = rack.lab("flash", "--place", place, LG_TIMEOUT_SCALE="0.2")
    assert re.search(f"error: {error}", said(done)), done.stdout + done.stderr
    assert done.returncode == 1
    assert "acquired: None" in rack.client("-p", place, "show")
    assert rack.power(2) == "0"


# The rack itself ---------------------------------------------------------------------------------------------------


def test_the_tags_say_what_a_board_is(rack: Rack) -> None:
    shown = rack.client("-p", "rack-1", "show")
    for tag in ("board=board", "cpu=cortex-a15", "lpae=yes", "pmem=160"):
        assert tag in shown


def test_everything_listens_on_loopback_only(rack: Rack) -> None:
    pids = {line.split()[0] for line in rack.processes().splitlines()}
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listening.splitlines() if any(f"pid={pid}," in line for pid in pids)]
    assert ours
    assert all(line.split()[3].startswith("127.0.0.1:") for line in ours), ours


def test_who_connects_late_reads_what_the_board_said_before(rack: Rack) -> None:
    places = json.loads((rack.folder / "rack.json").read_text())["places"]
    show = rack.client("-v", "resources")
    assert show
    port = re.search(
        r"rack-1:\n  NetworkSerialPort:\n    host: 127.0.0.1\n    port: (\d+)",
        (rack.folder / "exporter.yaml").read_text(),
    )
    assert port
    requests.put(places[0]["power"], data=b"1", timeout=30)
    try:
        deadline = time.monotonic() + 60
        while "U-Boot" not in rack.console(1).rpartition("--- power on")[2]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", int(port[1])), timeout=20) as late:
            assert b"U-Boot" in late.recv(65536)
    finally:
        requests.put(places[0]["power"], data=b"0", timeout=30)


def test_a_second_rack_in_the_same_folder_is_refused(rack: Rack) -> None:
    done = rack.rack("start", "--count", "1")
    assert "runs already: `make rack-stop` ends it" in said(done)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--count", "many"], "N=many is no number of boards"),
        (["--boards", "toaster"], "the rack has no emulator of 'toaster': it has board, orangepi_pc"),
        (["--coordinator", "nowhere:x"], "no coordinator can listen on nowhere:x"),
    ],
)
def test_a_rack_that_cannot_be(tmp_path: Path, options: list[str], error: str) -> None:
    one = Rack(tmp_path / "rack", 1)
    done = one.rack("start", *options)
    assert f"error: {error}" in said(done)
    assert one.rack("stop").returncode == 0
    assert one.processes() == ""


def test_stopping_where_nothing_runs(tmp_path: Path) -> None:
    one = Rack(tmp_path / "rack", 1)
    assert "no rack is running" in said(one.rack("stop"))
    shutil.rmtree(one.folder)
