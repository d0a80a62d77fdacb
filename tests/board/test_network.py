# SPDX-License-Identifier: GPL-2.0-only
"""The board's network device works: a board in a lab is flashed and reached through it."""

from __future__ import annotations

import pytest
from boardtools import Shell


@pytest.mark.lg_feature("network")
def test_an_address_comes_from_the_network(sh: Shell) -> None:
    device = sh("for d in /sys/class/net/*; do [ ! -e $d/device ] || basename $d; done").split()[0]
    sh(f"ip link set {device} up && udhcpc -i {device} -n -q -t 10 -T 1 -s /bin/true", timeout=60)
    assert int(sh(f"cat /sys/class/net/{device}/statistics/rx_packets")) > 0
