# SPDX-License-Identifier: GPL-2.0-only
"""Why a kernel option has not the value that somebody wants: the chain of Kconfig, in words."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import kconfiglib
from kconfiglib import AND, NOT, OR, Choice, Symbol, expr_str, expr_value, split_expr

from tools.common import OUTPUT, UserError, display, entry
from tools.environment import child_environment
from tools.fragments import Request, parse_line
from tools.source import kernel_lines

# kconfiglib's expressions: a symbol, a choice or a tuple (operator, operand …)
Expression = Any

SRCARCH = {"i386": "x86", "x86_64": "x86", "sparc32": "sparc", "sparc64": "sparc"}
CROSS_PREFIX = {
    "arm": "arm-linux-gnueabihf-",
    "arm64": "aarch64-linux-gnu-",
    "mips": "mips-linux-gnu-",
    "powerpc": "powerpc64le-linux-gnu-",
    "riscv": "riscv64-linux-gnu-",
    "s390": "s390x-linux-gnu-",
    "sparc": "sparc64-linux-gnu-",
}


class LinuxKconfig(kconfiglib.Kconfig):  # type: ignore[misc]
    """What kconfiglib 14.1 does not know of recent kernels' Kconfig, in words that it does."""

    def _open(self, filename: str, mode: str) -> Any:
        stream = super()._open(filename, mode)
        if "w" in mode:
            return stream
        with stream:
            text = stream.read()
        # Linux 6.1
        text = re.sub(r"(?m)^([ \t]+)modules$", r"\1option modules", text)
        # 6.18: such a symbol only hands an old .config's value on; for the rest it is one without a prompt.
        text = re.sub(r"(?m)^[ \t]+transitional$", "", text)
        # 7.0: what is demanded only if a condition holds
        condition = r"(?m)^([ \t]+depends on )([^#\n]+) if ([^#\n]+)"
        return StringIO(re.sub(condition, r"\1(\2) || !(\3)", text))


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """What kconfiglib, and the programs which Kconfig files start, see."""
    saved, seen = dict(os.environ), child_environment(**values)
    os.environ.clear()
    os.environ.update(seen)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def kernel_version(tree: Path) -> str:
    text = (tree / "Makefile").read_text(errors="replace")[:2000]
    parts = [
        found[1] if (found := re.search(rf"(?m)^{name} *= *(\S*)$", text)) else ""
        for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")
    ]
    return ".".join(part for part in parts if part)


def load(tree: Path, arch: str, config: Path | None = None) -> LinuxKconfig:
    """Parse the Kconfig files of a kernel tree for one architecture, and read a .config."""
    tree = tree.resolve()
    source_arch = SRCARCH.get(arch, arch)
    if not (tree / "Kconfig").exists():
        raise UserError(f"{display(tree)} holds no Kconfig file: --tree wants a kernel source tree")
    if (tree / "arch").is_dir() and not (tree / "arch" / source_arch / "Kconfig").exists():
        known = sorted(path.parent.name for path in tree.glob("arch/*/Kconfig"))
        raise UserError(f"unknown --arch '{arch}': this tree knows {', '.join(known)}")
    if config and not config.is_file():
        raise UserError(f"{display(config)} is no file: --config wants a kernel's .config")
    prefix = CROSS_PREFIX.get(source_arch, "")
    # Any compiler serves to read the Kconfig files, where the right one is not there.
    prefix = prefix if shutil.which(f"{prefix}gcc") else ""
    variables = {
        "ARCH": arch,
        "SRCARCH": source_arch,
        "srctree": str(tree),
        "CC": f"{prefix}gcc",
        "LD": f"{prefix}ld",
        "NM": f"{prefix}nm",
        "OBJCOPY": f"{prefix}objcopy",
        "AR": f"{prefix}ar",
        "HOSTCC": "gcc",
        "RUSTC": "rustc",
        "BINDGEN": "bindgen",
        "PAHOLE": "pahole",
        "KERNELVERSION": kernel_version(tree) if (tree / "Makefile").exists() else "",
    }
    with environment(variables):
        try:
            kconf = LinuxKconfig("Kconfig", warn=False, suppress_traceback=False)
            if config:
                kconf.load_config(str(config.resolve()))
        except (kconfiglib.KconfigError, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the Kconfig files of {display(tree)} cannot be read: {reason}") from error
    return kconf


def text(expression: Expression) -> str:
    return str(expr_str(expression))


def same_value(symbol: Symbol, value: str) -> bool:
    """Does a symbol have the value which a .config line gives it?"""
    if symbol.orig_type in (kconfiglib.BOOL, kconfiglib.TRISTATE):
        return bool(symbol.str_value == value)
    if symbol.orig_type is kconfiglib.STRING:
        return bool(f'"{symbol.str_value}"' == value)
    return bool(symbol.str_value == value)


def is_on(symbol: Symbol) -> bool:
    return bool(symbol.tri_value > 0)


class Explainer:
    """Explains the symbols of one tree, architecture and .config."""

    def __init__(self, kconf: LinuxKconfig, tree: Path, arch: str) -> None:
        self.kconf = kconf
        self.tree = tree
        self.arch = arch
        self.lines: list[str] = []
        self.told: set[tuple[str, bool]] = set()

    # --- facts -------------------------------------------------------------------------------

    @cached_property
    def selectors(self) -> dict[str, list[tuple[Symbol, Expression]]]:
        """For each symbol: who selects it, under which condition."""
        found: dict[str, list[tuple[Symbol, Expression]]] = {}
        for symbol in self.kconf.unique_defined_syms:
            for target, condition in symbol.selects:
                found.setdefault(target.name, []).append((symbol, condition))
        return found

    @cached_property
    def _everywhere(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """From the text of all Kconfig files: who defines, and who selects, each symbol.

        Other architectures' files are not part of what kconfiglib read."""
        defined: dict[str, list[str]] = {}
        selected: dict[str, list[str]] = {}
        pattern = re.compile(r"(?m)^\s*(?:menu)?config\s+(\w+)|^\s*select\s+(\w+)")
        for folder, _, names in os.walk(self.tree):
            for name in names:
                if not name.startswith("Kconfig"):
                    continue
                path = Path(folder, name)
                place = path.relative_to(self.tree).as_posix()
                current = ""
                for found in pattern.finditer(path.read_text(errors="replace")):
                    if found[1]:
                        current = found[1]
                        defined.setdefault(current, []).append(place)
                    else:
                        selected.setdefault(found[2], []).append(f"{current} ({place})")
        return defined, selected

    def elsewhere(self, name: str, selecting: bool) -> str:
        """', it is … in arch/x86/Kconfig': what the Kconfig files not read for this arch say."""
        places = self._everywhere[1 if selecting else 0].get(name, [])
        if not places:
            return ""
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        word = "selected" if selecting else "defined"
        return f"; elsewhere in the tree it is {word} by {', '.join(sorted(places)[:4])}{more}"

    def has_prompt(self, symbol: Symbol) -> bool:
        return any(node.prompt for node in symbol.nodes)

    def place(self, symbol: Symbol) -> str:
        node = symbol.nodes[0]
        return f"{node.filename}:{node.linenr}"

    def failing(self, expression: Expression, wanted: bool = True) -> list[Expression]:
        """The parts of a conjunction (as it reads under `wanted`) that are not as wanted."""
        if isinstance(expression, tuple) and expression[0] is NOT:
            return self.failing(expression[1], not wanted)
        operator = AND if wanted else OR
        parts = split_expr(expression, operator)
        if len(parts) == 1:
            fails = (expr_value(expression) > 0) != wanted
            return [(expression if wanted else (NOT, expression))] if fails else []
        found = [one for part in parts for one in self.failing(part, wanted)]
        return list(dict.fromkeys(found))

    def reachable(self, symbol: Symbol, wanted: bool, asked: frozenset[str] = frozenset()) -> bool:
        """Could some configuration of this architecture give the symbol that state?"""
        if symbol.orig_type in (kconfiglib.BOOL, kconfiglib.TRISTATE) and is_on(symbol) == wanted:
            return True
        if not symbol.nodes or symbol.name in asked:
            return False
        if not wanted:
            return self.has_prompt(symbol) or bool(self.selectors.get(symbol.name))
        asked |= {symbol.name}
        if not self.can_be(symbol.direct_dep, True, asked):
            return False
        if self.has_prompt(symbol):
            return True
        ways = [condition for _, condition in symbol.defaults]
        ways += [(AND, one, condition) for one, condition in self.selectors.get(symbol.name, [])]
        return any(self.can_be(way, True, asked) for way in ways)

    def can_be(self, expression: Expression, wanted: bool, asked: frozenset[str]) -> bool:
        if (expr_value(expression) > 0) == wanted:
            return True
        if isinstance(expression, Symbol):
            return self.reachable(expression, wanted, asked)
        if not isinstance(expression, tuple):
            return False
        if expression[0] is NOT:
            return self.can_be(expression[1], not wanted, asked)
        if expression[0] in (AND, OR):
            check = all if (expression[0] is AND) == wanted else any
            return check(self.can_be(one, wanted, asked) for one in expression[1:])
        return True  # a comparison: a matter of values

    # --- one line ----------------------------------------------------------------------------

    def undefined(self, name: str) -> str:
        defined = {one.name for one in self.kconf.unique_defined_syms}
        places = self._everywhere[0].get(name, [])
        if places:
            return f"is not defined for ARCH={self.arch}{self.elsewhere(name, selecting=False)}"
        close = difflib.get_close_matches(name, defined, 1, cutoff=0.7)
        hint = f": did you mean {close[0]}?" if close else ""
        return f"exists nowhere in this kernel{hint}"

    def short(self, name: str, wanted: bool = True) -> str:
        """The nearest cause, as the rest of a sentence which begins with the symbol."""
        symbol = self.kconf.syms.get(name)
        if symbol is None or not symbol.nodes:
            return self.undefined(name)
        if not wanted:
            return self.why_on(symbol)
        blocked = self.failing(symbol.direct_dep)
        if blocked:
            return f"depends on {' and on '.join(self.quoted(one) for one in blocked)}"
        return self.why_off(symbol)

    def quoted(self, expression: Expression) -> str:
        shown = text(expression)
        if isinstance(expression, Symbol):
            state = "not defined for this arch" if not expression.nodes else expression.str_value
            return f"{shown} ({state})"
        return f"'{shown}'"

    def why_off(self, symbol: Symbol) -> str:
        """Why a symbol is off although its dependencies are met."""
        if symbol.choice:
            picked = symbol.choice.selection
            return (
                f"is one of a choice in which {picked.name if picked else 'nothing'} is taken: "
                f"it can be switched on instead"
            )
        if symbol.visibility > 0:
            return "can be switched on by the user: put it into a fragment"
        if self.has_prompt(symbol):
            conditions = [text(node.prompt[1]) for node in symbol.nodes if node.prompt]
            return f"shows its prompt only if {' or '.join(conditions)}, and its default is n"
        selectors = self.selectors.get(symbol.name, [])
        conditions = [text(condition) for _, condition in symbol.defaults]
        if conditions and not selectors:
            return f"has no prompt, and it is y by itself only if {' or '.join(conditions)}"
        if not selectors:
            return (
                f"has no prompt, and nothing selects it for ARCH={self.arch}"
                f"{self.elsewhere(symbol.name, selecting=True)}"
            )
        names = ", ".join(one.name for one, _ in selectors[:6])
        more = f" and {len(selectors) - 6} more" if len(selectors) > 6 else ""
        return f"has no prompt; it must be selected, and none of these is on: {names}{more}"

    def why_on(self, symbol: Symbol) -> str:
        """Why a symbol is not n."""
        active = [
            one.name
            for one, condition in self.selectors.get(symbol.name, [])
            if is_on(one) and expr_value(condition) > 0
        ]
        if active:
            return f"is selected by {', '.join(active[:6])}"
        if not self.has_prompt(symbol):
            return f"is always {symbol.str_value} for ARCH={self.arch} (no prompt)"
        if symbol.visibility == 0:
            return "has its default, and its prompt is hidden"
        return "can be switched off by the user"

    # --- the whole chain ---------------------------------------------------------------------

    def add(self, depth: int, line: str) -> None:
        self.lines.append(f"{'  ' * depth}{line}")

    def why(self, name: str, wanted: bool = True) -> list[str]:
        """The chain for one symbol, one indented line per step."""
        self.lines, self.told = [], set()
        symbol = self.kconf.syms.get(name)
        if symbol is None or not symbol.nodes:
            return [f"{name} {self.undefined(name)}"]
        if not self.reachable(symbol, wanted):
            state = "on" if wanted else "off"
            self.add(0, f"{name} cannot be {state} with any configuration for ARCH={self.arch}.")
        if wanted and not is_on(symbol) and symbol.direct_dep is not self.kconf.y:
            self.add(0, f"{name} depends on {text(symbol.direct_dep)}.")
        self.tell(symbol, wanted, 0)
        return self.lines

    def tell(self, symbol: Symbol, wanted: bool, depth: int) -> None:
        name = symbol.name or symbol.str_value
        if not symbol.nodes:
            self.add(depth, f"{name} {self.undefined(name)}")
            return
        head = f"{name} ({self.place(symbol)}) is {symbol.str_value}"
        if symbol.orig_type in (kconfiglib.BOOL, kconfiglib.TRISTATE) and is_on(symbol) == wanted:
            self.add(depth, head)
            return
        if (name, wanted) in self.told:
            self.add(depth, f"{head}: see above")
            return
        self.told.add((name, wanted))
        if not wanted:
            self.add(depth, f"{head} and must be n: it {self.why_on(symbol)}")
            return
        blocked = self.failing(symbol.direct_dep)
        if not blocked:
            self.add(depth, f"{head}: it {self.why_off(symbol)}")
            self.tell_selectors(symbol, depth + 1)
            return
        self.add(depth, f"{head}: what it depends on is not met")
        for part in blocked:
            self.tell_expression(part, depth + 1)
        if not self.has_prompt(symbol) and not symbol.defaults:
            self.add(depth + 1, f"{name} also {self.why_off(symbol)}")
            self.tell_selectors(symbol, depth + 2)

    def tell_selectors(self, symbol: Symbol, depth: int) -> None:
        """What keeps those from being on which could select a symbol without a prompt."""
        if self.has_prompt(symbol) or symbol.choice:
            return
        for one, condition in self.selectors.get(symbol.name, [])[:6]:
            if not is_on(one):
                self.add(depth, f"{one.name} ({self.place(one)}) {self.short(one.name)}")
            elif expr_value(condition) == 0:
                self.add(depth, f"{one.name} is on, but selects it only if {text(condition)}")

    def tell_expression(self, expression: Expression, depth: int) -> None:
        """Why one part of a dependency is not met."""
        if isinstance(expression, Symbol):
            self.tell(expression, True, depth)
        elif isinstance(expression, Choice):
            self.add(depth, f"the choice '{text(expression)}' is not there")
        elif expression[0] is NOT:
            self.add(depth, f"'{text(expression)}' is not met:")
            for symbol in symbols_in(expression[1]):
                if is_on(symbol):
                    self.tell(symbol, False, depth + 1)
        elif expression[0] is OR:
            self.add(depth, f"'{text(expression)}' is not met; any of these would do:")
            for part in split_expr(expression, OR):
                self.tell_expression(part, depth + 1)
        elif expression[0] is AND:
            for part in self.failing(expression):
                self.tell_expression(part, depth)
        else:
            left, right = expression[1], expression[2]
            self.add(
                depth,
                f"'{text(expression)}' is not met: {left.name} is '{left.str_value}'"
                f"{f', {right.name} is {right.str_value!r}' if right.nodes else ''}",
            )


def symbols_in(expression: Expression) -> list[Symbol]:
    found = [one for one in kconfiglib.expr_items(expression) if isinstance(one, Symbol)]
    return sorted(found, key=lambda symbol: str(symbol.name))


# --- for the build -----------------------------------------------------------------------------


def explain_misses(tree: Path, arch: str, config: Path, missed: list[Request]) -> str:
    """One sentence per request that was not granted: which, asked where, blocked by what."""
    explainer = Explainer(load(tree, arch, config), tree, arch)
    told = []
    for request in missed:
        symbol = explainer.kconf.syms.get(request.symbol)
        number = symbol is not None and symbol.orig_type in (kconfiglib.INT, kconfiglib.HEX)
        if symbol is not None and symbol.nodes and symbol.tri_value and request.value not in "nmy":
            reason = f"has the value {symbol.str_value} instead"
        elif number and symbol is not None and symbol.visibility:
            reason = f"has the value {symbol.str_value}: is the wanted one in its range?"
        else:
            reason = explainer.short(request.symbol, request.value != "n")
        told.append(
            f"{request.place} asks for '{request.text}', which is not in the final .config: {request.symbol} {reason}"
        )
    command = f"tools/kconfig-why {missed[0].symbol} --tree {display(tree)} --arch {arch}"
    return "\n       ".join([*told, f"the whole chain: {command} --config {display(config)}"])


# --- the program -------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="kconfig-why",
        description="Explain why kernel options are not as wanted, for any tree, arch and .config.",
    )
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL", help="FS_DAX, or FS_DAX=n")
    parser.add_argument("--tree", type=Path, help="kernel source (default: the project's own)")
    parser.add_argument("--arch", default="arm", help="default: arm")
    parser.add_argument("--config", type=Path, help=".config (default: every option its default)")
    options = parser.parse_args()
    own = [OUTPUT / f"linux-{kernel}" for kernel in kernel_lines()]
    tree = options.tree or next((path for path in own if path.exists()), None)
    if tree is None:
        raise UserError("no kernel source yet: give --tree, or run `make kernel` first")
    explainer = Explainer(load(tree, options.arch, options.config), tree, options.arch)
    for wish in options.symbols:
        name, value = parse_wish(wish)
        print("\n".join(explainer.why(name, value != "n")), flush=True)
    return 0


def parse_wish(wish: str) -> tuple[str, str]:
    """FS_DAX, FS_DAX=n, CONFIG_FS_DAX=y → (name, value)."""
    wish = wish.removeprefix("CONFIG_")
    try:
        parsed = parse_line(f"CONFIG_{wish}" if "=" in wish else f"CONFIG_{wish}=y")
    except ValueError:
        parsed = None
    if parsed is None:
        raise UserError(f"'{wish}' is not a kernel option: expected FS_DAX or FS_DAX=n")
    return parsed


if __name__ == "__main__":
    entry(main)
