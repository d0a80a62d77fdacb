# SPDX-License-Identifier: GPL-2.0-only
"""The host programs which the Makefile calls."""
