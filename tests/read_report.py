"""Reads result objects as a receiving system would, with pydicom and highdicom; one JSON object per file."""
import json
import sys

import highdicom
import pydicom


def instances(sequence):
    return [i.ReferencedSOPInstanceUID for study in sequence for series in study.ReferencedSeriesSequence
            for i in series.ReferencedSOPSequence]


def report(dataset):
    """A TID 1500 report through highdicom's own reader."""
    content = highdicom.sr.Comprehensive3DSR.from_dataset(dataset).content
    assert isinstance(content, highdicom.sr.MeasurementReport), type(content)
    (group,) = content.get_image_measurement_groups()
    items = {"algorithm": {"parameters": []}, "evaluations": {}, "images": []}
    for evaluation in group.get_qualitative_evaluations():
        items["evaluations"][evaluation.name.value] = evaluation.value.value
    for measurement in group.get_measurements():
        items["volume_ml"] = float(measurement.value)
    for item in group[0].ContentSequence:
        name = item.ConceptNameCodeSequence[0].CodeValue
        if item.ValueType == "IMAGE":
            items["images"].append(referenced(item)[0])
            items.setdefault("image_frames", []).append(referenced(item)[1])
        if name == "111001":
            items["algorithm"]["name"] = item.TextValue
        if name == "111003":
            items["algorithm"]["version"] = item.TextValue
        if name == "111002":
            items["algorithm"]["parameters"].append(item.TextValue)
    items["evidence"] = instances(dataset.CurrentRequestedProcedureEvidenceSequence)
    items["predecessor"] = instances(dataset.get("PredecessorDocumentsSequence", []))
    return items


def segmentation(dataset):
    """As a viewer would: the mask by source image, and where its middle lies in the patient, in mm."""
    seg = highdicom.seg.Segmentation.from_dataset(dataset)
    pixels = seg.pixel_array.reshape(int(seg.NumberOfFrames), seg.Rows, seg.Columns)
    shared, groups = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    (row_mm, column_mm) = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    orientation = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    points = []
    for mask, group in zip(pixels, groups):
        position = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        rows, columns = mask.nonzero()
        points += [[p + r * row_mm * orientation[3 + i] + c * column_mm * orientation[i]
                    for i, p in enumerate(position)] for r, c in zip(rows.tolist(), columns.tolist())]
    sources = [g.DerivationImageSequence[0].SourceImageSequence[0] for g in groups]
    return {"frames": int(seg.NumberOfFrames), "segments": seg.number_of_segments, "marked": len(points),
            "rows": seg.Rows, "columns": seg.Columns,
            "middle": [sum(p[i] for p in points) / len(points) for i in range(3)],
            "volume_cells": len(points) * row_mm * column_mm,
            "segment": seg.get_segment_description(1).segmented_property_type.meaning,
            "images": [str(u[2]) for u in seg.get_source_image_uids()],
            "source_frames": [int(s.get("ReferencedFrameNumber", 0)) for s in sources]}


def referenced(item):
    """Instance and frame (0: none is named) of an image reference."""
    reference = item.ReferencedSOPSequence[0]
    return str(reference.ReferencedSOPInstanceUID), int(reference.get("ReferencedFrameNumber", 0))


for path in sys.argv[1:]:
    dataset = pydicom.dcmread(path)
    line = {
        "modality": dataset.Modality,
        "study": dataset.StudyInstanceUID,
        "series": dataset.SeriesInstanceUID,
        "sop": dataset.SOPInstanceUID,
        "patient_name": str(dataset.PatientName),
        "patient_id": dataset.PatientID,
        "birth_date": dataset.PatientBirthDate,
        "accession": dataset.AccessionNumber,
        "study_date": dataset.StudyDate,
        "description": dataset.get("SeriesDescription"),
    }
    if dataset.Modality == "SR":
        line.update(report(dataset))
    elif dataset.Modality == "KO":
        keys = [referenced(i) for i in dataset.ContentSequence if i.ValueType == "IMAGE"]
        line["images"], line["image_frames"] = map(list, zip(*keys))
        assert set(line["images"]) <= set(instances(dataset.CurrentRequestedProcedureEvidenceSequence))
    elif dataset.Modality == "SEG":
        line.update(segmentation(dataset))
    elif dataset.Modality == "OT":
        line["burned_in"] = dataset.BurnedInAnnotation
        line["images"] = [i.ReferencedSOPInstanceUID for i in dataset.SourceImageSequence]
        line["image_frames"] = [int(i.get("ReferencedFrameNumber", 0)) for i in dataset.SourceImageSequence]
        assert dataset.pixel_array.shape == (dataset.Rows, dataset.Columns)
    print(json.dumps(line))
