//! Promises of the generator that hold for any seed.

use ichd_phantom::anatomy::Anatomy;
use ichd_phantom::decoy::{self, Decoy};
use ichd_phantom::head::Head;
use ichd_phantom::paint::{LesionSpec, MISS_MAX, SLICE_MM2_MIN, paint};
use ichd_phantom::rng::Rng;
use ichd_phantom::scan::{ScanOptions, scan};
use ichd_phantom::study::Study;
use ichd_phantom::volume::Volume;
use ichd_phantom::{Bleed, Kind, SeriesOptions, Side};
use proptest::prelude::*;

fn small() -> ScanOptions {
    ScanOptions { matrix: 112, slices: 26, step_mm: 6.0, ..ScanOptions::default() }
}

fn head(seed: u64) -> (Volume, Anatomy) {
    let v = scan(&Head::random(seed), &small(), seed);
    let a = Anatomy::from_volume(&v).expect("a phantom head has a brain");
    (v, a)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blood_stays_inside_the_skull_and_near_the_volume_asked_for(
        seed in 0u64..5000, kind in 0usize..5, share in 0.0f32..1.0,
    ) {
        let kind = Kind::ALL[kind];
        let (mut v, a) = head(seed);
        let before = v.clone();
        let (lo, hi) = match kind {
            Kind::Epidural => (8.0, 40.0),
            Kind::Subdural => (15.0, 80.0),
            Kind::Subarachnoid => (4.0, 10.0),
            Kind::Intraventricular => (1.0, 2.0),
            Kind::Intraparenchymal => (4.0, 40.0),
        };
        let asked = lo + (hi - lo) * share;
        let spec = LesionSpec { volume_ml: Some(asked), ..LesionSpec::any(kind) };
        match paint(&mut v, &a, &spec, &mut Rng::new(seed)) {
            Ok(l) => {
                prop_assert!(l.mask.iter().zip(&a.inside).all(|(&m, &i)| !m || i));
                prop_assert!((l.volume_ml - asked).abs() / asked < MISS_MAX + 0.1, "{} of {asked}", l.volume_ml);
                prop_assert!(v.hu.iter().zip(&before.hu).zip(&a.inside).all(|((n, o), &i)| i || n == o));
                prop_assert!(l.mask[v.at(0, 0, 0)..v.at(0, 0, l.slices.0)].iter().all(|&m| !m));
            }
            Err(_) => prop_assert_eq!(&v.hu, &before.hu),
        }
    }

    #[test]
    fn labels_agree_with_the_mask_and_no_slice_is_labelled_for_a_speck(seed in 0u64..5000) {
        let (v, a) = head(seed);
        let px = v.pixel_mm * v.pixel_mm;
        let n = v.nx * v.ny;
        let mut study = Study::quiet(v);
        study.random(&a, &mut Rng::new(seed));
        for (z, row) in study.labels().iter().enumerate() {
            for (k, &shown) in Kind::ALL.iter().zip(row) {
                let count = study.mask[z * n..(z + 1) * n].iter().filter(|&&m| m == *k as u8).count();
                prop_assert_eq!(count > 0, shown);
                // A later bleed may cover most of an earlier one, so only single bleeds are held to the least area.
                if shown && study.lesions.len() == 1 {
                    prop_assert!(count as f32 * px >= SLICE_MM2_MIN);
                }
            }
        }
        prop_assert_eq!(study.lesions.is_empty(), study.mask.iter().all(|&m| m == 0));
    }

    #[test]
    fn the_same_seed_paints_the_same_voxels(seed in 0u64..5000) {
        let make = || {
            let (v, a) = head(seed);
            let mut s = Study::quiet(v);
            s.random(&a, &mut Rng::new(seed));
            s
        };
        let (a, b) = (make(), make());
        prop_assert_eq!(a.volume.hu, b.volume.hu);
        prop_assert_eq!(a.mask, b.mask);
    }

    #[test]
    fn scalp_blood_lies_outside_the_skull(seed in 0u64..5000) {
        let (mut v, a) = head(seed);
        let before = v.clone();
        decoy::add(&mut v, &a, Decoy::Scalp, &mut Rng::new(seed));
        prop_assert!(v.hu.iter().zip(&before.hu).zip(&a.inside).all(|((n, o), &i)| !i || n == o));
        prop_assert!(v.hu.iter().zip(&before.hu).zip(&a.bone).all(|((n, o), &b)| !b || n == o));
    }

    #[test]
    fn anatomy_finds_the_turn_of_the_head(seed in 0u64..5000) {
        let h = Head::random(seed);
        let (_, a) = head(seed);
        // A point well to the patient's left is on the left, whatever the pose.
        let (s, c) = h.yaw.sin_cos();
        let left = [h.shift_mm[0] + 40.0 * c, h.shift_mm[1] + 40.0 * s, 0.0];
        prop_assert!((a.left_mm(left) - 40.0).abs() < 8.0, "{}", a.left_mm(left));
    }
}

#[test]
fn side_asked_for_is_the_side_painted() {
    let options = SeriesOptions { scan: small(), ..SeriesOptions::default() };
    for (side, bleed) in [
        (Side::Left, Bleed::Subdural { side: Side::Left, volume_ml: 40.0 }),
        (Side::Right, Bleed::Epidural { side: Side::Right, volume_ml: 25.0 }),
        (Side::Right, Bleed::Intraparenchymal { side: Side::Right, volume_ml: 20.0 }),
        (Side::Left, Bleed::Subarachnoid { side: Side::Left, volume_ml: 8.0 }),
    ] {
        let study = ichd_phantom::series::head_study(11, bleed, &options).expect("fits");
        assert_eq!(study.lesions[0].side, side);
    }
}

#[test]
fn plain_bleeds_of_ordinary_volume_fit_most_heads() {
    let options = SeriesOptions { scan: small(), ..SeriesOptions::default() };
    let mut refused = 0;
    for seed in 0..12 {
        for bleed in [
            Bleed::Subdural { side: Side::Left, volume_ml: 40.0 },
            Bleed::Epidural { side: Side::Right, volume_ml: 25.0 },
            Bleed::Intraparenchymal { side: Side::Right, volume_ml: 20.0 },
            Bleed::Subarachnoid { side: Side::Left, volume_ml: 8.0 },
            Bleed::Intraventricular { volume_ml: 1.5 },
        ] {
            let study = ichd_phantom::series::head_study(seed, bleed, &options);
            refused += usize::from(study.inspect_err(|e| eprintln!("{seed} {bleed:?}: {e}")).is_err());
        }
    }
    assert!(refused <= 3, "{refused} of 60 refused");
}

#[test]
fn volumes_survive_the_numpy_file() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("v.npy");
    let v = scan(&Head::random(1), &ScanOptions { matrix: 32, slices: 3, ..small() }, 1);
    v.write_npy(&path).expect("written");
    assert_eq!(Volume::read_npy(&path, v.pixel_mm, v.step_mm).expect("read"), v);
    std::fs::write(&path, b"\x93NUMPY\x01\x00\xff\xff").expect("written");
    assert!(Volume::read_npy(&path, 1.0, 1.0).is_err());
}

#[test]
fn air_and_a_bare_block_have_no_anatomy() {
    for hu in [-1000, 40, 1200] {
        assert!(Anatomy::from_volume(&Volume::filled(64, 64, 8, 3.0, 5.0, hu)).is_err());
    }
}
