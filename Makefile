# SPDX-License-Identifier: GPL-2.0-only
# The front door: every target is a call of one program. `make help` shows them all.

# Handed to the programs as they are; empty means the default.
BOARD  ?=
KERNEL ?=
IMAGE  ?=
SOURCES ?=
SERIES ?=
VARIANT ?=
DROP   ?=
DEBUG  ?=
O      ?=
# Read by tools/buildroot.py: a tree of Buildroot, or a repository to clone it from
export BUILDROOT BUILDROOT_URL

VENV   := .venv/bin
# Only what needs the virtual environment complains when there is none.
PYTHON  = $(if $(wildcard $(VENV)/python),$(VENV)/python,$(error there is no .venv yet: run `make deps`))

# DEBUG=1 is the variant `debug`
variants = $(strip $(if $(filter-out 0,$(DEBUG)),debug) $(VARIANT))
build    = $(PYTHON) -m tools.build
options  = --board '$(BOARD)' --kernel '$(KERNEL)' --image '$(IMAGE)' --sources '$(SOURCES)' --out '$(O)'
# Test reports (JUnit XML)
reports := output/test
unpatched = output/kernel-$(or $(KERNEL),6.1)-unpatched/images
patched   = output/$(if $(KERNEL),kernel-$(KERNEL),board)/images
images   = $(or $(LG_BUILDDIR),$(if $(O),$(O)/images,output/board/images))
# Images that the user names are the user's; the default ones are built when they are not there.
needed   = $(if $(LG_BUILDDIR),,$(images)/manifest.json)

.DEFAULT_GOAL := all
.PHONY: all help deps list kernel sources-archive test test-host test-board test-regression check clean distclean
# One thing after the other: each program uses all processors by itself.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

all: ## the image of the configured board, into output/<board>/images (IMAGE=auto, buildroot or minimal)
	@$(build) board $(options)

help: ## this list
	@echo 'make deps && make board_defconfig && make    build the image of the default board'
	@echo 'make test                                    boot it and run all tests'
	@echo
	@sed -n 's/^\([a-z<>%_-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | sed 's/^%/<board>/' | \
		awk -F '|' '{ printf "  %-18s %s\n", $$1, $$2 }'
	@echo
	@echo '  BOARD=board KERNEL=6.1 IMAGE=auto O=<folder for all that is built>'
	@echo '  SOURCES=debian, upstream or archive:<tar>; BUILDROOT=<tree> or BUILDROOT_URL=<repository>'
	@echo '  make kernel: DEBUG=1, VARIANT=nohighmem,nolpae,aliasing, SERIES=none (the unpatched kernel), DROP=0022,0027 (without these)'
	@echo '  Any other word is a target of Buildroot: menuconfig, linux-menuconfig, savedefconfig, legal-info, sdk, …'
	@echo '  LG_BUILDDIR=<folder> (test-board): the images to boot, default output/board/images'

deps: ## install what this machine lacks: Debian packages, and Python packages into .venv
	@tools/deps

list: ## the boards, with what each is
	@$(build) list

%_defconfig: ## choose the board that `make` builds (see `make list`)
	@$(build) configure $(options) --board '$*'

kernel: ## the kernel developer's loop: into output/kernel-6.1 (DEBUG=1, VARIANT=, SERIES=none, DROP=)
	@$(build) kernel $(options) --variant '$(variants)' --drop '$(DROP)' --series '$(or $(SERIES),patched)'

sources-archive: ## all inputs of the Buildroot image in one tar, for SOURCES=archive:<tar>
	@$(build) sources-archive $(options)

.PHONY: sbom cve repro-check
sbom: ## what the Buildroot image is made of, as CycloneDX: output/<board>/sbom.cdx.json
	@$(build) sbom $(options)

# NVD=<folder>: where NVD's data is, read by tools/cve.py
export NVD
cve: ## which known CVEs name a version of it: output/<board>/cve.cdx.json (NVD=<folder>, no network is used)
	@$(build) cve $(options)

repro-check: ## build the same commit twice, in two folders, and compare the images: hours
	@$(PYTHON) -m tools.repro $(options)

.PHONY: flash lab-test rack rack-stop
test: ## all tests; builds the image first if there is none (PLACE=<labgrid place>: the board tests there)

test-host: ## the tests that need no board
	@LG_BUILDDIR='$(images)' $(PYTHON) -m pytest tests/host $(wildcard tests/lab) --junitxml=$(reports)/host.xml

# With PLACE= it is a board behind a labgrid coordinator, which is not flashed first.
ifneq ($(PLACE),)
test:
	@$(PYTHON) -m tools.lab test --place '$(PLACE)' --board '$(BOARD)'
else
test: $(needed) test-host test-board
endif

test-board: $(needed) ## the tests on the board, with the image in output/board/images
	@LG_BUILDDIR='$(images)' $(PYTHON) -m pytest --lg-env arm-pmem.yaml tests/board --junitxml='$(reports)/$(notdir $(patsubst %/images,%,$(images))).xml'

$(addsuffix /manifest.json,$(sort $(if $(LG_BUILDDIR),,$(images)) output/board/images)):
	@test -e $(dir $(@D))board.json || $(MAKE) $(or $(BOARD),board)_defconfig
	@$(MAKE) all BOARD=$(or $(BOARD),board)

flash: ## write the image to the board of a labgrid place, read it back, boot it: PLACE=
	@$(PYTHON) -m tools.lab flash --place '$(PLACE)' --board '$(BOARD)'

lab-test: ## reserve, flash, test and free a board: TAGS='board=orangepi_pc' (PLACES=all: all that are free, at once)
	@$(PYTHON) -m tools.lab lab-test --tags '$(TAGS)' --board '$(BOARD)' $(if $(filter all,$(PLACES)),--all)

.PHONY: lab-deps
lab-deps: ## what the tests of the lab need beyond `make deps`: fastboot, an SSH server
	@tools/deps lab

rack: ## a lab on this machine, labgrid's coordinator and emulated boards that look like hardware: N=4 (FIRMWARE=<another U-Boot>)
	@$(PYTHON) -m tools.rack start --count '$(N)' --boards $(BOARD) $(if $(FIRMWARE),--firmware '$(FIRMWARE)')

.PHONY: lab-cost
lab-cost: ## what the lab adds to the suite, on 1, 2, 4 and 8 emulated boards at once: half an hour (N='1 2')
	@$(PYTHON) -m tools.labcost --count '$(N)'

rack-stop: ## end it; nothing is left running
	@$(PYTHON) -m tools.rack stop

.PHONY: powercut soak
powercut: $(needed) ## power cuts at random moments under random writers: CYCLES=100
	@LG_BUILDDIR='$(images)' $(PYTHON) -m pytest --lg-env $(or $(LG_ENV),arm-pmem.yaml) tests/board/test_powercut.py --cycles $(or $(CYCLES),100)

soak: $(needed) ## everything at once, with little memory and processors that come and go: MINUTES=60
	@LG_BUILDDIR='$(images)' $(PYTHON) -m pytest --lg-env $(or $(LG_ENV),arm-pmem.yaml) tests/board/test_soak.py --minutes $(or $(MINUTES),60)

.PHONY: matrix
matrix: ## all lanes of tests/matrix.yaml, built and tested: hours; goes on where it was stopped (LANES='6.12-*')
	@$(PYTHON) -m tools.matrix --lanes '$(LANES)'

.PHONY: series series-deps series-mail report
series: ## the kernel series patch by patch: applies, checkpatch, compiles everywhere, boots (KERNEL=, STEPS=, PATCHES=)
	@$(PYTHON) -m tools.series --kernel '$(KERNEL)' --steps '$(STEPS)' --patches '$(PATCHES)'

series-deps: ## the cross compilers which that needs
	@tools/deps series

series-mail: ## the series as mails with cover letter and recipients, in output/mail; never sent (KERNEL=, POSTED=<mbox>)
	@$(PYTHON) -m tools.seriesmail --kernel '$(KERNEL)' --posted '$(POSTED)'

report: ## all that ran, as a page and as tested-by.txt, in output/report
	@$(PYTHON) -m tools.report

test-regression: $(patched)/manifest.json $(unpatched)/manifest.json ## what the series turns from fail to pass (KERNEL=)
	@$(PYTHON) -m tools.regression --patched $(patched) --unpatched $(unpatched)

output/kernel-%/images/manifest.json:
	@$(MAKE) kernel KERNEL=$(firstword $(subst -, ,$*)) SERIES=$(if $(findstring unpatched,$*),none)

check: ## linters, patches, fragments: no board, no build
	@$(PYTHON) -m tools.check

clean: ## remove what was built; kernel sources and fetched packages stay
	@$(build) clean --out '$(O)'

distclean: ## remove everything that is not in git
	@$(build) distclean

# Everything else is Buildroot's, and none of make's own implicit rules is wanted.
.SUFFIXES:
Makefile: ;
%:
	@$(build) target $(options) --target '$@'
