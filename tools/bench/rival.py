"""The rival: the same model package read with pydicom, numpy and ONNX Runtime. One JSON line per series folder."""

import json
import resource
import sys
import time
from pathlib import Path

start = time.perf_counter()
import numpy as np
import onnxruntime
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from ichd_training.preprocess import channels, resize, step_meta  # noqa: E402


def milliseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1e3


def main() -> None:
    package, threads, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    load = lambda name: onnxruntime.InferenceSession(str(package / name), options, providers=["CPUExecutionProvider"])
    base, seq1, seq2 = load("base.onnx"), load("seq1.onnx"), load("seq2.onnx")
    loaded_ms = milliseconds(start)
    for folder in sys.argv[4:] * rounds:
        total = time.perf_counter()
        slices = sorted((pydicom.dcmread(f) for f in sorted(Path(folder).glob("*.dcm"))), key=lambda d: float(d.ImagePositionPatient[2]))
        hu = [d.pixel_array.astype(np.float32) * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices]
        decode_ms = milliseconds(total)
        at = time.perf_counter()
        planes = np.stack([resize(h, float(d.PixelSpacing[0]), float(d.PixelSpacing[1])) for h, d in zip(hu, slices)])
        x = channels(planes)
        preprocess_ms = milliseconds(at)
        at = time.perf_counter()
        parts = [base.run(["features", "probs"], {"x": x[t : t + 1]}) for t in range(len(x))]
        features, probs = (np.concatenate(p) for p in zip(*parts))
        base_ms = milliseconds(at)
        at = time.perf_counter()
        one = seq1.run(None, {"features": features[None]})[0][0]
        z = np.array([float(d.ImagePositionPatient[2]) for d in slices])
        final = seq2.run(None, {"x": np.concatenate([probs, one, step_meta(z)], axis=1)[None].astype(np.float32)})[0][0]
        sequence_ms = milliseconds(at)
        print(json.dumps({
            "any": float(final[:, 0].max()),
            "load_ms": loaded_ms,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "ms": {"decode": decode_ms, "preprocess": preprocess_ms, "base": base_ms, "sequence": sequence_ms, "total": milliseconds(total)},
        }), flush=True)


main()
