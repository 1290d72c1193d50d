"""Reads slices from DICOM with pydicom (extra `dicom`): CT in Hounsfield units, and the file's orientation."""

import io
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..errors import ImageError
from .orientation import Orientation, plane_of
from .types import SIGNATURE_BYTES, Limits, Slice, SliceReaders, Source, check_size, numbered

__all__ = [
    "DEFLATED",
    "MIN_COSINE",
    "check_dataset",
    "check_deflated_size",
    "check_kind",
    "frame_count",
    "functional_group",
    "kind_warnings",
    "load_pydicom",
    "read_dicom",
    "read_frame",
]

# bytes inflated at a time
BLOCK = 1 << 20
# least bytes of a compressed frame
FRAGMENT = 8
# transfer syntax whose whole dataset is compressed
DEFLATED = "1.2.840.10008.1.2.1.99"
# least cosine of the angle between a slice's axis and the nearest patient axis
MIN_COSINE = math.cos(math.radians(25))
# SOP classes, or their beginnings, of objects that hold pixels but no image of CT
_OTHER_OBJECTS = {
    "1.2.840.10008.5.1.4.1.1.66": "a segmentation, surface or registration",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object (dose, structures or plan)",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.1.3.10": "a DICOMDIR",
}
# SOP classes of masks -> which command takes them
_ADVICE = {
    "1.2.840.10008.5.1.4.1.1.66.4": "; pass it as the mask of a scan to organ-infer volume",
    "1.2.840.10008.5.1.4.1.1.66.7": "; pass it as the mask of a scan to organ-infer volume",
    "1.2.840.10008.5.1.4.1.1.481.3": "; pass it as the mask of a scan to organ-infer volume",
    "1.2.840.10008.1.3.10": "; pass the directory of the files that it lists",
}
_REQUIRED = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
)
_JPEG = "1.2.840.10008.1.2.4."
_JPEG_EXTENDED = f"{_JPEG}51"
# plugins of pydicom that decode no more than 8 bits of JPEG Extended
_ONLY_8_BIT_JPEG = {"gdcm", "pillow"}
_LIBJPEG = "pip install pylibjpeg pylibjpeg-libjpeg"
_OPENJPEG = "pip install pylibjpeg pylibjpeg-openjpeg"
# DCMTK's program decodes the retired spectral selection and full progression. No plugin of pydicom does.
_DCMTK = "pydicom has none, so convert the file with dcmdjpeg of DCMTK"
# what decodes each transfer syntax
_DECODING = {
    **{f"{_JPEG}{number}": _LIBJPEG for number in (50, 51, 57, 70, 80, 81)},
    **{f"{_JPEG}{number}": _OPENJPEG for number in (90, 91, 201, 202, 203)},
    **{f"{_JPEG}{number}": _DCMTK for number in (53, 55)},
}
# letters of the patient axes x, y and z, growing and falling
_DIRECTIONS = (("L", "R"), ("P", "A"), ("H", "F"))


def read_dicom(source: Source) -> SliceReaders:
    """Yield the frames of one DICOM file.

    With a rescale slope or intercept, pixels become int16 HU. MONOCHROME1 changes only how HU are
    displayed, not their values. Without a rescale, pixels become gray as displayed, which inverts
    MONOCHROME1.

    Raises:
        ImageError: If pydicom is missing or the file cannot be read as CT slices.
    """
    dcmread, pixel_array = load_pydicom()
    data = source.read_all()
    check_deflated_size(data, source.limits.file_bytes)
    dataset = dcmread(io.BytesIO(data))
    check_kind(dataset)

    def read(index: int) -> Slice:
        return read_frame(dataset, index, np.asarray(pixel_array(dataset, index=index)))

    modality = dataset.get("Modality") or "CT"
    if modality != "CT" and not source.limits.any_modality:
        advice = (
            "pass --any-modality or any_modality=True to classify it anyway"
            if _would_be_classified(dataset, source.limits, read)
            else "pass CT slices"
        )
        raise ImageError(f"DICOM: modality {modality}, not CT; {advice}")
    check_dataset(dataset, source.limits.pixels)
    count = frame_count(dataset)

    if count == 1 and source.selector is None:
        yield "", partial(read, 0)
    else:
        yield from numbered(count, read, source.selector)


def _would_be_classified(dataset: Any, limits: Limits, read: Callable[[int], Slice]) -> bool:
    """Whether nothing but its modality is against the first frame."""
    try:
        check_dataset(dataset, limits.pixels)
        orientation = read(0).orientation
    # whatever a decoder raises
    except Exception:
        return False
    return orientation is None or limits.plane is None or plane_of(orientation) == limits.plane


def load_pydicom(extra: str = "dicom") -> tuple[Any, Any]:
    """Return `dcmread` and `pixel_array`.

    Args:
        extra: The extra that installs pydicom, for the message.
    """
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError as e:
        raise ImageError(f"DICOM: needs pydicom 3; pip install 'organ-infer[{extra}]'") from e
    return pydicom.dcmread, pixel_array


def check_deflated_size(data: bytes, limit: int) -> None:
    """Inflate a deflated dataset within a limit. pydicom has none."""
    from pydicom.filereader import read_dataset

    if DEFLATED.encode() not in data:
        return
    file = io.BytesIO(data)
    file.seek(SIGNATURE_BYTES)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        raise ImageError("DICOM: the transfer syntax is ambiguous")
    stream, tail, size = zlib.decompressobj(-zlib.MAX_WBITS), data[file.tell() :], 0
    while tail and not stream.eof:
        size += len(stream.decompress(tail, BLOCK))
        tail = stream.unconsumed_tail
        if size > limit:
            raise ImageError(
                f"DICOM: inflates to more than {limit:,} bytes;"
                " raise the limit with --file-limit or file_limit="
            )


def check_kind(dataset: Any) -> None:
    """Refuse objects that are no images of slices."""
    # a DICOMDIR has its class in the header of the file alone
    header = getattr(dataset, "file_meta", None) or {}
    kind = str(dataset.get("SOPClassUID") or header.get("MediaStorageSOPClassUID") or "")
    for prefix, name in _OTHER_OBJECTS.items():
        if kind == prefix or kind.startswith(f"{prefix}."):
            raise ImageError(f"DICOM: {name}, not a CT image{_ADVICE.get(kind, '')}")


def check_dataset(dataset: Any, pixel_limit: int) -> None:
    """Refuse a dataset that does not hold gray pixels that can be decoded here."""
    if "PixelData" not in dataset:
        raise ImageError("DICOM: no pixel data")
    for name in _REQUIRED:
        if dataset.get(name) is None:
            raise ImageError(f"DICOM: the attribute {name} is missing")
    check_size(int(dataset.Columns), int(dataset.Rows), pixel_limit)
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ImageError("DICOM: color is not supported; CT slices are gray")
    if (photometric := dataset.PhotometricInterpretation) not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(
            f"DICOM: photometric interpretation {photometric} is not supported; CT slices are gray"
        )
    if "ModalityLUTSequence" in dataset:
        raise ImageError(
            "DICOM: a Modality LUT is not supported; only rescale slope and intercept are"
        )
    _check_decoder(dataset)


def _check_decoder(dataset: Any) -> None:
    """Refuse compressed pixels that no installed package decodes, with what decodes them."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        if not syntax.is_encapsulated:
            return
        plugins = set(get_decoder(syntax).available_plugins)
    # ValueError: pydicom does not know the UID
    except (NotImplementedError, ValueError):
        plugins = set()
    if syntax == _JPEG_EXTENDED and int(dataset.BitsStored) > 8:
        plugins -= _ONLY_8_BIT_JPEG
    if not plugins:
        name = syntax.name if syntax.name != syntax else f"transfer syntax {syntax}"
        advice = _DECODING.get(syntax, "no decoder is known; export the series again, uncompressed")
        raise ImageError(f"DICOM: no decoder for {name} is installed; {advice}")


def frame_count(dataset: Any) -> int:
    """Return the number of frames that the header declares, if the pixel data can hold them."""
    count, bits = int(dataset.get("NumberOfFrames", 1) or 1), int(dataset.BitsAllocated)
    encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    least = FRAGMENT if encapsulated else int(dataset.Rows) * int(dataset.Columns) * bits // 8
    if count > 1 and count * least > len(dataset.PixelData):
        raise ImageError(
            f"DICOM: header declares {count:,} frames, found {len(dataset.PixelData):,} bytes of pixels;"
            " the file is truncated or damaged"
        )
    return count


def read_frame(dataset: Any, index: int, stored: Any) -> Slice:
    """Return one frame in HU or gray, with its orientation. `stored` is what the decoder gives, (H, W)."""
    warnings = kind_warnings(dataset)
    stored = _stored_bits(dataset, stored)
    rescale = functional_group(dataset, index, "PixelValueTransformationSequence")
    has_rescale = "RescaleSlope" in rescale or "RescaleIntercept" in rescale
    if has_rescale and not _is_displayed(dataset, rescale):
        pixels = _hounsfield(rescale, stored, warnings)
    else:
        pixels = _displayed_gray(dataset, stored, warnings)
    plane = functional_group(dataset, index, "PlaneOrientationSequence")
    orientation = _orientation(plane.get("ImageOrientationPatient"))
    if orientation is None:
        warnings.append(
            "no ImageOrientationPatient; orientation unknown, used as stored unless an orientation is given"
        )
    measures = functional_group(dataset, index, "PixelMeasuresSequence")
    field = _field(measures.get("PixelSpacing"), *pixels.shape)
    return Slice(pixels, tuple(warnings), orientation, field)


def _field(spacing: Any, rows: int, columns: int) -> tuple[float, float] | None:
    """Return height and width in millimeters, or None if PixelSpacing is missing or makes no sense."""
    try:
        between_rows, between_columns = map(float, spacing)
    except (TypeError, ValueError):
        return None
    field = rows * between_rows, columns * between_columns
    return field if all(0 < side < math.inf for side in field) else None


def kind_warnings(dataset: Any) -> list[str]:
    """Warnings about what the image shows, from its header."""
    warnings = []
    if (modality := dataset.get("Modality") or "CT") != "CT":
        warnings.append(f"implausible: modality {modality}, not CT")
    image_type = [str(value) for value in dataset.get("ImageType") or ()]
    if "LOCALIZER" in image_type:
        warnings.append("implausible: localizer image, not an axial slice")
    if any("DOSE" in value or value == "SCREEN SAVE" for value in image_type):
        warnings.append("implausible: dose report or screenshot, not a slice")
    return warnings


def _stored_bits(dataset: Any, stored: Any) -> Any:
    """Drop what is above the stored bits. Decoders of compressed frames leave overlays there."""
    bits = int(dataset.BitsStored)
    width = stored.dtype.itemsize * 8
    if stored.dtype.kind not in "iu" or not 0 < bits < width:
        return stored
    if stored.dtype.kind == "u":
        return stored & stored.dtype.type((1 << bits) - 1)
    # the highest stored bit is the sign
    return (stored << (width - bits)) >> (width - bits)


def _is_displayed(dataset: Any, rescale: Any) -> bool:
    """Whether a rescale of slope 1 and intercept 0 stands in an image of up to 8 bits, which cannot hold HU."""
    slope, intercept = rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)
    identity = float(slope or 1) == 1 and float(intercept or 0) == 0
    return identity and int(dataset.BitsStored) <= 8 and not int(dataset.PixelRepresentation)


def functional_group(dataset: Any, index: int, sequence: str) -> Any:
    """Return the dataset with a frame's attributes: its own functional group, the shared one, or the whole file."""
    own, shared = (
        dataset.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("PerFrame", "Shared")
    )
    for group in (*own[index : index + 1], *shared[:1]):
        if items := group.get(sequence):
            return items[0]
    return dataset


def _hounsfield(rescale: Any, stored: Any, warnings: list[str]) -> Any:
    """Return int16 HU. `rescale` holds slope and intercept."""
    slope = float(rescale.get("RescaleSlope", 1) or 1)
    hounsfield = np.rint(stored * slope + float(rescale.get("RescaleIntercept", 0) or 0))
    if not np.isfinite(hounsfield).all():
        raise ImageError("DICOM: rescale slope or intercept is not a finite number")
    if (kind := rescale.get("RescaleType") or "HU") != "HU":
        warnings.append(f"rescale type {kind} read as HU")
    return np.clip(hounsfield, -32_768, 32_767).astype(np.int16)


def _displayed_gray(dataset: Any, stored: Any, warnings: list[str]) -> Any:
    """Return uint8 or uint16 gray, scaled from the stored bits."""
    bits = int(dataset.BitsStored)
    if int(dataset.PixelRepresentation) or bits > 16:
        raise ImageError(
            "DICOM: signed or 32-bit pixels without a rescale slope have no known unit"
        )
    warnings.append(f"implausible: no rescale to HU; read as {bits}-bit gray of unknown units")
    highest = (1 << bits) - 1
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        warnings.append("inverted, because 0 is white in this file")
        stored = highest - stored.astype(np.int64)
    if bits <= 8:
        return np.rint(stored * (255 / highest)).astype(np.uint8)
    return np.rint(stored * (65_535 / highest)).astype(np.uint16)


def _orientation(cosines: Any) -> Orientation | None:
    """Convert ImageOrientationPatient.

    Args:
        cosines: Three of the direction in which the column index grows, then three of the row index.
    """
    if cosines is None or len(cosines) != 6:
        return None
    directions = np.asarray([float(cosine) for cosine in cosines]).reshape(2, 3)
    # a direction of length 0, or not finite, gives NaN
    with np.errstate(invalid="ignore", over="ignore"):
        nearest = np.abs(directions).max(axis=1) / np.linalg.norm(directions, axis=1)
    if not (nearest > 0).all():
        raise ImageError("DICOM: invalid ImageOrientationPatient; a direction has no length")
    if not (nearest >= MIN_COSINE).all():
        raise ImageError(
            "DICOM: oblique slice, more than 25 degrees off the patient axes; resample the volume to them"
        )
    axes = np.abs(directions).argmax(axis=1)
    if axes[0] == axes[1]:
        raise ImageError(
            "DICOM: invalid ImageOrientationPatient; rows and columns run along the same patient axis"
        )
    columns, rows = (
        _DIRECTIONS[axis][0 if direction[axis] > 0 else 1]
        for axis, direction in zip(axes, directions, strict=True)
    )
    return rows, columns
