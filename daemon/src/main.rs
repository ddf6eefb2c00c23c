//! Arguments -> journal -> configuration -> daemon -> exit code.
#![forbid(unsafe_code)]

fn main() {}
