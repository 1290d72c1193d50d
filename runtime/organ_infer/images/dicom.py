"""DICOM to slices, through pydicom (the extra `dicom`): CT in Hounsfield units, turned by what the file says."""

import io
import math
import zlib
from typing import Any

import numpy as np

from ..errors import ImageError
from .orientation import Orientation
from .types import SIGNATURE_BYTES, Slice, SliceReaders, Source, check_size, numbered

__all__ = ["read_dicom"]

BLOCK = 1 << 20  # bytes inflated at once
FRAGMENT = 8  # bytes, at least, of a compressed frame
DEFLATED = "1.2.840.10008.1.2.1.99"  # the transfer syntax whose whole dataset is compressed
STRAIGHT = math.cos(math.radians(25))  # the least cosine of the angle to an axis of the patient
_DIRECTIONS = (("L", "R"), ("P", "A"), ("H", "F"))  # x, y, z of DICOM's patient, growing and falling


def read_dicom(source: Source) -> SliceReaders:
    """The frames of one DICOM file. CT becomes int16 HU (rescale slope and intercept; MONOCHROME1 changes only how HU
    are shown); an image without a rescale is read as it is shown, inverted where MONOCHROME1. Raises ImageError."""
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError as e:
        raise ImageError("DICOM needs pydicom 3: pip install 'organ-infer[dicom]'") from e
    data = source.read_all()
    _check_deflated(data, source.limits.file_bytes)
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise ImageError("DICOM: no pixel data in it")
    check_size(int(dataset.Columns), int(dataset.Rows), source.limits.pixels)
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ImageError("DICOM: color is not read, a CT slice is gray")
    if (shown := dataset.PhotometricInterpretation) not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"DICOM: {shown} is not read, a CT slice is gray")
    if "ModalityLUTSequence" in dataset:
        raise ImageError("DICOM: a table of units (Modality LUT) in the place of a rescale slope is not read")
    syntax = dataset.file_meta.TransferSyntaxUID
    _check_decoder(syntax)
    count, bits = int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.BitsAllocated)
    least = FRAGMENT if syntax.is_encapsulated else int(dataset.Rows) * int(dataset.Columns) * bits // 8
    if count > 1 and count * least > len(dataset.PixelData):
        raise ImageError(f"DICOM: {count:,} frames in {len(dataset.PixelData):,} bytes: truncated or damaged")

    def read(i: int) -> Slice:
        return _frame(dataset, i, np.asarray(pixel_array(dataset, index=i)))

    if count == 1 and source.selector is None:
        yield "", lambda: read(0)
    else:
        yield from numbered(count, read, source.selector)


def _check_deflated(data: bytes, limit: int) -> None:
    """pydicom inflates without a limit: here it is tried within one first."""
    from pydicom.filereader import read_dataset

    if DEFLATED.encode() not in data:
        return
    file = io.BytesIO(data)
    file.seek(SIGNATURE_BYTES)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        raise ImageError("DICOM: which transfer syntax it has is not clear")
    stream, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), data[file.tell() :], 0
    while rest and not stream.eof:
        size += len(stream.decompress(rest, BLOCK))
        rest = stream.unconsumed_tail
        if size > limit:
            raise ImageError(f"DICOM: it inflates to more than {limit:,} bytes (--file-limit raises it)")


def _check_decoder(syntax: Any) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if not syntax.is_encapsulated:
        return
    try:
        found = get_decoder(syntax).is_available
    except NotImplementedError:
        found = False
    if not found:
        raise ImageError(
            f"DICOM: no decoder for {syntax.name} is installed: pip install pylibjpeg pylibjpeg-libjpeg"
            " pylibjpeg-openjpeg"
        )


def _frame(dataset: Any, i: int, stored: Any) -> Slice:
    notes: list[str] = []
    units = _group(dataset, i, "PixelValueTransformationSequence")
    if "RescaleSlope" in units or "RescaleIntercept" in units:
        slope = float(units.get("RescaleSlope", 1) or 1)
        hounsfield = np.rint(stored * slope + float(units.get("RescaleIntercept", 0) or 0))
        if not np.isfinite(hounsfield).all():
            raise ImageError("DICOM: rescale slope or intercept is not a finite number")
        values: Any = np.clip(hounsfield, -32_768, 32_767).astype(np.int16)
        if (kind := units.get("RescaleType") or "HU") != "HU":
            notes.append(f"units of {kind} read as HU")
    else:
        values = _shown(dataset, stored, notes)
    if dataset.get("Modality", "CT") != "CT":
        notes.append(f"modality {dataset.Modality}, not CT")
    cosines = _group(dataset, i, "PlaneOrientationSequence").get("ImageOrientationPatient")
    if (lies := _orientation(cosines)) is None:
        notes.append("no ImageOrientationPatient: how it lies is not said")
    return Slice(values, tuple(notes), lies)


def _group(dataset: Any, i: int, sequence: str) -> Any:
    """Where an attribute of frame `i` stands: in its own functional group, in one shared by all, or in the dataset."""
    own, shared = (dataset.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("PerFrame", "Shared"))
    for item in (*own[i : i + 1], *shared[:1]):
        if found := item.get(sequence):
            return found[0]
    return dataset


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


def _orientation(cosines: Any) -> Orientation | None:
    """From ImageOrientationPatient: three cosines of the growing column index, then three of the growing row index."""
    if cosines is None or len(cosines) != 6:
        return None
    values = np.asarray([float(cosine) for cosine in cosines]).reshape(2, 3)
    with np.errstate(invalid="ignore", over="ignore"):  # of no length, or not finite: NaN, which is refused
        cosine = np.abs(values).max(axis=1) / np.linalg.norm(values, axis=1)
    if not (cosine >= STRAIGHT).all():
        raise ImageError("DICOM: an oblique slice, more than 25 degrees off the patient's axes")
    columns, rows = (
        _DIRECTIONS[axis][0 if direction[axis] > 0 else 1]
        for axis, direction in zip(np.abs(values).argmax(axis=1), values, strict=True)
    )
    if rows in _DIRECTIONS[int(np.abs(values[0]).argmax())]:
        raise ImageError("DICOM: its rows and its columns run along one axis of the patient")
    return rows, columns
