"""Makes an Enhanced CT instance of a single-frame CT series.

make_enhanced.py KIND OUT FILE...
  explicit  frames in the order of the files, everything that can be shared is shared
  implicit  implicit VR, sequences of undefined length, frames in another order, nothing shared
  rle       as explicit, RLE: one fragment for each frame
  slice     no Enhanced CT: one file as it is, RLE in three fragments without an offset table
  split     as rle, each frame in two fragments, told apart by the offset table
"""

import sys

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_encoder
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid


def one(**elements):
    """A sequence of one item."""
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return [item]


def measures(s):
    return "PixelMeasuresSequence", one(PixelSpacing=s.PixelSpacing, SliceThickness=s.SliceThickness)


def orientation(s):
    return "PlaneOrientationSequence", one(ImageOrientationPatient=s.ImageOrientationPatient)


def rescale(s):
    return "PixelValueTransformationSequence", one(
        RescaleSlope=s.RescaleSlope, RescaleIntercept=s.RescaleIntercept, RescaleType="HU")


def reconstruction(s):
    return "CTReconstructionSequence", one(ConvolutionKernel=s.get("ConvolutionKernel", "H31s"))


def frame_type(s):
    return "CTImageFrameTypeSequence", one(FrameType=list(s.ImageType)[:3] + ["NONE"])


def position(s):
    return "PlanePositionSequence", one(ImagePositionPatient=s.ImagePositionPatient)


def main():
    kind, out, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    slices = [dcmread(f) for f in files]
    if kind == "slice":
        s = slices[0]
        s.compress(RLELossless)
        frame = next(generate_frames(s.PixelData, number_of_frames=1))
        s.PixelData = encapsulate([frame], fragments_per_frame=3, has_bot=False)
        s.save_as(out)
        return
    if kind == "implicit":
        slices = slices[::2] + slices[1::2][::-1]
    first = slices[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian}.get(kind, RLELossless)
    ds = FileDataset(out, {}, file_meta=meta, preamble=b"\0" * 128)
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "Modality", "SamplesPerPixel",
                 "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
                 "PixelRepresentation"):
        if name in first:
            setattr(ds, name, first[name].value)
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID = generate_uid()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames = len(slices)
    shareable = [measures, orientation, rescale, reconstruction, frame_type]
    shared = [] if kind == "implicit" else shareable
    ds.SharedFunctionalGroupsSequence = one(**dict(group(first) for group in shared))
    ds.PerFrameFunctionalGroupsSequence = [
        one(**dict(group(s) for group in [position] + [g for g in shareable if g not in shared]))[0] for s in slices]
    frames = [s.PixelData for s in slices]
    if kind in ("rle", "split"):
        encoder = get_encoder(RLELossless)
        frames = [encoder.encode(s.pixel_array, rows=s.Rows, columns=s.Columns, samples_per_pixel=1,
                                 bits_allocated=16, bits_stored=s.BitsStored, number_of_frames=1,
                                 pixel_representation=s.PixelRepresentation,
                                 photometric_interpretation="MONOCHROME2") for s in slices]
        ds.PixelData = encapsulate(frames, fragments_per_frame=2 if kind == "split" else 1, has_bot=True)
        ds["PixelData"].VR = "OB"
    else:
        ds.PixelData = b"".join(frames)
        ds["PixelData"].VR = "OW"
    if kind == "implicit":
        for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            ds[name].is_undefined_length = True
            for item in ds[name].value:
                item.is_undefined_length_sequence_item = True
    ds.save_as(out, enforce_file_format=True)


main()
