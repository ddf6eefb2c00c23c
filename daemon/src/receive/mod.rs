//! Storage SCP: the scanner's side of the house.
//!
//! Stub: replaced by its owner.
