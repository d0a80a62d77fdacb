# SPDX-License-Identifier: GPL-2.0-only
"""What goes wrong with an emulated board has a name, comes in bounded time, and says what the console said last."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boardlib
import fdt
import pytest
from labgrid.strategy import StrategyError
from machines import POKED, POWER_OFF, SILENT, MakeStrategy, card, talker
from pexpect import TIMEOUT

ROOT = Path(__file__).resolve().parents[2]
# What counts as bounded here
LIMIT = 20


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < LIMIT * boardlib.machine_clock().highest


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


class TestCommandLine:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"extra_args": "-nic none -no-such-option"}, "no-such-option: invalid option"),
            ({"cpu": "cortex-a99"}, "cortex-a99"),
            ({"machine": "no-such-machine"}, "unsupported machine type"),
            ({"memory": "1X"}, "1X"),
            ({"extra_args": "-nic none -device no-such-device"}, "no-such-device"),
        ],
    )
    def test_what_qemu_refuses_is_named_in_its_own_words(
        self, board: MakeStrategy, settings: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(boardlib.QemuOptionError, match=said):
            board(driver=settings).transition("shell")

    def test_an_old_qemu(self, board: MakeStrategy, tmp_path: Path) -> None:
        old = script(tmp_path / "qemu", "echo QEMU emulator version 4.2.1")
        with pytest.raises(boardlib.QemuTooOld, match="QEMU 4.2.1 .* is too old for this board, which needs 5.0"):
            board(qemu=old).transition("shell")

    def test_something_that_is_no_qemu(self, board: MakeStrategy, tmp_path: Path) -> None:
        with pytest.raises(boardlib.QemuTooOld, match="names no version"):
            board(qemu=script(tmp_path / "qemu", "echo hello")).transition("shell")

    def test_no_qemu_at_all(self, board: MakeStrategy) -> None:
        with pytest.raises(boardlib.ToolMissing, match="qemu-system-nowhere.*install the package"):
            board(qemu="qemu-system-nowhere").transition("shell")

    def test_a_qemu_that_hangs_is_ended(
        self, board: MakeStrategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(boardlib.SCALE_VARIABLE, "0.05")
        with pytest.raises(boardlib.BoardError, match="did not end within"):
            board(qemu=script(tmp_path / "qemu", "exec sleep 1000")).transition("shell")

    def test_a_missing_image(self, board: MakeStrategy, images: Path) -> None:
        (images / "rootfs.cpio.gz").unlink()
        with pytest.raises(boardlib.ImageMissing, match="rootfs.cpio.gz"):
            board().transition("shell")

    def test_an_overlay_that_does_not_fit(self, board: MakeStrategy, images: Path) -> None:
        (images / "pmem.dtbo").write_bytes(b"no device tree")
        with pytest.raises(boardlib.DeviceTreeError, match="pmem.dtbo"):
            board().transition("shell")

    def test_a_senseless_timeout_scale(self, board: MakeStrategy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(boardlib.SCALE_VARIABLE, "fast")
        with pytest.raises(boardlib.SettingError, match="LG_TIMEOUT_SCALE='fast'"):
            board()


class TestConsole:
    def test_a_silent_one(self, board: MakeStrategy) -> None:
        with pytest.raises(boardlib.ConsoleSilent, match="stayed silent"):
            board(shell={"login_timeout": 3}).transition("shell")

    def test_one_that_never_comes_to_a_prompt(self, board: MakeStrategy, images: Path) -> None:
        (images / "zImage").write_bytes(talker("first line\nPANIC: no init\n"))
        with pytest.raises(boardlib.BootFailed) as caught:
            board(shell={"login_timeout": 3}).transition("shell")
        assert "  | PANIC: no init" in str(caught.value)

    def test_a_panic_ends_the_wait_at_once(self, board: MakeStrategy, images: Path) -> None:
        last = "---[ end Kernel panic - not syncing: No working init found. ]---"
        between = "".join(f"CPU1: line {number} of its stack\n" for number in range(30))
        (images / "zImage").write_bytes(
            talker(f"Kernel panic - not syncing: No working init found.\n{between}{last}\n")
        )
        start = time.monotonic()
        with pytest.raises(
            boardlib.KernelPanicked, match=r"The kernel gave up \(Kernel panic - not syncing: No working init"
        ):
            board(shell={"login_timeout": 60}).transition("shell")
        assert time.monotonic() - start < boardlib.scaled(40)

    def test_one_that_nobody_reads_does_not_stop_the_emulator(self, board: MakeStrategy, images: Path) -> None:
        """QEMU waits where its console is full, and then its monitor does not answer either."""
        text = "".join(f"line {number}\n" for number in range(2000))
        (images / "zImage").write_bytes(talker(text))
        strategy = board(shell={"login_timeout": 3})
        strategy.transition("off")
        strategy.power.on()
        heard = b""
        while len(heard) < 1000:
            heard += strategy.power.read(timeout=5)
        assert text.encode().startswith(heard.replace(b"\r", b""))
        time.sleep(0.5)
        strategy.power.off()

    def test_what_was_read_in_vain_is_forgotten_at_the_next_start(self, board: MakeStrategy, images: Path) -> None:
        (images / "zImage").write_bytes(talker("arm-pmem:# "))
        strategy = board()
        strategy.transition("off")
        strategy.power.on()
        with pytest.raises(TIMEOUT):
            strategy.console.expect("never", timeout=2)
        strategy.power.off()
        (images / "zImage").write_bytes(SILENT)
        strategy.power.on()
        with pytest.raises(TIMEOUT):
            strategy.console.expect(strategy.shell.prompt, timeout=1)

    def test_a_board_that_fails_twice_is_broken(self, board: MakeStrategy) -> None:
        strategy = board(shell={"login_timeout": 1})
        for _ in range(2):
            assert strategy.broken is None
            with pytest.raises(boardlib.ConsoleSilent):
                strategy.transition("shell")
        assert isinstance(strategy.broken, boardlib.ConsoleSilent)

    def test_a_hanging_command(self, board: MakeStrategy, images: Path) -> None:
        (images / "zImage").write_bytes(talker("arm-pmem:# "))
        strategy = board()
        target = strategy.target
        target.activate(strategy.console)
        strategy.power.on()
        with pytest.raises(boardlib.CommandTimeout, match=r"did not answer within \d+ s to 'ls'"):
            strategy.shell._at_prompt = True
            strategy.shell._run("ls", timeout=1)


class TestDeath:
    def test_a_machine_that_switches_itself_off(self, board: MakeStrategy, images: Path) -> None:
        (images / "zImage").write_bytes(talker("going down\n", POWER_OFF))
        with pytest.raises(boardlib.MachineDied, match="ended with status 0") as caught:
            board().transition("shell")
        assert "  | going down" in str(caught.value)

    @pytest.fixture
    def running(self, board: MakeStrategy, images: Path) -> Any:
        (images / "zImage").write_bytes(talker("alive\n"))
        strategy = board()
        strategy.target.activate(strategy.console)
        strategy.power.on()
        strategy.console.expect("alive", timeout=10)
        return strategy

    @pytest.fixture
    def killed(self, running: Any) -> Any:
        os.kill(running.power._child.pid, signal.SIGKILL)
        return running

    def test_noticed_while_waiting_for_the_console(self, killed: Any) -> None:
        with pytest.raises(boardlib.MachineDied, match="killed by SIGKILL") as caught:
            killed.console.expect("never", timeout=10)
        assert "  | alive" in str(caught.value)

    @pytest.mark.parametrize("operation", ["off", "reset", "power_cut"])
    def test_noticed_by_an_operation(self, killed: Any, operation: str) -> None:
        killed.power._child.wait()
        with pytest.raises(boardlib.MachineDied, match="killed by SIGKILL"):
            getattr(killed.power, operation)()

    def test_it_can_be_started_again_afterwards(self, killed: Any) -> None:
        with pytest.raises(boardlib.MachineDied):
            killed.console.expect("never", timeout=10)
        killed.power.on()
        killed.console.expect("alive", timeout=10)

    def test_a_machine_that_is_off_says_so(self, running: Any) -> None:
        running.power.off()
        with pytest.raises(boardlib.MachineDied, match="is switched off"):
            running.console.expect("anything", timeout=5)
        with pytest.raises(boardlib.BoardError, match="no running machine"):
            running.power.power_cut()


class TestMemory:
    PERSISTENT, VOLATILE, RAM = 0x60000000, 0x61000000, 0x50000000

    @pytest.fixture
    def marked(self, board: MakeStrategy) -> Any:
        power = board().power
        power.target.activate(power)
        power.on()
        for address in (self.PERSISTENT, self.VOLATILE, self.RAM):
            power.write_memory(address + 4096, b"mark")
        return power

    def left(self, power: Any) -> dict[int, bool]:
        places = (self.PERSISTENT, self.VOLATILE, self.RAM)
        return {place: power.read_memory(place + 4096, 4) == b"mark" for place in places}

    def test_a_power_cut_leaves_the_persistent_region_only(self, marked: Any) -> None:
        marked.power_cut()
        marked.on()
        assert self.left(marked) == {self.PERSISTENT: True, self.VOLATILE: False, self.RAM: False}

    def test_a_reset_leaves_all(self, marked: Any) -> None:
        marked.reset()
        assert self.left(marked) == dict.fromkeys((self.PERSISTENT, self.VOLATILE, self.RAM), True)

    def test_off_and_on_leaves_nothing(self, marked: Any) -> None:
        marked.off()
        marked.on()
        assert self.left(marked) == dict.fromkeys((self.PERSISTENT, self.VOLATILE, self.RAM), False)

    def test_a_second_power_cut_still_leaves_the_persistent_region(self, marked: Any) -> None:
        for _ in range(2):
            marked.power_cut()
            marked.on()
        assert self.left(marked)[self.PERSISTENT]

    def test_the_ram_file_goes_with_the_machine(self, marked: Any) -> None:
        file = marked.ram_file
        assert file.exists()
        marked.target.deactivate(marked)
        assert not file.exists()

    def test_two_machines_at_a_time_have_files_of_their_own(self, marked: Any, board: MakeStrategy) -> None:
        other = board().power
        other.target.activate(other)
        other.on()
        assert other.ram_file != marked.ram_file
        assert self.left(other)[self.PERSISTENT] is False

    def test_each_start_has_a_new_seed_for_random_numbers(self, marked: Any) -> None:
        seeds = set()
        for _ in range(3):
            seeds.add(tuple(fdt.parse_dtb(marked.dtb_file.read_bytes()).get_property("rng-seed", "/chosen").data))
            marked.off()
            marked.on()
        assert len(seeds) == 3

    def test_an_option_that_came_later_is_checked_too(self, marked: Any) -> None:
        marked.off()
        marked.extra_args += " -no-such-option"
        with pytest.raises(boardlib.QemuOptionError, match="no-such-option"):
            marked.on()

    def test_an_extra_overlay_adds_a_region(self, board: MakeStrategy, tmp_path: Path) -> None:
        from pmemqemu import device_tree_regions

        source = tmp_path / "more.dtso"
        source.write_text(
            '/dts-v1/; /plugin/; / { fragment@0 { target-path = "/"; __overlay__ { pmem@62000000 { '
            'compatible = "pmem-region"; reg = <0 0x62000000 0 0x200000>; }; }; }; };'
        )
        overlay = tmp_path / "more.dtbo"
        subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", overlay, source], check=True, timeout=30)
        power = board().power
        power.target.activate(power)
        power.extra_overlays.append(str(overlay))
        power.on()
        _, regions = device_tree_regions(power.dtb_file)
        assert (0x62000000, 0x200000, False) in regions


class TestGivenDeviceTree:
    """A machine for which QEMU makes no device tree: it gets one with cells of 32 bits, as the kernel has it."""

    PERSISTENT, RAM = 0xA0000000, 0x90000000
    TREE = """
    /dts-v1/;
    / { #address-cells = <1>; #size-cells = <1>; compatible = "arm,vexpress";
        memory@80000000 { device_type = "memory"; reg = <0x80000000 0x1000>; };
        pmem@a0000000 { compatible = "pmem-region"; reg = <0xa0000000 0x100000>; };
        other { };
    };
    """
    SETTINGS: dict[str, Any] = {"machine": "vexpress-a15", "overlays": [], "extra_args": "-nic none"}

    @pytest.fixture
    def tree(self, tmp_path: Path) -> str:
        source, path = tmp_path / "board.dts", tmp_path / "board.dtb"
        source.write_text(self.TREE)
        subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", path, source], check=True, timeout=30)
        return str(path)

    def test_its_region_survives_a_power_cut(self, board: MakeStrategy, tree: str) -> None:
        power = board(driver=self.SETTINGS | {"dtb": "tree"}, images={"tree": tree}).power
        power.target.activate(power)
        power.on()
        for address in (self.PERSISTENT, self.RAM):
            power.write_memory(address + 4096, b"mark")
        power.power_cut()
        power.on()
        assert power.read_memory(self.PERSISTENT + 4096, 4) == b"mark"
        assert power.read_memory(self.RAM + 4096, 4) == bytes(4)

    def test_it_gets_a_new_seed_for_random_numbers_at_each_start(self, board: MakeStrategy, tree: str) -> None:
        power = board(driver=self.SETTINGS | {"dtb": "tree"}, images={"tree": tree}).power
        power.target.activate(power)
        seeds = set()
        for _ in range(2):
            power.on()
            words = fdt.parse_dtb(power.dtb_file.read_bytes()).get_property("rng-seed", "/chosen").data
            assert len(words) * 4 == 32
            seeds.add(tuple(words))
            power.off()
        assert len(seeds) == 2

    def test_a_tree_that_is_none(self, board: MakeStrategy, tmp_path: Path) -> None:
        (tmp_path / "board.dtb").write_bytes(b"no device tree")
        with pytest.raises(boardlib.BoardError, match="board.dtb|device tree"):
            board(driver=self.SETTINGS | {"dtb": "tree"}, images={"tree": str(tmp_path / "board.dtb")}).transition(
                "shell"
            )

    def test_without_one_its_absence_is_named(self, board: MakeStrategy) -> None:
        with pytest.raises(boardlib.DeviceTreeError, match="makes no device tree for the machine vexpress-a15.*'dtb'"):
            board(driver=self.SETTINGS).transition("shell")


class TestDrive:
    """A machine which boots from an SD card: no kernel, no device tree from QEMU."""

    RAM = 0x58000000
    SETTINGS = {"machine": "orangepi-pc", "cpu": "cortex-a7", "drive": "card", "extra_args": "-nic none"}
    NOT_NEEDED: dict[str, Any] = {"kernel": None, "initrd": None, "boot_args": None, "overlays": []}

    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        path = tmp_path / "sdcard.img"
        path.write_bytes(card("from the card\n", 1_000_000))
        return path

    @pytest.fixture
    def power(self, board: MakeStrategy, image: Path) -> Any:
        driver = board(driver=self.SETTINGS | self.NOT_NEEDED, images={"card": str(image)}).power
        driver.target.activate(driver)
        return driver

    @pytest.fixture
    def running(self, power: Any) -> Any:
        power.on()
        power.expect("from the card", timeout=10)
        return power

    PLACE = 1 << 19

    def write(self, power: Any) -> None:
        """What the machine would do to its card."""
        with power.drive_file.open("r+b") as file:
            file.seek(self.PLACE)
            file.write(b"mark")

    def is_written(self, power: Any) -> bool:
        return b"mark" in power.drive_file.read_bytes()[self.PLACE :]

    def test_its_image_is_never_written(self, running: Any, image: Path) -> None:
        before = image.read_bytes()
        self.write(running)
        running.off()
        assert image.read_bytes() == before

    def test_a_card_has_a_power_of_two_of_bytes(self, running: Any) -> None:
        assert running.drive_file.stat().st_size == 1 << 20

    def test_off_and_on_gives_a_fresh_card(self, running: Any) -> None:
        self.write(running)
        assert self.is_written(running)
        running.off()
        running.on()
        assert not self.is_written(running)

    def test_an_image_built_anew_is_used_by_the_next_start(self, running: Any, image: Path) -> None:
        running.off()
        image.write_bytes(card("from a new card\n", 1_000_000))
        running.on()
        running.expect("from a new card", timeout=10)

    def test_a_reset_leaves_card_and_ram(self, running: Any) -> None:
        self.write(running)
        running.write_memory(self.RAM, b"mark")
        running.reset()
        running.expect("from the card", timeout=10)
        assert self.is_written(running)
        assert running.read_memory(self.RAM, 4) == b"mark"

    def test_a_power_cut_leaves_the_card_and_nothing_of_dram(self, running: Any) -> None:
        self.write(running)
        running.write_memory(self.RAM, b"mark")
        running.power_cut()
        running.on()
        running.expect("from the card", timeout=10)
        assert self.is_written(running)
        assert running.read_memory(self.RAM, 4) == bytes(4)

    def test_the_host_reads_what_the_machine_has_written(self, running: Any) -> None:
        assert running.read_memory(POKED, 8) == POKED.to_bytes(8, "little")

    def test_an_address_outside_of_ram(self, running: Any) -> None:
        with pytest.raises(boardlib.BoardError, match="0x3ffffffc is no address in the RAM"):
            running.read_memory(0x3FFFFFFC, 4)

    def test_the_copy_goes_with_the_machine(self, running: Any) -> None:
        file = running.drive_file
        assert file.exists()
        running.target.deactivate(running)
        assert not file.exists()

    def test_the_machine_by_hand_keeps_its_card_until_the_image_is_newer(self, power: Any, image: Path) -> None:
        def again() -> bool:
            power.target.deactivate(power)
            power.target.activate(power)
            power.interactive_command()
            return self.is_written(power)

        power.interactive_command()
        self.write(power)
        assert again()
        os.utime(image, (time.time() + 10,) * 2)
        assert not again()

    @pytest.mark.parametrize(
        ("settings", "said"),
        [({"drive_opts": "if=nothing"}, "nothing"), ({"cpu": "cortex-a15"}, "cortex-a7"), ({"memory": "2G"}, "1GiB")],
    )
    def test_what_qemu_refuses_is_named_in_its_own_words(
        self, board: MakeStrategy, image: Path, settings: dict[str, Any], said: str
    ) -> None:
        strategy = board(driver=self.SETTINGS | self.NOT_NEEDED | settings, images={"card": str(image)})
        with pytest.raises(boardlib.QemuOptionError, match=said):
            strategy.transition("shell")

    def test_a_missing_image(self, board: MakeStrategy, image: Path) -> None:
        image.unlink()
        with pytest.raises(boardlib.ImageMissing, match="sdcard.img"):
            board(driver=self.SETTINGS | self.NOT_NEEDED, images={"card": str(image)}).transition("shell")

    def test_a_machine_with_a_kernel_can_have_a_drive_too(self, board: MakeStrategy, images: Path, image: Path) -> None:
        (images / "zImage").write_bytes(talker("from the kernel\n"))
        power = board(driver={"drive": "card", "drive_opts": "if=virtio"}, images={"card": str(image)}).power
        power.target.activate(power)
        power.on()
        power.expect("from the kernel", timeout=10)
        assert power.drive_file.stat().st_size == 1_000_000


# What splits a word for a shell, for make, for YAML, for QEMU's options, or for its names of protocols
STRANGE = "a b,c,,d@e:f'g$5#h=i%40ü"


class TestPaths:
    """Where a clone, its images or TMPDIR lie is nobody's business but the user's."""

    @pytest.mark.parametrize("images", [f"{STRANGE}/images", f"{'long' * 30}/{'longer' * 30}/images"], indirect=True)
    def test_of_the_images_and_of_the_machine_s_own_files(self, board: MakeStrategy, images: Path) -> None:
        (images / "zImage").write_bytes(talker("alive\n"))
        (images / "sdcard.img").write_bytes(bytes(1 << 20))
        power = board(
            driver={"drive": "card", "drive_opts": "if=virtio"}, images={"card": str(images / "sdcard.img")}
        ).power
        power.target.activate(power)
        power.on()
        power.expect("alive", timeout=10)
        power.power_cut()
        power.on()
        power.expect("alive", timeout=10)
        assert images.parent.resolve() in power.ram_file.resolve().parents

    @pytest.mark.parametrize("name", [STRANGE, "long" * 60])
    def test_of_temporary_files(
        self, board: MakeStrategy, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (tmp_path / name).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        (images / "zImage").write_bytes(talker("alive\n"))
        power = board().power
        power.target.activate(power)
        power.on()
        power.expect("alive", timeout=10)


class TestStates:
    def test_an_unknown_state(self, board: MakeStrategy) -> None:
        with pytest.raises(StrategyError, match="no state 'sleep': use one of off, bootloader, flashed, shell"):
            board().transition("sleep")

    @pytest.mark.parametrize("operation", ["reset", "reboot", "power_cut"])
    def test_operations_need_a_shell(self, board: MakeStrategy, operation: str) -> None:
        strategy = board()
        strategy.transition("off")
        with pytest.raises(StrategyError, match="not at its shell"):
            getattr(strategy, operation)()


OWNER = """
import os, sys, time
sys.path[:0] = [{lab!r}]
os.environ["LG_BUILDDIR"] = {images!r}
from labgrid import Environment
power = Environment({env!r}).get_target().get_driver("PowerProtocol")
power.on()
print(power._child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_qemu_ends_with_its_owner(images: Path, how: signal.Signals) -> None:
    code = OWNER.format(lab=str(ROOT / "labgrid"), images=str(images), env=str(ROOT / "arm-pmem.yaml"))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as owner:
        assert owner.stdout
        qemu = int(owner.stdout.readline())
        assert Path(f"/proc/{qemu}").exists()
        owner.send_signal(how)
    deadline = time.monotonic() + boardlib.scaled(10)
    while Path(f"/proc/{qemu}").exists() and "\nState:\tZ" not in Path(f"/proc/{qemu}/status").read_text():
        assert time.monotonic() < deadline, f"QEMU {qemu} still runs"
        time.sleep(0.05)
