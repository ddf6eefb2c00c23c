SUMMARY = "Signed update bundle of the appliance"
DESCRIPTION = "One root file system for the slot that is not running; verity format, installed by RAUC"
HOMEPAGE = "https://rauc.io/"
BUGTRACKER = "https://rauc.io/"
LICENSE = "Apache-2.0"

inherit bundle

RAUC_BUNDLE_COMPATIBLE = "${MACHINE}"
RAUC_BUNDLE_VERSION = "${DISTRO_VERSION}"
RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_SLOTS = "rootfs"
RAUC_SLOT_rootfs = "ichd-image"
RAUC_SLOT_rootfs[fstype] = "ext4"
# Blocks that did not change are taken from the running slot: an update over a thin line stays small.
RAUC_SLOT_rootfs[adaptive] = "block-hash-index"

# ICHD_SIGNING in local.conf or a kas file of one's own says where they lie; a private key never lies in the repository.
RAUC_KEY_FILE ?= "${ICHD_SIGNING}/bundle.key.pem"
RAUC_CERT_FILE ?= "${ICHD_SIGNING}/bundle.cert.pem"
RAUC_KEYRING_FILE ?= "${ICHD_SIGNING}/ca.cert.pem"
