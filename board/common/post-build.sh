#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Buildroot calls it on the root file system, before images are made of it: <target folder> <board>
cd "$(dirname "$(readlink -f "$0")")/../.." && exec python3 -m tools.product target "$@"
