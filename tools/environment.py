# SPDX-License-Identifier: GPL-2.0-only
"""What the programs that the tools start see of the caller's environment: the variables listed here, and nothing else.

A shell of somebody's may export LLVM, KCFLAGS, BR2_…, GIT_DIR or a time zone of its own: an image is the same bytes
everywhere. What a tool itself reads of the environment (`os.environ.get`) stands in the list, too, so that it reaches
a tool which is started by another one; tests/host/test_environment.py checks both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PASSED = frozenset(
    (
        # Who calls, from where, and where temporary files and caches lie
        *("HOME", "LOGNAME", "PATH", "TMPDIR", "USER", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"),
        # git lets root read the repositories of the user who called sudo
        *("SUDO_GID", "SUDO_UID", "SUDO_USER"),
        # For `make menuconfig` and its siblings with windows
        *("COLORTERM", "DISPLAY", "TERM", "WAYLAND_DISPLAY", "XAUTHORITY"),
        # The way to a server
        *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
        *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE"),
        *("GIT_ASKPASS", "GIT_PROXY_COMMAND", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"),
        *("GIT_SSL_NO_VERIFY", "SSH_AUTH_SOCK"),
        *("PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL"),
        *("PIP_NO_INDEX", "PIP_PROXY", "PIP_TRUSTED_HOST"),
        *("DEBIAN_FRONTEND", "DEBIAN_MIRROR", "UBUNTU_MIRROR"),
        # The compiler cache: where it is and whether it is used, but nothing of what it takes for the same
        *("CCACHE_DIR", "CCACHE_DISABLE", "CCACHE_MAXSIZE", "CCACHE_STATSLOG"),
        # This project's own
        *("ARM_PMEM_AUTHORIZED_KEYS", "BUILDROOT", "BUILDROOT_URL", "NVD"),
    )
)
# English messages and text in UTF-8, in whatever language the caller lives
FIXED = {"LC_ALL": "C.UTF-8", "TZ": "UTC"}


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a program that is started here, with what it needs besides."""
    passed = {name: value for name, value in os.environ.items() if name in PASSED}
    return {**passed, **FIXED, **trusted([ROOT, *ROOT.glob("output/linux-*")]), **more}


def trusted(folders: Sequence[Path]) -> dict[str, str]:
    """For git, which reads no repository of another user's, as a clone is in a container: these.

    Who runs the tools runs what lies in there anyway. It holds for no folder above or beside them.
    """
    pairs = {f"GIT_CONFIG_KEY_{number}": "safe.directory" for number in range(len(folders))}
    pairs |= {f"GIT_CONFIG_VALUE_{number}": str(folder) for number, folder in enumerate(folders)}
    return {"GIT_CONFIG_COUNT": str(len(folders)), **pairs}


def lab_environment(**more: str) -> dict[str, str]:
    """The same for what runs pytest or labgrid: with labgrid's own variables."""
    labgrid = {name: value for name, value in os.environ.items() if name.startswith("LG_")}
    return child_environment(**{**labgrid, **more})
