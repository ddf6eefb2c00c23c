use ichd_phantom::*;
fn main() {
    let seed: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut vs = vec![];
    for s in seed..seed + 3 {
        let h = head::Head::random(s);
        vs.push(scan::scan(&h, &scan::ScanOptions::default(), s));
    }
    let mut t = vec![];
    for v in &vs { for z in (1..v.nz).step_by(v.nz / 12) { if t.len() % 12 < 12 { t.push((v, z)); } } }
    picture::sheet(std::path::Path::new("/tmp/ph/look.png"), &t, 7, 200, picture::BRAIN).unwrap();
}
