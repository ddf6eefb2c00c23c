//! A few objects of our own making over one association.

use std::time::Duration;

use super::dataset::{Dataset, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN};
use crate::deliver::Sent;
use crate::send::{Association, DataSet, Peer, SendError, Wanted};

/// A whole attempt; a few objects of about a megabyte each.
const ATTEMPT: Duration = Duration::from_secs(300);

/// One object on its way.
#[derive(Debug)]
pub struct Object {
    /// SOP Class UID.
    pub sop_class: &'static str,
    /// SOP Instance UID.
    pub sop: String,
    /// What it holds.
    pub dataset: Dataset,
    /// Left out where the peer has no use for its class; the others go all the same.
    pub is_optional: bool,
}

/// Sends every object; the first failure ends the attempt. Sending again is harmless, the UIDs stay the same. Returns the
/// classes that were left out because the peer does not take them. `sent` says what went, however it ends.
pub async fn send(
    peer: Peer<'_>,
    objects: &[Object],
    sent: &mut Sent,
) -> Result<Vec<&'static str>, SendError> {
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let mut classes: Vec<&str> = objects.iter().map(|o| o.sop_class).collect();
    classes.dedup();
    let wanted = |class: &str| Wanted {
        sop_class: class.into(),
        transfer_syntaxes: vec![EXPLICIT_LITTLE_ENDIAN.into(), IMPLICIT_LITTLE_ENDIAN.into()],
    };
    let wanted: Vec<Wanted> = classes.into_iter().map(wanted).collect();
    let attempt = async {
        let mut association = Association::open(peer, &wanted).await?;
        let result = store_all(&mut association, objects, sent).await;
        association.end(&result).await;
        result
    };
    tokio::time::timeout(ATTEMPT, attempt).await.unwrap_or(Err(SendError::Lost("timeout")))
}

async fn store_all(
    association: &mut Association,
    objects: &[Object],
    sent: &mut Sent,
) -> Result<Vec<&'static str>, SendError> {
    let mut left_out = Vec::new();
    for object in objects {
        let Some(context) = association.accepted(object.sop_class).next().cloned() else {
            if !object.is_optional {
                return Err(SendError::ClassRefused(object.sop_class.into()));
            }
            left_out.push(object.sop_class);
            continue;
        };
        let bytes = object.dataset.encode(context.transfer_syntax == EXPLICIT_LITTLE_ENDIAN);
        sent.begin();
        association.store(&context, &object.sop, DataSet::Bytes(&bytes)).await?;
        sent.took(object.sop_class);
    }
    Ok(left_out)
}
