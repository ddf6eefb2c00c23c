//! What a verdict does to the alert of its study. Pure.
//!
//! ```text
//!  (none) --suspected--> raised(provisional) --suspected, final--> raised(final)
//!                           |    |                                    |
//!                           |    '-- final could not be read: stays, says so
//!                           '---- not suspected by every series that raised it ----> withdrawn
//! ```
//!
//! One alert per study: revised, never raised as new. A series can only take back what it raised itself.

use std::collections::BTreeSet;

use super::document::AlertState;
use crate::decide::{Disposition, Stage, Verdict};
use crate::dicom::SeriesUid;

/// The alert of a study as the ledger holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Existing {
    /// Where it stands.
    pub state: AlertState,
    /// Provisional or final.
    pub stage: Stage,
    /// Series that suspect something.
    pub raised_by: BTreeSet<SeriesUid>,
    /// Hash of what it says; the same content is not worth a revision.
    pub content: String,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A new alert identity.
    Raise,
    /// A new revision with the verdict's finding.
    Revise,
    /// A new revision that takes it back, aloud.
    Withdraw,
    /// A new revision that says the final reading failed; the finding stays.
    FinalUnread,
    /// The series joins those that raised it; the document stays as it is.
    Join,
}

/// Decides; `content` is the hash of what the document would say after the change.
pub fn change(existing: Option<&Existing>, verdict: &Verdict, content: &str) -> Option<Change> {
    let suspected = matches!(verdict.disposition, Disposition::Suspected(_));
    let Some(alert) = existing else { return suspected.then_some(Change::Raise) };
    let mine = alert.raised_by.contains(&verdict.series);
    if suspected {
        let news = alert.content != content || alert.state == AlertState::Withdrawn;
        // What another series says first stays; this one stands behind it.
        let others = !alert.raised_by.is_empty() && !mine;
        // A provisional look never turns a final alert provisional again.
        let back = alert.stage == Stage::Final
            && verdict.stage == Stage::Provisional
            && alert.state != AlertState::Withdrawn;
        return match (others, news && !back) {
            (true, _) => Some(Change::Join),
            (false, true) => Some(Change::Revise),
            (false, false) => None,
        };
    }
    if verdict.stage == Stage::Provisional || !mine || !alert.state.is_open() {
        return None;
    }
    match verdict.disposition {
        Disposition::NotAnalysed(_) => {
            (alert.stage == Stage::Provisional && alert.content != content).then_some(Change::FinalUnread)
        }
        _ => Some(Change::Withdraw),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::decide::{Finding, Tier, Why};
    use crate::dicom::{SopInstanceUid, StudyUid};
    use crate::infer::{Class, Scores};
    use proptest::prelude::*;

    /// A verdict of series `n` of one study; `p` becomes part of the finding.
    pub fn verdict(n: u8, stage: Stage, p: Option<f32>) -> Verdict {
        let finding = |p| Finding {
            subtypes: vec![Class::Subdural],
            key_sop_uid: SopInstanceUid::parse("1.2.3.4.5").unwrap(),
            key_frame: None,
            slice_range: [3, 9],
            side: None,
            volume_ml: Some(p),
            tier: Tier { name: "urgent".into(), priority: 1 },
        };
        Verdict {
            study: StudyUid::parse("1.2.3").unwrap(),
            series: SeriesUid::parse(&format!("1.2.3.{n}")).unwrap(),
            stage,
            disposition: p.map_or(Disposition::NotSuspected, |p| Disposition::Suspected(finding(p))),
            scores: p.map(|p| Scores([p; 6])),
            slices: vec![],
            flags: vec![],
            instances: 30,
            model: None,
            input_sha256: "00".into(),
            program: "test".into(),
        }
    }

    fn existing(stage: Stage, series: &[u8]) -> Existing {
        let raised_by = series.iter().map(|n| SeriesUid::parse(&format!("1.2.3.{n}")).unwrap()).collect();
        Existing { state: AlertState::Raised, stage, raised_by, content: "old".into() }
    }

    #[test]
    fn a_provisional_alert_is_confirmed_or_withdrawn_aloud() {
        let alert = existing(Stage::Provisional, &[1]);
        assert_eq!(change(Some(&alert), &verdict(1, Stage::Final, Some(0.9)), "new"), Some(Change::Revise));
        assert_eq!(change(Some(&alert), &verdict(1, Stage::Final, None), "new"), Some(Change::Withdraw));
        let mut failed = verdict(1, Stage::Final, None);
        failed.disposition = Disposition::NotAnalysed(Why::Crashed);
        assert_eq!(change(Some(&alert), &failed, "new"), Some(Change::FinalUnread));
    }

    #[test]
    fn another_series_can_stand_behind_an_alert_but_not_take_it_back() {
        let alert = existing(Stage::Final, &[1]);
        assert_eq!(change(Some(&alert), &verdict(2, Stage::Final, None), "new"), None);
        assert_eq!(change(Some(&alert), &verdict(2, Stage::Final, Some(0.8)), "new"), Some(Change::Join));
    }

    #[test]
    fn the_same_content_is_no_revision() {
        let alert = existing(Stage::Final, &[1]);
        assert_eq!(change(Some(&alert), &verdict(1, Stage::Final, Some(0.9)), "old"), None);
    }

    proptest! {
        #[test]
        fn nothing_but_not_suspected_takes_an_alert_back(n in 1u8..4, provisional in any::<bool>(), p in prop::option::of(0.5f32..1.0)) {
            let stage = if provisional { Stage::Provisional } else { Stage::Final };
            let alert = existing(Stage::Final, &[1, 2]);
            let result = change(Some(&alert), &verdict(n, stage, p), "new");
            prop_assert_eq!(result == Some(Change::Withdraw), n < 3 && !provisional && p.is_none());
            prop_assert!(result != Some(Change::Raise), "one study, one identity");
        }
    }
}
