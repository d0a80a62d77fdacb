# SPDX-License-Identifier: GPL-2.0-only
"""`make series-mail KERNEL=6.1`: the series as mails in a folder, with cover letter and recipients. Nothing is ever sent.

The mails are checked: applied to the pristine source they give the very tree that was tested, and checkpatch is content.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools import runs
from tools import series as gate
from tools.check import checkpatch
from tools.common import OUTPUT, UserError, display, entry, run, say, write_whole
from tools.report import render
from tools.source import BASE, Repository, Series, git_am, kernel_lines, series

FOLDER = OUTPUT / "mail"
# A list or a person that get_maintainer.pl prints with its role
LINE = re.compile(r"^(?P<address>.*?)\s+\((?P<role>[^()]*(?:\([^()]*\)[^()]*)*)\)$")
# Buildroot's line on where a patch stands; in a mail it says nothing.
UPSTREAM = re.compile(r"(?m)^Upstream: .*\n(?:[ \t].*\n)*")


def maintainers(tree: Path, patch: Path) -> tuple[list[str], list[str]]:
    """To: who maintains what the patch touches, and Cc: reviewers and lists, by the tree's own MAINTAINERS."""
    said = run(
        [
            "perl",
            tree / "scripts/get_maintainer.pl",
            "--no-git",
            "--no-git-fallback",
            "--roles",
            "--no-rolestats",
            patch,
        ],
        cwd=tree,
        what=f"get_maintainer.pl on {patch.name}",
        timeout=300,
    )
    to: list[str] = []
    cc: list[str] = []
    for line in said.splitlines():
        found = LINE.match(line)
        address, role = (found["address"], found["role"]) if found else (line.strip(), "")
        (to if re.match(r"(maintainer|supporter|odd fixer)\b", role) else cc).append(address)
    return to, cc


def with_headers(text: str, to: Sequence[str], cc: Sequence[str]) -> str:
    """A mail with its recipients, a folded line each."""
    head, _, body = text.partition("\n\n")
    for name, addresses in (("To", to), ("Cc", cc)):
        if addresses:
            head += f"\n{name}: " + ",\n\t".join(addresses)
    return f"{head}\n\n{body}"


@contextmanager
def pristine(repository: Repository) -> Iterator[Path]:
    """A work tree of the pristine source for a while."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        repository.git("worktree", "add", "--quiet", "--detach", str(tree), BASE)
        try:
            yield tree
        finally:
            repository.git("worktree", "remove", "--force", str(tree))


def format_patches(repository: Repository, wanted: Series, work: Path) -> list[Path]:
    """Cover letter and patches of the series' branch, by git format-patch."""
    # The same commits without Buildroot's line
    with pristine(repository) as tree:
        for patch in wanted.patches:
            reason = git_am(tree, UPSTREAM.sub("", patch.read_text()).encode())
            if reason:
                raise UserError(f"a patch does not apply: {reason}")
        made, tested = repository.git("rev-parse", "HEAD^{tree}", cwd=tree), tree_of(repository)
        if made != tested:
            raise UserError(f"the mails' patches do not give the tree of {display(repository.path)}: is it edited?")
        repository.git(
            *("format-patch", "--quiet", "--cover-letter", "--thread=shallow", "--no-signature"),
            *(f"--subject-prefix=PATCH {repository.kernel}", "-o", str(work), f"{BASE}..HEAD"),
            cwd=tree,
        )
    return sorted(work.glob("*.patch"))


def tree_of(repository: Repository) -> str:
    """What the series' branch holds after the last patch."""
    return repository.git("rev-parse", f"{repository.branch}^{{tree}}")


def version(repository: Repository) -> str:
    """Of the pristine source, as its Makefile says it."""
    text = repository.git("show", f"{BASE}:Makefile")
    return ".".join(re.findall(r"(?m)^(?:VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)", text))


def comparison(repository: Repository, posted: Path | None) -> str:
    """A range-diff against the mails as posted, where they apply; else why there is none."""
    if posted is None:
        return (
            "No range-diff: the posted mails were not at hand (POSTED=<mbox> of `make series-mail` takes them).\n"
            "patches/linux/README.md of arm-pmem names the origin of each patch."
        )
    with pristine(repository) as tree:
        reason = git_am(tree, posted.read_bytes())
        if reason:
            return (
                f"No range-diff: {posted.name} does not apply to this kernel ({reason}).\n"
                "patches/linux/README.md of arm-pmem names the origin of each patch."
            )
        head = repository.git("rev-parse", "HEAD", cwd=tree)
        return repository.git(
            "range-diff", "--no-color", "--creation-factor=95", f"{BASE}..{head}", f"{BASE}..{repository.branch}"
        )


def cover(repository: Repository, wanted: Series, letter: Path, posted: Path | None) -> str:
    lanes = [one for one in runs.newest(runs.find(OUTPUT)).values() if one.kernel == repository.kernel]
    results = gate.FOLDER / repository.kernel / "results.json"
    found = gate.summary(results, wanted)
    counted: list[tuple[str, Counter[str]]] = [
        (
            step,
            Counter(
                patch["results"][step].outcome if step in patch["results"] else "not run" for patch in found["patches"]
            ),
        )
        for step in found["steps"]
    ]
    text = render(
        "cover-letter.txt.j2",
        subject="DAX on ARMv7",
        kernel=repository.kernel,
        base=version(repository),
        tree=tree_of(repository),
        series=wanted,
        lanes=lanes,
        gate=counted,
        whole=found["whole"],
        broken=sorted(
            {
                step
                for patch in found["patches"]
                for step, one in patch["results"].items()
                if one.text.startswith(gate.BROKEN)
            }
        ),
        emulated=all(one.emulated for one in lanes),
        comparison=comparison(repository, posted),
    )
    subject, _, body = text.partition("\n\n")
    content = letter.read_text()
    content = content.replace("*** SUBJECT HERE ***", subject.strip("* \n")).replace("*** BLURB HERE ***", body.strip())
    if "***" in content:
        raise UserError(f"git's template of a cover letter is not the one that is known here: see {letter}")
    return content


def check(repository: Repository, mails: Sequence[Path]) -> list[str]:
    """What is wrong with the mails; nothing, when they may be sent as they are but for the sender's own name."""
    wrong = [f"{mail.name}: no recipient" for mail in mails if not re.search(r"(?m)^(To|Cc): \S", mail.read_text())]
    wrong += [said for said in (checkpatch(repository.path, mail) for mail in mails[1:]) if said]
    return wrong


def make(kernel: str, folder: Path, posted: Path | None) -> int:
    if posted is not None and not posted.is_file():
        raise UserError(f"there is no {posted}: POSTED is an mbox of the mails as posted")
    return write(Repository(kernel), series(kernel), folder / kernel, posted)


def write(repository: Repository, wanted: Series, target: Path, posted: Path | None) -> int:
    """The mails in a folder of their own: all of them and checked, or those that were there before."""
    repository.prepare(wanted)
    tree = repository.path
    work = target.with_name(f".{target.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        mails = format_patches(repository, wanted, work)
        everybody: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for number, mail in enumerate(mails[1:], 1):
            found = maintainers(tree, mail)
            for known, addresses in zip(everybody, found, strict=True):
                known.update(addresses)
            write_whole(mail, with_headers(mail.read_text(), *found))
            if number % 10 == 0 or number == len(mails) - 1:
                say(f"recipients of {number} of {len(mails) - 1} patches")
        # The letter goes to whom at least a quarter of the patches go to, and to all lists.
        often = [address for address, count in everybody[0].items() if 4 * count >= len(mails)]
        lists = sorted(address for address in everybody[1] if re.fullmatch(r"[^<>\s]+@\S+", address))
        text = cover(repository, wanted, mails[0], posted)
        write_whole(mails[0], with_headers(text, often, lists))
        wrong = check(repository, mails)
        if wrong:
            raise UserError("these mails must not be sent: " + "; ".join(wrong[:5]))
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(
        f"{len(mails)} mails in {display(target)}, checked: they give the tested tree, checkpatch is content. Nothing was sent."
    )
    if "@arm-pmem.example" in (target / mails[1].name).read_text():
        say("note: From: and Signed-off-by: are placeholders; whoever sends this puts a person's name there")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.seriesmail", description=__doc__)
    parser.add_argument("--kernel", default="", help=f"one of {', '.join(kernel_lines())} (default 6.1)")
    parser.add_argument("--posted", default="", help="an mbox of the mails as posted, for a range-diff")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    return make(options.kernel or "6.1", options.folder, Path(options.posted) if options.posted else None)


if __name__ == "__main__":
    entry(main)
