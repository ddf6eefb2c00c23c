//! A day and more at the scanner in minutes: study after study, some broken off, a broker that comes and goes. Nothing
//! piles up. `ICHD_SOAK_STUDIES=300` is a busy day by hand; CI takes a short one.

use ichd_phantom::{Bleed, SeriesOptions, Side};

use crate::peers::{Appliance, Mosquitto, alone, storescu, wait_until};

/// More than this after the first third is a leak, KiB: a leak of one slice a study would be ten times as much.
const SLACK_KB: u64 = 6 << 10;

fn studies() -> u64 {
    std::env::var("ICHD_SOAK_STUDIES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

/// What may not grow.
#[derive(Debug, Default, Clone, Copy)]
struct Holds {
    rss_kb: u64,
    threads: u64,
    files: u64,
}

impl Holds {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |key: &str| {
            let line = status.lines().find(|l| l.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        Holds { rss_kb: number("VmRSS:"), threads: number("Threads:"), files }
    }

    fn max(self, other: Self) -> Self {
        Holds {
            rss_kb: self.rss_kb.max(other.rss_kb),
            threads: self.threads.max(other.threads),
            files: self.files.max(other.files),
        }
    }
}

#[test]
fn study_after_study_memory_threads_and_files_stay_what_they_are() {
    let _alone = alone();
    let mut broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let dir = tempfile::tempdir().unwrap();
    let n = studies();
    let (mut first, mut last) = (Holds::default(), Holds::default());
    for study in 0..n {
        let mut options = SeriesOptions { uid_seed: Some(9_000 + study), ..SeriesOptions::default() };
        (options.scan.matrix, options.scan.slices) = (128, 12);
        options.scan.step_mm = 10.0;
        let bleed = match study % 4 {
            0 => Bleed::Intraparenchymal { side: Side::Right, volume_ml: 50.0 },
            _ => Bleed::None,
        };
        let files: Vec<_> = ichd_phantom::study(20 + study % 4, bleed, &options)
            .unwrap()
            .iter()
            .enumerate()
            .map(|(i, instance)| {
                let path = dir.path().join(format!("{i:02}.dcm"));
                std::fs::write(&path, instance.file_bytes().unwrap()).unwrap();
                path
            })
            .collect();
        match study % 6 {
            1 => broker.down(),
            2 => broker.up(),
            3 => assert!(storescu(appliance.port, &files[..5], &["--abort"]).0),
            4 => assert!(!storescu(appliance.port, &files[..1], &["-aet", "STRANGER"]).0),
            _ => {}
        }
        assert!(storescu(appliance.port, &files, &[]).0);
        wait_until("the study is judged", || {
            let judged =
                appliance.ledger().into_iter().filter(|r| r["stage"] == "final" && r["instances"] == 12);
            judged.count() as u64 == study + 1
        });
        let now = Holds::of(appliance.pid());
        match study {
            s if s < n / 3 => first = first.max(now),
            _ => last = last.max(now),
        }
    }
    eprintln!("{n} studies: at first {first:?}, afterwards {last:?}");
    assert!(last.rss_kb <= first.rss_kb + SLACK_KB, "memory grew: {first:?}, {last:?}");
    assert!(last.files <= first.files + 2, "open files grew: {first:?}, {last:?}");
    assert!(last.threads <= first.threads + 4, "threads grew: {first:?}, {last:?}");
    assert_eq!(appliance.arriving(), 0);
}
