SUMMARY = "The appliance: read-only root, everything that changes on the data partition"
DESCRIPTION = "ichd with broker, packet filter, RAUC and hawkBit client; no compiler, no password, no remote shell"
HOMEPAGE = "https://www.yoctoproject.org/"
BUGTRACKER = "https://www.yoctoproject.org/"
LICENSE = "Apache-2.0"

inherit core-image

IMAGE_FEATURES = "read-only-rootfs"
IMAGE_LINGUAS = ""

IMAGE_INSTALL = "packagegroup-core-boot \
    ca-certificates \
    dbus \
    grub-editenv \
    ichd \
    ichd-host \
    mosquitto \
    rauc \
    rauc-hawkbit-updater \
    rauc-service \
    tzdata-core \
    util-linux-blkid"

# `ichd-mark-good` marks a slot after proof of life; RAUC's own unit would do so as soon as it has booted.
BAD_RECOMMENDATIONS += "rauc-mark-good"

# Nobody logs in: no password for root, a locked account. The console for field service opens to the stick that the box was
# commissioned with (`stick` of ichd-host).
ROOTFS_POSTPROCESS_COMMAND += "ichd_lock_root; ichd_release;"

ichd_lock_root[doc] = "Locks the account of root"
ichd_lock_root() {
    sed -i 's,^root:[^:]*:,root:!:,' ${IMAGE_ROOTFS}${sysconfdir}/shadow
}

# What is in this slot, for `ichd update status` and for the person who reads the label.
ichd_release[doc] = "Writes what this image is into os-release"
ichd_release() {
    echo "IMAGE_ID=ichd" >> ${IMAGE_ROOTFS}${nonarch_libdir}/os-release
    echo "IMAGE_VERSION=${DISTRO_VERSION}" >> ${IMAGE_ROOTFS}${nonarch_libdir}/os-release
}
