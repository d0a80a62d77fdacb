# SPDX-License-Identifier: GPL-2.0-only
"""The series as mails: recipients, what must not be in them, and that bad ones replace no good ones.

The kernel has one file here, and stands in for its own scripts: get_maintainer.pl says who it is told to say, checkpatch.pl
complains of one word.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from toyline import FIRST, Line, make_line

from tools import seriesmail
from tools.common import UserError
from tools.source import BASE

MAINTAINERS = """#!/usr/bin/perl
print "Ann Onymous <ann\\@example.com> (maintainer:HELLO)\\n";
print "Re Viewer <re\\@example.com> (reviewer:HELLO (with brackets))\\n";
print "hello\\@lists.example.com (open list)\\n";
"""
CHECKPATCH = """#!/usr/bin/perl
undef $/; open(F, $ARGV[-1]); $_ = <F>;
if (/two/ && /BAD/) { print "a bad word\\n"; exit 1 }
"""


@pytest.fixture
def line(tmp_path: Path) -> Line:
    one = make_line(tmp_path)
    tree = tmp_path / "linux-source-9.9"
    (tree / "scripts").mkdir()
    for name, text in (("get_maintainer.pl", MAINTAINERS), ("checkpatch.pl", CHECKPATCH)):
        (tree / "scripts" / name).write_text(text)
        (tree / "scripts" / name).chmod(0o755)
    (tmp_path / "linux-source-9.9.tar.xz").unlink()
    subprocess.run(["tar", "cJf", "linux-source-9.9.tar.xz", tree.name], cwd=tmp_path, check=True, timeout=60)
    patch = one.patches / "0001-hello-say-two.patch"
    patch.write_text(
        FIRST.replace(
            "\n\n---\n", "\n\nWhy.\n\nUpstream: N/A, not sent yet\nSigned-off-by: A Developer <a@example.com>\n---\n"
        )
    )
    return one


def write(line: Line, posted: Path | None = None) -> Path:
    target = line.root / "mail/9.9"
    assert seriesmail.write(line.repository, line.series(), target, posted) == 0
    return target


def test_letter_and_patches_with_their_recipients(line: Line) -> None:
    folder = write(line)
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == ["0000-cover-letter.patch", "0001-hello-say-two.patch", "0002-hello-say-ten-and-thirty.patch"]
    mail = (folder / names[1]).read_text()
    assert "Subject: [PATCH 9.9 1/2] hello: say two\n" in mail
    assert "To: Ann Onymous <ann@example.com>\n" in mail
    assert "Cc: Re Viewer <re@example.com>,\n\thello@lists.example.com\n" in mail
    # Buildroot's line is for Buildroot.
    assert "Upstream:" not in mail and "Signed-off-by: A Developer" in mail
    letter = (folder / names[0]).read_text()
    assert "Subject: [PATCH 9.9 0/2] DAX on ARMv7\n" in letter
    assert "Base: Linux 9.9.1 as Debian's linux-source-9.9 has it." in letter
    assert "***" not in letter
    # A person who reviews one file is not asked to read all of it.
    head = letter.partition("\n\n")[0]
    assert "hello@lists.example.com" in head and "re@example.com" not in head


def test_they_apply_and_give_the_tested_tree(line: Line, tmp_path: Path) -> None:
    folder = write(line)
    line.repository.git("checkout", "--quiet", "--detach", BASE)
    for mail in sorted(folder.glob("000[12]*")):
        line.git("am", "--quiet", str(mail))
    same = line.git("rev-parse", "HEAD^{tree}") == line.git("rev-parse", "arm-pmem^{tree}")
    assert same


def test_the_letter_says_what_ran_and_no_more(line: Line) -> None:
    letter = (write(line) / "0000-cover-letter.patch").read_text()
    assert "Nothing that is on record." in letter
    assert "No part of this series has run\non silicon" in letter
    assert "No range-diff: the posted mails were not at hand" in letter


def test_a_range_diff_against_what_was_posted(line: Line, tmp_path: Path) -> None:
    posted = tmp_path / "posted.mbox"
    posted.write_text(FIRST.replace("line two", "line TWO"))
    letter = (write(line, posted) / "0000-cover-letter.patch").read_text()
    assert "1:  " in letter and "line TWO" in letter
    posted.write_text(FIRST.replace("-line 2\n", "-line nothing\n"))
    letter = (write(line, posted) / "0000-cover-letter.patch").read_text()
    assert "No range-diff: posted.mbox does not apply to this kernel" in letter


def test_bad_mails_replace_no_good_ones(line: Line) -> None:
    folder = write(line)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    patch = line.patches / "0001-hello-say-two.patch"
    patch.write_text(patch.read_text().replace("Why.", "BAD"))
    with pytest.raises(UserError, match="these mails must not be sent: a bad word"):
        write(line)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["9.9"]


def test_an_edited_tree_is_not_what_was_tested(line: Line) -> None:
    write(line)
    (line.repository.path / "hello.c").write_text("own work\n")
    line.git("commit", "-qam", "own work")
    with pytest.raises(UserError, match="do not give the tree of .*: is it edited"):
        write(line)


def test_posted_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no .*: POSTED is an mbox"):
        seriesmail.make("6.1", tmp_path, tmp_path / "nothing")
