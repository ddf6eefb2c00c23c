"""Checkpoint -> signed model package, in one command: graphs, golden series, manifest, signature, parity check."""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import CLASSES, CLIP_HU, OUTSIDE_HU, STEP_MM_MIN
from .model import Base, Sequence1, Sequence2
from .preprocess import Recipe, channels, resize, step_meta
from .readers import dicom_series

OPSET = 17


class BaseGraph(nn.Module):
    def __init__(self, net, temperature):
        super().__init__()
        self.net, self.t = net, temperature

    def forward(self, x):
        features, logits, maps = self.net(x)
        return features, torch.sigmoid(logits / self.t), torch.sigmoid(maps)


class SequenceGraph(nn.Module):
    def __init__(self, net, temperature=1.0):
        super().__init__()
        self.net, self.t = net, temperature

    def forward(self, x):
        return torch.sigmoid(self.net(x) / self.t)


def graphs(checkpoint: Path, temperature: float = 1.0):
    """The three stages of a checkpoint, in evaluation mode, with the calibration of the last one folded in."""
    state = torch.load(checkpoint, map_location="cpu")
    base, s1, s2 = Base(), Sequence1(), Sequence2()
    base.load_state_dict(state["base"])
    s1.load_state_dict(state["seq1"])
    s2.load_state_dict(state["seq2"])
    return BaseGraph(base, 1.0).eval(), SequenceGraph(s1).eval(), SequenceGraph(s2, temperature).eval()


def export_graphs(modules, out: Path, recipe: Recipe) -> None:
    base, s1, s2 = modules
    save = dict(dynamo=False, opset_version=OPSET, do_constant_folding=True)
    torch.onnx.export(base, torch.zeros(1, len(recipe.names()), recipe.size_px, recipe.size_px), out / "base.onnx", input_names=["x"], output_names=["features", "probs", "map"], **save)
    torch.onnx.export(s1, torch.zeros(1, 20, recipe.features), out / "seq1.onnx", input_names=["features"], output_names=["probs"], dynamic_axes={"features": {1: "slices"}, "probs": {1: "slices"}}, **save)
    torch.onnx.export(s2, torch.rand(1, 20, 13), out / "seq2.onnx", input_names=["x"], output_names=["probs"], dynamic_axes={"x": {1: "slices"}, "probs": {1: "slices"}}, **save)


class OnnxReader:
    """The same chain through ONNX Runtime: the reference for the golden scores and the rival in benchmarks."""

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
    hu, z_mm, pixel_mm, _ = dicom_series(files)
    return np.stack([resize(plane, pixel_mm, pixel_mm, recipe.size_px, recipe.field_mm) for plane in hu]), z_mm


def parity(modules, package: Path, recipe: Recipe) -> float:
    """Largest difference between PyTorch and ONNX Runtime over the golden series, any stage, any slice."""
    planes, z_mm = dicom_planes(sorted((package / "golden/series").glob("*.dcm")), recipe)
    base, seq1, final = OnnxReader(package, recipe=recipe).read(planes, z_mm)
    with torch.no_grad():
        features, b, _ = modules[0](torch.from_numpy(channels(planes, recipe)))
        s1 = modules[1](features[None])[0]
        s2 = modules[2](torch.cat([b, s1, torch.from_numpy(step_meta(z_mm))], dim=1)[None])[0]
    return max(float(np.abs(ours.numpy() - theirs).max()) for ours, theirs in ((b, base), (s1, seq1), (s2, final)))


def golden(package: Path, phantom: Path, recipe: Recipe) -> None:
    """One small phantom series with its answers; made from the project's own phantom, so it may be shipped."""
    folder = package / "golden/series"
    shutil.rmtree(package / "golden", ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([phantom, "series", "--seed", "7", "--bleed", "intraparenchymal", "--volume-ml", "40", "--slices", "10", "--step-mm", "10", "--matrix", "192", "--out", folder], check=True, capture_output=True)
    planes, z_mm = dicom_planes(sorted(folder.glob("*.dcm")), recipe)
    base, seq1, final = OnnxReader(package, recipe=recipe).read(planes, z_mm)
    table = {"base": base, "seq1": seq1, "final": final}
    (package / "golden/expected.json").write_text(json.dumps({k: np.round(v, 6).tolist() for k, v in table.items()}) + "\n")


def manifest(package: Path, version: str, points: dict, recipe: Recipe) -> str:
    """manifest.toml text; `points` holds thresholds with provenance and the words on calibration and training."""
    q = json.dumps
    out = [f"format = 1\nid = {q(package.name)}\nversion = {q(version)}\nclasses = {q(CLASSES)}\n"]
    out.append(f"[input]\nsize-px = {recipe.size_px}\nfield-mm = {recipe.field_mm}\ncenter = \"image\"\nresize = \"area\"\noutside-hu = {OUTSIDE_HU}\n"
               f"clip-hu = {list(CLIP_HU)}\nstep-mm-min = {STEP_MM_MIN}\nmean = {recipe.mean}\nstd = {recipe.std}\n"
               f"channels = {q(recipe.names())}\n")
    out += [f"[[input.windows]]\nname = {q(n)}\nlevel-hu = {level}\nwidth-hu = {width}\n" for n, (level, width) in recipe.windows.items()]
    out.append(f"[graphs.base]\nfile = \"base.onnx\"\nfeatures = {recipe.features}\nmap-px = {recipe.map_px}\n\n[graphs.seq1]\nfile = \"seq1.onnx\"\n\n"
               "[graphs.seq2]\nfile = \"seq2.onnx\"\nmeta = [\"step-mm/10\"]\n\n[series]\naggregate = \"max\"\n")
    strict = "stricter than final: at least 0.8, 0.1 above final, and 0.03 above the 98 % quantile of quiet held-out series (at most 0.97)"
    for name, provenance in (("final", points["provenance"]), ("provisional", strict)):
        out.append(f"[[operating-points]]\nname = {q(name)}\nthresholds = {points[name]}\nprovenance = {q(provenance)}\n")
    for name, any_min, priority in (("urgent", points["urgent"], 1), ("prompt", 0.0, 2)):
        out.append(f"[[tiers]]\nname = {q(name)}\nany-min = {any_min}\npriority = {priority}\n")
    method, provenance = points["calibration"]
    out.append(f"[calibration]\nmethod = {q(method)}\nprovenance = {q(provenance)}\n")
    out.append("[intended]\nthickness-mm = [2.5, 10.0]\nfield-mm = [180.0, 300.0]\nkernels = \"soft tissue\"\nwords = \"non-contrast axial head CT of adults\"\n")
    data, limits = points["training"]
    out.append(f"[training]\ndata = {q(data)}\nlimits = {q(limits)}\n")
    out.append("[golden]\nseries = \"golden/series\"\nexpected = \"golden/expected.json\"\n\n[files]")
    files = sorted(p for p in package.rglob("*") if p.is_file() and not p.name.startswith("manifest."))
    out += [f"{q(p.relative_to(package).as_posix())} = {q(hashlib.sha256(p.read_bytes()).hexdigest())}" for p in files]
    return "\n".join(out) + "\n"


def words(points: dict) -> dict:
    """What a manifest says of calibration and training, from what `report` measured."""
    error, held = points["figures"]["people"]["calibration_error_any"], len(points["shipped"])
    return {
        "calibration": ("temperature", f"temperature {points['temperature']:.2f} on the last stage, least log loss over the people of the cross-validation; expected "
                        f"calibration error of any per slice {points['calibration_error_raw']:.3f} before, {error:.3f} after"),
        "training": (f"CT-ICH (Hssayeni et al. 2020, CC BY 4.0) without {held} held-out people; painted copies of its quiet heads; phantom heads",
                     f"{points['figures']['people']['series'] - held} people, one hospital, one scanner setting; painted bleeds; not a medical device"),
    }


def card(version: str, points: dict, package: Path) -> str:
    """MODEL_CARD.md text; every figure is the one `report` measured."""
    people, phantoms = points["figures"]["people"], points["figures"]["phantoms"]
    recipe = Recipe()
    size_mb = sum(p.stat().st_size for p in package.glob("*.onnx")) / 1e6
    span = lambda v: f"{v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})" if v else "-"
    row = lambda f, name, c: (f"| {c} | " + " | ".join(span(f[name][c].get(k)) for k in ("auc", "ap", "sensitivity", "specificity")) + " |")
    table = lambda f, name: ("| class | AUC | average precision | sensitivity | specificity |\n|---|---|---|---|---|\n" + "\n".join(row(f, name, c) for c in CLASSES))
    losses = lambda name, f: f"| {name} | {f['series']} ({f['bleeding']}) | " + " | ".join(f"{f['log_loss'][k]:.3f}" for k in ("base", "seq1", "final")) + " |"
    ablation = "".join(f"| {name} | {a['people']} | {a['base']:.3f} | {a['seq1']:.3f} | {a['final']:.3f} | {a['series_auc_any']:.2f} |\n" for name, a in points["ablation"].items())
    truth = points["shipped_truth"]
    shown = "".join(f"| {name.removeprefix('ct-ich-')} | {', '.join(truth[name]) or 'quiet'} | {p[0]:.2f} | {CLASSES[1 + int(np.argmax(p[1:]))] if p[0] >= points['final'][0] else '-'} |\n" for name, p in points["shipped"].items())
    auc = people["by_series"]["any"]["auc"][0]
    goal = "reached" if auc >= 0.96 and points["sensitivity"] >= 0.95 and points["specificity"] >= 0.90 else "**not reached**"
    return f"""# {package.name} {version}

Reads axial non-contrast head CT for suspected intracranial hemorrhage. **Not a medical device.** Trained to show the
whole chain on real input; not to be relied on for patients. A hospital trains on its own data
(`tools/training/README.md`) before it believes a single alert.

## Data

- CT-ICH, open JPEG release (M. D. Hssayeni et al., Data 2020, 5(1):14, DOI 10.13026/w8q8-ky94, CC BY 4.0): {people["series"]} people,
  {people["slices"]} slices. One hospital, trauma patients, pixel size guessed, HU from 8-bit images.
- Bleeds painted into the quiet ones of them, and the project's own head phantom with painted bleeds.
- The weights that ship saw {people["series"] - len(points["shipped"])} of the people: 54, 70, 71, 84 and 91, and every eighth phantom, were kept from them.

## Cross-validation

Five folds by person: every person is read by a network that saw neither them nor anything painted into them. The
networks of the folds had half the training that the shipped weights had. Intervals: 95 %, people drawn anew.

| group | series (bleeding) | log loss base | + sequence 1 | + sequence 2 |
|---|---|---|---|---|
{losses("people", people)}
{losses("phantoms", phantoms)}

People, by series:

{table(people, "by_series")}

People, by slice:

{table(people, "slice")}

Phantoms, by series:

{table(phantoms, "by_series")}

Operating point: {points["provenance"]}.
The goal of AUC 0.96 and of sensitivity 0.95 at specificity 0.90 on people is {goal}.
Calibration: {words(points)['calibration'][1]}.

| trained otherwise | people | log loss base | + sequence 1 | + sequence 2 | series AUC `any` |
|---|---|---|---|---|---|
{ablation}
## The weights that ship, on the people kept from them

| person | radiologists | `any` | first class |
|---|---|---|---|
{shown}
{points.get("observed", "")}

## Graphs

Base CNN (residual, dense 3x3 convolutions, {size_mb:.0f} MB in all with both sequence models), {recipe.size_px} x {recipe.size_px} pixels over {recipe.field_mm:.0f} mm, three
slices in three windows. Lesion map {recipe.map_px} x {recipe.map_px}: side and volume are estimates.

## Limits

Children, contrast, metal, motion, thin slices and other scanners are hardly or not in the data. Subarachnoid blood is
known from four people, subdural and intraventricular blood from three each: the figures of these classes mean next to
nothing, and small bleeds are often missed. The five people above are also the project's end-to-end test series.
"""


def sign(package: Path, key_path: Path) -> None:
    """Signs manifest.toml; makes the key pair if the private key does not exist. The private key is never committed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not key_path.exists():
        key_path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(Ed25519PrivateKey.generate().private_bytes_raw())
    key = Ed25519PrivateKey.from_private_bytes(key_path.read_bytes())
    key_path.with_suffix(".pub").write_text(key.public_key().public_bytes_raw().hex() + "\n")
    (package / "manifest.sig").write_bytes(key.sign((package / "manifest.toml").read_bytes()))


def build_package(modules, recipe: Recipe, points: dict, card, args) -> None:
    """Writes graphs, golden series, card, manifest and signature to `args.out`, and stops where ONNX Runtime disagrees."""
    if not re.fullmatch(r"[a-z0-9._+-]{1,64}", args.out.name):
        raise SystemExit(f"--out {args.out}: the folder's name becomes the package's id: a-z, 0-9, `.`, `-`, `_`, `+` only")
    args.out.mkdir(parents=True, exist_ok=True)
    export_graphs(modules, args.out, recipe)
    golden(args.out, args.phantom, recipe)
    worst = parity(modules, args.out, recipe)
    print(f"PyTorch and ONNX Runtime differ by at most {worst:.1e}")
    if worst > 1e-3:
        raise SystemExit("parity failed: more than 1e-3")
    (args.out / "MODEL_CARD.md").write_text(card(args.version, points, args.out))
    (args.out / "manifest.toml").write_text(manifest(args.out, args.version, points, recipe))
    sign(args.out, args.key)
    print(f"signed package in {args.out}, {sum(p.stat().st_size for p in args.out.rglob('*') if p.is_file()) / 1e6:.1f} MB")


def arguments(doc: str):
    """The options that every packager has."""
    a = argparse.ArgumentParser(description=doc)
    a.add_argument("--phantom", type=Path, required=True, help="the `ichd-phantom` program")
    a.add_argument("--key", type=Path, required=True, help="Ed25519 private key file; made if absent")
    a.add_argument("--version", default="0.1.0")
    a.add_argument("--out", type=Path, required=True)
    return a


def main() -> None:
    a = arguments(__doc__)
    a.add_argument("--checkpoint", type=Path, required=True)
    a.add_argument("--points", type=Path, required=True, help="operating points written by report")
    args = a.parse_args()
    points = json.loads(args.points.read_text())
    build_package(graphs(args.checkpoint, points["temperature"]), Recipe(), points | words(points), card, args)


if __name__ == "__main__":
    main()
