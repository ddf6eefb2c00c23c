FILESEXTRAPATHS:prepend:ichd-appliance := "${ICHD_LAYERDIR}/recipes-kernel/linux/files:"

SRC_URI:append:ichd-appliance = " file://ichd.cfg"
