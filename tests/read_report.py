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
            items["images"].append(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
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
    seg = highdicom.seg.Segmentation.from_dataset(dataset)
    pixels = seg.pixel_array
    return {"frames": int(seg.NumberOfFrames), "segments": seg.number_of_segments,
            "marked": int((pixels > 0).sum()), "rows": seg.Rows,
            "images": [str(u[2]) for u in seg.get_source_image_uids()]}


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
        line["images"] = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
                          for i in dataset.ContentSequence if i.ValueType == "IMAGE"]
        assert set(line["images"]) <= set(instances(dataset.CurrentRequestedProcedureEvidenceSequence))
    elif dataset.Modality == "SEG":
        line.update(segmentation(dataset))
    elif dataset.Modality == "OT":
        line["burned_in"] = dataset.BurnedInAnnotation
        line["images"] = [i.ReferencedSOPInstanceUID for i in dataset.SourceImageSequence]
        assert dataset.pixel_array.shape == (dataset.Rows, dataset.Columns)
    print(json.dumps(line))
