# SPDX-License-Identifier: GPL-2.0-only
"""The whole way through a lab: labgrid's coordinator and exporter, emulated boards as hardware, flash, boot, test, faults.

Each fault gets a named error in bounded time, and the place is free and the board off afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from racks import (
    LIMIT,
    ROOT,
    Rack,
    change_extlinux,
    changed_images,
    follow,
    free_port,
    interrupt,
    needs_u_boot,
    running,
    said,
)

pytestmark = [pytest.mark.timeout(600), needs_u_boot]


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with running(tmp_path_factory.mktemp("rack"), 2) as one:
        yield one


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the image that a test may spoil: images(change) has a manifest that fits what change() left."""

    def make(change: Callable[[Path], Any] = lambda card: None, board: str = "board") -> Path:
        return changed_images("board", tmp_path / "images", change, board)

    return make


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
    done = rack.lab("lab-test", "--tags", "board=board", "--places", "all", "tests/board/test_pmem.py")
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
        (["lab-test", "--tags", "a=b", "--places", "some"], "unknown PLACES 'some': it is all, "),
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


def test_a_kernel_that_panics_at_boot(rack: Rack, images: Callable[..., Path]) -> None:
    def spoil(card: Path) -> None:
        change_extlinux("board", card, r"root=\S+ rootwait", "root=/dev/nothing")

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
    deadline = time.monotonic() + LIMIT
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
    url = rack.switch_of(2)
    serial = {"host": "127.0.0.1", "port": port, "protocol": "raw"}
    tftp = {"internal": f"{rack.folder}/rack-2/tftp/", "external": ""}
    groups = {
        "dead-serial": {"model": "rest", "host": f"{url}/{{index}}", "index": 2},
        "deaf-switch": {"model": "rest", "host": f"http://127.0.0.1:{port}/{{index}}", "index": 2},
        "no-switch": {"model": "rest", "host": f"http://127.0.0.1:{free_port()}/{{index}}", "index": 2},
    }
    content = {
        name: {"NetworkSerialPort": serial, "NetworkPowerPort": power, "TFTPProvider": tftp}
        for name, power in groups.items()
    }
    with silent, rack.exporter("broken", tmp_path_factory.mktemp("exporter"), content, board="board"):
        yield


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
    port = rack.hardware(1)["NetworkSerialPort"]["port"]
    rack.switch(1, on=True)
    try:
        deadline = time.monotonic() + 60
        while "U-Boot" not in rack.console(1).rpartition("--- power on")[2]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as late:
            assert b"U-Boot" in late.recv(65536)
    finally:
        rack.switch(1, on=False)


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
