# SPDX-License-Identifier: GPL-2.0-only
"""Programs of a few words which stand for a kernel, and a device-tree overlay."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

MakeStrategy = Callable[..., Any]

OVERLAY = """
/dts-v1/; /plugin/;
/ { fragment@0 { target-path = "/"; __overlay__ {
    #address-cells = <2>; #size-cells = <2>;
    pmem@60000000 { compatible = "pmem-region"; reg = <0 0x60000000 0 0x100000>; };
    pmem@61000000 { compatible = "pmem-region"; reg = <0 0x61000000 0 0x100000>; volatile; };
}; }; };
"""

# ARM code: b .
SILENT = struct.pack("<I", 0xEAFFFFFE)
# The same after a power-off call to PSCI: movw r0, #8; movt r0, #0x8400; hvc #0
POWER_OFF = struct.pack("<4I", 0xE3000008, 0xE3480400, 0xE1400070, 0xEAFFFFFE)


# mov r0, #…; add r0, r0, #…: where the serial port of the machine is
VIRT_PORT = 0xE3A00409, 0xE2800000  # 0x09000000
ORANGEPI_PORT = 0xE3A00507, 0xE2800A28  # 0x01c00000 + 0x28000


def talker(text: str, then: bytes = SILENT, port: tuple[int, int] = VIRT_PORT) -> bytes:
    """A program which sends text to a serial port, and goes on with other code."""
    code = [
        *port,
        0xE28F1010 + len(then),  # add   r1, pc, #…   (the text, behind all code)
        0xE4D12001,  # ldrb  r2, [r1], #1
        0xE3520000,  # cmp   r2, #0
        0x0A000001,  # beq   then
        0xE5802000,  # str   r2, [r0]
        0xEAFFFFFA,  # b     back to ldrb
    ]
    return struct.pack("<8I", *code) + then + text.encode() + b"\0"


# mov r0, #0x54000000; str r0, [r0]
POKED = 0x54000000
POKE = struct.pack("<2I", 0xE3A00454, 0xE5800000)


def card(text: str, size: int) -> bytes:
    """An SD card's image with a boot loader where an Allwinner H3 looks for it: it writes to RAM and talks."""
    return (bytes(8192) + POKE + talker(text, port=ORANGEPI_PORT)).ljust(size, b"\0")
