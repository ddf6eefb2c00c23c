SUMMARY = "The machine around ichd"
DESCRIPTION = "Data partition and provisioning, packet filter, journal, clock, watchdog, proof of life after an update"
HOMEPAGE = "https://systemd.io/"
BUGTRACKER = "https://systemd.io/"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://10-ichd-fsck.conf \
    file://10-ichd-journald.conf \
    file://10-ichd-rauc.conf \
    file://10-ichd-state.conf \
    file://10-ichd-sysctl.conf \
    file://10-ichd-timesyncd.conf \
    file://10-ichd-watchdog.conf \
    file://50-data.conf \
    file://90-ichd-stick.rules \
    file://boot-efi.mount \
    file://data.mount \
    file://etc-credstore.mount \
    file://etc-ichd.mount \
    file://etc-mosquitto.mount \
    file://etc-systemd-network.mount \
    file://factory-reset \
    file://grub-editenv \
    file://ichd-console@.service \
    file://ichd-firewall.service \
    file://ichd-mark-good.service \
    file://ichd-model.service \
    file://ichd-model.timer \
    file://ichd-provision.service \
    file://ichd-site.nft \
    file://ichd-state.service \
    file://ichd-stick.service \
    file://ichd-tmpfiles.conf \
    file://ichd-update.path \
    file://ichd-update.service \
    file://ichd-update.timer \
    file://ichd.nft \
    file://media-usb.mount \
    file://mosquitto.conf \
    file://prove \
    file://provision \
    file://region.conf \
    file://state \
    file://stick \
    file://var-lib.mount \
    file://var-volatile-log-journal.mount"
CVE_PRODUCT = ""

S = "${UNPACKDIR}"

inherit allarch systemd

do_configure[noexec] = "1"
do_compile[noexec] = "1"

# Machines that boot by GRUB; NVIDIA's layer brings its own mount of its own partition.
PACKAGES =+ "${PN}-grub"
SYSTEMD_PACKAGES = "${PN} ${PN}-grub"
SYSTEMD_SERVICE:${PN}-grub = "boot-efi.mount"
SYSTEMD_SERVICE:${PN} = "data.mount \
    etc-credstore.mount \
    etc-ichd.mount \
    etc-mosquitto.mount \
    etc-systemd-network.mount \
    ichd-firewall.service \
    ichd-mark-good.service \
    ichd-model.service \
    ichd-model.timer \
    ichd-provision.service \
    ichd-state.service \
    ichd-stick.service \
    ichd-update.path \
    ichd-update.service \
    ichd-update.timer \
    media-usb.mount \
    var-lib.mount \
    var-volatile-log-journal.mount"

do_install() {
    for unit in ${SYSTEMD_SERVICE:${PN}} ${SYSTEMD_SERVICE:${PN}-grub} ichd-console@.service; do
        install -Dm 0644 ${UNPACKDIR}/$unit ${D}${systemd_system_unitdir}/$unit
    done
    install -Dm 0644 ${UNPACKDIR}/10-ichd-journald.conf ${D}${nonarch_libdir}/systemd/journald.conf.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-timesyncd.conf ${D}${nonarch_libdir}/systemd/timesyncd.conf.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-watchdog.conf ${D}${nonarch_libdir}/systemd/system.conf.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-sysctl.conf ${D}${nonarch_libdir}/sysctl.d/50-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-fsck.conf ${D}${systemd_system_unitdir}/systemd-fsck@.service.d/10-ichd.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd-rauc.conf ${D}${systemd_system_unitdir}/rauc.service.d/10-ichd.conf
    for unit in ichd.service ichd.socket mosquitto.service; do
        install -Dm 0644 ${UNPACKDIR}/10-ichd-state.conf ${D}${systemd_system_unitdir}/$unit.d/20-ichd-state.conf
    done
    install -Dm 0644 ${UNPACKDIR}/ichd-tmpfiles.conf ${D}${nonarch_libdir}/tmpfiles.d/ichd.conf
    install -Dm 0644 ${UNPACKDIR}/50-data.conf ${D}${nonarch_libdir}/repart.d/50-data.conf
    install -Dm 0644 ${UNPACKDIR}/90-ichd-stick.rules ${D}${nonarch_libdir}/udev/rules.d/90-ichd-stick.rules
    install -Dm 0644 ${UNPACKDIR}/ichd.nft ${D}${sysconfdir}/nftables/ichd.nft
    install -Dm 0644 ${UNPACKDIR}/ichd-site.nft ${D}${sysconfdir}/nftables/ichd-site.nft
    install -Dm 0644 ${UNPACKDIR}/mosquitto.conf ${D}${datadir}/ichd/mosquitto.conf
    install -Dm 0644 ${UNPACKDIR}/region.conf ${D}${datadir}/ichd/region.conf
    install -Dm 0755 ${UNPACKDIR}/prove ${D}${libexecdir}/ichd/prove
    install -Dm 0755 ${UNPACKDIR}/provision ${D}${libexecdir}/ichd/provision
    install -Dm 0755 ${UNPACKDIR}/state ${D}${libexecdir}/ichd/state
    install -Dm 0755 ${UNPACKDIR}/stick ${D}${libexecdir}/ichd/stick
    install -Dm 0755 ${UNPACKDIR}/grub-editenv ${D}${libexecdir}/ichd/grub-editenv
    install -Dm 0755 ${UNPACKDIR}/factory-reset ${D}${sbindir}/ichd-factory-reset
    # Places that the mounts cover.
    install -d ${D}/data ${D}/boot/efi ${D}/media/usb ${D}${sysconfdir}/ichd ${D}${sysconfdir}/credstore ${D}${sysconfdir}/systemd/network
}

FILES:${PN}-grub += "/boot/efi ${systemd_system_unitdir}/boot-efi.mount"
FILES:${PN} += "/data \
    /media \
    ${datadir}/ichd \
    ${nonarch_libdir}/repart.d \
    ${nonarch_libdir}/sysctl.d \
    ${nonarch_libdir}/systemd \
    ${nonarch_libdir}/tmpfiles.d \
    ${nonarch_libdir}/udev"

# e2fsck: systemd checks the data partition before it is mounted.
RDEPENDS:${PN} = "e2fsprogs-e2fsck e2fsprogs-mke2fs e2fsprogs-resize2fs nftables"
