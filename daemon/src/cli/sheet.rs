//! `--png`: a contact sheet that a person can check at a glance. Every slice that was read, in the brain window, with
//! L and R and its number; in profile `assist` the key slice large, plain and beside it with the heat map, the suspected
//! slices framed and tinted. Profile `triage` shows no marks. The words are the profile's; no name, no UID.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use crate::config::Profile;
use crate::decide::{Disposition, Finding, NamedScores};
use crate::infer::hounsfield::HuImage;
use crate::infer::{Class, LesionMap, Reading};
use crate::report::font;

/// Brain window, HU.
const LOW_HU: f32 = 0.0;
const WIDTH_HU: f32 = 80.0;
const TILES_PER_ROW: usize = 8;
/// Side of a large picture, pixels.
const KEY_PX: usize = 448;
const FRAME_PX: usize = 2;
const LINE_PX: usize = 22;
const MARGIN_PX: usize = 8;
/// The heat map begins to show at this probability.
const HEAT_MIN: f32 = 0.2;
const HEAT_ALPHA_MAX: f32 = 0.55;

type Colour = [u8; 3];
const RED: Colour = [235, 50, 40];
const AMBER: Colour = [235, 175, 40];
const WHITE: Colour = [235, 235, 235];
const GREY: Colour = [150, 150, 150];

/// One slice that was read.
pub struct Tile {
    /// Position in the series, 0-based, caudal to cranial.
    pub place: usize,
    /// HU on the network's grid, [S x S] row-major.
    pub plane: Vec<f32>,
    /// Final probability of `any`.
    pub any: f32,
    /// Lesion map.
    pub map: LesionMap,
}

/// Everything a sheet shows.
pub struct Sheet<'a> {
    /// Slices, caudal to cranial.
    pub tiles: Vec<Tile>,
    /// Position of the key slice and its whole image, where something is suspected.
    pub key: Option<(usize, HuImage)>,
    /// Side of the square that the planes and maps cover, mm.
    pub field_mm: f64,
    /// What the series got.
    pub reading: &'a Reading,
    /// The answer.
    pub disposition: &'a Disposition,
    /// What surfaces may say.
    pub profile: Profile,
    /// What was read, as a hash; for a person who looks for the ledger's row.
    pub input_sha256: &'a str,
}

impl Sheet<'_> {
    /// Draws the sheet and writes it as PNG.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let canvas = self.draw()?;
        let file = File::create(path).map_err(|e| e.to_string())?;
        let side = |n: usize| u32::try_from(n).map_err(|e| e.to_string());
        let mut encoder = png::Encoder::new(BufWriter::new(file), side(canvas.width)?, side(canvas.height)?);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
        writer.write_image_data(&canvas.pixels).map_err(|e| e.to_string())
    }

    fn marks(&self) -> Option<&Finding> {
        self.disposition.finding().filter(|_| self.profile == Profile::Assist)
    }

    fn draw(&self) -> Result<Canvas, String> {
        let Some(first) = self.tiles.first() else { return Err("nothing was read".into()) };
        let size = first.plane.len().isqrt();
        let width = (size * TILES_PER_ROW).max(2 * KEY_PX);
        let lines = self.lines();
        let key = self.marks().and(self.key.as_ref());
        let text_px = MARGIN_PX + lines.len() * LINE_PX + MARGIN_PX;
        let beside = width.saturating_sub(2 * KEY_PX);
        let (text_left, text_top, head_px) = match key {
            Some(_) if beside >= 400 => (2 * KEY_PX + MARGIN_PX, MARGIN_PX, KEY_PX.max(text_px)),
            Some(_) => (MARGIN_PX, KEY_PX + MARGIN_PX, KEY_PX + text_px),
            None => (MARGIN_PX, MARGIN_PX, text_px),
        };
        let mut canvas = Canvas::new(width, head_px + size * self.tiles.len().div_ceil(TILES_PER_ROW));
        if let Some((place, image)) = key {
            self.draw_key(&mut canvas, *place, image);
        }
        for (n, (line, colour)) in lines.iter().enumerate() {
            canvas.write(text_left, text_top + n * LINE_PX, line, *colour, 2);
        }
        for (i, tile) in self.tiles.iter().enumerate() {
            let (left, top) = (i % TILES_PER_ROW * size, head_px + i / TILES_PER_ROW * size);
            self.draw_tile(&mut canvas, left, top, size, tile);
        }
        Ok(canvas)
    }

    /// The whole key slice at its own resolution, plain and with the heat map.
    fn draw_key(&self, canvas: &mut Canvas, place: usize, image: &HuImage) {
        let map = self.tiles.iter().find(|t| t.place == place).map(|t| &t.map);
        let at = |x: usize| (x as f64 + 0.5) / KEY_PX as f64;
        for y in 0..KEY_PX {
            for x in 0..KEY_PX {
                let colour = grey(sample(image, self.field_mm, at(x), at(y)));
                canvas.set(x, y, colour);
                let heat = map.map_or(0.0, |m| m.at(at(x), at(y)));
                canvas.set(KEY_PX + x, y, tinted(colour, heat));
            }
        }
        for left in [0, KEY_PX] {
            canvas.frame(left, 0, KEY_PX, RED);
            canvas.sides(left, 0, KEY_PX, 3);
            canvas.write(left + MARGIN_PX, KEY_PX - LINE_PX, &format!("key slice {}", place + 1), WHITE, 2);
        }
        canvas.write(KEY_PX + MARGIN_PX, MARGIN_PX, "heat map: where the model looks, an estimate", AMBER, 1);
    }

    fn draw_tile(&self, canvas: &mut Canvas, left: usize, top: usize, size: usize, tile: &Tile) {
        let range = self.marks().map(|f| f.slice_range[0]..=f.slice_range[1]);
        let suspected = range.is_some_and(|r| r.contains(&tile.place));
        let at = |x: usize| (x as f64 + 0.5) / size as f64;
        for (n, hu) in tile.plane.iter().enumerate() {
            let (x, y) = (n % size, n / size);
            let heat = if suspected { tile.map.at(at(x), at(y)) } else { 0.0 };
            canvas.set(left + x, top + y, tinted(grey(*hu), heat));
        }
        if suspected {
            let is_key = self.key.as_ref().is_some_and(|(place, _)| *place == tile.place);
            canvas.frame(left, top, size, if is_key { RED } else { AMBER });
        }
        canvas.sides(left, top, size, 1);
        canvas.write(left + 5, top + 5, &format!("{}", tile.place + 1), WHITE, 2);
        if self.profile == Profile::Assist {
            let colour = if suspected { AMBER } else { GREY };
            canvas.write(left + 5, top + size - 13, &format!("any {:.2}", tile.any), colour, 1);
        }
    }

    fn lines(&self) -> Vec<(String, Colour)> {
        let mut lines = Vec::new();
        let mut say = |text: String, colour| lines.push((text, colour));
        match (self.disposition, self.profile) {
            (Disposition::NotAnalysed(why), _) => say(format!("not analysed: {}", why.code()), RED),
            (Disposition::NotSuspected, _) => say("no hemorrhage suspected by this software".into(), WHITE),
            (Disposition::Suspected(_), Profile::Triage) => {
                say("suspected intracranial hemorrhage".into(), RED)
            }
            (Disposition::Suspected(finding), Profile::Assist) => {
                say("suspected intracranial hemorrhage".into(), RED);
                for class in &finding.subtypes {
                    say(format!("  {}", class.as_str()), AMBER);
                }
                let [first, last] = finding.slice_range;
                if let Some(side) = finding.side {
                    say(format!("side    {side:?}, an estimate"), WHITE);
                }
                say(format!("slices  {}-{}, from the neck up", first + 1, last + 1), WHITE);
                if let Some(volume_ml) = finding.volume_ml {
                    say(format!("volume  about {volume_ml:.0} ml, an estimate"), WHITE);
                }
            }
        }
        say("read the whole study".into(), WHITE);
        say("notification by software, not for diagnosis".into(), AMBER);
        say("not a medical device".into(), AMBER);
        if self.profile == Profile::Assist && self.disposition.why().is_none() {
            say(String::new(), GREY);
            let p: &NamedScores = &NamedScores::from(&self.reading.series);
            for class in Class::ALL {
                say(format!("{:<18}{:.2}", class.as_str(), p.of(class)), GREY);
            }
        }
        let model = &self.reading.model;
        say(format!("ichd {}, {} {}", crate::VERSION, model.id, model.version), GREY);
        say(format!("input {}", &self.input_sha256[..self.input_sha256.len().min(16)]), GREY);
        lines
    }
}

fn grey(hu: f32) -> Colour {
    [(((hu - LOW_HU) / WIDTH_HU).clamp(0.0, 1.0) * 255.0) as u8; 3]
}

/// From amber to red over the grey, so that what lies below can still be seen.
fn tinted(grey: Colour, heat: f32) -> Colour {
    if heat < HEAT_MIN {
        return grey;
    }
    let strength = (heat - HEAT_MIN) / (1.0 - HEAT_MIN);
    let alpha = HEAT_ALPHA_MAX * (0.4 + 0.6 * strength);
    std::array::from_fn(|c| {
        let heat = f32::from(AMBER[c]) * (1.0 - strength) + f32::from(RED[c]) * strength;
        (f32::from(grey[c]) * (1.0 - alpha) + heat * alpha) as u8
    })
}

/// HU at a point of the square that the network sees, both coordinates 0 to 1; bilinear, air outside the image.
fn sample(image: &HuImage, field_mm: f64, x: f64, y: f64) -> f32 {
    let along = |at: f64, n: usize, mm: f64| (at - 0.5) * field_mm / mm + n as f64 / 2.0 - 0.5;
    let (x, y) = (along(x, image.columns, image.column_mm), along(y, image.rows, image.row_mm));
    let (left, top) = (x.floor(), y.floor());
    let pixel = |dx: f64, dy: f64| {
        let (x, y) = (left + dx, top + dy);
        let inside = x >= 0.0 && y >= 0.0 && x < image.columns as f64 && y < image.rows as f64;
        if inside { image.hu[y as usize * image.columns + x as usize] } else { -1000.0 }
    };
    let (fx, fy) = ((x - left) as f32, (y - top) as f32);
    let row = |dy: f64| pixel(0.0, dy) * (1.0 - fx) + pixel(1.0, dy) * fx;
    row(0.0) * (1.0 - fy) + row(1.0) * fy
}

struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Canvas { width, height, pixels: vec![0; width * height * 3] }
    }

    fn set(&mut self, x: usize, y: usize, colour: Colour) {
        if x < self.width && y < self.height {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    fn frame(&mut self, left: usize, top: usize, size: usize, colour: Colour) {
        for a in 0..size {
            for b in 0..FRAME_PX {
                let far = size - 1 - b;
                for (x, y) in [(a, b), (a, far), (b, a), (far, a)] {
                    self.set(left + x, top + y, colour);
                }
            }
        }
    }

    /// Image left is the patient's right.
    fn sides(&mut self, left: usize, top: usize, size: usize, scale: usize) {
        let middle = top + size / 2;
        self.write(left + 5, middle, "R", WHITE, scale);
        self.write(left + size - 5 - 5 * scale, middle, "L", WHITE, scale);
    }

    fn write(&mut self, left: usize, top: usize, line: &str, colour: Colour, scale: usize) {
        for (n, character) in line.chars().enumerate() {
            let left = left + n * font::ADVANCE * scale;
            for (row, bits) in font::glyph(character).iter().enumerate() {
                for column in (0..5).filter(|column| bits & (0x10 >> column) != 0) {
                    for (dy, dx) in (0..scale * scale).map(|i| (i / scale, i % scale)) {
                        self.set(left + column * scale + dx, top + row * scale + dy, colour);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Side, Tier, Why};
    use crate::dicom::SopInstanceUid;
    use crate::infer::{ModelId, Scores, Timings};

    const SIZE: usize = 192;

    /// Twelve grey slices; the map of each is hot in the patient's left front corner.
    fn sheet<'a>(reading: &'a Reading, disposition: &'a Disposition, profile: Profile) -> Sheet<'a> {
        let p: Vec<f32> = (0..16).map(|i| if i == 3 { 0.9 } else { 0.0 }).collect();
        let tile = |place| Tile {
            place,
            plane: vec![40.0; SIZE * SIZE],
            any: 0.5,
            map: LesionMap { px: 4, p: p.clone().into() },
        };
        let image = HuImage { rows: 64, columns: 64, row_mm: 4.0, column_mm: 4.0, hu: vec![40.0; 64 * 64] };
        Sheet {
            tiles: (0..12).map(tile).collect(),
            key: disposition.finding().map(|_| (5, image)),
            field_mm: 240.0,
            reading,
            disposition,
            profile,
            input_sha256: "0123456789abcdef0123",
        }
    }

    fn reading() -> Reading {
        let model = ModelId { id: "m".into(), version: "1".into(), sha256: "00".into() };
        Reading { series: Scores([0.9; 6]), slices: Vec::new(), model, ms: Timings::default() }
    }

    fn suspected() -> Disposition {
        Disposition::Suspected(Finding {
            subtypes: vec![Class::Subdural],
            key_sop_uid: SopInstanceUid::parse("1.2").unwrap(),
            key_frame: None,
            slice_range: [4, 6],
            side: Some(Side::Left),
            volume_ml: Some(12.0),
            tier: Tier { name: "urgent".into(), priority: 1 },
        })
    }

    fn coloured(canvas: &Canvas, left: usize, top: usize, size: usize) -> Vec<(usize, usize)> {
        let inner = FRAME_PX..size - FRAME_PX;
        let is = |x: usize, y: usize| {
            let at = ((top + y) * canvas.width + left + x) * 3;
            canvas.pixels[at] != canvas.pixels[at + 2]
        };
        inner.clone().flat_map(|y| inner.clone().map(move |x| (x, y))).filter(|(x, y)| is(*x, *y)).collect()
    }

    #[test]
    fn in_assist_only_suspected_slices_are_tinted_and_on_the_side_of_the_map() {
        let (reading, suspected) = (reading(), suspected());
        let canvas = sheet(&reading, &suspected, Profile::Assist).draw().unwrap();
        let head = canvas.height - 2 * SIZE;
        for place in 0..12 {
            let (left, top) = (place % TILES_PER_ROW * SIZE, head + place / TILES_PER_ROW * SIZE);
            let found = coloured(&canvas, left, top, SIZE);
            // The upper right quarter: front, patient's left. The caption at the bottom may be amber.
            let tint: Vec<_> = found.into_iter().filter(|(_, y)| *y < SIZE - 14).collect();
            assert_eq!(!tint.is_empty(), (4..=6).contains(&place), "slice {place}");
            assert!(tint.iter().all(|(x, y)| *x > SIZE / 2 && *y < SIZE / 2), "slice {place}");
        }
        let plain = coloured(&canvas, 0, 0, KEY_PX);
        let tinted = coloured(&canvas, KEY_PX, 0, KEY_PX);
        assert!(plain.is_empty() && tinted.len() > 1000);
    }

    #[test]
    fn in_triage_nothing_points_at_a_slice() {
        let (reading, suspected) = (reading(), suspected());
        let canvas = sheet(&reading, &suspected, Profile::Triage).draw().unwrap();
        let head = canvas.height - 2 * SIZE;
        assert!(head < KEY_PX, "no key slice");
        let is_grey = |p: &[u8]| p[0] == p[1] && p[1] == p[2];
        assert!(canvas.pixels[head * canvas.width * 3..].chunks(3).all(is_grey));
        let said: Vec<String> =
            sheet(&reading, &suspected, Profile::Triage).lines().into_iter().map(|l| l.0).collect();
        assert!(
            said.iter().any(|l| l.contains("suspected"))
                && said.iter().any(|l| l.contains("not for diagnosis"))
        );
        assert!(!said.iter().any(|l| l.contains("subdural") || l.contains("slices")), "{said:?}");
    }

    #[test]
    fn no_sheet_calls_a_head_normal_and_each_says_it_is_no_diagnosis() {
        let reading = reading();
        for profile in [Profile::Assist, Profile::Triage] {
            let sheet = sheet(&reading, &Disposition::NotSuspected, profile);
            let said: Vec<String> = sheet.lines().into_iter().map(|l| l.0).collect();
            assert!(said.iter().any(|l| l.contains("not for diagnosis")), "{said:?}");
            assert!(!said.iter().any(|l| l.contains("normal") || l.contains("negative")), "{said:?}");
            sheet.draw().unwrap();
        }
        let refused = Disposition::NotAnalysed(Why::NoBrainTissue);
        let lines = sheet(&reading, &refused, Profile::Assist).lines();
        assert!(
            lines[0].0 == "not analysed: no_brain_tissue" && !lines.iter().any(|l| l.0.starts_with("any"))
        );
    }

    #[test]
    fn the_key_slice_covers_the_same_square_as_the_network() {
        // A bright left half (of the patient) of an image that is wider than the field.
        let hu = (0..100 * 200).map(|i| if i % 200 >= 100 { 60.0 } else { 20.0 }).collect();
        let image = HuImage { rows: 100, columns: 200, row_mm: 2.0, column_mm: 2.0, hu };
        assert_eq!(sample(&image, 240.0, 0.51, 0.5), 60.0);
        assert_eq!(sample(&image, 240.0, 0.49, 0.5), 20.0);
        assert!(sample(&image, 240.0, 0.5, 0.01) < -900.0);
    }
}
