"""Quick tests that need numpy at most; what needs torch or data is checked by train, evaluate and export themselves."""

import tempfile
import unittest
from pathlib import Path

try:
    import numpy as np
except ImportError as missing:
    raise unittest.SkipTest("left out: numpy is not installed") from missing

from ichd_training import preprocess, readers


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


if __name__ == "__main__":
    unittest.main()
