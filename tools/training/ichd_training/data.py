"""Cached studies as tensors, split by person; augmentation on whole batches. All of it runs where the network runs."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import OUTSIDE_HU, SIZE_PX, WINDOWS, split
from .prepare import MAP_PX
from .preprocess import window

SHARE = {"real": 0.5, "painted": 0.3, "phantom": 0.2}
"""Of the slices that training sees: real heads, painted copies of quiet real heads, phantoms."""

REACH = 3
"""Slices on either side that a thick slab, or a neighbour at a wide step, can take from."""


def kind(study) -> str:
    """`real`, `painted` or `phantom`."""
    return split.kind(study["name"])


def load(cache: Path, fold: int | None = None):
    """(training studies, held-out studies); painted copies of held-out people are dropped altogether."""
    studies = []
    for path in sorted(cache.glob("*.npz")):
        with np.load(path) as stored:
            studies.append({k: stored[k] for k in stored.files} | {k: str(stored[k]) for k in ("name", "group")})
    if not studies:
        raise SystemExit(f"{cache}: no studies; run prepare first")
    held = split.held_out((s["group"] for s in studies), fold)
    train = [s for s in studies if s["group"] not in held]
    return train, [s for s in studies if s["group"] in held and kind(s) != "painted"]


def seen(cache: Path, train, kept) -> dict:
    """What a run learned from, for the checkpoint; see `split.seen`."""
    path = cache / "source.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing, which says what the data are: prepare the cache again")
    pairs = lambda studies: [(s["name"], s["group"]) for s in studies]
    return split.seen(pairs(train), pairs(kept), json.loads(path.read_text()))


def spoil(studies, share: float, seed: int) -> None:
    """Gives that share of the real slices the labels of another real slice, for the ablation of noisy labels."""
    rng = np.random.default_rng(seed)
    real = [s for s in studies if kind(s) == "real"]
    pool = np.concatenate([s["labels"] for s in real])
    for study in real:
        study["labels"] = study["labels"].copy()
        wrong = np.flatnonzero(rng.random(len(study["labels"])) < share)
        study["labels"][wrong] = pool[rng.integers(len(pool), size=len(wrong))]


class Slices:
    """Every slice of the training studies, sampled with weight on bleeds, rare classes and the middle of the head."""

    def __init__(self, studies, device="cpu"):
        counts = [len(s["planes"]) for s in studies]
        labels = np.concatenate([s["labels"] for s in studies])
        kinds = np.repeat([kind(s) for s in studies], counts)
        first = np.repeat(np.cumsum([0, *counts[:-1]]), counts)
        last = first + np.repeat(counts, counts) - 1
        place = (np.arange(len(first)) - first) / np.maximum(last - first, 1)
        share = labels[:, 1:].sum(axis=0).clip(20)
        rare = (labels[:, 1:] * (share.max() / share) ** 0.5).max(axis=1)
        weight = np.where(labels[:, 0] > 0, 1.5 * rare.clip(1), 0.7 * (1.0 - abs(place - 0.5)))
        for k in SHARE:
            here = kinds == k
            weight[here] *= SHARE[k] / max(weight[here].sum(), 1e-9)
        maps = [s.get("map", np.zeros((n, MAP_PX, MAP_PX), np.float16)) for s, n in zip(studies, counts)]
        known = np.repeat(["map" in s for s in studies], counts)
        put = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)
        self.planes = put(np.concatenate([s["planes"] for s in studies]))
        self.maps, self.labels, self.known = put(np.concatenate(maps)), put(labels), put(known.astype(np.float32))
        self.first, self.last = put(first), put(last)
        self.edges = put(np.cumsum(weight / weight.sum()).astype(np.float32))
        self.device = device

    def sample(self, n: int):
        """HU [n, 3, S, S], labels [n, 6], map [n, 1, M, M], map known [n].

        Slice step and thickness vary: each of the three slices is the mean over a slab of the cached ones, one to two
        steps thick, and the neighbours stand half a step to two steps away, in either order.
        """
        dev = self.device
        r = lambda *shape: torch.rand(*shape, device=dev)
        t = torch.searchsorted(self.edges, r(n)).clamp_(max=len(self.edges) - 1)
        step = torch.where(r(n) < 0.6, 1.0, 0.6 + 1.4 * r(n))
        thick = torch.where(r(n) < 0.6, 1.0, 1.0 + r(n))
        turn = torch.where(r(n) < 0.5, -1.0, 1.0)
        side = torch.tensor([-1.0, 0.0, 1.0], device=dev)
        edge = torch.where(r(n, 3) < 0.05, 0.0, 1.0)  # a missing neighbour is the slice itself
        at = (side * edge)[:, :, None] * (step * turn)[:, None, None]
        offset = torch.arange(-REACH, REACH + 1, device=dev)
        cover = torch.minimum(at + thick[:, None, None] / 2, offset + 0.5) - torch.maximum(at - thick[:, None, None] / 2, offset - 0.5)
        cover = cover.clamp(min=0)
        cover = cover / cover.sum(dim=2, keepdim=True)
        index = torch.minimum(torch.maximum(t[:, None] + offset, self.first[t][:, None]), self.last[t][:, None])
        x = torch.einsum("nck,nkhw->nchw", cover, self.planes[index].float())
        return x, self.labels[t], self.maps[t][:, None].float(), self.known[t]


def where_picked(pick, change, *tensors):
    """`change` of the picked images only: the CPU skips the others, a GPU does better without asking."""
    x = tensors[0]
    if x.is_cuda:
        return torch.where(pick.view(-1, 1, 1, 1), change(*tensors), x)
    if pick.any():
        x[pick] = change(*(t[pick] for t in tensors))
    return x


def augment(x, m, together: bool = False):
    """Pose and shape of image and map together; then what another scanner, an old infarct, a thick skull or a
    calcification does to the image. `together`: one draw for the whole batch, which is then one study."""
    n, dev = len(x), x.device
    draws = 1 if together else n
    r = lambda lo, hi: lo + (hi - lo) * torch.rand(draws, device=dev).expand(n)

    angle, scale, stretch, shear = r(-0.3, 0.3), r(0.82, 1.22), r(0.92, 1.08), r(-0.08, 0.08)
    flip = torch.where(r(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos * flip, -sin + shear, r(-0.12, 0.12)], 1),
                         torch.stack([sin * flip, cos * stretch, r(-0.12, 0.12)], 1)], 1)
    # Heads differ in shape: a smooth field bends each by up to some 6 mm.
    bend = torch.randn(draws, 2, 5, 5, device=dev).expand(n, 2, 5, 5) * r(0.0, 0.025).view(-1, 1, 1, 1)
    def move(image):
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        field = F.interpolate(bend, size=image.shape[2:], mode="bicubic", align_corners=True)
        return F.grid_sample(image, grid + field.permute(0, 2, 3, 1), align_corners=False)

    x = move(x - OUTSIDE_HU) + OUTSIDE_HU
    return scanner(decoys(x, r), r), move(m)


def decoys(x, r):
    """Old infarcts (soft dark regions of brain) and calcifications (small bright ones), which are no bleeds."""
    some = r(0, 1)
    axis = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    for pick, reach, lo, hi, least, most in [(some < 0.25, 0.5, 0.04, 0.16, -4, -24), (some > 0.88, 0.35, 0.008, 0.022, 50, 400)]:
        draw = torch.stack([r(-reach, reach), r(-reach, reach), r(lo, hi), r(lo, hi), r(least, most)], 1)

        def change(part, draw):
            px, py, wx, wy, depth = draw.view(-1, 5, 1, 1).unbind(1)
            dx, dy = (axis.view(1, 1, -1) - px) / wx, (axis.view(1, -1, 1) - py) / wy
            blob = torch.sigmoid(4 * (1 - dx * dx - dy * dy)) * depth
            return part + blob.unsqueeze(1) * ((part > 0) & (part < 80))

        x = where_picked(pick, change, x, draw)
    return x


NOISE = {}
"""A reel of white noise per device, to cut pieces from: making it anew for every slice would cost more than the network."""


def _noise(shape, device):
    count, reel = int(np.prod(shape)), NOISE.get(device)
    if reel is None or len(reel) < 2 * count:
        reel = NOISE[device] = torch.randn(max(2 * count, 1 << 24), device=device)
    start = int(torch.randint(0, len(reel) - count, (1,)))
    return reel[start : start + count].view(shape)


def scanner(x, r):
    """Another scanner or skull: blur or edges, bone thickness and density, its halo on brain, offset, gain, noise (HU)."""
    n, c, h, w = x.shape
    k = lambda lo, hi: r(lo, hi).view(-1, 1, 1, 1)
    blurred = lambda image: F.avg_pool2d(F.avg_pool2d(image, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)

    # A thicker skull with a blurred table: bone spreads by a pixel or two, in part.
    some, more = r(0, 1), k(0.2, 1.0)
    def thicken(part, more):
        grown = torch.where((F.max_pool2d(part, 5, 1, 2) > 250) & (part > -100), F.max_pool2d(part, 3, 1, 1), part)
        return torch.lerp(part, grown, more)
    x = where_picked(some < 0.3, thicken, x, more)

    sharpness = k(-1.0, 0.35)  # below -0.4 the kernel blurs, above 0 it enhances edges
    sharpness = torch.where((sharpness < -0.4) | (sharpness > 0), sharpness, 0.0)
    x = where_picked(sharpness.flatten() != 0, lambda part, s: torch.lerp(part, blurred(part), -s), x, sharpness)
    x = where_picked(r(0, 1) < 0.15, lambda part: blurred(blurred(part)), x)

    bone = (x - 100).clamp_(0, 1400)
    # A sloping skull fills its border pixels in part, often on one side only: a bright rim that is no bleed.
    side = [int(v) for v in torch.randint(-2, 3, (2,))]
    rim = torch.roll(F.avg_pool2d(bone, 5, 1, 2), side, (2, 3)) * (x < 200) * (x > -20)
    x = x + rim.mul_(k(-0.15, 0.15).clamp(min=0))
    halo = F.interpolate(F.avg_pool2d(F.avg_pool2d(bone, 4), 3, 1, 1), size=(h, w), mode="bilinear")
    x += bone.mul_(k(-0.25, 0.25))
    x += halo.mul_(k(-0.006, 0.02))
    change = (x.clamp(-100, 100) - 20).mul_(k(-0.06, 0.06)).add_(k(-6.0, 6.0))
    x += change.mul_(x > -200)
    # Noise goes with the dose and the kernel, so one study has one level of it.
    coarse = F.interpolate(_noise((n, c, h // 3, w // 3), x.device), size=(h, w), mode="nearest")
    x += _noise((n, c, h, w), x.device) * k(-2.0, 7.0).clamp(min=0)
    x += coarse.mul_(k(-3.0, 4.0).clamp(min=0))
    return x


def to_channels(x):
    """HU [N, 3, S, S] -> [N, 9, S, S] in the manifest's recipe (neighbour-major)."""
    return torch.stack([window(x[:, n], *w) for n in range(3) for w in WINDOWS.values()], dim=1)
