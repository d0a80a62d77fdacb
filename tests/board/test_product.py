# SPDX-License-Identifier: GPL-2.0-only
"""What the Buildroot image does besides having a kernel: its services and its way in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import powercut
import pytest
from boardtools import Region, Shell, Volumes

pytestmark = pytest.mark.lg_feature("image-buildroot")


@pytest.fixture
def service(sh: Shell, scratch: Volumes, pmem: Region) -> Iterator[str]:
    """Starts the pmem service as init would, on the persistent region, which is blank before and after."""
    sh(
        f"sed -e 's,^PMEM_DEVICE=.*,PMEM_DEVICE={pmem.device},; s,^PMEM_MOUNT=.*,PMEM_MOUNT=yes,' -i.saved /etc/default/pmem; wipefs -q -a {pmem.device}"
    )
    # The tests' own kernel command line says pmem_mount=no: the service reads another one here.
    sh("sed -e 's,/proc/cmdline,/dev/null,' /etc/init.d/S30pmem >/tmp/S30pmem; chmod +x /tmp/S30pmem")
    yield "/tmp/S30pmem"
    sh(f"umount /pmem 2>/dev/null; mv /etc/default/pmem.saved /etc/default/pmem; wipefs -q -a {pmem.device}")


def setup(sh: Shell, words: str = "") -> str:
    sh("sed -e 's,/etc/init.d/S30pmem,/tmp/S30pmem,' /usr/sbin/pmem-setup >/tmp/setup")
    # mkfs.xfs refuses small devices unless it takes itself for under test.
    return sh(f"export TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1; sh /tmp/setup {words}", 60)


def test_the_service_formats_nothing_by_itself(sh: Shell, service: str, pmem: Region) -> None:
    assert f"{pmem.device} holds no file system: pmem-setup makes one" in sh(f"{service} start")
    assert sh(f"blkid -p {pmem.device} || true") == ""
    assert sh("grep -c ' /pmem ' /proc/mounts || true") == "0"


@pytest.mark.lg_feature("dax")
@pytest.mark.series("E3")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "ext2"])
@pytest.mark.usefixtures("kind_with_dax")
def test_the_service_mounts_what_is_there_with_dax(sh: Shell, service: str, pmem: Region, kind: str) -> None:
    setup(sh, kind)
    sh("echo kept >/pmem/file; umount /pmem")
    assert f"{pmem.device} ({kind}) is mounted at /pmem with -o dax" in sh(f"{service} start")
    assert re.search(rf"{pmem.device} /pmem {kind} .*\bdax", sh("cat /proc/mounts"))
    assert sh("cat /pmem/file") == "kept"


@pytest.mark.lg_feature(["dax", "host-memory"])
@pytest.mark.series("E3")
def test_the_service_mends_a_journal_that_a_power_cut_tore(
    sh: Shell, strategy: Any, service: str, pmem: Region, tmp_path: Path
) -> None:
    setup(sh)
    sh(
        "echo kept >/pmem/file && xfs_io -r -c fsync /pmem/file && mkdir /pmem/folder && xfs_io -r -c fsync /pmem/folder"
    )
    # What is there now, a journal that is to be replayed, comes again after the umount; with half a head of its commit block.
    image = bytes(strategy.power.read_memory(pmem.address, pmem.size))
    sh("umount /pmem")
    strategy.power.write_memory(pmem.address, image)
    powercut.tear(strategy.power, pmem.address, pmem.size, powercut.JBD2_COMMIT_HEAD // 2, tmp_path)
    sh.fails(f"mount -t ext4 -o dax {pmem.device} /pmem", "needs cleaning")
    said = sh(f"{service} start")
    assert f"{pmem.device} had errors, and e2fsck -p has mended them" in said
    assert f"{pmem.device} (ext4) is mounted at /pmem" in said
    assert sh("cat /pmem/file") == "kept"


@pytest.mark.series("E3")
@pytest.mark.lg_feature("dax")
def test_the_service_does_not_mount_what_cannot_be_mended(sh: Shell, service: str, pmem: Region) -> None:
    setup(sh)
    # The root folder is none, and the superblock says that there are errors: else there would be no look.
    sh(f"umount /pmem; for c in 'clri <2>' 'ssv state 2'; do debugfs -w -R \"$c\" {pmem.device}; done")
    sh.fails(f"{service} start", f"{pmem.device} was not mounted, e2fsck -p could not mend it")
    assert sh("grep -c ' /pmem ' /proc/mounts || true") == "0"


def test_the_service_leaves_alone_what_it_does_not_know(sh: Shell, service: str, pmem: Region) -> None:
    sh(f"mkswap {pmem.device}")
    assert "holds swap, which is no file system with DAX: it is left alone" in sh(f"{service} start")
    assert sh(f"blkid -p -o value -s TYPE {pmem.device}") == "swap"


def test_the_command_line_can_keep_the_service_from_mounting(sh: Shell, service: str, pmem: Region) -> None:
    setup(sh)
    sh("umount /pmem")
    sh("echo console=x pmem_mount=no >/tmp/cmdline; sed -i 's,/dev/null,/tmp/cmdline,' /tmp/S30pmem")
    assert sh(f"{service} start") == ""
    assert sh("grep -c ' /pmem ' /proc/mounts || true") == "0"


@pytest.mark.series("E3")
def test_setup_refuses_a_device_with_data(sh: Shell, service: str, pmem: Region) -> None:
    setup(sh)
    sh("echo precious >/pmem/file; umount /pmem")
    sh.fails("sh /tmp/setup", "holds ext4 already: its data is lost with --force")
    sh(f"{service} start")
    assert sh("cat /pmem/file") == "precious"
    sh.fails("sh /tmp/setup --force", "is mounted: unmount it first")
    sh("umount /pmem; sh /tmp/setup --force", 60)
    sh.fails("cat /pmem/file", "No such file")


def test_the_machine_id_is_one(sh: Shell) -> None:
    first = sh("cat /etc/machine-id")
    assert re.fullmatch("[0-9a-f]{32}", first)
    sh("/etc/init.d/S04machine-id start")
    assert sh("cat /etc/machine-id") == first


def test_a_lost_clock_does_not_go_back_behind_the_build(sh: Shell) -> None:
    built = int(sh("stat -c %Y /etc/arm-pmem-release"))
    assert int(sh("date +%s")) >= built
    now = sh("date +%s")
    try:
        sh("date -s @1000; /etc/init.d/S03clock start")
        assert int(sh("date +%s")) >= built
        # It knows the last shutdown, too.
        sh(f"date -s @{built + 5000}; /etc/init.d/S03clock stop; date -s @1000; /etc/init.d/S03clock start")
        assert int(sh("date +%s")) >= built + 5000
    finally:
        sh(f"rm -f /var/lib/arm-pmem/clock; date -s @{now}")


def test_a_watchdog_is_fed_where_there_is_one(sh: Shell) -> None:
    there = sh("test -c /dev/watchdog && echo yes || echo no")
    fed = sh("pidof watchdog >/dev/null && echo yes || echo no")
    assert fed == there


@pytest.fixture
def key(sh: Shell) -> Iterator[str]:
    """A key pair; its public half is let in for the time of a test."""
    sh(
        "rm -f /tmp/key /tmp/other; dropbearkey -t ed25519 -f /tmp/key >/dev/null; dropbearkey -t ed25519 -f /tmp/other >/dev/null",
        60,
    )
    sh("cp -p /root/.ssh/authorized_keys /tmp/authorized 2>/dev/null || true")
    sh("dropbearkey -y -f /tmp/key | grep ^ssh >/root/.ssh/authorized_keys; chmod 600 /root/.ssh/authorized_keys")
    yield "/tmp/key"
    sh("mv /tmp/authorized /root/.ssh/authorized_keys 2>/dev/null || rm -f /root/.ssh/authorized_keys")


def test_a_key_opens_the_network_login(sh: Shell, key: str) -> None:
    assert sh(f"ssh -y -i {key} root@127.0.0.1 'echo from $USER' 2>/dev/null </dev/null", 60) == "from root"


def test_another_key_or_no_password_does_not(sh: Shell, key: str) -> None:
    sh.fails("ssh -y -i /tmp/other root@127.0.0.1 true </dev/null", "No auth methods|Permission denied|publickey", 60)


def test_the_network_login_offers_no_password(sh: Shell) -> None:
    assert re.search(r"dropbear .*-s\b|dropbear -s\b", sh("ps | grep '[d]ropbear'"))


def test_the_modules_tools_are_those_of_kmod(sh: Shell) -> None:
    assert sh("readlink -f $(command -v modprobe)").endswith("/kmod")
