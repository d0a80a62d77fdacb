include $(sort $(wildcard $(BR2_EXTERNAL_ARM_PMEM_PATH)/package/*/*.mk))

# The kernel is configured as by tools/kernel.py: `make allnoconfig` with the fragments as its answers. Buildroot knows
# a file or a defconfig of the tree as a base, and would give what the fragments do not name its default value.
LINUX_KCONFIG_DEFCONFIG = allnoconfig
LINUX_KCONFIG_OPTS += KCONFIG_ALLCONFIG=$(LINUX_DIR)/.arm-pmem.config

define ARM_PMEM_LINUX_ALLCONFIG
	cat $(LINUX_KCONFIG_FRAGMENT_FILES) >$(@D)/.arm-pmem.config
endef
LINUX_POST_PATCH_HOOKS += ARM_PMEM_LINUX_ALLCONFIG

# The release says that this is a patched kernel.
LINUX_MAKE_FLAGS += LOCALVERSION=-arm-pmem

# Buildroot's libtool links a program with the build folder as its RUNPATH. The last step empties that again, but the room
# stays, and two folders give two programs. The linker needs the path, the program does not.
define ARM_PMEM_NO_RUNPATH
	$(Q)test ! -f $(@D)/libtool || sed -i '/^hardcode_libdir_flag_spec=/s/-rpath /-rpath-link /' $(@D)/libtool
endef
$(foreach package,$(filter-out host-%,$(PACKAGES)), \
	$(eval $(call UPPERCASE,$(package))_POST_CONFIGURE_HOOKS += ARM_PMEM_NO_RUNPATH))
