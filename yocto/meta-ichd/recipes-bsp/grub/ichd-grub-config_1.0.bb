SUMMARY = "GRUB configuration of two slots"
DESCRIPTION = "Boots the good slot, gives a new one a single attempt and returns to the old one by itself"
HOMEPAGE = "https://rauc.readthedocs.io/en/latest/integration.html#grub"
BUGTRACKER = "https://rauc.readthedocs.io/"
SECTION = "bootloaders"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://grub.cfg"
CVE_PRODUCT = ""

S = "${UNPACKDIR}"

inherit deploy

require conf/image-uefi.conf

PACKAGE_ARCH = "${MACHINE_ARCH}"

FILES:${PN} += "${EFI_FILES_PATH}/grub.cfg"

RPROVIDES:${PN} += "virtual-grub-bootconf"

do_configure[noexec] = "1"

do_compile() {
    sed -e 's,@KERNEL@,${KERNEL_IMAGETYPE},' -e 's/@CONSOLE@/${ICHD_CONSOLE}/' ${UNPACKDIR}/grub.cfg > ${B}/ichd-grub.cfg
    # GRUB writes into an environment block that exists, and cannot make one: a head, then # to 1024 bytes. Both slots
    # hold the image at the factory and are good; RAUC takes a slot without these words for bad.
    printf '# GRUB Environment Block\nORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\n' > ${B}/ichd-grubenv
    head -c $(expr 1024 - $(wc -c < ${B}/ichd-grubenv)) /dev/zero | tr '\0' '#' >> ${B}/ichd-grubenv
}

do_install() {
    install -d ${D}${EFI_FILES_PATH}
    install -m 0644 ${B}/ichd-grub.cfg ${D}${EFI_FILES_PATH}/grub.cfg
}

do_deploy() {
    install -m 0644 ${B}/ichd-grub.cfg ${DEPLOYDIR}/ichd-grub.cfg
    install -m 0644 ${B}/ichd-grubenv ${DEPLOYDIR}/ichd-grubenv
}
addtask deploy after do_compile before do_build
