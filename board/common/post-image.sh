#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Buildroot calls it when all images are there: <images folder> <board>
cd "$(dirname "$(readlink -f "$0")")/../.." && exec python3 -m tools.product images "$@"
