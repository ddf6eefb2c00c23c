"""Readers' studies -> a cache of small HU planes, so that training never touches full images again."""

import argparse
import hmac
import json
import os
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

# One process per head is parallel enough; BLAS threads on top of that made sixteen cores ten times slower.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import numpy as np

from . import FIELD_MM, SIZE_PX, STEP_MM_MIN, readers
from .preprocess import resize

MAP_PX = SIZE_PX // 8


CT_ICH = {
    "name": "CT-ICH, open JPEG release (M. D. Hssayeni et al., Data 2020, 5(1):14, DOI 10.13026/w8q8-ky94)",
    "licence": "CC BY 4.0",
    "limits": "one hospital, trauma patients, pixel size guessed, HU from 8-bit images; children, contrast, metal, motion, thin slices and "
              "other scanners are hardly or not in it",
}
"""What a package says of the data that it was trained on; a hospital gives its own with --source."""


def save(study: readers.Study, out: Path, group: str) -> None:
    """Writes planes [T, S, S] int16, labels, z and, where known, the lesion map [T, S/8, S/8] of covered fractions."""
    keep, last = [], -1e9
    for i, z in enumerate(study.z_mm):
        if z >= last + STEP_MM_MIN - 1e-3:
            keep.append(i)
            last = z
    pixel = study.row_mm, study.column_mm
    planes = np.stack([np.rint(resize(study.hu[i], *pixel)) for i in keep]).astype(np.int16)
    data = dict(planes=planes, labels=study.labels[keep], z_mm=study.z_mm[keep], group=group, name=study.name)
    if study.mask is not None:
        outside = lambda m: resize(m.astype(np.float32) - 1000, *pixel, MAP_PX, FIELD_MM) + 1000
        data["map"] = np.stack([outside(study.mask[i] > 0) for i in keep]).astype(np.float16)
    elif not study.labels.any():
        data["map"] = np.zeros((len(keep), MAP_PX, MAP_PX), np.float16)
    np.savez(out / f"{study.name}.npz", **data)


class People:
    """Names for people that lead nowhere: digests with a key that ends with this run."""

    def __init__(self):
        self.key, self.series, self.unknown = os.urandom(32), Counter(), 0

    def group(self, study: readers.Study) -> str:
        """The group of a study's person. Without a Patient ID a person is known no further than the study."""
        who = f"person {study.person}" if study.person else f"study {study.study}"
        self.unknown += not study.person
        digest = hmac.new(self.key, who.encode(), "sha256").digest()
        return f"site-{int.from_bytes(digest[:7], 'big'):017d}"

    def named(self, study: readers.Study) -> tuple[readers.Study, str]:
        """The study under its person's name and a running number, and that person's group."""
        group = self.group(study)
        self.series[group] += 1
        study.name = f"{group}-{self.series[group]}"
        return study, group


def own(folders: list[Path], labels, source: dict, cache: Path) -> None:
    """A hospital's own DICOM, all of it in one run: the key that tells people apart is not kept."""
    people, left_out = People(), Counter()
    for folder in folders:
        for study in readers.dicom_folder(folder, labels, left_out):
            study, group = people.named(study)
            save(study, cache, group)
            print(f"\rprepared {people.series.total()} series of {len(people.series)} people", end="", flush=True)
    print()
    for why, n in sorted(left_out.items()):
        print(f"left out: {n} series, {why}: ichd would not analyse them")
    if not people.series:
        raise SystemExit("no labelled series that ichd would read: do the labels' SOP Instance UIDs belong to these files?")
    if people.unknown:
        print(f"WARNING: {people.unknown} series have no Patient ID and are told apart by Study Instance UID; several studies of one "
              "person may stand on both sides of a split, and every figure is then too good")
        source = source | {"limits": f"{source['limits']}; {people.unknown} series without Patient ID, told apart by study only"}
    tell(cache, "site", source)


def tell(cache: Path, group: str, source: dict) -> None:
    """Keeps the words on the data beside the planes, by the groups they are about."""
    path = cache / "source.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {group: source}, indent=1, ensure_ascii=False) + "\n")


def source_of(path: Path) -> dict:
    """The file of --source: `name` and `limits` in words, and whatever `licence` says."""
    source = json.loads(path.read_text())
    wanted, known = {"name", "limits"}, {"name", "limits", "licence"}
    if not (isinstance(source, dict) and wanted <= source.keys() <= known and all(isinstance(v, str) and v.strip() for v in source.values())):
        raise SystemExit(f"{path}: needs the texts `name` and `limits`, may have `licence`, and nothing else")
    return source


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
    done = subprocess.run([program, "paint", "--in", work / "in.npy", "--pixel-mm", str(study.row_mm * 2), "--step-mm", "5",
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
    a.add_argument("--dicom", type=Path, nargs="+", help="folders of DICOM, with --source and --rsna-csv or --slice-csv")
    a.add_argument("--source", type=Path, help="JSON file with `name`, `limits` and perhaps `licence` of that data: what card and manifest will say")
    a.add_argument("--rsna-csv", type=Path, help="labels in the RSNA-2019 layout")
    a.add_argument("--slice-csv", type=Path, help="labels with one row per slice: sop_uid and the class names")
    a.add_argument("--cache", type=Path, required=True)
    a.add_argument("--jobs", type=int, default=os.cpu_count())
    args = a.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.dicom:
        if not args.source or not (args.rsna_csv or args.slice_csv):
            a.error("--dicom: needs --source and, for the labels, --rsna-csv or --slice-csv")
        if next(args.cache.glob("site-*.npz"), None):
            a.error(f"--cache {args.cache} holds people of an earlier run, which this one could not recognise: give all folders in one run, into a new cache")
        labels = readers.rsna_2019(args.rsna_csv) if args.rsna_csv else readers.per_slice_csv(args.slice_csv)
        own(args.dicom, labels, source_of(args.source), args.cache)
    if args.ct_ich:
        tell(args.cache, "person", CT_ICH)
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
