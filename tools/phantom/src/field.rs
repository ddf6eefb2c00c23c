//! Fields on a grid: distances, blurs, connected parts. Plain arithmetic; knows nothing of heads.

use crate::volume::Volume;

/// Stands for "no such voxel" in a distance field, in millimetres.
pub const FAR_MM: f32 = 1.0e4;

/// Exact distance in millimetres from every voxel to the nearest voxel where `seed` is true, slice by slice when
/// `flat`, else in three dimensions (Felzenszwalb and Huttenlocher, Theory of Computing 2012).
pub fn distance_mm(grid: &Volume, seed: &[bool], flat: bool) -> Vec<f32> {
    let (nx, ny, nz) = (grid.nx, grid.ny, grid.nz);
    let mut d: Vec<f32> = seed.iter().map(|&s| if s { 0.0 } else { FAR_MM * FAR_MM }).collect();
    let n = nx.max(ny).max(nz);
    let mut work = Envelope::new(n);
    for row in d.chunks_exact_mut(nx) {
        work.pass(row.iter().copied(), grid.pixel_mm);
        row.copy_from_slice(&work.out[..nx]);
    }
    for z in 0..nz {
        for x in 0..nx {
            let base = z * ny * nx + x;
            work.pass((0..ny).map(|y| d[base + y * nx]), grid.pixel_mm);
            for y in 0..ny {
                d[base + y * nx] = work.out[y];
            }
        }
    }
    if !flat {
        for i in 0..nx * ny {
            work.pass((0..nz).map(|z| d[i + z * nx * ny]), grid.step_mm);
            for z in 0..nz {
                d[i + z * nx * ny] = work.out[z];
            }
        }
    }
    for v in &mut d {
        *v = v.sqrt();
    }
    d
}

/// Lower envelope of parabolas: one line of the distance transform.
struct Envelope {
    f: Vec<f32>,
    at: Vec<usize>,
    from: Vec<f32>,
    out: Vec<f32>,
}

impl Envelope {
    fn new(n: usize) -> Self {
        Envelope { f: vec![0.0; n], at: vec![0; n], from: vec![0.0; n + 1], out: vec![0.0; n] }
    }

    fn pass(&mut self, line: impl Iterator<Item = f32>, pitch_mm: f32) {
        let mut n = 0;
        for v in line {
            self.f[n] = v;
            n += 1;
        }
        let w = pitch_mm * pitch_mm;
        let (mut k, mut any) = (0usize, false);
        for q in 0..n {
            if self.f[q] >= FAR_MM * FAR_MM {
                continue;
            }
            if !any {
                any = true;
                self.at[0] = q;
                self.from[0] = f32::NEG_INFINITY;
                continue;
            }
            loop {
                let p = self.at[k];
                let (qf, pf) = (q as f32, p as f32);
                let s = ((self.f[q] + w * qf * qf) - (self.f[p] + w * pf * pf)) / (2.0 * w * (qf - pf));
                if s <= self.from[k] && k > 0 {
                    k -= 1;
                } else {
                    k += 1;
                    self.at[k] = q;
                    self.from[k] = s;
                    break;
                }
            }
        }
        if !any {
            self.out[..n].fill(FAR_MM * FAR_MM);
            return;
        }
        let last = k;
        k = 0;
        for q in 0..n {
            while k < last && self.from[k + 1] < q as f32 {
                k += 1;
            }
            let d = q as f32 - self.at[k] as f32;
            self.out[q] = w * d * d + self.f[self.at[k]];
        }
    }
}

/// Box blur inside each slice, radius in pixels, repeated; three passes come close to a Gaussian.
pub fn blur_flat(values: &mut [f32], nx: usize, ny: usize, radius: usize, passes: usize) {
    if radius == 0 {
        return;
    }
    let mut line = vec![0.0; nx.max(ny)];
    for slice in values.chunks_exact_mut(nx * ny) {
        for _ in 0..passes {
            for y in 0..ny {
                box_line(slice, y * nx, 1, nx, radius, &mut line);
            }
            for x in 0..nx {
                box_line(slice, x, nx, ny, radius, &mut line);
            }
        }
    }
}

fn box_line(v: &mut [f32], start: usize, stride: usize, n: usize, r: usize, line: &mut [f32]) {
    for i in 0..n {
        line[i] = v[start + i * stride];
    }
    let at = |i: isize| line[i.clamp(0, n as isize - 1) as usize];
    let mut sum: f32 = (-(r as isize)..=r as isize).map(at).sum();
    let k = 1.0 / (2 * r + 1) as f32;
    for i in 0..n as isize {
        v[start + i as usize * stride] = sum * k;
        sum += at(i + r as isize + 1) - at(i - r as isize);
    }
}

/// Blurs each slice with the three-tap kernel (a, 1 - 2a, a) both ways; `a` = 0.25 is about one pixel FWHM x 1.7.
pub fn soften_flat(values: &mut [f32], nx: usize, ny: usize, a: f32) {
    let mut line = vec![0.0; nx.max(ny)];
    for slice in values.chunks_exact_mut(nx * ny) {
        for pass in 0..2 {
            let (lines, n, stride, next) = if pass == 0 { (ny, nx, 1, nx) } else { (nx, ny, nx, 1) };
            for l in 0..lines {
                for i in 0..n {
                    line[i] = slice[l * next + i * stride];
                }
                for i in 0..n {
                    let (p, q) = (line[i.saturating_sub(1)], line[(i + 1).min(n - 1)]);
                    slice[l * next + i * stride] = a * (p + q) + (1.0 - 2.0 * a) * line[i];
                }
            }
        }
    }
}

/// Labels 6-connected (4-connected when `flat`) parts of `mask`; returns labels from 1 and the size of each part
/// (index 0 unused).
pub fn parts(grid: &Volume, mask: &[bool], flat: bool) -> (Vec<u32>, Vec<usize>) {
    let (nx, ny, nz) = (grid.nx, grid.ny, grid.nz);
    let mut label = vec![0u32; mask.len()];
    let mut sizes = vec![0usize];
    let mut stack = Vec::new();
    for start in 0..mask.len() {
        if !mask[start] || label[start] != 0 {
            continue;
        }
        let id = sizes.len() as u32;
        sizes.push(0);
        label[start] = id;
        stack.push(start);
        while let Some(i) = stack.pop() {
            sizes[id as usize] += 1;
            let (x, y, z) = (i % nx, i / nx % ny, i / (nx * ny));
            let mut visit = |j: usize| {
                if mask[j] && label[j] == 0 {
                    label[j] = id;
                    stack.push(j);
                }
            };
            if x > 0 {
                visit(i - 1);
            }
            if x + 1 < nx {
                visit(i + 1);
            }
            if y > 0 {
                visit(i - nx);
            }
            if y + 1 < ny {
                visit(i + nx);
            }
            if !flat && z > 0 {
                visit(i - nx * ny);
            }
            if !flat && z + 1 < nz {
                visit(i + nx * ny);
            }
        }
    }
    (label, sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_exact_on_an_anisotropic_grid() {
        let g = Volume::filled(9, 7, 5, 0.5, 3.0, 0);
        let mut seed = vec![false; g.hu.len()];
        seed[g.at(2, 3, 1)] = true;
        let d = distance_mm(&g, &seed, false);
        let e = ((6.0f32 * 0.5).powi(2) + (3.0f32 * 0.5).powi(2) + 9.0f32.powi(2)).sqrt();
        assert!((d[g.at(8, 6, 4)] - e).abs() < 1e-4);
        assert!(distance_mm(&g, &seed, true)[g.at(0, 0, 0)] >= FAR_MM);
    }

    #[test]
    fn parts_are_counted_apart() {
        let g = Volume::filled(5, 1, 1, 1.0, 1.0, 0);
        let (_, sizes) = parts(&g, &[true, true, false, true, false], false);
        assert_eq!(sizes, vec![0, 2, 1]);
    }
}
