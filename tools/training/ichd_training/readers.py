"""Labelled head CT from three layouts, all to Hounsfield units. A study is read only when it is asked for.

DICOM is read as the daemon reads it: what stands here of turning, padding, places and refusals is its rule, held
against it slice by slice by `tests/test_parity.py`.
"""

import csv
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import CLASSES


@dataclass
class Study:
    """One series: [T, rows, columns] HU caudal to cranial, labels [T, 6], positions, distance of rows and of columns in mm.

    `person` and `study` (Patient ID, Study Instance UID) are known of DICOM only and are never written anywhere.
    """

    name: str
    hu: np.ndarray
    labels: np.ndarray
    z_mm: np.ndarray
    row_mm: float
    column_mm: float
    mask: np.ndarray | None = None
    person: str = ""
    study: str = ""


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
    return Study(f"ct-ich-{person:03d}", np.stack(planes), np.asarray(labels, np.float32), np.asarray(z, np.float32), pixel_mm, pixel_mm)


def phantom(folder: Path) -> Study:
    """One study written by `ichd-phantom dataset` or `ichd-phantom paint`."""
    import json

    info = json.loads((folder / "info.json").read_text())
    labels = np.asarray([[float(r[c]) for c in CLASSES] for r in rows(folder / "labels.csv")], np.float32)
    hu = np.load(folder / "volume.npy")
    z = np.arange(len(hu), dtype=np.float32) * info["step_mm"]
    return Study(f"phantom-{folder.parent.name}-{folder.name}", hu, labels, z, info["pixel_mm"], info["pixel_mm"], np.load(folder / "mask.npy"))


SHARP_WORDS = ("BONE", "EDGE", "LUNG", "ULTRA", "SHARP", "INNER EAR")
SOFT_WORDS = ("SOFT", "STANDARD", "STD", "SMOOTH", "BRAIN", "DETAIL")
SHARP_LETTERS = ("YA", "YB", "YC", "YD", "YE", "D", "E", "L")
DERIVED_KINDS = {"PERFUSION", "MIP", "MINIP", "VRT", "SSD", "RADIAL", "SCREEN SAVE", "BATCHMODE", "CURVED"}
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
CT_CLASSES = (CT_IMAGE_STORAGE, "1.2.840.10008.5.1.4.1.1.2.1")
SLICES_MIN, STEP_MAX_MM, SAME_POSITION_MM, PARALLEL_COS = 8, 12.0, 0.01, 0.9999
"""As in the daemon's `decide::suitability` and `assemble::geometry`."""


class Refused(ValueError):
    """A series that the daemon would not analyse; the text is its reason code."""


@dataclass
class Series:
    """A DICOM series as the daemon sees it: upright, caudal to cranial, one image per position."""

    hu: np.ndarray
    z_mm: np.ndarray
    row_mm: float
    column_mm: float
    sops: list[str]


def is_bone_kernel(kernel: str) -> bool:
    """Whether a Convolution Kernel name is a sharp one by its vendor's scheme; `decide::suitability::kernel` in the daemon."""
    kernel = kernel.strip().upper()
    if any(word in kernel for word in SHARP_WORDS):
        return True
    if any(word in kernel for word in SOFT_WORDS):
        return False
    if kernel in SHARP_LETTERS:
        return True
    found = re.match(r"([A-Z]*)(\d*)", kernel)
    family, digits = found[1], found[2]
    if family == "FC":
        return digits.isdigit() and int(digits) in (*range(30, 40), *range(50, 60), *range(80, 90))
    return len(family) in (1, 2) and len(digits) == 2 and int(digits) >= 60


def decimal(ds, tag: int, default: float) -> float:
    """A decimal string, even where a lost value representation has left it as bytes."""
    value = ds[tag].value if tag in ds else None
    if value is None or value == "":
        return default
    return float(value.decode().strip("\0 ") if isinstance(value, bytes) else value)


def hounsfield(ds) -> np.ndarray:
    """HU of one image as it is stored. Padding counts in the stored bits and in the whole cell, and is air."""
    if ds.get("PhotometricInterpretation") != "MONOCHROME2":
        raise Refused("undecodable")
    bits = int(ds.get("BitsStored", 16))
    shift = int(ds.get("HighBit", bits - 1)) + 1 - bits
    signed = int(ds.get("PixelRepresentation", 0)) == 1
    number = lambda raw, bits: raw - ((raw >> (bits - 1)) << bits) if signed else raw
    raw = ds.pixel_array.astype(np.int64) & 0xFFFF
    value, cell = number(raw >> shift & ((1 << bits) - 1), bits), number(raw, 16)
    slope, intercept = decimal(ds, 0x00281053, 1.0), decimal(ds, 0x00281052, 0.0)
    if not (slope != 0 and abs(slope) <= 1e3 and abs(intercept) <= 1e5):
        raise Refused("undecodable")
    hu = (value * slope + intercept).astype(np.float32)
    if ds.get("PixelPaddingValue") is not None:
        ends = [number(int(v) & 0xFFFF, 16) for v in (ds.PixelPaddingValue, ds.get("PixelPaddingRangeLimit", ds.PixelPaddingValue))]
        for v in (value, cell):
            hu[(v >= min(ends)) & (v <= max(ends))] = -1000
    return hu


def upright(hu: np.ndarray, row, column, spacing):
    """Turns an image until columns run to the patient's left and rows to the back; (image, row_mm, column_mm)."""
    transpose = abs(row[1]) > abs(row[0])
    right, down = (column[0], row[1]) if transpose else (row[0], column[1])
    hu = hu.T if transpose else hu
    hu = hu[:, ::-1] if right < 0 else hu
    return (hu[::-1] if down < 0 else hu), *(spacing[::-1] if transpose else spacing)


def plane(ds):
    """(row, column, position, spacing) of one image, or nothing if it has no usable geometry."""
    try:
        orientation, position, spacing = ([float(v) for v in ds[name].value] for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"))
        row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    except (KeyError, TypeError, ValueError):
        return None
    usable = all(abs(v @ v - 1) < 0.01 for v in (row, column)) and all(0.01 <= s < 100 for s in spacing) and len(position) == 3
    return (row, column, np.asarray(position), tuple(spacing)) if usable else None


def lies_beside(ds) -> bool:
    """A screen save or a map: nobody misses it in the stack."""
    derived = DERIVED_KINDS.intersection(ds.get("ImageType", []))
    return bool(derived) or str(ds.get("SOPClassUID")) not in CT_CLASSES or int(ds.get("SamplesPerPixel") or 1) != 1


def unsuitable(headers) -> str | None:
    """Why the daemon refuses a series by what its headers say, before their places are looked at."""
    types = {str(t) for ds in headers for t in ds.get("ImageType", [])}
    if any(ds.get("Modality") != "CT" for ds in headers):
        return "not_ct"
    if any(str(ds.get("SOPClassUID")) != CT_IMAGE_STORAGE or int(ds.get("NumberOfFrames") or 1) != 1 for ds in headers):
        return "multi_frame"
    if any(int(ds.get("SamplesPerPixel") or 1) != 1 for ds in headers):
        return "not_an_image"
    if types & DERIVED_KINDS:
        return "derived"
    kernels = [ds.get("ConvolutionKernel") for ds in headers]
    first = lambda k: str(k) if isinstance(k, str) else str(k[0])
    return "bone_kernel" if any(is_bone_kernel(first(k)) for k in kernels if k) else None


def dicom_series(files: list[Path]) -> Series:
    """Reads one series by the daemon's rules: of several planes or sizes the largest stack, ordered by position, of images
    at one position the one with the smallest UID. Raises `Refused` with the daemon's reason where it would not read it.

    Not asked here is what only pixels show (`not_head`, `no_brain_tissue`): labelled heads are heads.
    """
    import pydicom

    headers = sorted((pydicom.dcmread(path) for path in files), key=lambda ds: str(ds.SOPInstanceUID))
    # Localisers, screen saves and maps lie beside a stack, unless there is nothing else.
    headers = [ds for ds in headers if "LOCALIZER" not in ds.get("ImageType", [])]
    if not headers:
        raise Refused("localizer")
    headers = [ds for ds in headers if not lies_beside(ds)] or headers
    if why := unsuitable(headers):
        raise Refused(why)
    stacks: list[list] = []
    near = lambda a, b: abs(a - b) <= 1e-3 * abs(a)
    for ds in headers:
        here = plane(ds)
        if here is None:
            continue
        for stack in stacks:
            there, other = stack[0]
            if (here[0] @ there[0] > PARALLEL_COS and here[1] @ there[1] > PARALLEL_COS and (ds.Rows, ds.Columns) == (other.Rows, other.Columns)
                    and near(there[3][0], here[3][0]) and near(there[3][1], here[3][1])):
                stack.append((here, ds))
                break
        else:
            stacks.append([(here, ds)])
    if not stacks:
        raise Refused("no_geometry")
    stack = max(stacks, key=len)
    normal = np.cross(stack[0][0][0], stack[0][0][1])
    normal /= np.linalg.norm(normal)
    normal *= 1.0 if normal[2] >= 0 else -1.0
    if normal[2] < np.sqrt(0.5):
        raise Refused("not_axial")
    kept, repeats = [], 0
    for z, _, here, ds in sorted(((float(normal @ here[2]), str(ds.SOPInstanceUID), here, ds) for here, ds in stack), key=lambda s: s[:2]):
        if kept and z - kept[-1][0] < SAME_POSITION_MM:
            repeats += 1
        else:
            kept.append((z, here, ds))
    z_mm = np.asarray([z for z, _, _ in kept])
    if repeats * 4 > len(kept):
        raise Refused("same_position")
    if len(kept) < SLICES_MIN:
        raise Refused("too_few_slices")
    if sorted(np.diff(z_mm))[(len(z_mm) - 2) // 2] > STEP_MAX_MM:
        raise Refused("too_thick")
    try:
        images = [upright(hounsfield(ds), *here[:2], here[3]) for _, here, ds in kept]
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise error if isinstance(error, Refused) else Refused("undecodable") from error
    if any(hu.min() == hu.max() for hu, _, _ in images):
        raise Refused("blank_slice")
    return Series(np.stack([hu for hu, _, _ in images]), z_mm.astype(np.float32), *images[0][1:], [str(ds.SOPInstanceUID) for _, _, ds in kept])


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


def dicom_folder(folder: Path, labels: dict[str, np.ndarray], left_out: Counter):
    """Every labelled CT series below a folder that the daemon would read, one at a time; why others were left out is
    counted in `left_out`. Slices without a label are left out."""
    import pydicom

    series, who = defaultdict(list), {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if str(ds.get("SOPInstanceUID", "")) in labels and ds.get("Modality") == "CT":
            series[str(ds.SeriesInstanceUID)].append(path)
            who[str(ds.SeriesInstanceUID)] = str(ds.get("PatientID") or "").strip(), str(ds.get("StudyInstanceUID", ""))
    for uid, files in series.items():
        try:
            read = dicom_series(files)
        except Refused as why:
            left_out[str(why)] += 1
            continue
        person, study = who[uid]
        yield Study("", read.hu.astype(np.int16), np.stack([labels[s] for s in read.sops]), read.z_mm, read.row_mm, read.column_mm, person=person, study=study)
