################################################################################
#
# ndctl
#
################################################################################

NDCTL_VERSION = 81
NDCTL_SITE = $(call github,pmem,ndctl,v$(NDCTL_VERSION))
NDCTL_LICENSE = GPL-2.0 (tools), LGPL-2.1 (libraries), MIT and CC0-1.0 (ccan)
NDCTL_LICENSE_FILES = COPYING LICENSES/preferred/GPL-2.0 LICENSES/preferred/LGPL-2.1
NDCTL_DEPENDENCIES = host-pkgconf json-c kmod util-linux
# Meson before 1.3 (Debian 12's is 1.0) knows pkg-config by another name than the one in Buildroot's cross file.
NDCTL_MESON_EXTRA_BINARIES = pkgconfig='$(PKG_CONFIG_HOST_BINARY)'
NDCTL_CONF_OPTS = \
	-Dversion-tag=$(NDCTL_VERSION) \
	-Drootprefix=/usr \
	-Drootlibdir=/usr/lib \
	-Ddocs=disabled \
	-Dasciidoctor=disabled \
	-Dlibtracefs=disabled \
	-Dsystemd=disabled \
	-Dcxl=disabled \
	-Dkeyutils=disabled \
	-Dpoison=disabled \
	-Dudev=disabled \
	-Diniparser=disabled

$(eval $(meson-package))
