FILESEXTRAPATHS:prepend:ichd-appliance := "${THISDIR}/files:"

SRC_URI:append:ichd-appliance = " file://ichd.cfg"

COMPATIBLE_MACHINE:ichd-x86-64 = "^ichd-x86-64$"
KMACHINE:ichd-x86-64 = "common-pc-64"
KBRANCH:ichd-x86-64 = "v${@'.'.join(d.getVar('LINUX_VERSION').split('.')[:2])}/standard/base"
