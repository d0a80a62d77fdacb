# SPDX-License-Identifier: GPL-2.0-only
# The steps of CI: after a colon what each needs, then its limit in seconds and its commands.
# Two run at a time: a build waits for one processor where it is configured, a test for an emulator.
# The order of `all` is the order in which they are begun, as soon as what they need has ended.

step := @.ci/step
# Images that Buildroot made; where its tree cannot be reached, the step is not run, and says so.
buildroot := @.ci/step --buildroot

.PHONY: all
all: board kernel-6.1 kernel-6.12 orangepi_pc test suite-6.1 rack cards suite-6.12 kernel-7.3 suite-7.3 check

# What nothing waits for is begun after the long ways: board, orangepi_pc, rack, and test.
.PHONY: late
late: board kernel-6.12
	@sleep 1

.PHONY: deps
deps:
	$(step) $@ 900 make deps lab-deps

.PHONY: board kernel-6.1 kernel-6.12 kernel-7.3 orangepi_pc
board: deps
	$(step) $@ 2700 'make board_defconfig && make'
# One after the other: each uses all processors.
kernel-6.1: deps
	$(step) $@ 1800 make kernel KERNEL=6.1
kernel-6.12: kernel-6.1
	$(step) $@ 1800 make kernel KERNEL=6.12
kernel-7.3: late
	$(step) $@ 1800 make kernel KERNEL=7.3
# For the rack: a board with SPL and U-Boot on its card
orangepi_pc: board
	$(buildroot) $@ 2700 'make orangepi_pc_defconfig && make BOARD=orangepi_pc'

.PHONY: test suite-6.1 suite-6.12 suite-7.3 rack cards check
# README's command. The host's tests look at the kernel's source, too.
test: board kernel-6.12
	$(step) $@ 2400 make test
suite-6.1: kernel-6.1
	$(step) $@ 1500 'LG_BUILDDIR=output/kernel-6.1/images make test-board'
suite-6.12: late
	$(step) $@ 1500 'LG_BUILDDIR=output/kernel-6.12/images make test-board'
suite-7.3: kernel-7.3
	$(step) $@ 1500 'LG_BUILDDIR=output/kernel-7.3/images make test-board'
# The same suite on boards that labgrid takes for hardware, one of each kind at once
rack: board orangepi_pc
	$(buildroot) $@ 1800 'make rack N=2 BOARD="board orangepi_pc" && \
		{ make lab-test TAGS=emulated=yes PLACES=all; status=$$?; make rack-stop && exit $$status; }'
# What the host tests say of that card, which may not be there yet when they run in `test`
cards: orangepi_pc
	$(buildroot) $@ 900 '.venv/bin/pytest tests/lab/test_fastboot.py tests/host/test_board_images.py \
		--junitxml=output/test/cards.xml'
check: late
	$(step) $@ 900 make check
