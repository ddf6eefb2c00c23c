"""Held-out people and phantoms through the trained stages: figures, and the operating points that follow from them."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from . import CLASSES, data
from .export import graphs
from .preprocess import channels, step_meta


def auc(scores, labels) -> float:
    """Mann-Whitney; NaN without both kinds."""
    scores, labels = np.asarray(scores, float), np.asarray(labels) > 0.5
    pos, neg = scores[labels], scores[~labels]
    if not len(pos) or not len(neg):
        return float("nan")
    return float(((pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)).mean())


def log_loss(probs, labels) -> float:
    """The challenge's: weight 2 on `any`."""
    p = np.clip(probs, 1e-6, 1 - 1e-6)
    loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    return float((loss * np.asarray([2, 1, 1, 1, 1, 1])).sum(axis=1).mean() / 7)


def interval(values, statistic, rng, n=500):
    """95 % bootstrap interval over people."""
    stats = [statistic([values[i] for i in rng.integers(0, len(values), len(values))]) for _ in range(n)]
    return [float(q) for q in np.nanquantile(stats, [0.025, 0.975])]


@torch.no_grad()
def read(modules, study):
    """Base, sequence 1 and final probabilities [T, 6] each."""
    x = torch.from_numpy(channels(study["planes"]))
    parts = [modules[0](chunk)[:2] for chunk in x.split(16)]
    features, base = (torch.cat(p) for p in zip(*parts))
    seq1 = modules[1](features[None])[0]
    final = modules[2](torch.cat([base, seq1, torch.from_numpy(step_meta(study["z_mm"]))], dim=1)[None])[0]
    return [t.numpy() for t in (base, seq1, final)]


def figures(name, results, rng):
    """Slice and series figures of one group of (labels, [base, seq1, final]) results."""
    labels = np.concatenate([r[0] for r in results])
    out = {"series": len(results), "slices": len(labels), "bleeding_series": int(sum(r[0][:, 0].max() for r in results))}
    for stage, key in enumerate(("base", "seq1", "final")):
        out[f"log_loss_{key}"] = log_loss(np.concatenate([r[1][stage] for r in results]), labels)
    final = np.concatenate([r[1][2] for r in results])
    out["slice_auc"] = {c: auc(final[:, i], labels[:, i]) for i, c in enumerate(CLASSES)}
    series = lambda rs: auc([r[1][2][:, 0].max() for r in rs], [r[0][:, 0].max() for r in rs])
    out["series_auc_any"], out["series_auc_any_95"] = series(results), interval(results, series, rng)
    print(f"{name}: {json.dumps(out)}")
    return out


def series_tops(results):
    """(highest final `any`, bleeding) of each series."""
    return [(float(r[1][2][:, 0].max()), bool(r[0][:, 0].max())) for r in results]


def threshold(tops) -> float:
    """Half-way (in log odds) between the quiet and the bleeding series that it must part."""
    logit = lambda p: np.log(p / (1 - p))
    scores = [p for p, _ in tops]
    candidates = np.unique(np.round(np.concatenate([np.linspace(0.1, 0.9, 81), scores]), 3))
    merit = lambda t: np.mean([p >= t for p, bleeds in tops if bleeds]) + np.mean([p < t for p, bleeds in tops if not bleeds])
    best = max(merit(t) for t in candidates)
    good = [t for t in candidates if 0.05 <= t <= 0.95 and merit(t) >= best - 1e-9]
    return float(np.round(1 / (1 + np.exp(-np.mean([logit(good[0]), logit(good[-1])]))), 3))


def choose_points(people, phantoms) -> dict:
    """Operating points from the held-out series; their figures leave each series out of its own threshold."""
    tops = series_tops(people) + series_tops(phantoms)
    final = threshold(tops)
    quiet = [p for p, bleeds in tops if not bleeds]
    provisional = float(np.round(min(0.97, max(final + 0.1, np.quantile(quiet, 0.98) + 0.03, 0.8)), 3))
    judged = [(p >= threshold(tops[:i] + tops[i + 1 :]), bleeds) for i, (p, bleeds) in enumerate(tops)]
    share = lambda wanted, part: np.mean([said == wanted for said, bleeds in part if bleeds == wanted])
    figures = ", ".join(
        f"{name} sensitivity {share(True, part):.2f} specificity {share(False, part):.2f}"
        for name, part in (("people", judged[: len(people)]), ("phantoms", judged[len(people) :]))
    )
    return {
        "final": [final] + [0.3] * 5,
        "provisional": [max(provisional, final)] + [0.5] * 5,
        "urgent": max(0.8, final),
        "provenance": f"greatest sum of series sensitivity and specificity on {len(people)} held-out people and {len(phantoms)} held-out phantoms; each judged by the threshold of the others: {figures}",
    }


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--checkpoint", type=Path, required=True)
    a.add_argument("--cache", type=Path, required=True)
    a.add_argument("--fold", type=int)
    a.add_argument("--out", type=Path, help="write operating points and figures here (JSON)")
    args = a.parse_args()
    rng = np.random.default_rng(1)
    modules = graphs(args.checkpoint)
    held = data.hold_out if args.fold is None else lambda g: data.fold_of(g) == args.fold
    _, test = data.load(args.cache, held)
    results = {"people": [], "phantoms": []}
    for study in test:
        stages = read(modules, study)
        real = study["name"].startswith("ct-ich")
        results["people" if real else "phantoms"].append((study["labels"], stages))
        if real:
            top = stages[2].max(axis=0)
            truth = "+".join(c for i, c in enumerate(CLASSES) if i and study["labels"][:, i].any()) or "quiet"
            print(f"{study['name']} {truth}: " + " ".join(f"{c} {p:.2f}" for c, p in zip(CLASSES, top)))
    report = {name: figures(name, rs, rng) for name, rs in results.items() if rs}
    points = choose_points(results["people"], results["phantoms"])
    print(json.dumps(points))
    if args.out:
        args.out.write_text(json.dumps({**points, "figures": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
