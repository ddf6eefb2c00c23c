"""What a checkpoint says of the people and phantoms that it never saw: one file of predictions for `report`."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from . import CLASSES, data
from .export import graphs
from .preprocess import step_meta
from .split import ABOUT
from .train import read_base


@torch.no_grad()
def read(modules, study, device="cpu"):
    """Base, sequence 1 and final probabilities [T, 6] each, before any calibration."""
    base_graph, seq1, seq2 = modules
    features, base = read_base(base_graph.net, study["planes"], device)
    one = seq1(features[None])[0]
    meta = torch.from_numpy(step_meta(study["z_mm"])).to(device)
    final = seq2(torch.cat([base, one, meta], dim=1)[None])[0]
    return [t.cpu().numpy() for t in (base, one, final)]


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--checkpoint", type=Path, required=True)
    a.add_argument("--cache", type=Path, required=True)
    a.add_argument("--fold", type=int)
    a.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a.add_argument("--out", type=Path, required=True, help="file of predictions (.npz)")
    args = a.parse_args()
    modules = [m.to(args.device) for m in graphs(args.checkpoint)]
    about = torch.load(args.checkpoint, map_location="cpu")
    wanted = "shipped" if args.fold is None else f"fold {args.fold}"
    if about["split"] != wanted:
        raise SystemExit(f"{args.checkpoint} was trained with the split `{about['split']}`, not `{wanted}`: it has seen these people")
    _, test = data.load(args.cache, args.fold)
    kept = {}
    for study in test:
        stages = read(modules, study, args.device)
        kept[study["name"]] = np.stack([study["labels"], *stages]).astype(np.float32)
        if data.kind(study) == "real":
            top = stages[2].max(axis=0)
            truth = "+".join(c for i, c in enumerate(CLASSES) if i and study["labels"][:, i].any()) or "quiet"
            print(f"{study['name']} {truth}: " + " ".join(f"{c} {p:.2f}" for c, p in zip(CLASSES, top)), flush=True)
    groups = {study["name"]: study["group"] for study in test}
    np.savez_compressed(args.out, **{ABOUT: json.dumps({"groups": groups, "seen": about.get("seen")})}, **kept)


if __name__ == "__main__":
    main()
