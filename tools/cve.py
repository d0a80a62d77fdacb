# SPDX-License-Identifier: GPL-2.0-only
"""`make cve`: which known CVEs name a version that the image is made of, by Buildroot's cve-check. No network is used.

A hit says that NVD's range holds the version, not that the image can be attacked: NVD does not know which mends
Debian or this project took in, nor which parts of a program are built.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools import buildroot, sbom
from tools.common import UserError, cache_folder, display, run, say, write_whole

NAME = "cve.cdx.json"
# The whole of NVD is some 300,000 files.
LIMIT = 3600
SEVERITIES = ("critical", "high", "medium", "low")

Document = dict[str, Any]


def data() -> Path:
    """The folder with NVD's data, in the layout of Buildroot's cve.py: NVD=, else in the cache."""
    named = os.environ.get("NVD", "")
    return Path(named).absolute() if named else cache_folder() / "nvd"


def check_data(folder: Path, tree: Path) -> None:
    if any(folder.glob("git/CVE-*/*/CVE-*.json")):
        return
    found = re.search(r'(?m)^NVD_BASE_URL = "(.*)"', (tree / "support/scripts/cve.py").read_text())
    url = found[1] if found else "(NVD_BASE_URL in support/scripts/cve.py of Buildroot)"
    raise UserError(
        f"there is no NVD data in {folder}: on a machine with a network run "
        f"`git clone --depth=1 {url} {folder}/git` and bring that folder here, or name another with NVD=<folder>"
    )


def check(build: buildroot.Build, listed: Path, folder: Path) -> Document:
    said = run(
        [
            *(sys.executable, build.tree / "support/scripts/cve-check"),
            *("--in-file", listed, "--nvd-path", folder, "--no-nvd-update"),
        ],
        environment=build.environment(),
        what=f"Buildroot's cve-check with {folder}",
        timeout=LIMIT,
    )
    document: Document = json.loads(said)
    # They come in the order in which the file system lists them.
    document["vulnerabilities"] = sorted(document.get("vulnerabilities", []), key=order)
    return document


def order(vulnerability: Document) -> tuple[list[int], str]:
    return [int(part) for part in re.findall(r"\d+", vulnerability["id"])], json.dumps(vulnerability, sort_keys=True)


def severity(vulnerability: Document) -> str:
    """The worst of its ratings."""
    known = {one.get("severity") for one in vulnerability.get("ratings", [])}
    return next((one for one in SEVERITIES if one in known), "unrated")


def summary(document: Document) -> Iterator[str]:
    """A line for each component that NVD can know, and one for those which it cannot."""
    by_component: dict[str, list[Document]] = {}
    for vulnerability in document.get("vulnerabilities", []):
        for affected in vulnerability.get("affects", []):
            by_component.setdefault(affected["ref"], []).append(vulnerability)
    nameless = []
    for component in document["components"]:
        ref = component["bom-ref"]
        if not (component.get("cpe") and component.get("version")):
            nameless.append(ref)
            continue
        found = by_component.get(ref, [])
        states = Counter(one.get("analysis", {}).get("state", "unknown") for one in found)
        hits = [one for one in found if one.get("analysis", {}).get("state") == "exploitable"]
        kinds = Counter(severity(one) for one in hits)
        detail = ", ".join(f"{kinds[kind]} {kind}" for kind in (*SEVERITIES, "unrated") if kinds[kind])
        rest = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state != "exploitable")
        line = f"{ref:24} {component['version']:12} {len(hits):4} to look at"
        yield line + (f" ({detail})" if detail else "") + (f"; {rest}" if rest else "")
    if nameless:
        yield f"not looked up, for they have no CPE name: {', '.join(nameless)}"


def write(build: buildroot.Build) -> Path:
    folder = data()
    check_data(folder, build.tree)
    document = check(build, sbom.write(build), folder)
    target = build.out / NAME
    write_whole(target, sbom.sealed(document))
    for line in summary(document):
        say(line)
    say(f"{display(target)} has the details, with NVD's data of {folder}")
    return target
