"""Cached studies as tensors, split by person; augmentation on whole batches."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import OUTSIDE_HU, SIZE_PX, WINDOWS
from .prepare import MAP_PX
from .preprocess import window

TEST_PEOPLE = (54, 91, 70, 71, 84)
"""Also shipped as DICOM test series; never trained on."""
HELD_OUT = (*TEST_PEOPLE, 58, 75, 77, 82, 95, 101, 110, 120, 128)


def fold_of(group: str, folds: int = 5) -> int:
    """A person's (or phantom's) fold; everything made from a person shares it."""
    return int(group.rpartition("-")[2]) % folds


def load(cache: Path, held_out=lambda group: False):
    """(training studies, held-out studies); painted copies of held-out people are dropped altogether."""
    train, test = [], []
    for path in sorted(cache.glob("*.npz")):
        with np.load(path) as data:
            study = {k: data[k] for k in data.files}
        study["name"], study["group"] = str(study["name"]), str(study["group"])
        if held_out(study["group"]):
            if not study["name"].startswith("painted"):
                test.append(study)
        else:
            train.append(study)
    return train, test


def hold_out(group: str) -> bool:
    """The shipped model's split: fourteen people, and every eighth phantom."""
    kind, _, number = group.rpartition("-")
    return int(number) in HELD_OUT if kind == "person" else int(number) % 8 == 0


class Slices:
    """Every slice of the training studies with its neighbours, sampled with weight on bleeds and rare classes."""

    def __init__(self, studies):
        self.studies = studies
        self.index = [(s, t) for s, study in enumerate(studies) for t in range(len(study["planes"]))]
        labels = np.concatenate([study["labels"] for study in studies])
        real = np.asarray([not studies[s]["name"].startswith("phantom") for s, _ in self.index])
        painted = np.asarray([studies[s]["name"].startswith("painted") for s, _ in self.index])
        share = labels[:, 1:].sum(axis=0).clip(20)
        rare = (labels[:, 1:] * (share.max() / share) ** 0.5).max(axis=1)
        middle = np.asarray([1.0 - abs(t / max(len(studies[s]["planes"]) - 1, 1) - 0.5) for s, t in self.index])
        weight = np.where(labels[:, 0] > 0, 1.2 * rare.clip(1), 0.7 * middle)
        weight *= np.where(real & ~painted, np.where(labels[:, 0] > 0, 5.0, 3.0), 1.0)
        self.weights = weight / weight.sum()

    def sample(self, n: int, rng: np.random.Generator):
        """HU [n, 3, S, S], labels [n, 6], map [n, 1, M, M], map known [n]."""
        x = np.empty((n, 3, SIZE_PX, SIZE_PX), np.float32)
        y, m, known = np.empty((n, 6), np.float32), np.zeros((n, 1, MAP_PX, MAP_PX), np.float32), np.zeros(n, np.float32)
        for i, pick in enumerate(rng.choice(len(self.index), n, p=self.weights)):
            s, t = self.index[pick]
            study = self.studies[s]
            step = 2 if rng.random() < 0.15 else 1
            order = [t - step, t, t + step] if rng.random() < 0.7 else [t + step, t, t - step]
            last = len(study["planes"]) - 1
            order = [o if 0 <= o <= last else t for o in order]
            if rng.random() < 0.1:
                order[rng.integers(0, 2) * 2] = t
            x[i] = study["planes"][order]
            y[i] = study["labels"][t]
            if "map" in study:
                m[i, 0], known[i] = study["map"][t], 1.0
        return tuple(map(torch.from_numpy, (x, y, m, known)))


def augment(x, m, generator):
    """Pose of image and map together; then what another scanner, an old infarct or a calcification does to the image."""
    n = len(x)
    r = lambda lo, hi: lo + (hi - lo) * torch.rand(n, generator=generator)
    angle, scale, stretch, shear = r(-0.3, 0.3), r(0.85, 1.18), r(0.95, 1.05), r(-0.06, 0.06)
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos * flip, -sin + shear, r(-0.12, 0.12)], 1),
                         torch.stack([sin * flip, cos * stretch, r(-0.12, 0.12)], 1)], 1)
    x = F.grid_sample(x - OUTSIDE_HU, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False) + OUTSIDE_HU
    m = F.grid_sample(m, F.affine_grid(theta, list(m.shape), align_corners=False), align_corners=False)
    return scanner(decoys(x, generator), generator), m


def decoys(x, generator):
    """Old infarcts (soft dark regions of brain) and calcifications (small bright ones), which are no bleeds."""
    some = torch.rand(len(x), generator=generator)
    axis = torch.linspace(-1, 1, x.shape[-1])
    for pick, reach, lo, hi, least, most in [(some < 0.25, 0.5, 0.04, 0.16, -4, -24), (some > 0.88, 0.35, 0.008, 0.022, 50, 400)]:
        part = x[pick]
        r = lambda a, b: (a + (b - a) * torch.rand(len(part), generator=generator)).view(-1, 1, 1)
        dx, dy = (axis.view(1, 1, -1) - r(-reach, reach)) / r(lo, hi), (axis.view(1, -1, 1) - r(-reach, reach)) / r(lo, hi)
        blob = torch.sigmoid(4 * (1 - dx * dx - dy * dy)) * r(least, most)
        x[pick] = part + blob.unsqueeze(1) * ((part > 0) & (part < 80))
    return x


NOISE = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
"""A reel of white noise to cut pieces from: making it anew for every slice would cost more than the network."""


def _noise(shape, generator):
    count = shape[0] * shape[1] * shape[2] * shape[3]
    start = int(torch.randint(0, len(NOISE) - count, (1,), generator=generator))
    return NOISE[start : start + count].view(shape)


def scanner(x, generator):
    """Another scanner: thicker slices, blur or edges, bone density, halo of bone on brain, offset, gain, noise (HU)."""
    n, c, h, w = x.shape
    r = lambda lo, hi: (lo + (hi - lo) * torch.rand(n, generator=generator)).view(-1, 1, 1, 1)
    thick = r(-0.4, 0.4).clamp(min=0)
    x = torch.lerp(x, x.mean(dim=1, keepdim=True), thick)
    sharpness = r(-1.0, 0.35)  # below -0.4 the kernel blurs, above 0 it enhances edges
    sharpness = torch.where((sharpness < -0.4) | (sharpness > 0), sharpness, 0.0)
    pick = sharpness.flatten() != 0
    part = x[pick]
    soft = F.avg_pool2d(F.avg_pool2d(part, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)
    x[pick] = torch.lerp(part, soft, -sharpness[pick])
    bone = (x - 100).clamp_(0, 1400)
    # A sloping skull fills its border pixels in part, often on one side only: a bright rim that is no bleed.
    rim = F.avg_pool2d(bone, 5, 1, 2)
    side = int(torch.randint(-2, 3, (1,), generator=generator)), int(torch.randint(-2, 3, (1,), generator=generator))
    rim = torch.roll(rim, side, (2, 3)) * (x < 200) * (x > -20)
    x += rim.mul_(r(-0.15, 0.15).clamp(min=0))
    halo = F.interpolate(F.avg_pool2d(F.avg_pool2d(bone, 4), 3, 1, 1), size=(h, w), mode="bilinear")
    x += bone.mul_(r(-0.25, 0.25))
    x += halo.mul_(r(-0.006, 0.02))
    change = (x.clamp(-100, 100) - 20).mul_(r(-0.06, 0.06)).add_(r(-7.0, 7.0))
    x += change.mul_(x > -200)
    coarse = F.interpolate(_noise((n, c, h // 3, w // 3), generator), size=(h, w), mode="nearest")
    x += _noise((n, c, h, w), generator) * r(-2.0, 6.0).clamp(min=0)
    x += coarse.mul_(r(-3.0, 4.0).clamp(min=0))
    return x


def to_channels(x):
    """HU [N, 3, S, S] -> [N, 9, S, S] in the manifest's recipe (neighbour-major)."""
    return torch.stack([window(x[:, n], *w) for n in range(3) for w in WINDOWS.values()], dim=1)
