"""`ichd analyze` against the package's own chain in Python (DICOM, preprocessing, ONNX Runtime), per slice and stage.

The golden series of a package proves that one small square is read as before; this holds what lies before it: sizes,
fields of view and pixel spacings that are resized, images stored lying or mirrored, images at one position, padding.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools/training"))

try:
    import numpy as np
    import onnxruntime  # noqa: F401
    import pydicom
    from pydicom.uid import generate_uid
except ImportError as missing:
    raise unittest.SkipTest(f"left out: {missing}; tests/run takes target/venv") from missing

from ichd_training.preprocess import Recipe  # noqa: E402
from ichd_training.reference import OnnxReader, dicom_planes  # noqa: E402

PROGRAMS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
PACKAGE = ROOT / "models/ichd-base"
STAGES = ("base", "seq1", "final")
TOLERANCE = 1e-3


def series(out: Path, *options: str) -> Path:
    """A phantom with a bleed: 512 x 512 pixels over 260 mm, so that resize and crop both have work."""
    subprocess.run([PROGRAMS / "ichd-phantom", "series", "--seed", "3", "--bleed", "intraparenchymal", "--volume-ml", "40", "--slices", "12",
                    "--step-mm", "7", "--field-mm", "260", *options, "--out", out], check=True, capture_output=True)
    return out


def rewrite(folder: Path, out: Path, change) -> Path:
    """Another study: every image as `change` leaves it."""
    out.mkdir()
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    for n, path in enumerate(sorted(folder.glob("*.dcm"))):
        for k, ds in enumerate(change(pydicom.dcmread(path), n)):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            for name, uid in uids.items():
                setattr(ds, name, uid)
            ds.save_as(out / f"{n:04}-{k}.dcm")
    return out


def put(ds, pixels):
    ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    ds.Rows, ds.Columns = pixels.shape
    return ds


def lying(ds, _):
    """Stored a quarter turn and mirrored: rows run to the back, columns to the patient's right."""
    pixels = ds.pixel_array
    corner = np.asarray(ds.ImagePositionPatient, float)
    row, column = np.split(np.asarray(ds.ImageOrientationPatient, float), 2)
    between_rows, between_columns = (float(s) for s in ds.PixelSpacing)
    ds.ImagePositionPatient = [round(float(v), 6) for v in corner + row * between_columns * (ds.Columns - 1)]
    ds.ImageOrientationPatient = [*column, *-row]
    ds.PixelSpacing = [between_columns, between_rows]
    return [put(ds, pixels[:, ::-1].T)]


def oblong(ds, _):
    """Every other row only: pixels twice as high as wide. The matrix keeps its middle."""
    pixels = ds.pixel_array
    ds.PixelSpacing = [float(ds.PixelSpacing[0]) * 2, float(ds.PixelSpacing[1])]
    return [put(ds, pixels[::2])]


def repeated(ds, n):
    """The fourth position twice, the second time with other pixels: the smaller UID counts. Padding in the corner."""
    pixels = ds.pixel_array.copy()
    pixels[:40, :40] = padding = int(pixels.min()) - 1 if pixels.dtype.kind == "i" else 4095
    ds.add_new(0x00280120, "SS" if ds.PixelRepresentation else "US", padding)
    put(ds, pixels)
    if n != 3:
        return [ds]
    other = copy.deepcopy(ds)
    return [ds, put(other, np.where(pixels == padding, padding, pixels + 9).astype(pixels.dtype))]


class Parity(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not (PROGRAMS / "ichd").exists() or not (PROGRAMS / "ichd-phantom").exists():
            raise unittest.SkipTest(f"left out: no ichd and ichd-phantom in {PROGRAMS}: cargo build --workspace --features ichd/ort")
        cls.work = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.work.name)
        cls.plain = series(cls.folder / "plain")
        cls.reader = OnnxReader(PACKAGE)

    @classmethod
    def tearDownClass(cls):
        cls.work.cleanup()

    def agree(self, folder: Path):
        said = subprocess.run([PROGRAMS / "ichd", "analyze", folder, "--model", PACKAGE, "--json"], check=True, capture_output=True, text=True).stdout
        [line] = [json.loads(line) for line in said.splitlines()]
        self.assertEqual(line["disposition"], "suspected", line["reason"])
        planes, z_mm, sops = dicom_planes(sorted(folder.glob("*.dcm")), Recipe())
        self.assertEqual([s["sop_uid"] for s in line["slices"]], sops)
        np.testing.assert_allclose([s["z_mm"] for s in line["slices"]], z_mm, atol=1e-3)
        scores = dict(zip(STAGES, self.reader.read(planes, z_mm)))
        for stage, expected in scores.items():
            got = np.asarray([s[stage] for s in line["slices"]])
            np.testing.assert_allclose(got, expected, atol=TOLERANCE, err_msg=stage)
        # Scores that no picture moves would agree whatever is read.
        self.assertGreater(np.ptp(scores["base"][:, 0]), 0.3)
        return scores["final"]

    def test_resized_and_cropped_slices_are_read_alike(self):
        self.agree(self.plain)

    def test_a_head_that_is_stored_lying_is_turned_alike_and_read_as_the_upright_one(self):
        turned = self.agree(rewrite(self.plain, self.folder / "lying", lying))
        np.testing.assert_allclose(turned, self.agree(self.plain), atol=TOLERANCE)

    def test_oblong_pixels_are_read_alike(self):
        self.agree(rewrite(self.plain, self.folder / "oblong", oblong))

    def test_of_images_at_one_position_one_is_read_and_padding_is_air(self):
        self.agree(rewrite(self.plain, self.folder / "repeated", repeated))


if __name__ == "__main__":
    unittest.main()
