//! Which presentation contexts are accepted, and in which transfer syntax. Pure: no I/O, no clock.
//!
//! The acceptor chooses (PS3.8 9.3.3.2), and we choose by *our* order: what needs no decoding first, what has lost
//! something last, however the requestor sorted its proposal.

use std::collections::BTreeSet;

use dicom_ul::pdu::{
    AssociationAC, AssociationRQ, PresentationContextProposed, PresentationContextResult,
    PresentationContextResultReason, UserVariableItem,
};

use super::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, syntax};

/// DICOM Application Context Name (PS3.7 A.2.1).
pub const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";
/// PS3.8 7.1.1.13: odd numbers from 1 to 255.
pub const CONTEXTS_MAX: usize = 128;

/// One accepted presentation context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its number.
    pub id: u8,
    /// SOP class.
    pub abstract_syntax: String,
    /// Transfer syntax.
    pub transfer_syntax: String,
}

/// What one request led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// Accepted contexts.
    pub contexts: Vec<Context>,
    /// One result for each proposed context, for the answer.
    results: Vec<PresentationContextResult>,
    /// Largest PDU the peer takes, bytes; 0 means any.
    pub peer_pdu_bytes_max: u32,
}

impl Negotiated {
    /// SOP classes that were not accepted, each once, by why: not offered, or in no encoding that was proposed. What is no
    /// UID is called so; it comes from a stranger.
    pub fn refused(&self, request: &AssociationRQ) -> [BTreeSet<String>; 2] {
        let mut refused = [BTreeSet::new(), BTreeSet::new()];
        for (proposed, result) in request.presentation_contexts.iter().zip(&self.results) {
            let why = match result.reason {
                PresentationContextResultReason::Acceptance => continue,
                PresentationContextResultReason::TransferSyntaxesNotSupported => 1,
                _ => 0,
            };
            let class = trim(&proposed.abstract_syntax);
            let is_uid = crate::dicom::SopInstanceUid::parse(class).is_ok();
            refused[why].insert(if is_uid { class.to_owned() } else { "malformed".to_owned() });
        }
        refused
    }
}

/// Chooses for every proposed context; `offered` says which SOP classes this peer gets.
pub fn negotiate(request: &AssociationRQ, offered: impl Fn(&str) -> bool) -> Negotiated {
    let mut contexts = Vec::new();
    let mut results = Vec::new();
    for proposed in request.presentation_contexts.iter().take(CONTEXTS_MAX) {
        let (reason, transfer_syntax) = choose(proposed, &offered);
        if reason == PresentationContextResultReason::Acceptance {
            contexts.push(Context {
                id: proposed.id,
                abstract_syntax: trim(&proposed.abstract_syntax).to_owned(),
                transfer_syntax: transfer_syntax.to_owned(),
            });
        }
        results.push(PresentationContextResult {
            id: proposed.id,
            reason,
            transfer_syntax: transfer_syntax.to_owned(),
        });
    }
    let peer_pdu_bytes_max = peer_pdu_bytes_max(&request.user_variables);
    Negotiated { contexts, results, peer_pdu_bytes_max }
}

/// The transfer syntax of a refused context is not significant; implicit is what everybody writes there.
fn choose(
    proposed: &PresentationContextProposed,
    offered: &impl Fn(&str) -> bool,
) -> (PresentationContextResultReason, &'static str) {
    const INSIGNIFICANT: &str = "1.2.840.10008.1.2";
    if !offered(trim(&proposed.abstract_syntax)) {
        return (PresentationContextResultReason::AbstractSyntaxNotSupported, INSIGNIFICANT);
    }
    let is_proposed = |ours: &&str| proposed.transfer_syntaxes.iter().any(|theirs| trim(theirs) == *ours);
    match syntax::transfer(trim(&proposed.abstract_syntax)).find(is_proposed) {
        Some(chosen) => (PresentationContextResultReason::Acceptance, chosen),
        None => (PresentationContextResultReason::TransferSyntaxesNotSupported, INSIGNIFICANT),
    }
}

/// Maximum Length of a peer (PS3.8 D.1); the standard's usual 16384 where it says nothing.
pub fn peer_pdu_bytes_max(user_variables: &[UserVariableItem]) -> u32 {
    let length = |item: &UserVariableItem| match item {
        UserVariableItem::MaxLength(n) => Some(*n),
        _ => None,
    };
    user_variables.iter().find_map(length).unwrap_or(16_384)
}

/// Who we are and what we take (PS3.7 D.3.3).
pub fn user_information(pdu_bytes_max: u32) -> Vec<UserVariableItem> {
    vec![
        UserVariableItem::MaxLength(pdu_bytes_max),
        UserVariableItem::ImplementationClassUID(IMPLEMENTATION_CLASS_UID.into()),
        UserVariableItem::ImplementationVersionName(IMPLEMENTATION_VERSION_NAME.into()),
    ]
}

/// The A-ASSOCIATE-AC.
pub fn answer(request: &AssociationRQ, negotiated: &Negotiated, pdu_bytes_max: u32) -> AssociationAC {
    AssociationAC {
        protocol_version: 1,
        calling_ae_title: request.calling_ae_title.clone(),
        called_ae_title: request.called_ae_title.clone(),
        application_context_name: APPLICATION_CONTEXT.into(),
        presentation_contexts: negotiated.results.clone(),
        user_variables: user_information(pdu_bytes_max),
    }
}

fn trim(uid: &str) -> &str {
    uid.trim_end_matches(['\0', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CT: &str = syntax::IMAGES[0];

    fn request(transfer_syntaxes: &[&str]) -> AssociationRQ {
        AssociationRQ {
            protocol_version: 1,
            calling_ae_title: "CT1".into(),
            called_ae_title: "ICHD".into(),
            application_context_name: APPLICATION_CONTEXT.into(),
            presentation_contexts: vec![PresentationContextProposed {
                id: 1,
                abstract_syntax: CT.into(),
                transfer_syntaxes: transfer_syntaxes.iter().map(|t| (*t).into()).collect(),
            }],
            user_variables: Vec::new(),
        }
    }

    fn chosen(transfer_syntaxes: &[&str]) -> Option<String> {
        let negotiated = negotiate(&request(transfer_syntaxes), |class| class == CT);
        negotiated.contexts.first().map(|c| c.transfer_syntax.clone())
    }

    #[test]
    fn our_order_wins_whatever_the_requestors_is() {
        let ours: Vec<&str> = syntax::TRANSFER.to_vec();
        let mut theirs = ours.clone();
        theirs.reverse();
        for n in 0..ours.len() {
            // The first n of ours are not proposed; the next one is chosen, from either end.
            assert_eq!(chosen(&theirs[..ours.len() - n]).as_deref(), Some(ours[n]));
            assert_eq!(chosen(&ours[n..]).as_deref(), Some(ours[n]));
        }
    }

    #[test]
    fn padding_is_no_part_of_a_uid_and_the_unknown_is_refused_with_its_own_reason() {
        assert_eq!(chosen(&["1.2.840.10008.1.2.1\0"]).as_deref(), Some("1.2.840.10008.1.2.1"));
        assert_eq!(chosen(&["1.2.840.10008.1.2.4.51"]), None, "12-bit JPEG Extended fails when decoded");
        let none = negotiate(&request(&["1.2.840.10008.1.2"]), |_| false);
        assert_eq!(none.results[0].reason, PresentationContextResultReason::AbstractSyntaxNotSupported);
        let none = negotiate(&request(&["1.2.3"]), |_| true);
        assert_eq!(none.results[0].reason, PresentationContextResultReason::TransferSyntaxesNotSupported);
        assert_eq!(none.refused(&request(&["1.2.3"])).map(|r| r.len()), [0, 1]);
        let mut strange = request(&["1.2.840.10008.1.2"]);
        strange.presentation_contexts[0].abstract_syntax = "Meier\n^".into();
        let [refused, _] = negotiate(&strange, |class| class == CT).refused(&strange);
        assert_eq!(refused.into_iter().collect::<Vec<_>>(), ["malformed"]);
    }
}
