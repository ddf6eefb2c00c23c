#![no_main]

#[allow(dead_code)]
#[path = "../targets.rs"]
mod targets;

// libFuzzer ends at every panic, also at those of other crates that are guarded; so only at what comes through.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))),
    |bytes: &[u8]| targets::pdu(bytes)
);
