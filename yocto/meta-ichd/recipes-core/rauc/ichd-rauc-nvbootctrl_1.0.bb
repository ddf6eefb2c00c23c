SUMMARY = "Lets RAUC switch the slots of a Jetson"
DESCRIPTION = "RAUC's custom boot loader interface on top of nvbootctrl"
HOMEPAGE = "https://rauc.readthedocs.io/en/latest/integration.html"
BUGTRACKER = "https://rauc.readthedocs.io/"
SECTION = "bootloaders"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://rauc-nvbootctrl"
CVE_PRODUCT = ""

S = "${UNPACKDIR}"

inherit allarch

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -Dm 0755 ${UNPACKDIR}/rauc-nvbootctrl ${D}${libexecdir}/ichd/rauc-nvbootctrl
}
