//! The standard's words as types: what travels between the stages.
//!
//! Nothing here opens a socket or a file but [`header::SliceHeader::read`], which reads one stored instance.

mod ae;
pub mod dataset;
pub mod header;
pub mod nested;
mod phi;
mod uid;

pub use ae::{AeTitle, AeTitleError};
pub use header::{Frame, HeaderError, PlaneGeometry, SliceHeader, SliceId};
pub use phi::Phi;
pub use uid::{SeriesUid, SopInstanceUid, StudyUid, UidError};
