################################################################################
#
# daxprobe
#
################################################################################

DAXPROBE_VERSION = local
DAXPROBE_SITE = $(BR2_EXTERNAL_ARM_PMEM_PATH)/../tests/daxprobe
DAXPROBE_SITE_METHOD = local
DAXPROBE_LICENSE = GPL-2.0
DAXPROBE_LICENSE_FILES = LICENSE

define DAXPROBE_COPY_LICENSE
	cp $(BR2_EXTERNAL_ARM_PMEM_PATH)/../LICENSE $(@D)/
endef
DAXPROBE_POST_RSYNC_HOOKS += DAXPROBE_COPY_LICENSE

define DAXPROBE_BUILD_CMDS
	$(MAKE) -C $(@D) CROSS_COMPILE="$(TARGET_CROSS)" O=$(@D)/out
endef

define DAXPROBE_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(@D)/out/daxprobe $(TARGET_DIR)/usr/bin/daxprobe
endef

$(eval $(generic-package))
