use ichd_phantom::*;
fn main() {
    let seed: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut t = vec![]; let mut vs = vec![];
    for (k, kind) in paint::Kind::ALL.into_iter().enumerate() {
        let h = head::Head::random(seed + k as u64);
        let mut v = scan::scan(&h, &scan::ScanOptions::default(), 1);
        let a = anatomy::Anatomy::from_volume(&v).unwrap();
        let ml = a.inside.iter().filter(|&&x| x).count() as f32 * v.voxel_ml();
        let vent = a.ventricle.iter().filter(|&&x| x).count() as f32 * v.voxel_ml();
        println!("inside {ml} ml, ventricles {vent}, brain {}, slices {:?}, mid yaw {}", a.brain_hu, a.slices, h.yaw);
        match paint::paint(&mut v, &a, &paint::LesionSpec::any(kind), &mut rng::Rng::new(seed)) {
            Ok(l) => { println!("{:?} {} {:?} {} ml {:?}", kind, l.form, l.side, l.volume_ml, l.slices); vs.push((v, l)); }
            Err(e) => println!("{e}"),
        }
    }
    for (v, l) in &vs { for k in 0..6 { t.push((v, (l.slices.0 + (l.slices.1 - l.slices.0) * k / 5).min(v.nz-1))); } }
    picture::sheet(std::path::Path::new("/tmp/ph/bleeds.png"), &t, 6, 200, picture::BRAIN).unwrap();
}
