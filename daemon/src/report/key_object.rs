//! Key Object Selection, TID 2010: the key slices, so that a viewer can go there at once.

use super::dataset::{Code, Dataset};
use super::source::{Kind, Making};
use super::structured::{document, image_item, key_slices, language, observer, text_item};
use crate::spool::Instance;

/// Makes the selection; `None` where there is nothing to point at.
pub fn make(making: &Making) -> Option<Dataset> {
    let keys = key_slices(making);
    let slices: Vec<(&Instance, Option<u32>)> =
        keys.iter().filter_map(|key| Some((making.source.instance(key.sop.as_str())?, key.frame))).collect();
    if slices.is_empty() {
        return None;
    }
    let mut instances: Vec<&Instance> = slices.iter().map(|(instance, _)| *instance).collect();
    instances.sort_by(|a, b| a.header.sop.cmp(&b.header.sop));
    instances.dedup_by(|a, b| a.header.sop == b.header.sop);
    let mut content = vec![language()];
    content.extend(observer(making));
    let description = "Slices on which software suspects hemorrhage. Notification, not a diagnosis.";
    content.push(text_item("CONTAINS", Code::dcm("113012", "Key Object Description"), description));
    content.extend(slices.iter().map(|(instance, frame)| image_item(None, instance, *frame)));
    let dataset = making
        .common(Kind::KeyObject)
        .items((0x0008, 0x1111), vec![]) // Referenced Performed Procedure Step Sequence
        .items((0x0040, 0xa375), vec![making.hierarchy(&instances)]);
    Some(dataset.with(document("2010", Code::dcm("113000", "Of Interest"), content)))
}
