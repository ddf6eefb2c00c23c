FILESEXTRAPATHS:prepend:ichd-appliance := "${THISDIR}/files:"

SRC_URI:append:ichd-appliance = " file://config.conf file://10-ichd.conf"

# Off until the site names its server: /etc/ichd/hawkbit.conf on the data partition.
SYSTEMD_AUTO_ENABLE:${PN}:ichd-appliance = "enable"

do_install:append:ichd-appliance() {
    install -Dm 0644 ${UNPACKDIR}/config.conf ${D}${datadir}/ichd/hawkbit.conf
    install -Dm 0644 ${UNPACKDIR}/10-ichd.conf ${D}${systemd_system_unitdir}/rauc-hawkbit-updater.service.d/10-ichd.conf
}

FILES:${PN}:append:ichd-appliance = " ${datadir}/ichd ${systemd_system_unitdir}/rauc-hawkbit-updater.service.d"
