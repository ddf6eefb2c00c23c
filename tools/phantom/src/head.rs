//! The analytic head: a function from a point to Hounsfield units, with random shape and pose.
//!
//! Coordinates are millimetres in an adult head: origin in the middle of the cranium, x to the left of the patient,
//! y to the back, z up. Sizes are round figures from anatomy textbooks; nothing here copies a scan.
//! It makes no noise and no bleed: see [`crate::scan`] and [`crate::paint`].

use crate::rng::{Noise, Rng, lerp, smooth};

/// A head with all its random choices made.
#[derive(Clone, Debug)]
pub struct Head {
    /// Size against an adult, per axis.
    pub size: [f32; 3],
    /// Rotation in the slice plane, radians.
    pub yaw: f32,
    /// Rotation about the y axis (ear to shoulder), radians.
    pub roll: f32,
    /// Rotation about the x axis (chin to chest), radians.
    pub pitch: f32,
    /// Shift of the head on the table, millimetres.
    pub shift_mm: [f32; 3],
    /// Whether the head is a small child's: thin skull, no sinuses.
    pub child: bool,
    skull_mm: f32,
    scalp_mm: f32,
    sulcus_mm: f32,
    ventricle: f32,
    skew: f32,
    gap_mm: f32,
    white_hu: f32,
    grey_hu: f32,
    bone_hu: f32,
    choroid: f32,
    pineal: f32,
    noise: Noise,
    holder: bool,
}

impl Head {
    /// A head drawn from `seed`: one in eight is a small child's.
    pub fn random(seed: u64) -> Self {
        let r = &mut Rng::new(seed).fork(1);
        let child = r.chance(0.12);
        let age = r.unit(); // 0 young, 1 old: wider sulci and ventricles
        let scale = if child { r.range(0.72, 0.9) } else { r.range(0.94, 1.06) };
        Head {
            size: [scale * r.range(0.95, 1.05), scale * r.range(0.95, 1.05), scale * r.range(0.95, 1.05)],
            yaw: r.normal() * 0.1,
            roll: r.normal() * 0.04,
            pitch: r.normal() * 0.09,
            shift_mm: [r.normal() * 5.0, r.normal() * 6.0, 0.0],
            child,
            skull_mm: if child { r.range(2.2, 4.0) } else { r.range(5.0, 8.0) },
            scalp_mm: if child { r.range(2.5, 4.0) } else { r.range(3.5, 7.0) },
            sulcus_mm: if child { r.range(0.05, 0.3) } else { 0.2 + 0.75 * age * age * r.range(0.6, 1.2) },
            ventricle: if child { r.range(0.5, 0.8) } else { r.range(0.65, 0.95) + 0.55 * age * age },
            skew: r.normal() * 0.1,
            gap_mm: if child { 0.3 } else { 0.25 + 1.5 * age * age },
            white_hu: r.range(26.0, 30.0),
            grey_hu: r.range(35.0, 39.5),
            bone_hu: if child { r.range(700.0, 1000.0) } else { r.range(1100.0, 1600.0) },
            choroid: if !child && r.chance(0.2 + 0.4 * age) { r.range(1.5, 4.0) } else { 0.0 },
            pineal: if !child && r.chance(0.2 + 0.4 * age) { r.range(1.2, 3.0) } else { 0.0 },
            noise: Noise(r.bits() as u32),
            holder: r.chance(0.8),
        }
    }

    /// From scanner millimetres to head millimetres.
    pub fn to_head(&self, p: [f32; 3]) -> [f32; 3] {
        let q = [p[0] - self.shift_mm[0], p[1] - self.shift_mm[1], p[2] - self.shift_mm[2]];
        let (s, c) = self.yaw.sin_cos();
        let q = [c * q[0] + s * q[1], c * q[1] - s * q[0], q[2]];
        let (s, c) = self.pitch.sin_cos();
        let q = [q[0], c * q[1] + s * q[2], c * q[2] - s * q[1]];
        let (s, c) = self.roll.sin_cos();
        let q = [c * q[0] + s * q[2], q[1], c * q[2] - s * q[0]];
        [q[0] / self.size[0], q[1] / self.size[1], q[2] / self.size[2]]
    }

    /// Hounsfield units at a scanner position in millimetres.
    pub fn hu(&self, scanner_mm: [f32; 3]) -> f32 {
        let p = self.to_head(scanner_mm);
        let n1 = self.noise.mm([p[0], p[1], p[2]], 38.0);
        let vault = self.vault(p, n1);
        let z_frozen = p[2].max(-22.0);
        let outer = if p[2] >= z_frozen { vault } else { self.vault([p[0], p[1], z_frozen], n1) };
        let t = self.skull(p, n1);
        let skin = self.skin(p, outer, t);
        if skin < 0.0 {
            return if self.holder { self.holder_hu(scanner_mm) } else { -1000.0 };
        }
        let floor = self.floor(p) + 2.2 * self.noise.mm([p[0], p[1], 7.0], 15.0);
        let above = (p[2] - floor) * 0.75;
        let d = smooth_min(vault, above, 3.0);
        let canal = 14.0 - ((p[0] * p[0]) + (p[1] - 33.0).powi(2)).sqrt();
        if d > 0.0 || (canal > 0.0 && p[2] < -45.0) {
            return if d > canal || p[2] > -45.0 { self.brain(p, d) } else { self.cord(p, canal) };
        }
        self.shell(p, vault, above, outer, t, skin)
    }

    /// Distance inside the inner table of an open egg, positive inside.
    fn vault(&self, p: [f32; 3], n: f32) -> f32 {
        let wide = 66.0 + 4.0 * smooth(-50.0, 40.0, p[1]) - 3.0 * smooth(40.0, 90.0, p[1]);
        let az = if p[2] > 0.0 { 68.0 } else { 84.0 };
        let (x, y, z) =
            ((p[0] / wide).abs(), ((p[1] - 2.0 - p[0] * self.skew) / 84.0).abs(), (p[2] / az).abs());
        let r = (power(x) + power(y) + power(z)).powf(1.0 / 2.25).max(1e-3);
        let len = (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]).sqrt();
        (1.0 - r) * len / r + 1.3 * n
    }

    /// Height of the skull base under a column: three fossae, sella and petrous ridges.
    fn floor(&self, p: [f32; 3]) -> f32 {
        let (x, y) = (p[0].abs(), p[1]);
        let front = -27.0 + 7.0 * (-((x - 27.0) / 14.0).powi(2)).exp() - 3.0 * (-(x / 6.0).powi(2)).exp();
        let middle = lerp(-26.0, -47.0, smooth(10.0, 26.0, x));
        let back = -70.0 + 0.006 * (x * x + (y - 36.0).powi(2));
        let clivus = lerp(-26.0, -68.0, smooth(0.0, 24.0, y));
        let t = ((x - 10.0) * 46.0 + (y - 2.0) * 24.0) / (46.0f32.powi(2) + 24.0f32.powi(2));
        let t = t.clamp(0.0, 1.1);
        let across = (y - (2.0 + 24.0 * t)) * 0.886 - (x - (10.0 + 46.0 * t)) * 0.462;
        let off = across.abs();
        let ridge = -25.0 - 4.0 * t - off * 1.9;
        let behind = smooth(-2.0, 2.0, across);
        let low = lerp(middle, back.max(if x < 14.0 { clivus } else { -90.0 }), behind);
        let base = lerp(front, low, smooth(-30.0, -22.0, y - x * 0.12));
        base.max(ridge)
    }

    fn skull(&self, p: [f32; 3], n: f32) -> f32 {
        let back = smooth(30.0, 80.0, p[1]) * 2.0 + smooth(-50.0, -80.0, p[1]) * 1.5;
        let side = smooth(35.0, 60.0, p[0].abs()) * smooth(20.0, -20.0, p[2]) * 1.5;
        (self.skull_mm + back - side + 1.2 * n).max(1.5)
    }

    /// Distance inside the skin, positive inside.
    fn skin(&self, p: [f32; 3], outer: f32, t: f32) -> f32 {
        let low = smooth(-20.0, -100.0, p[2]);
        let temple =
            4.0 * smooth(24.0, -25.0, p[2]) * smooth(30.0, 66.0, p[0].abs()) * smooth(45.0, 5.0, p[1]);
        let trim = low * (9.0 + 26.0 * smooth(20.0, 85.0, p[1]) - 4.0 * smooth(-40.0, -80.0, p[1]));
        let nose = 9.0
            - ((p[0] / 1.2).powi(2) + ((p[1] + 96.0) / 1.5).powi(2) + ((p[2] + 52.0) / 2.0).powi(2)).sqrt();
        let ear = 3.0
            - (((p[0].abs() - 79.0) / 1.6).powi(2)
                + ((p[1] - 14.0) / 4.5).powi(2)
                + ((p[2] + 38.0) / 8.0).powi(2))
            .sqrt();
        (outer + t + self.scalp_mm + temple - trim).max(nose).max(ear)
    }

    /// All that lies between brain and skin.
    fn shell(&self, p: [f32; 3], vault: f32, above: f32, outer: f32, t: f32, skin: f32) -> f32 {
        let (x, y, z) = (p[0].abs(), p[1], p[2]);
        let base = above < vault && z < -8.0;
        let n = self.noise.mm(p, 5.0);
        if let Some(hu) = self.cavities(p, n) {
            return hu;
        }
        let into = -smooth_min(vault, above, 3.0); // distance into bone from the inner table
        let thick = if base { self.base_mm(x, y) } else { t };
        if into < thick && (outer > -t) {
            return self.bone(into, thick, base, p, n);
        }
        if let Some(hu) = self.face_bones(p, n) {
            return hu;
        }
        self.soft(p, skin, n)
    }

    fn base_mm(&self, x: f32, y: f32) -> f32 {
        let t = if y < -25.0 {
            3.0
        } else if x < 14.0 {
            9.0
        } else {
            4.5
        };
        let petrous = (x - 34.0).abs() < 30.0 && (y - (x - 10.0) * 0.5 - 4.0).abs() < 14.0;
        let petrous = if petrous { 17.0 } else { t };
        if self.child { petrous * 0.7 } else { petrous }
    }

    fn bone(&self, into: f32, thick: f32, base: bool, p: [f32; 3], n: f32) -> f32 {
        let hard = self.bone_hu;
        let edge = into.min(thick - into);
        if base {
            return hard * (0.75 + 0.35 * n) - 250.0 * smooth(2.0, 6.0, edge) * (0.5 + n);
        }
        let table = 1.6f32.min(thick * 0.3);
        let diploe = smooth(table, table + 1.2, edge) * if self.child { 0.2 } else { 0.55 };
        let suture = self.suture(p);
        (hard * (1.0 - diploe) + 130.0 * n * diploe) * (1.0 - 0.75 * suture)
    }

    /// How much a point of the vault belongs to the coronal, sagittal or lambdoid suture, 0 to 1.
    fn suture(&self, p: [f32; 3]) -> f32 {
        let wiggle = 2.0 * self.noise.mm(p, 6.0);
        let wide = if self.child { 1.6 } else { 0.7 };
        let coronal = (p[1] + 22.0 - 0.25 * p[2] + wiggle).abs();
        let lambda = (p[1] - 62.0 + 0.5 * p[0].abs() - 0.3 * p[2] + wiggle).abs();
        let sagittal = if p[1] > -25.0 && p[1] < 60.0 { (p[0] + wiggle).abs() } else { 99.0 };
        1.0 - smooth(wide * 0.5, wide * 1.5, coronal.min(lambda).min(sagittal))
    }

    /// Air and orbit: sinuses, nose, airway, ear canal, mastoid cells, eyes.
    fn cavities(&self, p: [f32; 3], n: f32) -> Option<f32> {
        let (x, y, z) = (p[0].abs(), p[1], p[2]);
        if y < -38.0 && z < -12.0 && z > -64.0 {
            let o = ball([x, y, z], [31.0, -66.0, -38.0], [17.0, 25.0, 17.0]);
            if o < 1.0 {
                return Some(self.orbit([x, y, z]));
            }
        }
        let grown = if self.child { 0.5 } else { 1.0 };
        let ethmoid = x < 11.0 && (-84.0..-34.0).contains(&y) && (-58.0..-31.0).contains(&z);
        if ethmoid {
            let wall = ((y * 0.55 + 1.5 * n).sin().abs() < 0.14) || !(0.9..=10.0).contains(&x);
            return Some(if wall { 350.0 } else { -950.0 });
        }
        let s = ball([x, y, z], [0.0, -24.0, -40.0], [13.0 * grown, 12.0 * grown, 8.5 * grown]);
        let f = ball([x, y, z], [9.0, -85.0, -13.0], [15.0 * grown * grown, 4.5 * grown, 12.0 * grown]);
        let m = ball([x, y, z], [27.0, -62.0, -71.0], [13.0 * grown, 16.0 * grown, 14.0 * grown]);
        let sinus = s.min(f).min(m);
        if sinus < 1.0 {
            return Some(-970.0);
        }
        if m < 1.3 {
            return Some(600.0);
        }
        if x < 13.0 && (-92.0..-40.0).contains(&y) && (-84.0..-58.0).contains(&z) {
            let shelf = ((x - 7.0).powi(2) + ((z + 70.0) * 0.5 + 2.0 * n).powi(2)).sqrt() < 4.0;
            return Some(if x < 1.0 {
                300.0
            } else if shelf {
                40.0
            } else {
                -900.0
            });
        }
        let airway = ((p[0] / 12.0).powi(2) + ((y + 14.0) / 8.0).powi(2)).sqrt();
        if airway < 1.0 && z < -62.0 {
            return Some(-980.0);
        }
        if x > 46.0 && ((y - 10.0).powi(2) + (z + 42.0).powi(2)).sqrt() < 3.2 {
            return Some(-950.0);
        }
        let mastoid = ball([x, y, z], [55.0, 26.0, -48.0], [11.0, 13.0, 17.0]);
        if mastoid < 1.0 && !self.child {
            let cell = self.noise.mm(p, 3.4);
            return Some(if cell > -0.02 { -750.0 } else { 650.0 });
        }
        (mastoid < 1.35).then_some(900.0)
    }

    fn orbit(&self, p: [f32; 3]) -> f32 {
        let globe = ball(p, [32.0, -77.0, -38.0], [12.5, 12.5, 12.5]);
        if globe < 1.0 {
            let lens = ball(p, [32.0, -87.0, -38.0], [4.2, 2.0, 4.2]);
            return if lens < 1.0 {
                85.0
            } else if globe > 0.88 {
                42.0
            } else {
                9.0
            };
        }
        let t = ((p[1] + 66.0) / 26.0).clamp(0.0, 1.0); // 0 at the globe, 1 at the apex
        let axis = [lerp(32.0, 16.0, t), lerp(-38.0, -37.0, t)];
        let r = ((p[0] - axis[0]).powi(2) + (p[2] - axis[1]).powi(2)).sqrt();
        let ring = lerp(11.5, 4.0, t);
        let angle = (p[2] - axis[1]).atan2(p[0] - axis[0]);
        let muscle = (r - ring).abs() < 1.7 && (2.0 * angle).cos().abs() > 0.8;
        let nerve = r < 2.1 && p[1] > -67.0;
        if muscle || nerve {
            42.0
        } else if p[1] < -84.0 {
            25.0
        } else {
            -88.0
        }
    }

    fn face_bones(&self, p: [f32; 3], n: f32) -> Option<f32> {
        let (x, y, z) = (p[0].abs(), p[1], p[2]);
        let hard = self.bone_hu * 0.9;
        let orbit_wall = ball([x, y, z], [31.0, -64.0, -38.0], [18.3, 26.0, 18.3]);
        if orbit_wall < 1.0 && y > -80.0 {
            return Some(hard * 0.45);
        }
        let arch = ((x - 63.0 + 0.004 * (y + 25.0).powi(2)).powi(2) + ((z + 50.0) * 0.6).powi(2)).sqrt();
        if arch < 2.4 && (-62.0..8.0).contains(&y) {
            return Some(hard);
        }
        let ramus = (x - 47.0 - 0.05 * (z + 60.0)).abs() < 3.5 && (-24.0..2.0).contains(&y);
        if ramus && z < -50.0 {
            return Some(hard);
        }
        let arc = ((x / 0.75).powi(2) + (y + 48.0).powi(2)).sqrt();
        if (36.0..44.0).contains(&arc) && y < -48.0 && z < -84.0 {
            return Some(if z < -92.0 { 1700.0 + 300.0 * n } else { hard });
        }
        let spine = (p[0] * p[0] + (y - 33.0).powi(2)).sqrt();
        if z < -72.0 && (14.0..20.5).contains(&spine) {
            return Some(hard * 0.8);
        }
        let body = ball([x, y, z], [0.0, 10.0, -95.0], [11.0, 8.0, 26.0]).min(ball(
            [x, y, z],
            [22.0, 26.0, -80.0],
            [9.0, 10.0, 9.0],
        ));
        (body < 1.0).then_some(hard * 0.6)
    }

    fn soft(&self, p: [f32; 3], skin: f32, n: f32) -> f32 {
        if skin < 1.6 {
            return 30.0 + 20.0 * n;
        }
        if p[2] > -15.0 {
            let temporal = smooth(40.0, 60.0, p[0].abs()) * smooth(28.0, 0.0, p[2]) * smooth(30.0, 0.0, p[1]);
            let galea = smooth(2.2, 1.2, (skin - self.scalp_mm * 0.75).abs());
            return lerp(-95.0 + 25.0 * n, 48.0, temporal.max(galea * 0.55));
        }
        let m = self.noise.mm([p[0], p[1], p[2] * 0.4], 17.0) + 0.25 * n;
        lerp(-90.0, 56.0, smooth(-0.34, -0.14, m) * smooth(1.5, 6.0, skin))
    }

    fn cord(&self, p: [f32; 3], canal: f32) -> f32 {
        let r = (p[0] * p[0] + (p[1] - 33.0).powi(2)).sqrt();
        if canal < 0.8 {
            40.0
        } else {
            lerp(32.0, 7.0, smooth(6.0, 7.5, r + 4.0 * smooth(-60.0, -80.0, p[2]) - 3.0))
        }
    }

    fn holder_hu(&self, p: [f32; 3]) -> f32 {
        let r = (p[0] * p[0] + (p[1] - 20.0).powi(2)).sqrt();
        if p[1] > 30.0 && p[0].abs() < 105.0 && (r - 112.0).abs() < 1.6 { 40.0 } else { -1000.0 }
    }

    /// Brain, fluid and membranes; `d` is the distance in millimetres from the inner table.
    fn brain(&self, p: [f32; 3], d: f32) -> f32 {
        let bend = 1.2 * self.noise.mm([0.0, p[1], p[2]], 60.0);
        let x = p[0] - bend;
        let (a, y, z) = (x.abs(), p[1], p[2]);
        let fold = self.noise.mm(p, 11.0);
        let fine = self.noise.mm(p, 23.0);
        let csf = 6.0;
        // Tentorium: a tent falling from the midline to the transverse sinuses.
        let tent = -6.0 - 0.34 * a - 0.004 * a * a + 0.03 * (y - 20.0);
        let notch = ball([x, y, 0.0], [0.0, 14.0, 0.0], [19.0, 24.0, 1.0]);
        let under = y > 4.0 && z < tent;
        let stem = self.stem(x, y, z);
        if stem < 1.0 && z < -8.0 {
            return 31.0 + 2.0 * fine;
        }
        let gap = self.gap_mm + 0.25;
        let cistern = self.cistern(x, y, z, stem, gap);
        let sheet = (z - tent).abs();
        if y > 14.0 && sheet < 0.7 && notch > 1.0 {
            return 48.0;
        }
        if under {
            let folia = (z * 1.35 + 0.5 * y + 3.0 * fold).sin();
            let cortex = smooth(9.0, 4.0, d.min(sheet)) * smooth(-0.6, 0.6, folia);
            let fourth =
                ball([x, y, z], [0.0, 27.0, -38.0], [6.5 * self.ventricle, 4.5 * self.ventricle, 9.0]);
            let tissue = lerp(self.white_hu + 3.0, self.grey_hu, cortex.max(0.35));
            let wet = smooth(gap + 0.9, gap, d).max(smooth(1.15, 0.85, fourth)).max(cistern);
            return lerp(tissue, csf, wet);
        }
        let falx = d < 38.0 && z > -22.0 && (!(-28.0..=30.0).contains(&y) || z > 12.0);
        if falx && a < 0.75 {
            let sinus = d < 7.0 && y > -40.0;
            return if sinus { 52.0 } else { 45.0 };
        }
        if d < 6.5 && a < 4.5 - 0.5 * d && z > -10.0 && y > -40.0 {
            return 50.0; // superior sagittal sinus
        }
        let v = self.ventricles(a, y, z, fine);
        if let Some(hu) = self.calcified(a, x, y, z, fold) {
            return hu;
        }
        let midgap = if falx || !(-25.0..=45.0).contains(&y) { a } else { 50.0 };
        let sylvian = self.sylvian(a, y, z, fine);
        let surface = d.min(midgap * 1.2 + 0.4).min(sylvian + 0.3);
        // Sulci: zero lines of noise on the surface, carried inward, so that they run toward the middle.
        let sulcus = self.sulcus(p, x, d, midgap, fold);
        let width = self.sulcus_mm * (1.0 + 0.6 * fine) * smooth(20.0, 5.0, surface);
        let wet = smooth(width + 0.8, width, sulcus + 0.25)
            * smooth(21.0, 15.0, surface)
            * smooth(0.0, 0.35, width);
        let wet = wet.max(smooth(gap + 0.9, gap, surface)).max(smooth(0.8, -0.4, v)).max(cistern);
        let ribbon = smooth(5.0, 3.4, surface).max(smooth(3.4, 2.0, sulcus) * smooth(23.0, 17.0, surface));
        let deep = self.deep_grey(a, y, z);
        let tissue =
            lerp(self.white_hu, self.grey_hu, ribbon.max(deep)) + 1.2 * fine + 2.5 * smooth(5.0, 0.0, d);
        lerp(tissue, csf, wet)
    }

    /// Distance in millimetres, about, from the nearest sulcus.
    fn sulcus(&self, p: [f32; 3], x: f32, d: f32, midgap: f32, fold: f32) -> f32 {
        let len = (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]).sqrt().max(1.0);
        let k = 1.0 + d / len;
        let outer = [p[0] * k, p[1] * k, p[2] * k];
        let inner = [12.0 * x.signum() + 0.4 * x, p[1] * 1.05 + 6.0 * fold, p[2] * 1.05 - 4.0 * fold];
        let w = smooth(-4.0, 4.0, d - midgap);
        let foot = [lerp(outer[0], inner[0], w), lerp(outer[1], inner[1], w), lerp(outer[2], inner[2], w)];
        (self.noise.mm(foot, 14.0) + 0.22 * fold).abs() * 8.0
    }

    /// Midbrain, pons and medulla: below 1 inside.
    fn stem(&self, x: f32, y: f32, z: f32) -> f32 {
        let pons = ball([x, y, z], [0.0, 11.0, -38.0], [15.0, 12.0, 13.0]);
        let mid = ball([x, y, z], [0.0, 10.0, -16.0], [15.0, 12.0, 18.0]);
        let medulla = ball([x, y, z], [0.0, 26.0, -60.0], [8.5, 7.5, 22.0]);
        pons.min(mid).min(medulla)
    }

    /// Basal cisterns, 0 to 1: a star over the sella and a ring about the brain stem.
    fn cistern(&self, x: f32, y: f32, z: f32, stem: f32, gap: f32) -> f32 {
        let angle = (y + 11.0).atan2(x);
        let star = 10.0 + 3.5 * (5.0 * angle + 1.57).cos() + 4.0 * self.noise.mm([x, y, z], 8.0);
        let r = (x * x + (y + 11.0).powi(2)).sqrt();
        let supra = smooth(1.5, -1.5, r - star * (0.8 + 0.12 * gap))
            * smooth(-30.0, -26.0, z)
            * smooth(-12.0, -17.0, z);
        // The ring is a broken film, wide only beside the midbrain and before the pons.
        let wide = 0.01 + 0.04 * gap + 0.09 * (0.5 + 0.9 * self.noise.mm([x, y, z], 9.0)).max(0.0);
        let ring = smooth(1.03 + wide, 1.0 + wide * 0.6, stem)
            * smooth(-6.0, -10.0, z)
            * smooth(0.0, 0.06, wide - 0.03);
        let quad = ball([x, y, z], [0.0, 26.0, -10.0], [13.0, 4.0 + gap, 5.0]);
        supra.max(ring).max(smooth(1.1, 0.85, quad))
    }

    /// Distance in millimetres from the wall of the lateral and third ventricles, negative inside.
    fn ventricles(&self, a: f32, y: f32, z: f32, n: f32) -> f32 {
        let k = self.ventricle;
        let p = [a, y, z];
        let front = tube(p, [7.0, -34.0, 2.0], [6.0, -14.0, 14.0], 4.2 * k, 3.6 * k);
        let body = tube(p, [6.0, -14.0, 14.0], [12.0, 18.0, 17.0], 3.6 * k, 4.2 * k);
        let atrium = tube(p, [12.0, 18.0, 17.0], [23.0, 34.0, 3.0], 4.2 * k, 5.4 * k);
        let back = tube(p, [23.0, 34.0, 3.0], [17.0, 55.0, 2.0], 5.0 * k, 2.0 * k);
        let temporal = tube(p, [23.0, 34.0, 3.0], [29.0, 0.0, -20.0], 4.0 * k, 1.6 * k);
        let third = (ball(p, [0.0, 2.0, -3.0], [1.2 + 1.6 * k, 14.0, 10.0]) - 1.0) * 2.0;
        front.min(body).min(atrium).min(back).min(temporal).min(third) + 0.6 * n
    }

    fn calcified(&self, a: f32, x: f32, y: f32, z: f32, n: f32) -> Option<f32> {
        let glomus = ((a - 21.0).powi(2) + (y - 32.0).powi(2) + (z - 4.0).powi(2)).sqrt() + 1.5 * n;
        let pineal = (x * x + (y - 20.0).powi(2) + (z - 1.0).powi(2)).sqrt() + n;
        if glomus < self.choroid || pineal < self.pineal {
            return Some(180.0 + 150.0 * n);
        }
        None
    }

    /// Distance from the Sylvian fissure: a curved cleft from the side toward the insula.
    fn sylvian(&self, a: f32, y: f32, z: f32, n: f32) -> f32 {
        if a < 34.0 || !(-34.0..28.0).contains(&y) {
            return 60.0;
        }
        let axis = -9.0 + 0.25 * (y + 20.0) + 3.0 * n;
        let curve = 38.0 - 0.012 * (y + 6.0).powi(2) + 4.0 * n;
        let insula = (a - curve).abs() * 1.4 + smooth(9.0, 15.0, (z - axis - 4.0).abs()) * 30.0;
        ((z - axis).abs() * 1.1 + smooth(52.0, 40.0, a) * 1.2).min(insula)
    }

    /// Grey matter of the deep nuclei, 0 to 1.
    fn deep_grey(&self, a: f32, y: f32, z: f32) -> f32 {
        let p = [a, y, z];
        let lentiform = ball(p, [23.0, -6.0, 3.0], [7.0, 16.0, 11.0]);
        let caudate = ball(p, [12.5, -25.0, 8.0], [4.5, 9.0, 10.0]);
        let thalamus = ball(p, [10.5, 12.0, 4.0], [8.5, 13.0, 9.0]);
        0.9 * smooth(1.2, 0.9, lentiform.min(caudate).min(thalamus))
    }
}

/// x to the power 2.25 by roots: quicker than `powf`, and the same on every processor.
fn power(x: f32) -> f32 {
    x * x * x.sqrt().sqrt()
}

/// Normalised radius of a point in an ellipsoid: below 1 inside.
fn ball(p: [f32; 3], c: [f32; 3], r: [f32; 3]) -> f32 {
    let q = [(p[0] - c[0]) / r[0], (p[1] - c[1]) / r[1], (p[2] - c[2]) / r[2]];
    (q[0] * q[0] + q[1] * q[1] + q[2] * q[2]).sqrt()
}

/// Distance from a tapering tube between two points, negative inside.
fn tube(p: [f32; 3], a: [f32; 3], b: [f32; 3], ra: f32, rb: f32) -> f32 {
    let ab = [b[0] - a[0], b[1] - a[1], b[2] - a[2]];
    let ap = [p[0] - a[0], p[1] - a[1], p[2] - a[2]];
    let dot = |u: [f32; 3], v: [f32; 3]| u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
    let t = (dot(ap, ab) / dot(ab, ab)).clamp(0.0, 1.0);
    let q = [ap[0] - t * ab[0], ap[1] - t * ab[1], ap[2] - t * ab[2]];
    dot(q, q).sqrt() - lerp(ra, rb, t)
}

fn smooth_min(a: f32, b: f32, k: f32) -> f32 {
    let h = (0.5 + 0.5 * (b - a) / k).clamp(0.0, 1.0);
    lerp(b, a, h) - k * h * (1.0 - h)
}
