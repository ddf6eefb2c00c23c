FILESEXTRAPATHS:prepend:ichd-appliance := "${THISDIR}/files:"

# The public half of the signing authority; the private half signs bundles elsewhere. A whole path, by which the recipe
# finds the file among its sources, and which it installs under its last name.
RAUC_KEYRING_FILE:ichd-appliance = "${ICHD_SIGNING}/ca.cert.pem"

PACKAGE_ARCH:ichd-appliance = "${MACHINE_ARCH}"

do_install:append:ichd-appliance() {
    sed -i -e 's/@COMPATIBLE@/${MACHINE}/' -e 's/@MIN_VERSION@/${ICHD_MIN_BUNDLE_VERSION}/' ${D}${nonarch_libdir}/rauc/system.conf
}
