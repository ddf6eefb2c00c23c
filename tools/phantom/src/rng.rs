//! Seeded random numbers and smooth noise, the same on every run.
//!
//! SplitMix64 is enough for pictures; nothing here is fit for keys.

/// A small deterministic generator (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose whole future follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(mix(seed ^ 0x51ed_270b_7a4d_3c15))
    }

    /// An independent generator for a named part, so that adding draws in one part moves no other.
    pub fn fork(&self, part: u64) -> Self {
        Rng(mix(self.0 ^ mix(part)))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in [lo, hi).
    pub fn range(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * self.unit()
    }

    /// Uniform integer in [0, n); 0 when n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// About normal with mean 0 and standard deviation 1 (sum of four uniforms, so never beyond 3.5).
    pub fn normal(&mut self) -> f32 {
        (self.unit() + self.unit() + self.unit() + self.unit() - 2.0) * 1.732_050_8
    }

    /// -1 or 1.
    pub fn sign(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }
}

/// The SplitMix64 finaliser: spreads every input bit over the output.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Gradient noise in three dimensions (Perlin, SIGGRAPH 2002), about [-1, 1], one feature per unit length.
#[derive(Clone, Copy, Debug)]
pub struct Noise(pub u32);

impl Noise {
    /// The noise value at a point.
    pub fn at(&self, x: f32, y: f32, z: f32) -> f32 {
        let (xf, yf, zf) = (x.floor(), y.floor(), z.floor());
        let (xi, yi, zi) = (xf as i32, yf as i32, zf as i32);
        let (u, v, w) = (x - xf, y - yf, z - zf);
        let (su, sv, sw) = (fade(u), fade(v), fade(w));
        let corner = |dx: i32, dy: i32, dz: i32| {
            gradient(
                hash(self.0, xi.wrapping_add(dx), yi.wrapping_add(dy), zi.wrapping_add(dz)),
                u - dx as f32,
                v - dy as f32,
                w - dz as f32,
            )
        };
        let near =
            lerp(lerp(corner(0, 0, 0), corner(1, 0, 0), su), lerp(corner(0, 1, 0), corner(1, 1, 0), su), sv);
        let far =
            lerp(lerp(corner(0, 0, 1), corner(1, 0, 1), su), lerp(corner(0, 1, 1), corner(1, 1, 1), su), sv);
        lerp(near, far, sw)
    }

    /// Noise at a point in millimetres with features of about `size_mm`.
    pub fn mm(&self, p: [f32; 3], size_mm: f32) -> f32 {
        let k = 1.0 / size_mm;
        self.at(p[0] * k, p[1] * k, p[2] * k)
    }
}

fn hash(seed: u32, x: i32, y: i32, z: i32) -> u32 {
    let mut h = seed
        ^ (x as u32).wrapping_mul(0x8da6_b343)
        ^ (y as u32).wrapping_mul(0xd816_3841)
        ^ (z as u32).wrapping_mul(0xcb1a_b31f);
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    h ^ (h >> 15)
}

fn gradient(h: u32, x: f32, y: f32, z: f32) -> f32 {
    let h = h & 15;
    let u = if h < 8 { x } else { y };
    let v = if h < 4 {
        y
    } else if h == 12 || h == 14 {
        x
    } else {
        z
    };
    (if h & 1 == 0 { u } else { -u }) + (if h & 2 == 0 { v } else { -v })
}

fn fade(t: f32) -> f32 {
    t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
}

/// Linear blend from `a` (t = 0) to `b` (t = 1).
pub fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 below `lo`, 1 above `hi`, smooth between.
pub fn smooth(lo: f32, hi: f32, x: f32) -> f32 {
    let t = ((x - lo) / (hi - lo)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_numbers() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
        assert_ne!(Rng::new(7).bits(), Rng::new(8).bits());
    }

    #[test]
    fn noise_stays_bounded_and_continuous() {
        let n = Noise(3);
        for i in 0..2000 {
            let x = i as f32 * 0.013;
            let v = n.at(x, x * 0.7, -x);
            assert!(v.abs() <= 1.2);
            assert!((v - n.at(x + 1e-3, x * 0.7, -x)).abs() < 0.01);
        }
    }
}
