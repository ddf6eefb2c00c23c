//! What we offer: SOP classes, and exactly the transfer syntaxes that this build decodes, in our order of preference.

/// Verification SOP Class.
pub const VERIFICATION: &str = "1.2.840.10008.1.1";

/// Storage classes whose instances the stages look at.
pub const IMAGES: [&str; 2] = [
    "1.2.840.10008.5.1.4.1.1.2",   // CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1", // Enhanced CT Image Storage
];

const ENHANCED_CT: &str = IMAGES[1];

/// What else a scanner pushes in a study: accepted, synced, set aside.
pub const ASIDE: [&str; 14] = [
    "1.2.840.10008.5.1.4.1.1.7",     // Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.1",   // Multi-frame Single Bit Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.2",   // Multi-frame Grayscale Byte Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.3",   // Multi-frame Grayscale Word Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.4",   // Multi-frame True Color Secondary Capture
    "1.2.840.10008.5.1.4.1.1.11.1",  // Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.66",    // Raw Data
    "1.2.840.10008.5.1.4.1.1.88.11", // Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22", // Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33", // Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34", // Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.59", // Key Object Selection
    "1.2.840.10008.5.1.4.1.1.88.67", // X-Ray Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.104.1", // Encapsulated PDF
];

/// Deflated Explicit VR Little Endian.
pub const DEFLATED: &str = "1.2.840.10008.1.2.1.99";

/// Transfer syntaxes we decode, stated here because features of other crates change their registry behind our back.
/// The order is ours: uncompressed first, lossless next, what has lost something last.
pub const TRANSFER: &[&str] = &[
    "1.2.840.10008.1.2.1", // Explicit VR Little Endian
    "1.2.840.10008.1.2",   // Implicit VR Little Endian
    "1.2.840.10008.1.2.2", // Explicit VR Big Endian
    DEFLATED,
    "1.2.840.10008.1.2.4.70", // JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.57", // JPEG Lossless
    "1.2.840.10008.1.2.5",    // RLE Lossless
    #[cfg(feature = "jpeg-ls")]
    "1.2.840.10008.1.2.4.80", // JPEG-LS lossless
    "1.2.840.10008.1.2.4.90", // JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91", // JPEG 2000
    #[cfg(feature = "jpeg-ls")]
    "1.2.840.10008.1.2.4.81", // JPEG-LS near-lossless
];

/// Whether a SOP class is one that everybody who is admitted gets.
pub fn is_offered(class: &str) -> bool {
    class == VERIFICATION || IMAGES.contains(&class) || ASIDE.contains(&class)
}

/// Transfer syntaxes in which a SOP class is accepted, in our order.
pub fn transfer(class: &str) -> impl Iterator<Item = &'static str> {
    let is_accepted = move |syntax: &&str| match class {
        // What has no pixels needs no compression.
        VERIFICATION | crate::commit::SOP_CLASS => TRANSFER[..2].contains(syntax),
        // Frames are found by their place in the file, which deflation hides.
        ENHANCED_CT => *syntax != DEFLATED,
        _ => true,
    };
    TRANSFER.iter().copied().filter(is_accepted)
}

#[cfg(test)]
mod tests {
    use dicom_encoding::TransferSyntaxIndex;
    use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

    #[test]
    fn every_offered_transfer_syntax_is_decoded_by_this_build() {
        for uid in super::TRANSFER {
            let syntax = TransferSyntaxRegistry.get(uid).unwrap_or_else(|| panic!("{uid} is unknown"));
            assert!(syntax.can_decode_all(), "{uid} is offered and cannot be decoded");
        }
    }
}
