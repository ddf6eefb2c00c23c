//! Synthetic head CT.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod anatomy;
pub mod decoy;
pub mod field;
pub mod head;
pub mod paint;
pub mod picture;
pub mod rng;
pub mod scan;
pub mod study;
pub mod volume;
pub mod warp;
