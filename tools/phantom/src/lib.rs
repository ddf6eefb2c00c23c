//! Synthetic head CT: an analytic head phantom, a generator of bleeds and look-alikes that paints on any head, and
//! DICOM series made from them.
//!
//! The road: [`head`] (a function from point to HU) -> [`scan`] (grid, noise) -> [`volume`] -> [`anatomy`] (masks,
//! from HU alone) -> [`paint`] and [`decoy`] -> [`study`] (mask, labels) -> [`series`] (DICOM instances).
//! Each step works without the ones before it: a real head enters at `volume`. All of it follows from seeds; no
//! clock, no network.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod anatomy;
pub mod body;
pub mod decoy;
pub mod field;
pub mod head;
pub mod paint;
pub mod picture;
pub mod rng;
pub mod scan;
pub mod series;
pub mod study;
pub mod volume;
pub mod warp;

pub use body::Body;
pub use paint::{Kind, Side};
pub use series::{Bleed, Instance, SeriesOptions, Syntax, study};
