# SPDX-License-Identifier: GPL-2.0-only
"""The scan of the kernel log itself: it must be able to fail."""

from __future__ import annotations

from typing import Any

import pytest
from boardtools import COMPLAINTS, KernelComplaint, KernelLog, Shell

FAKE = "WARNING: CPU: 0 PID: 1 at mm/nowhere.c:1 a_test_wrote_this"


@pytest.mark.xfail(raises=KernelComplaint, strict=True, reason="the scan must fail this test")
def test_a_warning_in_the_kernel_log_fails_the_test_that_caused_it(sh: Shell) -> None:
    sh(f"echo '{FAKE}' >/dev/kmsg")


def test_the_next_test_does_not_answer_for_it(sh: Shell) -> None:
    sh("true")


@pytest.mark.klog_allows("a_test_wrote_this")
def test_a_test_may_allow_a_complaint_which_it_provokes(sh: Shell) -> None:
    sh(f"echo '{FAKE}' >/dev/kmsg")


def test_a_kernel_that_prints_everything_says_nothing_within_an_answer(sh: Shell, strategy: Any) -> None:
    """`ignore_loglevel` on the command line, and a kernel that talks while the suite comes to the shell."""
    # It begins when nobody waits for an answer.
    noise = "while [ ! -e /tmp/noise ]; do :; done; n=0; while [ $n -lt 500 ]; do n=$((n + 1)); echo 'noise of the kernel' >/dev/kmsg; done"
    sh(f"echo 8 >/proc/sys/kernel/printk; echo Y >/sys/module/printk/parameters/ignore_loglevel; ({noise}) &")
    strategy.target.deactivate(strategy.shell)
    strategy.console.sendline(": >/tmp/noise")
    strategy.target.activate(strategy.shell)
    assert sh("echo '<1>an alert' >/dev/kmsg; dmesg | grep -c 'noise of'; echo answer").split()[1:] == ["answer"]
    assert sh("cat /proc/sys/kernel/printk").split()[0] == "1"


def test_a_look_shows_each_line_once(sh: Shell) -> None:
    log = KernelLog(sh)
    log.look()
    sh("echo harmless-line >/dev/kmsg")
    assert log.look().count("harmless-line") == 1
    assert "harmless-line" not in log.look()


def test_a_changed_taint_flag_is_a_complaint(sh: Shell) -> None:
    log = KernelLog(sh)
    log.complaints(log.look(), [])
    log.taint ^= 0x200  # as if the kernel had been tainted by a warning since
    assert any("tainted" in line for line in log.complaints("", []))
    sh.reboot_wanted = False


@pytest.mark.parametrize(
    "line",
    [
        "------------[ cut here ]------------ WARNING: CPU: 1 PID: 77 at fs/dax.c:372 dax_insert_entry+0x1/0x2",
        "kernel BUG at mm/memory.c:2310!",
        "Internal error: Oops - BUG: 0 [#1] SMP ARM",
        "8<--- cut here --- Unable to handle kernel NULL pointer dereference at virtual address 00000000",
        "Unhandled prefetch abort: breakpoint debug exception (0x222) at 0x00000000",
        "BUG: Bad page map in process daxprobe  pte:60123f6f pmd:4f001003",
        "BUG: sleeping function called from invalid context at mm/slab.h:420",
        "WARNING: possible circular locking dependency detected",
        "INFO: task dd:123 blocked for more than 10 seconds.",
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "EXT4-fs error (device pmem0): ext4_lookup:1855: inode #12: comm ls: deleted inode referenced: 13",
        "XFS (pmem0): Corruption detected. Unmount and run xfs_repair",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "unreferenced object 0xc2f0a000 (size 128):",
    ],
)
def test_the_scan_knows_a_complaint(line: str) -> None:
    assert COMPLAINTS.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "EXT4-fs (pmem0): DAX enabled. Warning: EXPERIMENTAL, use at your own risk",
        "nd_pmem namespace0.0: unable to guarantee persistence of writes",
        "CPU: Testing write buffer coherency: ok",
        "XFS (pmem0): DAX unsupported by block device. Turning off DAX.",
        "rcu: Hierarchical SRCU implementation.",
        "kmemleak: Kernel memory leak detector initialized (mem pool available: 39412)",
        "kmemleak: Automatic memory scanning thread started",
    ],
)
def test_the_scan_does_not_mistake(line: str) -> None:
    assert not COMPLAINTS.search(line)
