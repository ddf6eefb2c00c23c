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
from .preprocess import Recipe, channels, step_meta
from .reference import OnnxReader, dicom_planes

OPSET = 17

INTENDED = "non-contrast axial head CT of adults, soft-tissue kernel"
"""For people. What the daemon refuses or flags stands in its specification, not in a package."""

KEY = Path.home() / ".config/ichd/model-signing.key"
"""Outside any tree that could be committed."""


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


def parity(modules, package: Path, recipe: Recipe) -> float:
    """Largest difference between PyTorch and ONNX Runtime over the golden series, any stage, any slice."""
    planes, z_mm, _ = dicom_planes(sorted((package / "golden/series").glob("*.dcm")), recipe)
    base, seq1, final = OnnxReader(package, recipe=recipe).read(planes, z_mm)
    with torch.no_grad():
        features, b, _ = modules[0](torch.from_numpy(channels(planes, recipe)))
        s1 = modules[1](features[None])[0]
        s2 = modules[2](torch.cat([b, s1, torch.from_numpy(step_meta(z_mm))], dim=1)[None])[0]
    return max(float(np.abs(ours.numpy() - theirs).max()) for ours, theirs in ((b, base), (s1, seq1), (s2, final)))


GOLDEN = (("7", "intraparenchymal", "40"), ("11", "epidural", "60"), ("12", "subdural", "80"), ("13", "intraventricular", "8"))
"""Seed, bleed and volume (mL) of the heads that are tried as golden series, in order."""


def golden(package: Path, phantom: Path, recipe: Recipe, any_min: float) -> None:
    """One small phantom series with its answers; made from the project's own phantom, so it may be shipped.

    Its pixels are no multiple of the network's and it is wider than the network's field, so that its scores hold resize
    and crop. Every proof of life asks whether it is suspected, so it must be, by the package's own threshold.
    """
    folder, tried = package / "golden/series", []
    for seed, bleed, volume in GOLDEN:
        shutil.rmtree(package / "golden", ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run([phantom, "series", "--seed", seed, "--bleed", bleed, "--volume-ml", volume, "--slices", "10", "--step-mm", "10",
                        "--matrix", "216", "--field-mm", "256", "--out", folder], check=True, capture_output=True)
        planes, z_mm, _ = dicom_planes(sorted(folder.glob("*.dcm")), recipe)
        base, seq1, final = OnnxReader(package, recipe=recipe).read(planes, z_mm)
        any_max = float(final[:, 0].max())
        tried.append(f"{bleed} {any_max:.3f}")
        # Backends differ in the last digits; a golden series on the edge would be suspected by one of them only.
        if any_max >= any_min + 0.01:
            table = {"base": base, "seq1": seq1, "final": final}
            (package / "golden/expected.json").write_text(json.dumps({k: np.round(v, 6).tolist() for k, v in table.items()}) + "\n")
            return
    raise SystemExit(f"no phantom bleed is suspected at `final` {any_min} ({', '.join(tried)}), so no box could prove with this package that it "
                     "works, and ichd would refuse it; train with phantoms, or give thresholds that were measured (--points)")


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
    for name, provenance in (("final", points["provenance"]), ("provisional", points["provisional_provenance"])):
        out.append(f"[[operating-points]]\nname = {q(name)}\nthresholds = {points[name]}\nprovenance = {q(provenance)}\n")
    for name, any_min, priority in (("urgent", points["urgent"], 1), ("prompt", 0.0, 2)):
        out.append(f"[[tiers]]\nname = {q(name)}\nany-min = {any_min}\npriority = {priority}\n")
    method, provenance = points["calibration"]
    out.append(f"[calibration]\nmethod = {q(method)}\nprovenance = {q(provenance)}\n")
    out.append(f"[intended]\nwords = {q(INTENDED)}\n")
    data, limits = points["training"]
    out.append(f"[training]\ndata = {q(data)}\nlimits = {q(limits)}\n")
    out.append("[golden]\nseries = \"golden/series\"\nexpected = \"golden/expected.json\"\n\n[files]")
    files = sorted(p for p in package.rglob("*") if p.is_file() and not p.name.startswith("manifest."))
    out += [f"{q(p.relative_to(package).as_posix())} = {q(hashlib.sha256(p.read_bytes()).hexdigest())}" for p in files]
    return "\n".join(out) + "\n"


def plural(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def words(points: dict) -> dict:
    """What a manifest says of calibration and training, from what `train` saw and `report` measured."""
    people, seen = points["figures"]["people"], points["seen"]
    before, after = people["calibration_error_any"], people["calibration_error_any_calibrated"]
    error = f"{before:.3f} before" + ("" if after is None else f", {after:.3f} after, by the temperature of the other folds")
    data = [f"{s['name']}{' (' + s['licence'] + ')' if 'licence' in s else ''}: {plural(s['people'], 'person', 'people')}, {s['series']} series" for s in seen["sources"]]
    data += [f"{seen['painted']} copies of their quiet heads with painted bleeds"] if seen["painted"] else []
    data += [f"{plural(seen['phantoms'], 'synthetic head')}"] if seen["phantoms"] else []
    data.append(f"{plural(len(seen['kept_people']), 'person', 'people')} kept out")
    return {
        "calibration": ("temperature", f"temperature {points['temperature']:.2f} on the last stage, least log loss over the people of the cross-validation; "
                        f"expected calibration error of any per slice {error}"),
        "training": ("; ".join(data), "; ".join([s["limits"] for s in seen["sources"]] + ["not a medical device"])),
    }


def card(version: str, points: dict, package: Path) -> str:
    """MODEL_CARD.md text; every figure is one that `report` measured, every word on the data comes from `prepare`."""
    seen, people, phantoms = points["seen"], points["figures"]["people"], points["figures"].get("phantoms")
    recipe = Recipe()
    size_mb = sum(p.stat().st_size for p in package.glob("*.onnx")) / 1e6
    span = lambda v: f"{v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})" if v else "-"
    row = lambda f, name, c: f"| {c} | " + " | ".join(span(f[name][c].get(k)) for k in ("auc", "ap", "sensitivity", "specificity")) + " |"
    others = f"| any, threshold of the others | | | {points['sensitivity']:.2f} | {points['specificity']:.2f} |"
    head = "| class | AUC | average precision | sensitivity | specificity |\n|---|---|---|---|---|\n"
    table = lambda f, name, more=(): head + "\n".join([row(f, name, CLASSES[0]), *more, *(row(f, name, c) for c in CLASSES[1:])])
    number = lambda x: "-" if x is None else f"{x:.3f}"
    losses = lambda name, f: (f"| {name} | {f['people']}, {f['series']} ({f['bleeding']}) | " + " | ".join(f"{f['log_loss'][k]:.3f}" for k in ("base", "seq1", "final"))
                              + f" | {number(f['log_loss_calibrated'])} |")
    sources = "\n".join(f"- {s['name']}{', ' + s['licence'] if 'licence' in s else ''}: the weights that ship learned from {plural(s['people'], 'person', 'people')}, "
                        f"{s['series']} series of it.\n  Limits: {s['limits']}." for s in seen["sources"])
    sources += f"\n- Bleeds painted into the quiet ones of them: {seen['painted']} copies." if seen["painted"] else ""
    sources += f"\n- The project's own head phantom with painted bleeds: {seen['phantoms']} heads." if seen["phantoms"] else ""
    names = ": " + ", ".join(g.removeprefix("person-") for g in seen["kept_people"]) if all(g.startswith("person-") for g in seen["kept_people"]) else ""
    lengths = {n for n in points["fold_slices"] if n}
    thousands = lambda n: f"{n:,}".replace(",", " ")
    length = (f" The networks of the folds were trained\non {thousands(max(lengths))} slices each, those that ship on {thousands(seen['slices'])}."
              if lengths and seen.get("slices") else "")
    few = [f"{c} from {n}" for c, n in people["people_of_class"].items() if c != "any" and n < 10]
    auc = people["by_series"]["any"].get("auc", [0])[0]
    goal = "reached" if auc >= 0.96 and points["sensitivity"] >= 0.95 and points["specificity"] >= 0.90 else "**not reached**"
    parts = [f"""# {package.name} {version}

Reads axial non-contrast head CT for suspected intracranial hemorrhage. **Not a medical device**, and not to be relied
on for patients: a hospital measures a model on studies of its own, and better trains it on them
(`tools/training/README.md`), before it believes a single alert.

## Data

{sources}
- Kept from the weights that ship: {plural(len(seen['kept_people']), 'person', 'people')}{names}; {plural(seen['kept_phantoms'], 'phantom')}.

## Cross-validation

By person: every person is read by a network that saw neither them nor anything made from them.{length}
Intervals: 95 % bootstrap, resampling people (300 draws). Log loss is before calibration; calibrated: by the temperature
that the people of the other folds give.

| group | people, series (bleeding) | log loss base | + sequence 1 | + sequence 2 | calibrated |
|---|---|---|---|---|---|
{losses("people", people)}
{losses("phantoms", phantoms) if phantoms else ""}""".rstrip() + "\n"]
    parts.append(f"""Sensitivity and specificity are at the operating point, which for `any` was chosen on these very people; the row below it
judges each person by the threshold that the others give. The thresholds of the subtypes were not chosen on data.

People, by series:

{table(people, "by_series", [others])}

People, by slice:

{table(people, "slice")}
""")
    if phantoms:
        parts.append(f"Phantoms, by series:\n\n{table(phantoms, 'by_series')}\n")
    parts.append(f"""Operating point, {points["provenance"]}.
The goal of AUC 0.96 and of sensitivity 0.95 at specificity 0.90 on people is {goal}.
Calibration: {words(points)['calibration'][1]}.
""")
    if points["ablation"]:
        rows = "".join(f"| {name} | {a['people']} | {a['base']:.3f} | {a['seq1']:.3f} | {a['final']:.3f} | {a['series_auc_any']:.2f} |\n" for name, a in points["ablation"].items())
        parts.append("Ablation, log loss before calibration:\n\n| trained with | people | log loss base | + sequence 1 | + sequence 2 | series AUC `any` |\n"
                     f"|---|---|---|---|---|---|\n{rows}")
    parts.append(f"## The weights that ship, on the people kept from them\n\n{kept_people(points)}")
    if points["observed"].strip():
        parts.append(points["observed"].strip() + "\n")
    parts.append(f"""## Graphs

Base CNN (residual, dense 3x3 convolutions, {size_mb:.0f} MB in all with both sequence models), {recipe.size_px} x {recipe.size_px} pixels over {recipe.field_mm:.0f} mm, three
slices in three windows. Lesion map {recipe.map_px} x {recipe.map_px}: side and volume are estimates.

## Limits

Those of the data above. Small bleeds are often missed. {"Known from few people, so that the figures mean next to nothing: " + ", ".join(few) + "." if few else ""}
`[intended]` in the manifest is information for people: what the daemon refuses or flags stands in SPECIFICATION.md.
""")
    return "\n".join(parts)


def kept_people(points: dict) -> str:
    """One row per person while there are few, a count otherwise."""
    any_min, truth = points["final"][0], points["shipped_truth"]
    if not points["shipped"]:
        return "None were.\n"
    if len(points["shipped"]) > 12:
        bleeds, quiet = ([p[0] >= any_min for n, p in points["shipped"].items() if bool(truth[n]) == b] for b in (True, False))
        return f"Suspected: {sum(bleeds)} of {len(bleeds)} bleeding series, {sum(quiet)} of {len(quiet)} quiet ones.\n"
    first = lambda p: CLASSES[1 + int(np.argmax(p[1:]))] if p[0] >= any_min else "-"
    rows = "".join(f"| {n.removeprefix('ct-ich-')} | {', '.join(truth[n]) or 'quiet'} | {p[0]:.2f} | {first(p)} |\n" for n, p in points["shipped"].items())
    return f"| series | labels | `any` | first class |\n|---|---|---|---|\n{rows}"


def sign(package: Path, key_path: Path) -> None:
    """Signs manifest.toml; makes the key pair if the private key does not exist. The private key is never committed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not key_path.exists():
        key_path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(Ed25519PrivateKey.generate().private_bytes_raw())
    key = Ed25519PrivateKey.from_private_bytes(key_path.read_bytes())
    public = key_path.with_suffix(".pub")
    if not public.exists():
        public.write_text(key.public_key().public_bytes_raw().hex() + "\n")
    (package / "manifest.sig").write_bytes(key.sign((package / "manifest.toml").read_bytes()))


def build_package(modules, recipe: Recipe, points: dict, card, args) -> None:
    """Writes graphs, golden series, card, manifest and signature to `args.out`, and stops where ONNX Runtime disagrees."""
    if not re.fullmatch(r"[a-z0-9._+-]{1,64}", args.out.name):
        raise SystemExit(f"--out {args.out}: the folder's name becomes the package's id: a-z, 0-9, `.`, `-`, `_`, `+` only")
    if args.out.exists() and any(args.out.iterdir()):
        if not args.replace:
            raise SystemExit(f"--out {args.out} is not empty; name another folder, or --replace")
        shutil.rmtree(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    export_graphs(modules, args.out, recipe)
    golden(args.out, args.phantom, recipe, points["final"][0])
    worst = parity(modules, args.out, recipe)
    print(f"PyTorch and ONNX Runtime differ by at most {worst:.1e}")
    if worst > 1e-3:
        raise SystemExit("parity failed: more than 1e-3")
    (args.out / "MODEL_CARD.md").write_text(card(args.version, points, args.out))
    (args.out / "manifest.toml").write_text(manifest(args.out, args.version, points, recipe))
    sign(args.out, args.key)
    print(f"signed package in {args.out} (key {args.key.with_suffix('.pub')}), {sum(p.stat().st_size for p in args.out.rglob('*') if p.is_file()) / 1e6:.1f} MB")


def arguments(doc: str):
    """The options that every packager has."""
    a = argparse.ArgumentParser(description=doc)
    a.add_argument("--phantom", type=lambda p: Path(p).resolve(), required=True, help="the `ichd-phantom` program")
    a.add_argument("--key", type=Path, default=KEY, help=f"Ed25519 private key file, made if absent; its public half lies beside it [{KEY}]")
    a.add_argument("--version", required=True)
    a.add_argument("--out", type=Path, required=True, help="folder of the package; its name becomes the package's id")
    a.add_argument("--replace", action="store_true", help="empty --out first")
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
