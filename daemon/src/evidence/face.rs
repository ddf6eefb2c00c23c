//! Which pixels of a head may leave the house: what the skull encloses, and the bone around it. Pure.
//!
//! A face can be recognised in a rendering of a CT. So everything outside the skull goes (skin, nose, eyes, ears, the
//! jaw), and whole slices below the last one whose skull is closed. What stays:
//!
//! ```text
//! per slice  bone, sealed against sutures -> what no flood from outside reaches -> brain-like parts of it
//! over all   from the slice with most brain up and down, as long as the parts overlap those of the slice before
//! kept       those parts grown back to the bone, and bone close to them
//! ```
//!
//! The price: of the lowest slices, where the skull base is open, nothing is kept.

/// One slice in HU on the grid it is stored in.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    /// Row-major, `rows * columns` values.
    pub hu: &'a [f32],
    /// Number of columns.
    pub columns: usize,
    /// Distance between rows, mm.
    pub row_mm: f64,
    /// Distance between columns, mm.
    pub column_mm: f64,
}

const BONE_HU: f32 = 250.0;
/// Bone that is kept around the brain, partial volume included.
const SKULL_HU: f32 = 150.0;
/// Sutures and thin bone are sealed up to twice this, mm.
const SEAL_MM: f64 = 2.5;
/// Bone further than this from what the skull encloses is not skull, mm.
const SKULL_MM: f64 = 12.0;
const PART_CM2_MIN: f64 = 2.0;
/// Share of a part that holds tissue of 0 to 90 HU.
const BRAIN_SHARE_MIN: f64 = 0.5;
/// Share of a part that lies over (or under) what was kept of the slice before.
const OVERLAP_MIN: f64 = 0.6;
/// Below this share of the largest cross-section it is the skull base; nothing further down is kept.
const BASE_SHARE_MIN: f64 = 0.2;

/// Brain-like parts that the skull of one slice encloses.
#[derive(Debug, Clone, Default)]
pub struct Enclosed {
    parts: Vec<Part>,
    /// Area of one pixel, cm2.
    pixel_cm2: f64,
}

/// Pixel indices, already grown back to the bone.
#[derive(Debug, Clone)]
struct Part(Vec<u32>);

/// Looks at one slice by itself.
pub fn enclosed(slice: Slice) -> Enclosed {
    let n = slice.hu.len();
    let grid = Grid { rows: n / slice.columns.max(1), columns: slice.columns };
    let pixel_cm2 = slice.row_mm * slice.column_mm / 100.0;
    let radius = grid.radius(SEAL_MM, slice);
    let bone: Vec<bool> = slice.hu.iter().map(|hu| *hu > BONE_HU).collect();
    let sealed = grid.grow(&bone, radius);
    let outside = grid.flood(&sealed);
    let mut core: Vec<bool> = outside.iter().zip(&sealed).map(|(o, s)| !o && !s).collect();
    let mut parts = Vec::new();
    while let Some(start) = core.iter().position(|inside| *inside) {
        let part = grid.take(&mut core, start);
        let brain = part.iter().filter(|i| (0.0..=90.0).contains(&slice.hu[**i as usize])).count();
        let is_large = part.len() as f64 * pixel_cm2 >= PART_CM2_MIN;
        if is_large && brain as f64 >= BRAIN_SHARE_MIN * part.len() as f64 {
            parts.push(Part(grid.grown(&part, radius)));
        }
    }
    Enclosed { parts, pixel_cm2 }
}

/// For every slice (caudal to cranial) the pixels inside the skull; `None` where nothing of the slice is kept.
pub fn inside(slices: &[Enclosed]) -> Vec<Option<Vec<u32>>> {
    let area = |e: &Enclosed| e.parts.iter().map(|p| p.0.len()).sum::<usize>() as f64 * e.pixel_cm2;
    let largest = (0..slices.len()).max_by(|a, b| area(&slices[*a]).total_cmp(&area(&slices[*b])));
    let mut kept = vec![None; slices.len()];
    let Some(start) = largest.filter(|&i| !slices[i].parts.is_empty()) else { return kept };
    let most = area(&slices[start]);
    // The largest part alone is where it starts: a cut through an arm beside the head is a part too.
    let first = slices[start].parts.iter().max_by_key(|p| p.0.len()).map_or_else(Vec::new, |p| p.0.clone());
    let up = start + 1..slices.len();
    follow(slices, &mut kept, up, &first, 0.0);
    let down = (0..start).rev();
    follow(slices, &mut kept, down, &first, BASE_SHARE_MIN * most);
    kept[start] = Some(first);
    kept
}

fn follow(
    slices: &[Enclosed],
    kept: &mut [Option<Vec<u32>>],
    order: impl Iterator<Item = usize>,
    first: &[u32],
    cm2_min: f64,
) {
    let mut before = first.to_vec();
    for i in order {
        let over = |part: &Part| {
            let n = part.0.iter().filter(|p| before.binary_search(p).is_ok()).count();
            n as f64 >= OVERLAP_MIN * part.0.len() as f64
        };
        let mut pixels: Vec<u32> =
            slices[i].parts.iter().filter(|p| over(p)).flat_map(|p| p.0.iter().copied()).collect();
        pixels.sort_unstable();
        pixels.dedup();
        if pixels.is_empty() || (pixels.len() as f64 * slices[i].pixel_cm2) < cm2_min {
            return;
        }
        kept[i] = Some(pixels.clone());
        before = pixels;
    }
}

/// Pixels that stay: those inside, and the bone around them.
pub fn keep(slice: Slice, inside: &[u32]) -> Vec<bool> {
    let n = slice.hu.len();
    let grid = Grid { rows: n / slice.columns.max(1), columns: slice.columns };
    let mut mask = vec![false; n];
    inside.iter().for_each(|i| mask[*i as usize] = true);
    let near = grid.grow(&mask, grid.radius(SKULL_MM, slice));
    (0..n).map(|i| mask[i] || near[i] && slice.hu[i] > SKULL_HU).collect()
}

#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    columns: usize,
}

impl Grid {
    /// A distance in pixels down and across.
    fn radius(self, mm: f64, slice: Slice) -> (usize, usize) {
        let px = |step_mm: f64| (mm / step_mm.max(0.01)).round().max(1.0) as usize;
        (px(slice.row_mm), px(slice.column_mm))
    }

    /// Dilation by a rectangle, separable.
    fn grow(self, mask: &[bool], (down, across): (usize, usize)) -> Vec<bool> {
        let mut wide = vec![false; mask.len()];
        for y in 0..self.rows {
            let row = &mask[y * self.columns..(y + 1) * self.columns];
            for x in (0..self.columns).filter(|x| row[*x]) {
                let (from, to) = (x.saturating_sub(across), (x + across + 1).min(self.columns));
                wide[y * self.columns + from..y * self.columns + to].fill(true);
            }
        }
        let mut out = wide.clone();
        for y in 0..self.rows {
            for near in y.saturating_sub(down)..(y + down + 1).min(self.rows) {
                for x in 0..self.columns {
                    out[near * self.columns + x] |= wide[y * self.columns + x];
                }
            }
        }
        out
    }

    /// The pixels of a part and those within the radius, sorted.
    fn grown(self, part: &[u32], radius: (usize, usize)) -> Vec<u32> {
        let mut mask = vec![false; self.rows * self.columns];
        part.iter().for_each(|i| mask[*i as usize] = true);
        let grown = self.grow(&mask, radius);
        (0u32..).zip(grown).filter(|(_, inside)| *inside).map(|(i, _)| i).collect()
    }

    fn neighbours(self, i: usize) -> impl Iterator<Item = usize> {
        let (y, x) = (i / self.columns, i % self.columns);
        let left = (x > 0).then(|| i - 1);
        let right = (x + 1 < self.columns).then_some(i + 1);
        let up = (y > 0).then(|| i - self.columns);
        let down = (y + 1 < self.rows).then_some(i + self.columns);
        [left, right, up, down].into_iter().flatten()
    }

    /// What can be reached from the border without crossing `wall`.
    fn flood(self, wall: &[bool]) -> Vec<bool> {
        let mut reached = vec![false; wall.len()];
        let is_border = |i: usize| {
            let (y, x) = (i / self.columns, i % self.columns);
            y == 0 || x == 0 || y + 1 == self.rows || x + 1 == self.columns
        };
        let mut stack: Vec<usize> = (0..wall.len()).filter(|&i| is_border(i) && !wall[i]).collect();
        while let Some(i) = stack.pop() {
            if !std::mem::replace(&mut reached[i], true) {
                stack.extend(self.neighbours(i).filter(|&n| !reached[n] && !wall[n]));
            }
        }
        reached
    }

    /// Takes the connected part that holds `start` out of a mask.
    fn take(self, mask: &mut [bool], start: usize) -> Vec<u32> {
        let (mut part, mut stack) = (Vec::new(), vec![start]);
        mask[start] = false;
        while let Some(i) = stack.pop() {
            part.push(i as u32);
            for n in self.neighbours(i) {
                if std::mem::replace(&mut mask[n], false) {
                    stack.push(n);
                }
            }
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 192;

    /// A skull of `radius_mm` around brain, with skin outside and a nose in front; `gap` opens the skull.
    fn head(radius_mm: f64, gap: bool) -> Vec<f32> {
        (0..SIZE * SIZE)
            .map(|i| {
                let (y, x) = ((i / SIZE) as f64 - 96.0, (i % SIZE) as f64 - 96.0);
                let r = x.hypot(y);
                match r {
                    r if r < radius_mm => 35.0,
                    r if r < radius_mm + 6.0 && !(gap && x > 0.0 && y.abs() < 15.0) => 1000.0,
                    r if r < radius_mm + 12.0 => 40.0,
                    _ if x.abs() < 6.0 && y < 0.0 && r < radius_mm + 30.0 => 40.0,
                    _ => -1000.0,
                }
            })
            .collect()
    }

    fn slice(hu: &[f32]) -> Slice<'_> {
        Slice { hu, columns: SIZE, row_mm: 1.0, column_mm: 1.0 }
    }

    #[test]
    fn brain_and_skull_stay_and_everything_in_front_goes() {
        let heads = [head(30.0, true), head(60.0, false), head(70.0, false), head(40.0, false)];
        let all: Vec<Enclosed> = heads.iter().map(|hu| enclosed(slice(hu))).collect();
        let inside = inside(&all);
        assert!(inside[0].is_none(), "an open skull base is not kept");
        for (hu, inside) in heads.iter().zip(&inside).skip(1) {
            let keep = keep(slice(hu), inside.as_ref().unwrap());
            for (i, (kept, hu)) in keep.iter().zip(hu).enumerate() {
                // Brain and bone stay; skin, nose and air go.
                assert_eq!(*kept, *hu == 35.0 || *hu == 1000.0, "pixel {i} of {hu} HU");
            }
        }
    }

    #[test]
    fn below_the_first_slice_that_is_not_closed_nothing_is_kept() {
        let heads = [head(60.0, false), head(60.0, true), head(60.0, false), head(70.0, false)];
        let all: Vec<Enclosed> = heads.iter().map(|hu| enclosed(slice(hu))).collect();
        let inside = inside(&all);
        assert_eq!(inside.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true, true]);
    }

    #[test]
    fn where_there_is_no_skull_nothing_is_kept() {
        let air = vec![-1000.0; SIZE * SIZE];
        assert!(inside(&[enclosed(slice(&air))])[0].is_none());
        assert!(inside(&[]).is_empty());
    }
}
