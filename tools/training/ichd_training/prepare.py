"""Readers' studies -> a cache of small HU planes, so that training never touches full images again."""

import argparse
import csv
import subprocess
from pathlib import Path

import numpy as np

from . import FIELD_MM, SIZE_PX, STEP_MM_MIN, readers
from .preprocess import resize

MAP_PX = SIZE_PX // 8


def save(study: readers.Study, out: Path, group: str) -> None:
    """Writes planes [T, S, S] int16, labels, z and, where known, the lesion map [T, S/8, S/8] of covered fractions."""
    keep, last = [], -1e9
    for i, z in enumerate(study.z_mm):
        if z >= last + STEP_MM_MIN - 1e-3:
            keep.append(i)
            last = z
    planes = np.stack([np.rint(resize(study.hu[i], study.pixel_mm, study.pixel_mm)) for i in keep]).astype(np.int16)
    data = dict(planes=planes, labels=study.labels[keep], z_mm=study.z_mm[keep], group=group, name=study.name)
    if study.mask is not None:
        outside = lambda m: resize(m.astype(np.float32) - 1000, study.pixel_mm, study.pixel_mm, MAP_PX, FIELD_MM) + 1000
        data["map"] = np.stack([outside(study.mask[i] > 0) for i in keep]).astype(np.float16)
    elif not study.labels.any():
        data["map"] = np.zeros((len(keep), MAP_PX, MAP_PX), np.float16)
    np.savez(out / f"{study.name}.npz", **data)


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--ct-ich", type=Path, help="CT-ICH folder (brain/, bone/, labels.csv)")
    a.add_argument("--phantom", type=Path, help="folder of `ichd-phantom dataset`")
    a.add_argument("--paint-with", type=Path, help="the `ichd-phantom` program: paints copies of the quiet real heads")
    a.add_argument("--copies", type=int, default=4)
    a.add_argument("--cache", type=Path, required=True)
    args = a.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.ct_ich:
        people = sorted({int(r["patient"]) for r in csv.DictReader(open(args.ct_ich / "labels.csv"))})
        for n, person in enumerate(people):
            study = readers.ct_ich(args.ct_ich, person)
            save(study, args.cache, f"person-{person}")
            if args.paint_with and not study.labels.any():
                paint(args.paint_with, study, args.copies, args.cache, person)
            print(f"\rprepared {n + 1}/{len(people)} people", end="", flush=True)
        print()
    if args.phantom:
        folders = sorted(p.parent for p in args.phantom.glob("*/labels.csv"))
        for n, folder in enumerate(folders):
            save(readers.phantom(folder), args.cache, f"phantom-{folder.name}")
            print(f"\rprepared {n + 1}/{len(folders)} phantoms", end="", flush=True)
        print()


def paint(program: Path, study: readers.Study, copies: int, cache: Path, person: int) -> None:
    """Painted copies belong to the person's group, so a held-out person is held out in every form."""
    work = cache / "paint" / study.name
    work.mkdir(parents=True, exist_ok=True)
    rows, columns = study.hu.shape[1] // 2, study.hu.shape[2] // 2
    half = study.hu[:, : rows * 2, : columns * 2].reshape(-1, rows, 2, columns, 2).mean(axis=(2, 4)).astype(np.int16)
    np.save(work / "in.npy", half)
    done = subprocess.run([program, "paint", "--in", work / "in.npy", "--pixel-mm", str(study.pixel_mm * 2), "--step-mm", "5",
                           "--seed", str(person), "--count", str(copies), "--out", work / "out"], capture_output=True)
    for folder in sorted(p.parent for p in (work / "out").rglob("labels.csv")):
        painted = readers.phantom(folder)
        painted.name = f"painted-{person:03d}-{folder.name}"
        painted.z_mm = study.z_mm[: len(painted.hu)]
        save(painted, cache, f"person-{person}")
    if done.returncode:
        print(f"\n{study.name}: {done.stderr.decode().strip()}")


if __name__ == "__main__":
    main()
