SUMMARY = "The machine around ichd"
DESCRIPTION = "Data partition and provisioning, packet filter, journal, clock, watchdog, proof of life after an update"
HOMEPAGE = "https://systemd.io/"
BUGTRACKER = "https://systemd.io/"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://10-ichd-journald.conf \
    file://10-ichd-rauc.conf \
    file://10-ichd-sysctl.conf \
    file://10-ichd-timesyncd.conf \
    file://10-ichd-watchdog.conf \
    file://50-data.conf \
    file://boot-efi.mount \
    file://data.mount \
    file://etc-credstore.mount \
    file://etc-ichd.mount \
    file://etc-mosquitto.mount \
    file://factory-reset \
    file://grub-editenv \
    file://ichd-firewall.service \
    file://ichd-mark-good.service \
    file://ichd-model.service \
    file://ichd-model.timer \
    file://ichd-provision.service \
    file://ichd-tmpfiles.conf \
    file://ichd-update.path \
    file://ichd-update.service \
    file://ichd-update.timer \
    file://ichd.nft \
    file://mosquitto.conf \
    file://prove \
    file://provision \
    file://region.conf \
    file://var-lib.mount \
    file://var-log-journal.mount"
CVE_PRODUCT = ""

S = "${UNPACKDIR}"

inherit allarch systemd

do_configure[noexec] = "1"
do_compile[noexec] = "1"

SYSTEMD_SERVICE:${PN} = "boot-efi.mount \
    data.mount \
    etc-credstore.mount \
    etc-ichd.mount \
    etc-mosquitto.mount \
    ichd-firewall.service \
    ichd-mark-good.service \
    ichd-model.service \
    ichd-model.timer \
    ichd-provision.service \
    ichd-update.path \
    ichd-update.service \
    ichd-update.timer \
    var-lib.mount \
    var-log-journal.mount"

do_install() {
    for unit in ${SYSTEMD_SERVICE:${PN}}; do
        install -Dm 0644 ${UNPACKDIR}/$unit ${D}${systemd_system_unitdir}/$unit
    done
    install -Dm 0644 ${UNPACKDIR}/10-ichd-journald.conf ${D}${nonarch_libdir}/systemd/journald.conf.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-timesyncd.conf ${D}${nonarch_libdir}/systemd/timesyncd.conf.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-watchdog.conf ${D}${nonarch_libdir}/systemd/system.conf.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-sysctl.conf ${D}${nonarch_libdir}/sysctl.d/50-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-rauc.conf ${D}${systemd_system_unitdir}/rauc.service.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/ichd-tmpfiles.conf ${D}${nonarch_libdir}/tmpfiles.d/ichd.conf
    install -Dm 0644 ${UNPACKDIR}/50-data.conf ${D}${nonarch_libdir}/repart.d/50-data.conf
    install -Dm 0644 ${UNPACKDIR}/ichd.nft ${D}${sysconfdir}/nftables/ichd.nft
    install -Dm 0644 ${UNPACKDIR}/mosquitto.conf ${D}${datadir}/ichd/mosquitto.conf
    install -Dm 0644 ${UNPACKDIR}/region.conf ${D}${datadir}/ichd/region.conf
    install -Dm 0755 ${UNPACKDIR}/prove ${D}${libexecdir}/ichd/prove
    install -Dm 0755 ${UNPACKDIR}/provision ${D}${libexecdir}/ichd/provision
    install -Dm 0755 ${UNPACKDIR}/grub-editenv ${D}${libexecdir}/ichd/grub-editenv
    install -Dm 0755 ${UNPACKDIR}/factory-reset ${D}${sbindir}/ichd-factory-reset
    # Places that the mounts cover.
    install -d ${D}/data ${D}/boot/efi ${D}${sysconfdir}/ichd ${D}${sysconfdir}/credstore
}

FILES:${PN} += "/boot/efi \
    /data \
    ${datadir}/ichd \
    ${nonarch_libdir}/repart.d \
    ${nonarch_libdir}/sysctl.d \
    ${nonarch_libdir}/systemd \
    ${nonarch_libdir}/tmpfiles.d"

RDEPENDS:${PN} = "e2fsprogs-mke2fs e2fsprogs-resize2fs nftables"
