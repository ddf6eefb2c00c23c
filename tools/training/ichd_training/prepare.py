"""Readers' studies -> a cache of small HU planes, so that training never touches full images again."""

import argparse
import os
import shutil
import subprocess
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

# One process per head is parallel enough; BLAS threads on top of that made sixteen cores ten times slower.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

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


def person(folder: Path, number: int, cache: Path, program: Path | None, copies: int) -> str:
    """One CT-ICH person and, if quiet, painted copies; returns what went wrong, or nothing."""
    study = readers.ct_ich(folder, number)
    save(study, cache, f"person-{number}")
    return paint(program, study, copies, cache, number) if program and not study.labels.any() else ""


def phantom(folder: Path, cache: Path) -> str:
    save(readers.phantom(folder), cache, f"phantom-{folder.name}")
    return ""


def paint(program: Path, study: readers.Study, copies: int, cache: Path, number: int) -> str:
    """Painted copies belong to the person's group, so a held-out person is held out in every form."""
    work = cache / "paint" / study.name
    work.mkdir(parents=True, exist_ok=True)
    rows, columns = study.hu.shape[1] // 2, study.hu.shape[2] // 2
    half = study.hu[:, : rows * 2, : columns * 2].reshape(-1, rows, 2, columns, 2).mean(axis=(2, 4)).astype(np.int16)
    np.save(work / "in.npy", half)
    done = subprocess.run([program, "paint", "--in", work / "in.npy", "--pixel-mm", str(study.pixel_mm * 2), "--step-mm", "5",
                           "--seed", str(number), "--count", str(copies), "--out", work / "out"], capture_output=True)
    for folder in sorted(p.parent for p in (work / "out").rglob("labels.csv")):
        painted = readers.phantom(folder)
        painted.name = f"painted-{number:03d}-{folder.name}"
        painted.z_mm = study.z_mm[: len(painted.hu)]
        save(painted, cache, f"person-{number}")
    shutil.rmtree(work)
    return f"{study.name}: {done.stderr.decode().strip()}" if done.returncode else ""


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--ct-ich", type=Path, help="CT-ICH folder (brain/, bone/, labels.csv)")
    a.add_argument("--phantom", type=Path, help="folder of `ichd-phantom dataset`")
    a.add_argument("--paint-with", type=lambda p: Path(p).resolve(), help="the `ichd-phantom` program: paints copies of the quiet real heads")
    a.add_argument("--copies", type=int, default=4)
    a.add_argument("--dicom", type=Path, help="folder of DICOM, with --rsna-csv or --slice-csv")
    a.add_argument("--rsna-csv", type=Path, help="labels in the RSNA-2019 layout")
    a.add_argument("--slice-csv", type=Path, help="labels with one row per slice: sop_uid and the class names")
    a.add_argument("--cache", type=Path, required=True)
    a.add_argument("--jobs", type=int, default=os.cpu_count())
    args = a.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.dicom:
        if not args.rsna_csv and not args.slice_csv:
            a.error("--dicom: needs --rsna-csv or --slice-csv for the labels")
        labels = readers.rsna_2019(args.rsna_csv) if args.rsna_csv else readers.per_slice_csv(args.slice_csv)
        for n, study in enumerate(readers.dicom_folder(args.dicom, labels)):
            # Series of one person share a group; the number is all that is kept of who it was.
            save(study, args.cache, f"site-{zlib.crc32((study.person or study.name).encode())}")
            print(f"\rprepared {n + 1} series", end="", flush=True)
        print()
    with ProcessPoolExecutor(args.jobs) as pool:
        work = []
        if args.ct_ich:
            people = sorted({int(r["patient"]) for r in readers.rows(args.ct_ich / "labels.csv")})
            people = [p for p in people if (args.ct_ich / f"brain/{p:03d}").is_dir()]
            work += [pool.submit(person, args.ct_ich, p, args.cache, args.paint_with, args.copies) for p in people]
        if args.phantom:
            folders = sorted(p.parent for p in args.phantom.glob("*/labels.csv"))
            work += [pool.submit(phantom, f, args.cache) for f in folders]
        for n, job in enumerate(as_completed(work)):
            if job.result():
                print(f"\n{job.result()}")
            print(f"\rprepared {n + 1}/{len(work)} heads", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
