"""Predictions of cross-validation -> figures with intervals, calibration, and the operating points that follow."""

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from . import CLASSES

STAGES = ("base", "seq1", "final")


def log_loss(probs, labels) -> float:
    """The challenge's: weight 2 on `any`."""
    p = np.clip(probs, 1e-6, 1 - 1e-6)
    loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    return float((loss * np.asarray([2, 1, 1, 1, 1, 1])).sum(axis=1).mean() / 7)


def load(paths) -> dict[str, np.ndarray]:
    """Files of `evaluate` -> {study: [4, T, 6]}: labels, then the three stages. No study may be in two files."""
    found = {}
    for path in paths:
        with np.load(path) as stored:
            twice = found.keys() & set(stored.files)
            if twice:
                raise SystemExit(f"{path}: {sorted(twice)[0]} is in another file as well: give files of one cross-validation")
            found |= {k: stored[k] for k in stored.files}
    return found


def soften(p, temperature):
    """Probabilities with their log odds divided by the temperature."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return 1 / (1 + ((1 - p) / p) ** (1 / temperature))


def temperature(studies) -> float:
    """What makes the final probabilities' log loss least (Guo et al. 2017); one number for all classes."""
    labels = np.concatenate([s[0] for s in studies])
    final = np.concatenate([s[3] for s in studies])
    grid = np.round(np.arange(0.5, 2.01, 0.02), 2)
    return float(min(grid, key=lambda t: log_loss(soften(final, t), labels)))


def calibration_error(p, y, bins: int = 10) -> float:
    """Expected calibration error over bins of equal width."""
    at = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(p[at == b].mean() - y[at == b].mean()) * (at == b).mean() for b in range(bins) if (at == b).any()))


def judge(scores, labels, threshold) -> dict:
    """AUC, average precision, sensitivity and specificity of one class; None where a kind is missing."""
    pos, neg = scores[labels > 0.5], scores[labels <= 0.5]
    if not len(pos) or not len(neg):
        return {}
    return {"auc": float(roc_auc_score(labels > 0.5, scores)), "ap": float(average_precision_score(labels > 0.5, scores)),
            "sensitivity": float((pos >= threshold).mean()), "specificity": float((neg < threshold).mean())}


def with_intervals(people, gather, threshold, rng, draws: int = 300) -> dict:
    """`judge` with 95 % intervals by drawing people, since slices of one person are not independent."""
    def of(chosen):
        pairs = [gather(s) for s in chosen]
        return judge(np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]), threshold)
    whole = of(people)
    drawn = [of([people[i] for i in rng.integers(0, len(people), len(people))]) for _ in range(draws)] if whole else []
    interval = lambda key: [float(q) for q in np.quantile([d[key] for d in drawn if d], [0.025, 0.975])]
    return {key: [value, *interval(key)] for key, value in whole.items()}


def tops(studies):
    """(highest final `any`, bleeding) of each series."""
    return [(float(s[3][:, 0].max()), bool(s[0][:, 0].max())) for s in studies]


def choose(series) -> float:
    """Half-way (in log odds) between the quiet and the bleeding series that it must part."""
    logit = lambda p: np.log(p / (1 - p))
    scores = np.asarray([p for p, _ in series])
    bleeds = np.asarray([b for _, b in series])
    candidates = np.unique(np.round(np.concatenate([np.linspace(0.1, 0.9, 81), scores]), 3))
    merit = [(scores[bleeds] >= t).mean() + (scores[~bleeds] < t).mean() for t in candidates]
    good = [t for t, m in zip(candidates, merit) if 0.05 <= t <= 0.95 and m >= max(merit) - 1e-9]
    return float(np.round(1 / (1 + np.exp(-np.mean([logit(good[0]), logit(good[-1])]))), 3))


def points(people) -> dict:
    """Operating points; sensitivity and specificity judge each person by the threshold that the others give."""
    series = tops(people)
    final = choose(series)
    quiet = [p for p, bleeds in series if not bleeds]
    provisional = float(np.round(min(0.97, max(final + 0.1, np.quantile(quiet, 0.98) + 0.03, 0.8)), 3))
    said = [p >= choose(series[:i] + series[i + 1 :]) for i, (p, _) in enumerate(series)]
    share = lambda wanted: np.mean([s == wanted for s, (_, bleeds) in zip(said, series) if bleeds == wanted])
    return {
        "final": [final] + [0.3] * 5,
        "provisional": [max(provisional, final)] + [0.5] * 5,
        "urgent": max(0.8, final),
        "sensitivity": float(share(True)), "specificity": float(share(False)),
        "provenance": f"greatest sum of series sensitivity and specificity on {len(people)} people, each read by a network that never saw them; "
                      f"each judged by the threshold of the others: sensitivity {share(True):.2f}, specificity {share(False):.2f}",
    }


def group(studies, thresholds, rng) -> dict:
    """Every figure of one group of studies (people or phantoms)."""
    labels = np.concatenate([s[0] for s in studies])
    final = np.concatenate([s[3] for s in studies])
    out = {"series": len(studies), "bleeding": int(sum(s[0][:, 0].max() for s in studies)), "slices": len(labels),
           "log_loss": {name: log_loss(np.concatenate([s[i + 1] for s in studies]), labels) for i, name in enumerate(STAGES)},
           "calibration_error_any": calibration_error(final[:, 0], labels[:, 0]), "slice": {}, "by_series": {}}
    for c, name in enumerate(CLASSES):
        out["slice"][name] = with_intervals(studies, lambda s: (s[3][:, c], s[0][:, c]), thresholds[c], rng)
        out["by_series"][name] = with_intervals(studies, lambda s: (s[3][:, c].max(keepdims=True), s[0][:, c].max(keepdims=True)), thresholds[c], rng)
    return out


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--folds", type=Path, nargs="+", required=True, help="predictions of every fold, by `evaluate --fold`")
    a.add_argument("--shipped", type=Path, required=True, help="predictions of the weights that ship, on their held-out people")
    a.add_argument("--ablation", action="append", default=[], metavar="NAME=FILE,FILE", help="predictions of folds trained another way")
    a.add_argument("--out", type=Path, required=True, help="write operating points and figures here (JSON)")
    args = a.parse_args()
    rng = np.random.default_rng(1)
    folds, shipped = load(args.folds), load([args.shipped])
    part = lambda found, real: [s for name, s in found.items() if name.startswith("phantom") != real]
    people = part(folds, True)
    t = temperature(people)
    raw_error = calibration_error(np.concatenate([s[3] for s in people])[:, 0], np.concatenate([s[0] for s in people])[:, 0])
    for s in [*folds.values(), *shipped.values()]:
        s[3] = soften(s[3], t)
    report = points(people) | {"temperature": t, "calibration_error_raw": raw_error}
    report["figures"] = {"people": group(people, report["final"], rng), "phantoms": group(part(folds, False), report["final"], rng)}
    report["shipped"] = {name: [float(s[3][:, c].max()) for c in range(6)] for name, s in sorted(shipped.items()) if not name.startswith("phantom")}
    report["shipped_truth"] = {name: [c for i, c in enumerate(CLASSES) if i and s[0][:, i].any()] for name, s in shipped.items() if not name.startswith("phantom")}
    report["ablation"] = {}
    for given in args.ablation:
        name, _, files = given.partition("=")
        found = part(load([Path(f) for f in files.split(",")]), True)
        labels = np.concatenate([s[0] for s in found])
        series = [s[3][:, 0].max() for s in found], [s[0][:, 0].max() > 0.5 for s in found]
        report["ablation"][name] = {"people": len(found), "series_auc_any": float(roc_auc_score(series[1], series[0]))} | {
            stage: log_loss(np.concatenate([s[i + 1] for s in found]), labels) for i, stage in enumerate(STAGES)}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "figures"}, indent=1))
    for name, f in report["figures"].items():
        print(name, json.dumps(f))


if __name__ == "__main__":
    main()
