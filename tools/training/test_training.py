"""Quick tests that need numpy at most; what needs torch or data is checked by train, evaluate and export themselves."""

import json
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path

try:
    import numpy as np
except ImportError as missing:
    raise unittest.SkipTest("left out: numpy is not installed") from missing

from ichd_training import preprocess, readers, report, split


class Preprocess(unittest.TestCase):
    def test_area_resize_is_the_mean_over_each_output_pixel(self):
        rng = np.random.default_rng(1)
        fine = rng.uniform(-1000, 1000, (12, 12)).astype(np.float32)
        got = preprocess.resize(fine, 1.0, 1.0, 4, 12.0)
        want = fine.reshape(4, 3, 4, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(got, want, atol=1e-3)

    def test_what_lies_outside_is_air(self):
        got = preprocess.resize(np.full((2, 2), 40, np.float32), 1.0, 1.0, 4, 4.0)
        self.assertEqual(got[0, 0], -1000)
        np.testing.assert_allclose(got[1:3, 1:3], 40, atol=1e-3)

    def test_edges_use_themselves_as_the_missing_neighbour(self):
        planes = np.stack([np.full((4, 4), v, np.float32) for v in (0, 40, 80)])
        x = preprocess.channels(planes)
        self.assertEqual(x.shape, (3, 9, 4, 4))
        np.testing.assert_array_equal(x[0, 0], x[0, 3])
        np.testing.assert_array_equal(x[2, 3], x[2, 6])

    def test_the_lowest_slice_takes_the_step_above_it(self):
        np.testing.assert_allclose(preprocess.step_meta(np.asarray([0, 5, 15]))[:, 0], [0.5, 0.5, 1.0])


class Readers(unittest.TestCase):
    def test_rsna_2019_rows_become_one_vector_per_image(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.csv"
            path.write_text("ID,Label\nID_1_epidural,0\nID_1_subdural,1\nID_1_any,1\n")
            np.testing.assert_array_equal(readers.rsna_2019(path)["ID_1"], [1, 0, 0, 0, 0, 1])

    def test_per_slice_table_derives_any(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "labels.csv"
            path.write_text("sop_uid,epidural,intraparenchymal,intraventricular,subarachnoid,subdural\n1.2,0,1,0,0,0\n")
            np.testing.assert_array_equal(readers.per_slice_csv(path)["1.2"], [1, 0, 1, 0, 0, 0])


class Split(unittest.TestCase):
    def test_a_person_is_in_one_fold_and_a_fifth_of_a_sites_people_is_kept_from_the_weights_that_ship(self):
        people = [f"site-{n:017}" for n in (90, 4, 77, 12, 31, 5, 66, 8, 19, 41, 2)]
        groups = [*people, *(f"person-{n}" for n in range(49, 130)), *(f"phantom-{n:05}" for n in range(40))]
        folds = [split.held_out(groups, fold) for fold in range(5)]
        self.assertEqual(sorted(g for f in folds for g in f), sorted(groups))
        self.assertTrue(all(2 <= sum(g in people for g in f) <= 3 for f in folds), folds)
        kept = split.held_out(groups)
        self.assertEqual(sum(g in people for g in kept), 3)
        self.assertEqual({g for g in kept if g.startswith("person")}, {f"person-{n}" for n in split.TEST_PEOPLE})
        self.assertEqual(len([g for g in kept if g.startswith("phantom")]), 5)
        self.assertEqual(len(split.held_out(people[:1])), 1, "one person alone is kept, not learned from")

    def test_what_was_learned_from_is_counted_by_its_source_and_nothing_else_is_named(self):
        train = [("site-1-1", "site-1"), ("site-1-2", "site-1"), ("site-2-1", "site-2"), ("painted-1-0", "site-1"), ("phantom-ph-00001", "phantom-00001")]
        seen = split.seen(train, [("site-3-1", "site-3")], {"person": {"name": "CT-ICH"}, "site": {"name": "ours"}})
        self.assertEqual(seen["sources"], [{"name": "ours", "people": 2, "series": 3}])
        self.assertEqual((seen["people"], seen["painted"], seen["phantoms"], seen["kept_people"]), (2, 1, 1, ["site-3"]))


def said(name, group, fold, any_max, bleeds):
    """A series of three slices whose middle one has these probabilities."""
    labels, final = np.zeros((3, 6), np.float32), np.full((3, 6), 0.01, np.float32)
    labels[1, :2], final[1, :2] = bleeds, any_max
    return report.Said(name, group, fold, labels, final, final, final)


class Report(unittest.TestCase):
    def test_the_operating_point_is_never_in_the_valley_between_two_peaks(self):
        quiet, bleeding = [0.10, 0.15, 0.50, 0.55], [0.20, 0.25, 0.60, 0.90]
        at = report.choose(quiet + bleeding, [False] * 4 + [True] * 4)
        self.assertTrue(0.15 < at <= 0.20, at)  # every bleed, half of the quiet; 0.348 would have half of both
        # One peak: half-way along it.
        self.assertAlmostEqual(report.choose([0.2, 0.3, 0.7, 0.8], [False, False, True, True]), 0.5, delta=0.01)

    def test_one_persons_series_are_judged_and_drawn_together(self):
        # Four series of one bleeding person; without that person the others give a threshold that the four fail.
        series = [said(f"a{n}", "a", 0, 0.4, True) for n in range(4)] + [said("b", "b", 0, 0.8, True), said("c", "c", 1, 0.3, False), said("d", "d", 1, 0.5, False)]
        points = report.points(series)
        self.assertEqual(points["sensitivity"], 1 / 5)
        self.assertIn("7 series of 4 people", points["provenance"])
        self.assertEqual(sorted(len(g) for g in report.by_group(series)), [1, 1, 1, 4])

    def test_calibration_is_fitted_on_the_other_folds(self):
        sure = [said(f"s{n}", f"s{n}", 0, 0.99, n % 2 == 0) for n in range(8)]
        unsure = [said(f"u{n}", f"u{n}", 1, 0.6, True) for n in range(8)]
        both = report.calibrated_by_others(sure + unsure, sure + unsure)
        self.assertAlmostEqual(float(both[1, 0]), float(report.soften(np.float64(0.99), report.temperature(unsure))), places=5)
        self.assertIsNone(report.calibrated_by_others(sure, sure), "one fold has no others")

    def test_predictions_say_of_whom_they_are(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "p.npz"
            about = {"groups": {"site-7-1": "site-7"}, "seen": {"people": 3}}
            np.savez(path, **{split.ABOUT: json.dumps(about), "site-7-1": np.zeros((4, 5, 6), np.float32)})
            [one], [seen] = report.load([path])
            self.assertEqual((one.name, one.group, one.final.shape, seen), ("site-7-1", "site-7", (5, 6), {"people": 3}))


try:
    import pydicom
except ImportError:
    pydicom = None


@unittest.skipUnless(pydicom, "left out: pydicom is not installed")
class Dicom(unittest.TestCase):
    """A small head-less series, written by pydicom; that real ones are read as the daemon reads them: tests/test_parity.py."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name)

    def write(self, n=10, person="P1", study="1.2.3", series="1.2.3.4", **changed):
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian

        for old in self.path.glob(f"{series}-*.dcm"):
            old.unlink()
        for i in range(n):
            ds = Dataset()
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = readers.CT_IMAGE_STORAGE
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series}.{i + 1}"
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID, ds.Modality = study, series, person, "CT"
            ds.ImageType, ds.ConvolutionKernel = ["ORIGINAL", "PRIMARY", "AXIAL"], "H31s"
            ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0, 0, 5.0 * i], [1.0, 2.0]
            ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 2, 3, 1, "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
            ds.PixelData = (np.arange(6, dtype="<u2").reshape(2, 3) + 10 * i).tobytes()
            for name, value in changed.items():
                setattr(ds, name, value(i) if callable(value) else value)
            ds.save_as(self.path / f"{series}-{i}.dcm", enforce_file_format=True)
        return sorted(self.path.glob(f"{series}-*.dcm"))

    def refusal(self, **changed):
        with self.assertRaises(readers.Refused) as refused:
            readers.dicom_series(self.write(**changed))
        return str(refused.exception)

    def test_what_the_box_refuses_is_left_out_with_its_reason(self):
        self.assertEqual(self.refusal(ConvolutionKernel="H70h"), "bone_kernel")
        self.assertEqual(self.refusal(n=4, series="1.2.3.5"), "too_few_slices")
        self.assertEqual(self.refusal(ImagePositionPatient=lambda i: [0, 0, 15.0 * i]), "too_thick")
        self.assertEqual(self.refusal(ImagePositionPatient=lambda i: [0, 0, 5.0 * (i // 2)], n=20), "same_position")
        self.assertEqual(self.refusal(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "not_axial")
        self.assertEqual(self.refusal(ImageType=["DERIVED", "SECONDARY", "MIP"]), "derived")
        beside = self.write(series="1.2.3.6", ImageType=lambda i: ["DERIVED", "SECONDARY", "MIP" if i == 0 else "OTHER"])
        self.assertEqual(len(readers.dicom_series(beside).hu), len(beside) - 1, "a map beside a stack is set aside")
        self.assertEqual(self.refusal(PhotometricInterpretation="MONOCHROME1"), "undecodable")
        for bone in ("BONE", "BONEPLUS", "HD BONE", "H60s", "H70h", "Hr68", "J70h", "I70f", "Hv70", "Bv60", "YA", "FC30", "FC52", "FC81", "B_SHARP_C"):
            self.assertTrue(readers.is_bone_kernel(bone), bone)
        for soft in ("STANDARD", "STD+", "SOFT", "H31s", "J40s", "I31f", "Qr36", "Hv40", "UB", "FC21", "FC68", "Hr38", "B_SOFT_B", "", "KERNEL 7", "H", "HRX60", "H600"):
            self.assertFalse(readers.is_bone_kernel(soft), soft)

    def test_a_lying_image_is_turned_with_its_spacing_and_a_repeat_is_dropped(self):
        plain = readers.dicom_series(self.write())
        self.assertEqual((plain.row_mm, plain.column_mm), (1.0, 2.0))
        np.testing.assert_array_equal(plain.hu[0], np.arange(6).reshape(2, 3) - 1024)
        position = lambda i: [0, 0, 5.0 * (i if i < 10 else 3)]
        turned = readers.dicom_series(self.write(n=11, series="1.2.3.9", ImageOrientationPatient=[0, 1, 0, -1, 0, 0], ImagePositionPatient=position))
        self.assertEqual((turned.row_mm, turned.column_mm, len(turned.hu)), (2.0, 1.0, 10))
        np.testing.assert_array_equal(turned.hu[0], plain.hu[0].T[:, ::-1])

    def test_padding_is_air_in_the_stored_bits_and_in_the_whole_cell(self):
        padded = readers.dicom_series(self.write(PixelPaddingValue=3, PixelPaddingRangeLimit=4))
        np.testing.assert_array_equal(padded.hu[0].ravel(), [-1024, -1023, -1022, -1000, -1000, -1019])

    def test_a_persons_series_share_a_group_and_nothing_in_the_cache_names_anybody(self):
        self.write(person="1234567", series="1.2.3.10", study="1.2.3")
        self.write(person="1234567", series="1.2.3.11", study="1.2.4")
        self.write(person="7654321", series="1.2.3.12", study="1.2.5")
        self.write(person="", series="1.2.3.13", study="1.2.6")
        self.write(person="", series="1.2.3.14", study="1.2.6", PixelSpacing=[1, 1])
        self.write(person="9999999", series="1.2.3.15", study="1.2.7", ConvolutionKernel="BONE")
        table = self.path / "labels.csv"
        uids = [str(pydicom.dcmread(p).SOPInstanceUID) for p in self.path.glob("*.dcm")]
        table.write_text("sop_uid,epidural,intraparenchymal,intraventricular,subarachnoid,subdural\n" + "".join(f"{u},0,0,0,0,1\n" for u in uids))
        source = self.path / "source.json"
        source.write_text(json.dumps({"name": "Our hospital 2020-2024", "limits": "one scanner"}))
        run = lambda cache: subprocess.run([sys.executable, "-m", "ichd_training.prepare", "--dicom", self.path, "--slice-csv", table, "--source", source,
                                            "--cache", cache], cwd=Path(__file__).parent, capture_output=True, text=True)
        done = run(self.path / "cache")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1 series, bone_kernel", done.stdout)
        self.assertIn("2 series have no Patient ID", done.stdout)
        groups = Counter()
        for path in (self.path / "cache").glob("*.npz"):
            with np.load(path) as stored:
                groups[str(stored["group"])] += 1
                text = " ".join([path.name, str(stored["name"]), str(stored["group"])])
                self.assertFalse(any(known in text for known in ("1234567", "7654321", "1.2.3")), text)
        self.assertEqual(sorted(groups.values()), [1, 2, 2])
        words = json.loads((self.path / "cache/source.json").read_text())["site"]
        self.assertEqual(words["name"], "Our hospital 2020-2024")
        self.assertIn("2 series without Patient ID", words["limits"])
        again = run(self.path / "cache")
        self.assertIn("could not recognise", again.stderr, "the key is gone: the same people would get other groups")


if __name__ == "__main__":
    unittest.main()
