"""Exact preprocessing of the manifest: clip, area resize of the central field, windows, neighbour channels."""

from dataclasses import dataclass, field

import numpy as np

from . import CLIP_HU, FIELD_MM, MEAN, OUTSIDE_HU, SIZE_PX, STD, WINDOWS


@dataclass(frozen=True)
class Recipe:
    """What a package's manifest says of its input and its graphs; the defaults are those of the networks trained here."""

    size_px: int = SIZE_PX
    field_mm: float = FIELD_MM
    mean: float = MEAN
    std: float = STD
    windows: dict = field(default_factory=lambda: WINDOWS)
    neighbours: tuple = ("prev", "self", "next")
    features: int = 256
    map_px: int = SIZE_PX // 8

    def names(self) -> list[str]:
        """`input.channels` of the manifest, in order."""
        return [f"{n}:{w}" for n in self.neighbours for w in self.windows]


def area_weights(n_in: int, spacing_mm: float, size_px: int = SIZE_PX, field_mm: float = FIELD_MM) -> np.ndarray:
    """[size_px, n_in] overlap of each output pixel with each input pixel, as fractions of an output pixel."""
    pitch = field_mm / size_px / spacing_mm  # output pixel in input pixels
    start = n_in / 2 - size_px * pitch / 2
    lo = start + pitch * np.arange(size_px)[:, None]
    i = np.arange(n_in)[None, :]
    overlap = np.minimum(lo + pitch, i + 1) - np.maximum(lo, i)
    return (np.clip(overlap, 0, None) / pitch).astype(np.float32)


def resize(hu: np.ndarray, row_mm: float, column_mm: float, size_px: int = SIZE_PX, field_mm: float = FIELD_MM) -> np.ndarray:
    """[rows, columns] HU -> [size, size] HU; what lies outside the image is air. `row_mm` is the distance of rows."""
    wy = area_weights(hu.shape[0], row_mm, size_px, field_mm)
    wx = area_weights(hu.shape[1], column_mm, size_px, field_mm)
    inside = np.clip(hu.astype(np.float32), *CLIP_HU) - OUTSIDE_HU
    return wy @ inside @ wx.T + OUTSIDE_HU


def window(hu, level: float, width: float, mean: float = MEAN, std: float = STD):
    """HU -> normalised channel; works on numpy arrays and torch tensors."""
    return (((hu - (level - width / 2)) / width).clip(0.0, 1.0) - mean) / std


def channels(planes: np.ndarray, recipe: Recipe = Recipe()) -> np.ndarray:
    """[T, S, S] HU -> [T, C, S, S]: the neighbours in their windows; edges use themselves."""
    t = np.arange(len(planes))
    which = {"prev": np.maximum(t - 1, 0), "self": t, "next": np.minimum(t + 1, len(planes) - 1)}
    stack = [window(planes[which[n]], *w, recipe.mean, recipe.std) for n in recipe.neighbours for w in recipe.windows.values()]
    return np.stack(stack, axis=1).astype(np.float32)


def step_meta(z_mm: np.ndarray) -> np.ndarray:
    """[T] positions -> [T, 1]: distance to the slice below / 10 mm (lowest: to the one above), clipped to [0, 2]."""
    steps = np.diff(np.asarray(z_mm, np.float32))
    below = np.concatenate([steps[:1], steps]) if len(steps) else np.zeros(1, np.float32)
    return np.clip(below / 10.0, 0.0, 2.0)[:, None].astype(np.float32)
