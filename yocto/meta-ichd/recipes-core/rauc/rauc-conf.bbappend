FILESEXTRAPATHS:prepend:ichd-appliance := "${THISDIR}/files:"

# The public half of the signing authority; the private half signs bundles elsewhere.
RAUC_KEYRING_FILE:ichd-appliance = "ca.cert.pem"
RAUC_KEYRING_URI:ichd-appliance = "file://${ICHD_SIGNING}/ca.cert.pem;subdir=."

PACKAGE_ARCH:ichd-appliance = "${MACHINE_ARCH}"

do_install:append:ichd-appliance() {
    install -m 0644 ${UNPACKDIR}${ICHD_SIGNING}/ca.cert.pem ${D}${nonarch_libdir}/rauc/ca.cert.pem
    sed -i 's/@COMPATIBLE@/${MACHINE}/' ${D}${nonarch_libdir}/rauc/system.conf
}
