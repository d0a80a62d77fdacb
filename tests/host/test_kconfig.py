# SPDX-License-Identifier: GPL-2.0-only
"""kconfig-why and the check of the fragments, on a small Kconfig tree and on the real one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from toyline import ROOT

from tools import fragments, kconfig
from tools.common import UserError

KCONFIG = """\
config TOY_ARCH
	def_bool y

config MODULES
	bool "Modules"
	modules

config FAST
	bool "Fast"
	depends on CACHE && !TOY_ARCH

config CACHE
	bool "Cache"
	depends on HARDWARE || SIMULATED

config HARDWARE
	bool

config SIMULATED
	bool "Simulated cache"

config BOARD_X
	bool "Board X"
	select HARDWARE

config ORPHAN
	bool

config EXPERT
	bool "Expert"

config HIDDEN
	bool "Hidden" if EXPERT

config DRIVER
	bool "Driver"
	depends on 64BIT

config FORCED
	bool "Forced"

config FORCER
	def_bool y
	select FORCED

config SIZE
	int "Size"
	range 1 10
	default 5

choice
	prompt "Colour"

config RED
	bool "Red"

config BLUE
	bool "Blue"

endchoice

source "arch/$(SRCARCH)/Kconfig"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "Kconfig").write_text(KCONFIG)
    for arch, text in {
        "arm": "",
        "arm64": "config 64BIT\n\tdef_bool y\n\nconfig ARM64\n\tdef_bool y\n\tselect ORPHAN\n",
    }.items():
        (tmp_path / "arch" / arch).mkdir(parents=True)
        (tmp_path / "arch" / arch / "Kconfig").write_text(text)
    return tmp_path


def why(tree: Path, name: str, config: str = "", wanted: bool = True) -> str:
    (tree / ".config").write_text(config)
    explainer = kconfig.Explainer(kconfig.load(tree, "arm", tree / ".config"), tree, "arm")
    return "\n".join(explainer.why(name, wanted))


def test_a_symbol_that_the_user_may_switch_on(tree: Path) -> None:
    assert "can be switched on by the user" in why(tree, "SIMULATED")


def test_a_symbol_that_is_on(tree: Path) -> None:
    assert why(tree, "SIMULATED", "CONFIG_SIMULATED=y\n").endswith("is y")


def test_the_chain_goes_through_unmet_dependencies_to_their_causes(tree: Path) -> None:
    told = why(tree, "FAST")
    assert "FAST depends on CACHE && !TOY_ARCH." in told
    assert "TOY_ARCH (Kconfig:1) is y and must be n: it is always y for ARCH=arm (no prompt)" in told
    assert "'HARDWARE || SIMULATED' is not met; any of these would do:" in told
    assert "HARDWARE (Kconfig:16) is n: it has no prompt; it must be selected, and none of these is on: BOARD_X" in told
    assert "BOARD_X (Kconfig:22) can be switched on by the user" in told


def test_what_no_configuration_can_give_is_said_first(tree: Path) -> None:
    assert why(tree, "FAST").startswith("FAST cannot be on with any configuration for ARCH=arm.")
    assert "cannot be" not in why(tree, "CACHE")


def test_a_symbol_without_prompt_which_only_another_architecture_selects(tree: Path) -> None:
    told = why(tree, "ORPHAN")
    assert "has no prompt, and nothing selects it for ARCH=arm" in told
    assert "elsewhere in the tree it is selected by ARM64 (arch/arm64/Kconfig)" in told


def test_a_symbol_that_only_another_architecture_defines(tree: Path) -> None:
    assert "64BIT is not defined for ARCH=arm; elsewhere in the tree it is defined by arch/arm64/Kconfig" in why(
        tree, "DRIVER"
    )


def test_a_hidden_prompt(tree: Path) -> None:
    assert "shows its prompt only if EXPERT" in why(tree, "HIDDEN")


def test_a_choice(tree: Path) -> None:
    assert "one of a choice in which RED is taken" in why(tree, "BLUE", "CONFIG_RED=y\n")


def test_what_forces_a_symbol_on(tree: Path) -> None:
    assert "FORCED (Kconfig:39) is y and must be n: it is selected by FORCER" in why(tree, "FORCED", wanted=False)


def test_a_misspelt_symbol_gets_a_suggestion(tree: Path) -> None:
    assert why(tree, "SIMULATD") == "SIMULATD exists nowhere in this kernel: did you mean SIMULATED?"


def test_the_bare_keyword_modules_is_understood(tree: Path) -> None:
    assert kconfig.load(tree, "arm").modules.name == "MODULES"


def test_the_keywords_of_linux_7_are_understood(tmp_path: Path) -> None:
    (tmp_path / "Kconfig").write_text(
        "config USB\n\tbool 'USB'\nconfig GADGET\n\tbool 'Gadget' # if any\n"
        "config OLD_NAME\n\tbool\n\ttransitional\n\thelp\n\t  Handed on.\n"
        "config DUAL\n\tbool 'Dual'\n\tdepends on USB if !GADGET\n\tdepends on GADGET || !GADGET # even if odd\n"
    )
    (tmp_path / ".config").write_text("CONFIG_DUAL=y\n")
    loaded = kconfig.load(tmp_path, "arm", tmp_path / ".config")
    assert loaded.syms["DUAL"].str_value == "n"
    loaded.syms["GADGET"].set_value("y")
    assert loaded.syms["DUAL"].str_value == "y"
    loaded.syms["GADGET"].set_value("n")
    loaded.syms["USB"].set_value("y")
    assert loaded.syms["DUAL"].str_value == "y"


def test_a_kernel_line_may_call_a_symbol_by_another_name(tmp_path: Path) -> None:
    base, line, board = (tmp_path / name for name in ("base.config", "line.config", "board.config"))
    base.write_text("CONFIG_OLD=y\nCONFIG_SAME=y\n")
    line.write_text("# CONFIG_OLD is now CONFIG_NEW\n")
    board.write_text("# CONFIG_OLD is not set\n")
    assert fragments.merged(fragments.read([base, line])) == "CONFIG_NEW=y\nCONFIG_SAME=y\n"
    assert fragments.read([base, line, board])["NEW"].value == "n"
    assert fragments.read([base, board])["OLD"].value == "n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tree", "/nonexistent", "FAST"], "wants a kernel source tree"),
        (["--arch", "pdp11", "FAST"], "unknown --arch 'pdp11': this tree knows arm, arm64"),
        (["--config", "/", "FAST"], "wants a kernel's .config"),
        (["FAST OR SLOW"], "is not a kernel option"),
    ],
)
def test_bad_arguments_get_one_sentence(tree: Path, arguments: list[str], message: str) -> None:
    command = [str(ROOT / "tools/kconfig-why"), "--tree", str(tree), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_broken_kconfig_file_gets_one_sentence(tree: Path) -> None:
    (tree / "Kconfig").write_text("config A\n\tbool 'x\n")
    with pytest.raises(UserError, match=r"cannot be read: .*Kconfig:2"):
        kconfig.load(tree, "arm")


# --- fragments ---------------------------------------------------------------------------------


def misses(tree: Path, fragment: str, config: str) -> str:
    (tree / "one.config").write_text(fragment)
    (tree / ".config").write_text(config)
    requests = fragments.read([tree / "one.config"])
    missed = fragments.missed(requests, fragments.read_config(tree / ".config"))
    return kconfig.explain_misses(tree, "arm", tree / ".config", missed) if missed else ""


def test_granted_requests_give_no_complaint(tree: Path) -> None:
    assert misses(tree, "CONFIG_SIMULATED=y\n# CONFIG_BLUE is not set\n", "CONFIG_SIMULATED=y\n") == ""


def test_a_missed_request_names_its_line_and_the_dependency(tree: Path) -> None:
    told = misses(tree, "# a comment\n\nCONFIG_FAST=y\n", "# CONFIG_FAST is not set\n")
    assert "one.config:3 asks for 'CONFIG_FAST=y', which is not in the final .config" in told
    assert "FAST depends on 'HARDWARE || SIMULATED' and on '!TOY_ARCH'" in told or "FAST depends on CACHE (n)" in told
    assert "tools/kconfig-why FAST --tree" in told


def test_a_misspelt_symbol_in_a_fragment(tree: Path) -> None:
    told = misses(tree, "CONFIG_SIMULATD=y\n", "")
    assert "one.config:1" in told
    assert "SIMULATD exists nowhere in this kernel: did you mean SIMULATED?" in told


def test_a_request_to_be_off_is_a_request_too(tree: Path) -> None:
    told = misses(tree, "# CONFIG_FORCED is not set\n", "CONFIG_FORCED=y\nCONFIG_FORCER=y\n")
    assert "one.config:1 asks for '# CONFIG_FORCED is not set'" in told
    assert "FORCED is selected by FORCER" in told


def test_a_number_out_of_range(tree: Path) -> None:
    told = misses(tree, "CONFIG_SIZE=50\n", "CONFIG_SIZE=10\n")
    assert "SIZE has the value 10" in told


def test_every_miss_is_told(tree: Path) -> None:
    told = misses(tree, "CONFIG_FAST=y\nCONFIG_DRIVER=y\nCONFIG_ORPHAN=y\n", "")
    assert all(f"one.config:{number} asks for" in told for number in (1, 2, 3))


def test_the_last_of_two_fragments_counts(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_text("CONFIG_A=y\nCONFIG_B=y\n")
    (tmp_path / "b.config").write_text("# CONFIG_A is not set\n")
    requests = fragments.read([tmp_path / "a.config", tmp_path / "b.config"])
    assert requests["A"].value == "n"
    assert requests["A"].place.endswith("b.config:1")
    assert fragments.merged(requests) == "# CONFIG_A is not set\nCONFIG_B=y\n"


@pytest.mark.parametrize("line", ["CONFIG_A", "A=y", "CONFIG_A = y"])
def test_a_line_that_is_no_request_is_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.config").write_text(f"CONFIG_B=y\n{line}\n")
    with pytest.raises(UserError, match=r"a\.config:2: '.*' is neither"):
        fragments.read([tmp_path / "a.config"])


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError, match="unknown VARIANT 'x': the variants are aliasing, debug, kasan, nohighmem, nolpae"
    ):
        fragments.for_kernel(ROOT / "board/board/linux.config", "6.1", ["x"])


# --- the real kernel ---------------------------------------------------------------------------


def test_why_an_unpatched_kernel_has_no_fs_dax_on_arm(kernel_tree: Path, tmp_path: Path) -> None:
    """On the tag `base`, whatever a developer has in the tree."""
    files = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "base"],
        cwd=kernel_tree,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    wanted = [name for name in files if "Kconfig" in name.rsplit("/", 1)[-1] or name.startswith("scripts/")]
    archive = subprocess.run(
        ["git", "archive", "base", "Makefile", *wanted], cwd=kernel_tree, capture_output=True, check=True, timeout=60
    )
    subprocess.run(["tar", "xf", "-"], cwd=tmp_path, input=archive.stdout, check=True, timeout=60)
    config = tmp_path / ".config"
    config.write_text("CONFIG_MMU=y\nCONFIG_ARCH_MULTI_V7=y\nCONFIG_ARM_LPAE=y\nCONFIG_BLOCK=y\nCONFIG_DAX=y\n")
    explainer = kconfig.Explainer(kconfig.load(tmp_path, "arm", config), tmp_path, "arm")
    told = "\n".join(explainer.why("FS_DAX"))
    assert told.startswith("FS_DAX cannot be on with any configuration for ARCH=arm.")
    assert "!(ARM || MIPS || SPARC)" in told
    assert "ARM (arch/arm/Kconfig:2) is y and must be n: it is always y for ARCH=arm" in told
    assert "'ZONE_DEVICE || FS_DAX_LIMITED' is not met" in told
    # what ZONE_DEVICE lacks
    assert "64BIT is not defined for ARCH=arm" in told
    for name in ("ARCH_ENABLE_MEMORY_HOTPLUG", "ARCH_HAS_PTE_DEVMAP"):
        assert any(
            name in line and "has no prompt, and nothing selects it for ARCH=arm" in line for line in told.splitlines()
        )
    assert "none of these is on: DCSSBLK" in told
    assert "DCSSBLK (drivers/s390/block/Kconfig:5) depends on S390 (not defined for this arch)" in told
