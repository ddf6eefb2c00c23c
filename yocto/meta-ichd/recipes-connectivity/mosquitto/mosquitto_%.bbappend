FILESEXTRAPATHS:prepend:ichd-appliance := "${THISDIR}/files:"

SRC_URI:append:ichd-appliance = " file://10-ichd.conf"

do_install:append:ichd-appliance() {
    install -Dm 0644 ${UNPACKDIR}/10-ichd.conf ${D}${systemd_system_unitdir}/mosquitto.service.d/10-ichd.conf
}

FILES:${PN}:append:ichd-appliance = " ${systemd_system_unitdir}/mosquitto.service.d"
