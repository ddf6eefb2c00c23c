"""Predictions of cross-validation -> figures with intervals, calibration, and the operating points that follow."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import CLASSES
from .split import ABOUT, kind

STAGES = ("base", "seq1", "final")
SUBTYPE_FINAL, SUBTYPE_PROVISIONAL = 0.3, 0.5
"""Only name what is suspected; nothing was chosen on data here."""


@dataclass
class Said:
    """What the networks said of one series: labels [T, 6], base, sequence 1 and final probabilities [T, 6]."""

    name: str
    group: str
    fold: int
    labels: np.ndarray
    base: np.ndarray
    seq1: np.ndarray
    final: np.ndarray


def log_loss(probs, labels) -> float:
    """The challenge's: weight 2 on `any`."""
    p = np.clip(probs, 1e-6, 1 - 1e-6)
    loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    return float((loss * np.asarray([2, 1, 1, 1, 1, 1])).sum(axis=1).mean() / 7)


def load(paths) -> tuple[list[Said], list[dict | None]]:
    """Files of `evaluate` -> (all series, what each file's run learned from). No series may be in two files."""
    found, seen = {}, []
    for fold, path in enumerate(paths):
        with np.load(path) as stored:
            about = json.loads(str(stored[ABOUT])) if ABOUT in stored.files else {"groups": {}, "seen": None}
            seen.append(about["seen"])
            for name in stored.files:
                if name == ABOUT:
                    continue
                if name in found:
                    raise SystemExit(f"{path}: {name} is in another file as well: give files of one cross-validation")
                found[name] = Said(name, about["groups"].get(name, name), fold, *stored[name])
    return list(found.values()), seen


def only(said: list[Said], what: str) -> list[Said]:
    """Those of one kind: `real` or `phantom`."""
    return [s for s in said if kind(s.name) == what]


def together(said: list[Said], stage: str) -> np.ndarray:
    return np.concatenate([getattr(s, stage) for s in said])


def soften(p, temperature):
    """Probabilities with their log odds divided by the temperature."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return 1 / (1 + ((1 - p) / p) ** (1 / temperature))


def temperature(said: list[Said]) -> float:
    """What makes the final probabilities' log loss least (Guo et al. 2017); one number for all classes."""
    labels, final = together(said, "labels"), together(said, "final")
    grid = np.round(np.arange(0.5, 2.01, 0.02), 2)
    return float(min(grid, key=lambda t: log_loss(soften(final, t), labels)))


def calibrated_by_others(said: list[Said], people: list[Said]) -> np.ndarray | None:
    """Final probabilities, each fold's softened by the temperature of the people of the other folds."""
    of_others = {f: [p for p in people if p.fold != f] for f in {s.fold for s in said}}
    if not all(of_others.values()):
        return None
    fitted = {f: temperature(others) for f, others in of_others.items()}
    return np.concatenate([soften(s.final, fitted[s.fold]) for s in said])


def calibration_error(p, y, bins: int = 10) -> float:
    """Expected calibration error over bins of equal width."""
    at = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs(p[at == b].mean() - y[at == b].mean()) * (at == b).mean() for b in range(bins) if (at == b).any()))


def judge(scores, labels, threshold) -> dict:
    """AUC, average precision, sensitivity and specificity of one class; empty where a kind is missing."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    pos, neg = scores[labels > 0.5], scores[labels <= 0.5]
    if not len(pos) or not len(neg):
        return {}
    return {"auc": float(roc_auc_score(labels > 0.5, scores)), "ap": float(average_precision_score(labels > 0.5, scores)),
            "sensitivity": float((pos >= threshold).mean()), "specificity": float((neg < threshold).mean())}


def by_group(said: list[Said]) -> list[list[Said]]:
    """The series of each person (or phantom)."""
    groups: dict[str, list[Said]] = {}
    for s in said:
        groups.setdefault(s.group, []).append(s)
    return list(groups.values())


def with_intervals(said, gather, threshold, rng, draws: int = 300) -> dict:
    """`judge` with 95 % bootstrap intervals that resample people: slices and series of one person are not independent."""
    def of(chosen):
        pairs = [gather(s) for s in chosen]
        return judge(np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]), threshold)
    whole, groups = of(said), by_group(said)
    drawn = [of([s for i in rng.integers(0, len(groups), len(groups)) for s in groups[i]]) for _ in range(draws)] if whole else []
    interval = lambda key: [float(q) for q in np.quantile([d[key] for d in drawn if d], [0.025, 0.975])]
    return {key: [value, *interval(key)] for key, value in whole.items()}


def choose(scores, bleeds) -> float:
    """The threshold with the greatest sum of sensitivity and specificity.

    Where neighbouring thresholds are equally good it is half-way (in log odds) along them. Where separate runs of them
    are, the lowest run is taken: it misses fewer bleeds. Between two runs lies a valley, never the answer.
    """
    scores, bleeds = np.asarray(scores, float), np.asarray(bleeds, bool)
    if not bleeds.any() or bleeds.all():
        raise SystemExit("operating point: needs bleeding and quiet series")
    candidates = np.unique(np.round(np.concatenate([np.linspace(0.1, 0.9, 81), np.floor(scores * 1000) / 1000, np.ceil(scores * 1000) / 1000]), 3))
    candidates = candidates[(candidates >= 0.05) & (candidates <= 0.95)]
    merit = lambda t: (scores[bleeds] >= t).mean() + (scores[~bleeds] < t).mean()
    merits = np.asarray([merit(t) for t in candidates])
    best = np.flatnonzero(merits >= merits.max() - 1e-9)
    run = best[: 1 + int(np.argmin(np.append(np.diff(best), 0) == 1))]
    logit = lambda p: np.log(p / (1 - p))
    middle = float(np.round(1 / (1 + np.exp(-(logit(candidates[run[0]]) + logit(candidates[run[-1]])) / 2)), 3))
    # Candidates are rounded, so a score may lie a hair to the side of one.
    return middle if merit(middle) >= merits.max() - 1e-9 else float(candidates[run[0]])


def points(people: list[Said]) -> dict:
    """Operating points from calibrated scores; sensitivity and specificity judge each person by the others' threshold."""
    score = np.asarray([s.final[:, 0].max() for s in people], float)
    bleeds = np.asarray([s.labels[:, 0].max() > 0.5 for s in people])
    groups = np.asarray([s.group for s in people])
    final = choose(score, bleeds)
    provisional = float(np.round(min(0.97, max(final + 0.1, np.quantile(score[~bleeds], 0.98) + 0.03, 0.8)), 3))
    of_others = {g: choose(score[groups != g], bleeds[groups != g]) for g in set(groups)}
    said = np.asarray([p >= of_others[g] for p, g in zip(score, groups)])
    sensitivity, specificity = float(said[bleeds].mean()), float((~said[~bleeds]).mean())
    n = len(set(groups))
    whom = f"{n} people" if n == len(people) else f"{len(people)} series of {n} people"
    return {
        "final": [final] + [SUBTYPE_FINAL] * 5,
        "provisional": [max(provisional, final)] + [SUBTYPE_PROVISIONAL] * 5,
        "urgent": max(0.8, final),
        "sensitivity": sensitivity, "specificity": specificity,
        "provenance": f"any: greatest sum of series sensitivity and specificity on {whom}, each read by a network that never saw them; "
                      f"each judged by the threshold of the others: sensitivity {sensitivity:.2f}, specificity {specificity:.2f}. "
                      f"Subtypes: {SUBTYPE_FINAL}, not chosen on data",
        "provisional_provenance": "any: at least 0.8, 0.1 above final, and 0.03 above the 98 % quantile of quiet held-out series (at most 0.97). "
                                  f"Subtypes: {SUBTYPE_PROVISIONAL}, not chosen on data",
    }


def figures(said: list[Said], people: list[Said], t: float, thresholds, rng) -> dict:
    """Every figure of one kind of series (real people or phantoms). Log loss before calibration, and after it with the
    temperature of the other folds; sensitivity and specificity at the thresholds, which are of the calibrated scale."""
    labels = together(said, "labels")
    calibrated = calibrated_by_others(said, people)
    out = {"series": len(said), "people": len(by_group(said)), "bleeding": int(sum(s.labels[:, 0].max() > 0.5 for s in said)), "slices": len(labels),
           "people_of_class": {c: len({s.group for s in said if s.labels[:, i].max() > 0.5}) for i, c in enumerate(CLASSES)},
           "log_loss": {stage: log_loss(together(said, stage), labels) for stage in STAGES},
           "log_loss_calibrated": None if calibrated is None else log_loss(calibrated, labels),
           "calibration_error_any": calibration_error(together(said, "final")[:, 0], labels[:, 0]),
           "calibration_error_any_calibrated": None if calibrated is None else calibration_error(calibrated[:, 0], labels[:, 0]),
           "slice": {}, "by_series": {}}
    for c, name in enumerate(CLASSES):
        final = lambda s: soften(s.final[:, c], t)
        out["slice"][name] = with_intervals(said, lambda s: (final(s), s.labels[:, c]), thresholds[c], rng)
        out["by_series"][name] = with_intervals(said, lambda s: (final(s).max(keepdims=True), s.labels[:, c].max(keepdims=True)), thresholds[c], rng)
    return out


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--folds", type=Path, nargs="+", required=True, help="predictions of every fold, by `evaluate --fold`")
    a.add_argument("--shipped", type=Path, required=True, help="predictions of the weights that ship, on the people kept from them")
    a.add_argument("--ablation", action="append", default=[], metavar="NAME=FILE,FILE", help="predictions of folds trained another way")
    a.add_argument("--observed", type=Path, help="text for the card: what else was seen, and how one of several runs was chosen")
    a.add_argument("--out", type=Path, required=True, help="write operating points and figures here (JSON)")
    args = a.parse_args()
    rng = np.random.default_rng(1)
    (folds, of_folds), (shipped, [seen]) = load(args.folds), load([args.shipped])
    if seen is None:
        raise SystemExit(f"{args.shipped} does not say what its weights learned from: run train and evaluate again")
    people = only(folds, "real")
    t = temperature(people)
    calibrated = [Said(s.name, s.group, s.fold, s.labels, s.base, s.seq1, soften(s.final, t)) for s in people]
    report = points(calibrated) | {"temperature": t, "seen": seen, "fold_slices": [about and about.get("slices") for about in of_folds]}
    report["figures"] = {name: figures(part, people, t, report["final"], rng)
                         for name, part in (("people", people), ("phantoms", only(folds, "phantom"))) if part}
    kept = sorted(only(shipped, "real"), key=lambda s: s.name)
    report["shipped"] = {s.name: [float(p) for p in soften(s.final, t).max(axis=0)] for s in kept}
    report["shipped_truth"] = {s.name: [c for i, c in enumerate(CLASSES) if i and s.labels[:, i].any()] for s in kept}
    report["ablation"] = {}
    for given in args.ablation:
        name, _, files = given.partition("=")
        found = only(load([Path(f) for f in files.split(",")])[0], "real")
        labels = together(found, "labels")
        auc = judge(np.asarray([s.final[:, 0].max() for s in found]), np.asarray([s.labels[:, 0].max() for s in found]), 0.5)["auc"]
        report["ablation"][name] = {"people": len(by_group(found)), "series_auc_any": auc} | {stage: log_loss(together(found, stage), labels) for stage in STAGES}
    report["observed"] = args.observed.read_text() if args.observed else ""
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "figures"}, indent=1))
    for name, f in report["figures"].items():
        print(name, json.dumps(f))


if __name__ == "__main__":
    main()
