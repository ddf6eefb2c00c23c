//! The fuzz targets on the stable toolchain: a seeded mutation loop over seeds and corpus, the same every time.
//!
//! `ICHD_FUZZ_ROUNDS=100 cargo test --test fuzz` goes a hundred times as far.
#![allow(clippy::unwrap_used, reason = "a seed that cannot be made has failed")]

mod targets;

use std::path::Path;

/// Inputs per target; a pixel decoder takes a hundred times as long as a parser.
const INPUTS: u64 = 4_000;
const INPUTS_PIXELS: u64 = 4_000;
const BYTES_MAX: usize = 64 << 10;

/// xorshift64*: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }
}

fn mutate(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    const LENGTHS: [u32; 8] = [0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff, 0x1_0000];
    let mut bytes = seeds[dice.roll(seeds.len())].clone();
    for _ in 0..1 + dice.roll(4) {
        let at = dice.roll(bytes.len());
        match dice.roll(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.roll(8),
            1 if !bytes.is_empty() => bytes[at] = dice.roll(256) as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + dice.roll(16)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            4 => {
                let other = &seeds[dice.roll(seeds.len())];
                let from = dice.roll(other.len());
                let piece = other[from..(from + 1 + dice.roll(64)).min(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            5 if bytes.len() >= at + 4 => {
                let length = LENGTHS[dice.roll(LENGTHS.len())];
                let length = if dice.roll(2) == 0 { length.to_le_bytes() } else { length.to_be_bytes() };
                bytes[at..at + 4].copy_from_slice(&length);
            }
            _ if bytes.len() >= at + 2 => {
                bytes[at..at + 2].copy_from_slice(&(dice.roll(0x1_0000) as u16).to_le_bytes());
            }
            _ => {}
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn check(name: &str) {
    // Guarded panics of other crates' decoders are expected; their backtraces take seconds.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let (_, target, seeds) = targets::ALL.into_iter().find(|(n, ..)| *n == name).unwrap();
    let mut seeds = seeds();
    // Seeds for libFuzzer, and everything that was ever found.
    let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(name);
    std::fs::create_dir_all(&written).unwrap();
    for (i, seed) in seeds.iter().enumerate() {
        std::fs::write(written.join(format!("seed-{i}")), seed).unwrap();
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(name);
    if let Ok(entries) = std::fs::read_dir(corpus) {
        seeds.extend(entries.flatten().map(|e| std::fs::read(e.path()).unwrap()));
    }
    for seed in &seeds {
        target(seed);
    }
    let rounds: u64 = std::env::var("ICHD_FUZZ_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(1);
    let inputs = if name == "pixels" { INPUTS_PIXELS } else { INPUTS };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ name.len() as u64);
    for i in 0..inputs * rounds {
        let bytes = mutate(&mut dice, &seeds);
        let survived = std::panic::catch_unwind(|| target(&bytes)).is_ok();
        if !survived {
            let found = written.join(format!("found-{i}"));
            std::fs::write(&found, &bytes).unwrap();
            panic!(
                "{name} panicked on `{}`; mend it and keep the file in tests/fuzz/corpus/{name}",
                found.display()
            );
        }
    }
}

macro_rules! target {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        #[test]
        fn every_target_is_run_here_and_by_libfuzzer() {
            let here = [$(stringify!($name)),*];
            assert_eq!(here.to_vec(), targets::ALL.map(|(name, ..)| name).to_vec());
            for name in here {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/fuzz_targets");
                let source = std::fs::read_to_string(path.join(format!("{name}.rs"))).unwrap();
                assert!(source.contains(&format!("targets::{name}")), "{name}");
            }
        }
    };
}

target!(pdu command header pixels manifest config mqtt);
