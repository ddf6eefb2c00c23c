"""The chain of a package in Python: DICOM, preprocessing, ONNX Runtime. What the daemon is held against; no torch."""

from pathlib import Path

import numpy as np

from .preprocess import Recipe, channels, resize, step_meta
from .readers import dicom_series


class OnnxReader:
    """The three graphs through ONNX Runtime: the reference for the golden scores and the rival in benchmarks."""

    def __init__(self, package: Path, threads: int = 1, recipe: Recipe = Recipe()):
        import onnxruntime

        self.recipe = recipe
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        load = lambda name: onnxruntime.InferenceSession(str(package / name), options, providers=["CPUExecutionProvider"])
        self.base, self.seq1, self.seq2 = load("base.onnx"), load("seq1.onnx"), load("seq2.onnx")

    def read(self, planes: np.ndarray, z_mm: np.ndarray):
        """Planes [T, S, S] HU -> base [T, 6], seq1 [T, 6], final [T, 6]."""
        x = channels(planes, self.recipe)
        parts = [self.base.run(["features", "probs"], {"x": x[t : t + 1]}) for t in range(len(x))]
        features, base = (np.concatenate(p) for p in zip(*parts))
        seq1 = self.seq1.run(None, {"features": features[None]})[0][0]
        final = self.seq2.run(None, {"x": np.concatenate([base, seq1, step_meta(z_mm)], axis=1)[None].astype(np.float32)})[0][0]
        return base, seq1, final


def dicom_planes(files, recipe: Recipe):
    """Files of one series -> planes [T, S, S] HU, z_mm [T], SOP Instance UIDs; thinner series than the recipe reads whole
    are not for this."""
    series = dicom_series(files)
    planes = [resize(plane, series.row_mm, series.column_mm, recipe.size_px, recipe.field_mm) for plane in series.hu]
    return np.stack(planes), series.z_mm, series.sops
