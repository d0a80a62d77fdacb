# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configuration fragments: what they ask for, and whether it was granted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.common import ROOT, UserError, display

_SET = re.compile(r"CONFIG_(\w+)=(.*)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")
# In a line.config: what that kernel line calls a symbol of the other fragments
_RENAMED = re.compile(r"(?m)^# CONFIG_(\w+) is now CONFIG_(\w+)$")


@dataclass(frozen=True)
class Request:
    """One line of a fragment: this symbol shall have this value."""

    symbol: str
    value: str
    file: Path
    line: int

    @property
    def place(self) -> str:
        return f"{display(self.file)}:{self.line}"

    @property
    def text(self) -> str:
        return assignment(self.symbol, self.value)


def assignment(symbol: str, value: str) -> str:
    return f"# CONFIG_{symbol} is not set" if value == "n" else f"CONFIG_{symbol}={value}"


def parse_line(text: str) -> tuple[str, str] | None:
    """(symbol, value) of a line of a fragment or .config; None for a comment or an empty line."""
    text = text.strip()
    found = _SET.fullmatch(text)
    if found:
        return found[1], found[2]
    found = _UNSET.fullmatch(text)
    if found:
        return found[1], "n"
    if not text or text.startswith("#"):
        return None
    raise ValueError(text)


def read(files: Iterable[Path]) -> dict[str, Request]:
    """The requests of all fragments, by the kernel line's name of the symbol; of two for one, the last one counts."""
    texts = {file: file.read_text() for file in files}
    names = {old: new for text in texts.values() for old, new in _RENAMED.findall(text)}
    requests: dict[str, Request] = {}
    for file, content in texts.items():
        for number, text in enumerate(content.splitlines(), 1):
            try:
                parsed = parse_line(text)
            except ValueError:
                raise UserError(
                    f"{display(file)}:{number}: '{text.strip()}' is neither CONFIG_X=value, "
                    f"'# CONFIG_X is not set' nor a comment"
                ) from None
            if parsed:
                symbol = names.get(parsed[0], parsed[0])
                requests[symbol] = Request(symbol, parsed[1], file, number)
    return requests


def merged(requests: dict[str, Request]) -> str:
    """The requests as one file for KCONFIG_ALLCONFIG."""
    return "".join(f"{request.text}\n" for request in requests.values())


def read_config(path: Path) -> dict[str, str]:
    """The values in a .config; a symbol that is not there counts as n."""
    values: dict[str, str] = {}
    for text in path.read_text().splitlines():
        try:
            parsed = parse_line(text)
        except ValueError:
            continue
        if parsed:
            values[parsed[0]] = parsed[1]
    return values


def missed(requests: dict[str, Request], config: dict[str, str]) -> list[Request]:
    """The requests which the final .config does not grant."""
    return [one for one in requests.values() if config.get(one.symbol, "n") != one.value]


def for_kernel(board_fragment: Path, kernel: str, variants: Sequence[str] = (), root: Path = ROOT) -> list[Path]:
    """The fragments of a build, in the order in which they override each other."""
    common = root / "board/common"
    # What only one line of kernels knows stands beside its patches.
    line = root / "patches/linux" / kernel / "line.config"
    known = {path.stem: path for path in sorted((common / "variants").glob("*.config"))}
    for variant in variants:
        if variant not in known:
            raise UserError(f"unknown VARIANT '{variant}': the variants are {', '.join(known)}")
    return [
        *sorted(common.glob("*.config")),
        *([line] if line.exists() else []),
        board_fragment,
        *(known[variant] for variant in variants),
    ]
