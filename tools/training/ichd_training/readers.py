"""Labelled head CT from three layouts, all to Hounsfield units. A study is read only when it is asked for."""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import CLASSES


@dataclass
class Study:
    """One series: [T, rows, columns] HU caudal to cranial, labels [T, 6], positions and pixel size in mm."""

    name: str
    hu: np.ndarray
    labels: np.ndarray
    z_mm: np.ndarray
    pixel_mm: float
    mask: np.ndarray | None = None
    person: str = ""


def rows(csv_path: Path) -> list[dict]:
    """A CSV table with a header, as a list of rows."""
    with open(csv_path, newline="") as file:
        return list(csv.DictReader(file))


def labels_with_any(five: np.ndarray) -> np.ndarray:
    """[T, 5] subtypes -> [T, 6] in class order."""
    return np.concatenate([five.max(axis=1, keepdims=True), five], axis=1).astype(np.float32)


def ct_ich(folder: Path, person: int, pixel_mm: float = 0.36, step_mm: float = 5.0) -> Study:
    """CT-ICH open JPEG release: brain window 40/120 and bone window 700/3200 as 8-bit images, slice 1 lowest."""
    from PIL import Image

    table = sorted((r for r in rows(folder / "labels.csv") if int(r["patient"]) == person), key=lambda r: int(r["slice"]))
    planes, labels, z = [], [], []
    for r in table:
        number = int(r["slice"])
        found = {k: next(iter(sorted((folder / k).glob(f"*{person:0>2}/*{number:02d}.jpg"))), None) for k in ("brain", "bone")}
        for k in found:
            if found[k] is None:
                found[k] = next((p for p in (folder / k / f"{person:03d}").glob("*.jpg") if int(re.findall(r"\d+", p.stem)[0]) == number), None)
        if found["brain"] is None:
            continue
        brain = np.asarray(Image.open(found["brain"]).convert("L"), np.float32)
        hu = -20 + brain * 120 / 255
        if found["bone"] is not None:
            bone = np.asarray(Image.open(found["bone"]).convert("L"), np.float32)
            from_bone = -900 + bone * 3200 / 255
            hu = np.where((brain < 6) | (brain > 249), from_bone, hu)
            hu[(brain == 0) & (bone == 0)] = -1000
        planes.append(hu.astype(np.int16))
        labels.append([float(r[c]) for c in CLASSES])
        z.append(number * step_mm)
    return Study(f"ct-ich-{person:03d}", np.stack(planes), np.asarray(labels, np.float32), np.asarray(z, np.float32), pixel_mm)


def phantom(folder: Path) -> Study:
    """One study written by `ichd-phantom dataset` or `ichd-phantom paint`."""
    import json

    info = json.loads((folder / "info.json").read_text())
    labels = np.asarray([[float(r[c]) for c in CLASSES] for r in rows(folder / "labels.csv")], np.float32)
    hu = np.load(folder / "volume.npy")
    z = np.arange(len(hu), dtype=np.float32) * info["step_mm"]
    return Study(f"phantom-{folder.parent.name}-{folder.name}", hu, labels, z, info["pixel_mm"], np.load(folder / "mask.npy"))


def dicom_series(files: list[Path]) -> tuple[np.ndarray, np.ndarray, float, list[str]]:
    """Files of one series -> HU [T, rows, columns], z_mm [T], pixel_mm, SOP Instance UIDs; ordered by position."""
    import pydicom

    slices = []
    for path in files:
        ds = pydicom.dcmread(path)
        row, column = np.asarray(ds.ImageOrientationPatient[:3], float), np.asarray(ds.ImageOrientationPatient[3:], float)
        normal = np.cross(row, column)
        normal *= 1.0 if normal[2] >= 0 else -1.0
        stored = ds.pixel_array.astype(np.float32)
        hu = stored * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
        if "PixelPaddingValue" in ds:
            hu[stored == float(ds.PixelPaddingValue)] = -1000
        slices.append((float(np.dot(normal, np.asarray(ds.ImagePositionPatient, float))), str(ds.SOPInstanceUID), hu, float(ds.PixelSpacing[0])))
    slices.sort(key=lambda s: (s[0], s[1]))
    return np.stack([s[2] for s in slices]), np.asarray([s[0] for s in slices], np.float32), slices[0][3], [s[1] for s in slices]


def rsna_2019(csv_path: Path) -> dict[str, np.ndarray]:
    """RSNA-2019 layout: rows `ID_xxxx_<class>,label` -> {`ID_xxxx`: [6]}; SOP Instance UID = `ID_xxxx`."""
    table: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(6, np.float32))
    for r in rows(csv_path):
        image, _, name = r["ID"].rpartition("_")
        table[image][CLASSES.index(name)] = float(r["Label"])
    return dict(table)


def per_slice_csv(csv_path: Path) -> dict[str, np.ndarray]:
    """Columns `sop_uid` and the six class names -> {SOP Instance UID: [6]}; `any` may be left out."""
    table = {}
    for r in rows(csv_path):
        five = np.asarray([[float(r[c]) for c in CLASSES[1:]]], np.float32)
        table[r["sop_uid"]] = labels_with_any(five)[0]
    return table


def dicom_folder(folder: Path, labels: dict[str, np.ndarray]):
    """Every labelled CT series below a folder, one study at a time. Slices without a label are left out."""
    import pydicom

    series, person = defaultdict(list), {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if str(ds.get("SOPInstanceUID", "")) in labels and ds.get("Modality") == "CT":
            series[str(ds.SeriesInstanceUID)].append(path)
            person[str(ds.SeriesInstanceUID)] = str(ds.get("PatientID", ""))
    for uid, files in series.items():
        hu, z_mm, pixel_mm, sops = dicom_series(files)
        yield Study(uid, hu.astype(np.int16), np.stack([labels[s] for s in sops]), z_mm, pixel_mm, person=person[uid])
