"""DICOM to slices, through pydicom (the extra `dicom`): CT in Hounsfield units, turned by what the file says."""

import io
from typing import Any

import numpy as np

from .errors import ImageError
from .images import Slice, check_size
from .orientation import Orientation

__all__ = ["read_dicom"]

OBLIQUE = 0.9  # a direction cosine below this is more than 25 degrees off the patient's axes
_DIRECTIONS = (("L", "R"), ("P", "A"), ("H", "F"))  # x, y, z of DICOM's patient, growing and falling


def read_dicom(data: bytes, limit: int) -> Slice:
    """One DICOM file. CT becomes int16 HU (rescale slope and intercept; MONOCHROME1 changes only how HU are shown);
    an image without a rescale is read as it is shown, inverted where MONOCHROME1. Raises ImageError."""
    try:
        import pydicom
    except ImportError as e:
        raise ImageError("DICOM needs pydicom: pip install 'organ-infer[dicom]'") from e
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise ImageError("DICOM: no pixel data in it")
    notes: list[str] = []
    check_size(int(dataset.Columns), int(dataset.Rows), limit)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        if frames * int(dataset.Columns) * int(dataset.Rows) > limit:
            raise ImageError(f"DICOM: {frames} frames: too large, at most {limit:,} pixels are read")
        notes.append(f"the first of {frames} frames")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ImageError("DICOM: colour is not read, a CT slice is gray")
    pixels = np.asarray(dataset.pixel_array)
    stored = pixels[0] if pixels.ndim == 3 else pixels
    if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
        slope = float(dataset.get("RescaleSlope", 1) or 1)
        units = np.rint(stored * slope + float(dataset.get("RescaleIntercept", 0) or 0))
        if not np.isfinite(units).all():
            raise ImageError("DICOM: rescale slope or intercept is not a finite number")
        values: Any = np.clip(units, -32_768, 32_767).astype(np.int16)
    else:
        values = _shown(dataset, stored, notes)
    if dataset.get("Modality", "CT") != "CT":
        notes.append(f"modality {dataset.Modality}, not CT")
    return Slice(values, tuple(notes), _orientation(dataset, notes))


def _shown(dataset: Any, stored: Any, notes: list[str]) -> Any:
    bits = int(dataset.BitsStored)
    if int(dataset.PixelRepresentation) or bits > 16:
        raise ImageError("DICOM: signed or 32-bit pixels without a rescale slope have no known unit")
    notes.append(f"no rescale slope: read as {bits}-bit gray, not as HU")
    top = (1 << bits) - 1
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        notes.append("inverted: the file says that 0 is white")
        stored = top - stored.astype(np.int64)
    if bits <= 8:
        return np.rint(stored * (255 / top)).astype(np.uint8)
    return np.rint(stored * (65_535 / top)).astype(np.uint16)


def _orientation(dataset: Any, notes: list[str]) -> Orientation | None:
    """From ImageOrientationPatient: three cosines of the growing column index, then three of the growing row index."""
    cosines = dataset.get("ImageOrientationPatient")
    if cosines is None or len(cosines) != 6:
        return None
    values = np.asarray([float(cosine) for cosine in cosines]).reshape(2, 3)
    if not (np.abs(values).max(axis=1) >= OBLIQUE).all():
        raise ImageError("DICOM: an oblique slice, more than 25 degrees off the patient's axes")
    columns, rows = (
        _DIRECTIONS[axis][0 if direction[axis] > 0 else 1]
        for axis, direction in zip(np.abs(values).argmax(axis=1), values, strict=True)
    )
    return rows, columns
