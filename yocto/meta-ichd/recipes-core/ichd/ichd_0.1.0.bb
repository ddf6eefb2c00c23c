SUMMARY = "Reads head CT beside the scanner and notifies people of a suspected hemorrhage"
DESCRIPTION = "DICOM storage SCP, three networks on the CPU, alerts over MQTT 5; a notification, never a diagnosis"
HOMEPAGE = "https://www.dicomstandard.org/"
BUGTRACKER = "https://www.dicomstandard.org/"
SECTION = "net"

require ichd-source.inc

inherit cargo cargo_lock systemd

CVE_PRODUCT = "ichd"
CARGO_LOCK = "${ICHD_REPOSITORY}/Cargo.lock"
# bundled SQLite and ring are compiled from their crates with the cross compiler; CharLS with cmake as well.
CARGO_BUILD_FLAGS:append = " --package ichd --no-default-features"

PACKAGECONFIG ??= "jpeg-ls"
PACKAGECONFIG[jpeg-ls] = "--features jpeg-ls,,cmake-native"

SYSTEMD_SERVICE:${PN} = "ichd.service ichd.socket"

do_install() {
    install -Dm 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/ichd ${D}${bindir}/ichd
    install -Dm 0644 ${S}/daemon/ichd.service ${D}${systemd_system_unitdir}/ichd.service
    install -Dm 0644 ${S}/daemon/ichd.socket ${D}${systemd_system_unitdir}/ichd.socket
    # The example is what a new box starts from; the box's own file lies on the data partition.
    install -Dm 0644 ${S}/daemon/ichd.toml ${D}${datadir}/ichd/ichd.toml
    install -d ${D}${sysconfdir}/ichd
}

RDEPENDS:${PN} = "ichd-model-base"
