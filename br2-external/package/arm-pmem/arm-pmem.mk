################################################################################
#
# arm-pmem
#
################################################################################

ARM_PMEM_KEYS = $(call qstrip,$(BR2_PACKAGE_ARM_PMEM_AUTHORIZED_KEYS))

# No password opens the network's door, and there is no key but the one given.
define ARM_PMEM_INSTALL_TARGET_CMDS
	mkdir -p $(TARGET_DIR)/root/.ssh $(TARGET_DIR)/etc/default
	chmod 0700 $(TARGET_DIR)/root $(TARGET_DIR)/root/.ssh
	rm -f $(TARGET_DIR)/root/.ssh/authorized_keys
	$(if $(ARM_PMEM_KEYS),\
		$(INSTALL) -D -m 0600 $(ARM_PMEM_KEYS) $(TARGET_DIR)/root/.ssh/authorized_keys)
	printf 'DROPBEAR_ARGS="-s"\n' >$(TARGET_DIR)/etc/default/dropbear
endef

# util-linux makes them setuid where root builds, and not where a user does: the image is the same for both.
define ARM_PMEM_PERMISSIONS
	/bin/mount f 4755 0 0 - - - - -
	/bin/umount f 4755 0 0 - - - - -
endef

$(eval $(generic-package))
