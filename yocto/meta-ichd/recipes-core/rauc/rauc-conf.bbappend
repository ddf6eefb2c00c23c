FILESEXTRAPATHS:prepend:ichd-appliance := "${THISDIR}/files:"

# The public half of the signing authority; the private half signs bundles elsewhere. A whole path, by which the recipe
# finds the file among its sources, and which it installs under its last name.
RAUC_KEYRING_FILE:ichd-appliance = "${ICHD_SIGNING}/ca.cert.pem"

# The oldest bundle that a box with this image takes, whoever asks. Raise it in the release that mends a hole which the
# bundles before have. Not in step with the version itself: the way back to the release before is a feature.
ICHD_MIN_BUNDLE_VERSION ?= "0.1.0"

PACKAGE_ARCH:ichd-appliance = "${MACHINE_ARCH}"

do_install:append:ichd-appliance() {
    sed -i -e 's/@COMPATIBLE@/${MACHINE}/' -e 's/@MIN_VERSION@/${ICHD_MIN_BUNDLE_VERSION}/' ${D}${nonarch_libdir}/rauc/system.conf
}
