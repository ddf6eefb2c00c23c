FILESEXTRAPATHS:prepend:ichd-appliance := "${THISDIR}/files:"

SRC_URI:append:ichd-appliance = " file://de.pengutronix.rauc.conf"

do_install:append:ichd-appliance() {
    install -Dm 0644 ${UNPACKDIR}/de.pengutronix.rauc.conf ${D}${datadir}/dbus-1/system.d/de.pengutronix.rauc.conf
}
