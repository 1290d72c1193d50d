"""DICOM masks. Frames of a SEG are placed on the scan's grid, whatever their number, order and overlaps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..images.dicom import frame_count, functional_group
from ..images.types import PIXEL_LIMIT, SIGNATURE_BYTES, check_size
from .contours import place_contours
from .dicom_files import (
    DicomFile,
    check_pixel_bytes,
    dicom_files,
    file_errors,
    is_dicom,
    read_dataset,
)
from .grid import Alignment, alignment, check_shape, described
from .label_maps import LabelMap
from .masks import RESAMPLE_ADVICE, Layers, finished_mask
from .resampling import resampling
from .series import plane_affine
from .types import Mask, Volume

__all__ = ["read_segments"]

# Segmentation, and Label Map Segmentation
_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# mm; frames that are nearer are at one place
SAME_PLACE = 1e-3
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
# attributes of a SEG without which its frames cannot be read
_REQUIRED = ("Rows", "Columns", "BitsAllocated")
# where a SEG and an RTSTRUCT name their coordinate system, and the series that they belong to
_REFERENCES = (
    "FrameOfReferenceUID",
    "ReferencedFrameOfReferenceSequence.FrameOfReferenceUID",
    "StructureSetROISequence.ReferencedFrameOfReferenceUID",
)
_SERIES = (
    "ReferencedSeriesSequence.SeriesInstanceUID",
    "ReferencedFrameOfReferenceSequence.RTReferencedStudySequence.RTReferencedSeriesSequence.SeriesInstanceUID",
)
_EXPECTED = "pass a label image, a SEG or RTSTRUCT, or a directory with an image per structure"


def read_segments(path: str, like: Volume, row: LabelMap, resample: bool = False) -> Mask:
    """Read the one DICOM SEG or RTSTRUCT of a directory or zip, or the file.

    Raises:
        ImageError: If there is none, several, or one of another grid.
    """
    with dicom_files(path) as files:
        if len(files) != 1:
            problem = (
                f"{len(files)} DICOM files"
                if files
                else "no NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT"
            )
            raise ImageError(f"{path}: {problem}; {_EXPECTED}")
        file = files[0]
        with file_errors(file):
            dataset = _dataset(file)
            _check_reference(dataset, like)
            layers = Layers(like.hu.shape)
            if _kind(dataset) == _RTSTRUCT:
                place_contours(dataset, like, row, layers)
            elif resample and not _fits(dataset, like):
                _resample_frames(dataset, like, row, layers)
            else:
                _place_frames(dataset, like, row, layers)
            return finished_mask(path, like, layers, row)


def _dataset(file: DicomFile) -> Any:
    with file.open() as opened:
        if not is_dicom(opened.read(SIGNATURE_BYTES) or b""):
            raise ImageError(f"unknown format, no mask; {_EXPECTED}")
        opened.seek(0)
        dataset = read_dataset(opened)
    kind = _kind(dataset)
    if kind == _RTSTRUCT:
        return dataset
    if kind not in _SOP_CLASSES:
        modality = dataset.get("Modality") or "unknown"
        raise ImageError(
            f"DICOM: modality {modality}, neither SEG nor RTSTRUCT; pass the mask here, and a scan as the first path"
        )
    if "PixelData" not in dataset or not dataset.get("SegmentSequence"):
        raise ImageError("DICOM: a SEG without frames; export the mask again")
    for name in _REQUIRED:
        if dataset.get(name) is None:
            raise ImageError(f"DICOM: no {name}; export the mask again")
    check_size(int(dataset.Columns), int(dataset.Rows), PIXEL_LIMIT)
    count, positions = (
        int(dataset.get("NumberOfFrames", 1) or 1),
        len(dataset.get("PerFrameFunctionalGroupsSequence") or ()),
    )
    if positions not in (0, count):
        raise ImageError(
            f"DICOM: {count:,} frames with {positions:,} positions; export the mask again"
        )
    check_pixel_bytes(dataset)
    return dataset


def _kind(dataset: Any) -> str:
    """Return the SOP class, or that of the file's header."""
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")


def _check_reference(dataset: Any, like: Volume) -> None:
    """Refuse a mask in another coordinate system than the scan's, unless it names the scan's series.

    Positions in two coordinate systems may be equal and mean different places. NIfTI and the like name no system.
    """
    references = {str(uid) for uid in _found(dataset, *_REFERENCES)}
    series = {str(uid) for uid in _found(dataset, *_SERIES)}
    if (
        like.frame_of_reference
        and references
        and like.frame_of_reference not in references
        and like.series not in series
    ):
        raise ImageError(
            f"DICOM: not the scan's coordinate system: the mask's FrameOfReferenceUID is {min(references)},"
            f" the scan's {like.frame_of_reference}; pass the mask of this scan"
        )


def _found(dataset: Any, *paths: str) -> Iterator[Any]:
    """Yield the values of attributes, whose sequences are parted by dots."""
    for path in paths:
        name, _, rest = path.partition(".")
        value = dataset.get(name)
        if not value:
            continue
        if not rest:
            yield value
            continue
        for item in value:
            yield from _found(item, rest)


def _classes(dataset: Any, row: LabelMap, layers: Layers) -> dict[int, tuple[str, str]]:
    """Return number -> (class, name) of the segments that have a class."""
    classes = {}
    for segment in dataset.SegmentSequence:
        number, names = int(segment.SegmentNumber), _names(segment)
        organ = row.class_of(None, *names)
        if organ is None and not row.prefers_names:
            # numbers of segments are not those of the public data sets, but may be those of a CSV file
            organ = row.numbers.get(number) if row.name == row.source else None
        if organ is None:
            layers.unmapped.add(names[0] if names else str(number))
        else:
            classes[number] = organ, names[0] if names else str(number)
    return classes


def _names(segment: Any) -> list[str]:
    """Return a segment's label, and the meaning of its code with its modifiers, such as `Kidney Left`."""
    names = [str(segment.get("SegmentLabel") or "")]
    for code in segment.get("SegmentedPropertyTypeCodeSequence") or ():
        modifiers = code.get("SegmentedPropertyTypeModifierCodeSequence") or ()
        meanings = [str(item.get("CodeMeaning") or "") for item in (code, *modifiers)]
        names.append(" ".join(meanings))
        # the label may hold what the code lacks, or the reverse
        names.append(f"{names[0]} {' '.join(meanings[1:])}")
    return [name for name in names if name.strip()]


def _place_frames(dataset: Any, like: Volume, row: LabelMap, layers: Layers) -> None:
    classes = _classes(dataset, row, layers)
    kind = str(dataset.get("SegmentationType") or "BINARY")
    is_label_map = kind == "LABELMAP"
    # FRACTIONAL: at least half
    least = int(dataset.get("MaximumFractionalValue") or 255) / 2 if kind == "FRACTIONAL" else 1
    indices = [
        i
        for i in range(frame_count(dataset))
        if is_label_map or _segment_number(dataset, i) in classes
    ]
    placed: set[str] = set()
    if indices:
        for i, frame in zip(indices, _frames(dataset, indices), strict=True):
            aligned = _frame_alignment(dataset, i, like)
            # (rows, columns) to (x, y, z)
            pixels = aligned.apply(frame.T[:, :, None])
            for number, (organ, name) in classes.items():
                if is_label_map:
                    voxels: NDArray[np.bool_] = pixels == number
                elif number == _segment_number(dataset, i):
                    voxels = pixels >= least
                else:
                    continue
                if voxels.any():
                    layers.add(organ, name, voxels, aligned.start)
                    placed.add(name)
    layers.empty |= {name for _, name in classes.values() if name not in placed}


def _fits(dataset: Any, like: Volume) -> bool:
    """Whether every frame is a part of a slice of the scan."""
    try:
        for i in range(frame_count(dataset)):
            _frame_alignment(dataset, i, like)
    except ImageError:
        return False
    return True


def _resample_frames(dataset: Any, like: Volume, row: LabelMap, layers: Layers) -> None:
    """Place the frames on the grid that they have themselves, and resample that to the scan's."""
    own = _own_grid(dataset)
    if not _fits(dataset, own):
        raise ImageError(
            "DICOM: the frames of the SEG are not on one grid, so they cannot be resampled; export the mask again"
        )
    collected = Layers(own.hu.shape)
    _place_frames(dataset, own, row, collected)
    layers.codes, layers.structures = collected.codes, collected.structures
    layers.unmapped, layers.empty = collected.unmapped, collected.empty
    layers.note_resampled(described(own.affine, own.hu.shape))
    for layer in collected.layers:
        layers.add_layer(resampling(own.affine, like).apply(layer))


def _own_grid(dataset: Any) -> Volume:
    """Return the grid of the frames, as a volume without values.

    Raises:
        ImageError: If they are not parallel slices at even distances.
    """
    planes = [plane_affine(dataset, i) for i in range(frame_count(dataset))]
    first = planes[0]
    normal = np.cross(first[:, 0], first[:, 1])
    normal /= np.linalg.norm(normal) or 1.0
    places = np.array([normal @ plane[:, 2] for plane in planes])
    gaps = np.diff(np.sort(places))
    steps = [float(each) for each in gaps if each > SAME_PLACE]
    gap = min(steps) if steps else _thickness(dataset)
    # The smallest gap, measured over all frames.
    count = round(float(np.ptp(places)) / gap)
    gap = float(np.ptp(places)) / count if count else gap
    lowest = planes[int(places.argmin())]
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = first[:, :2], normal * gap, lowest[:, 2]
    # One more, because a volume has two slices at least.
    shape = check_shape((int(dataset.Columns), int(dataset.Rows), max(count + 1, 2)))
    return Volume(np.broadcast_to(np.int16(0), shape), affine, "")


def _thickness(dataset: Any) -> float:
    """Return the distance of slices that a SEG of one slice states, in mm."""
    measures = functional_group(dataset, 0, "PixelMeasuresSequence")
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        try:
            value = float(measures.get(name))
        except (TypeError, ValueError):
            continue
        if 0 < value < np.inf:
            return value
    raise ImageError("DICOM: a SEG of one slice without SliceThickness; export the mask again")


def _frames(dataset: Any, indices: list[int]) -> Iterator[NDArray[Any]]:
    """Yield the pixels of frames, (rows, columns)."""
    from pydicom.pixels.utils import iter_pixels

    if int(dataset.BitsAllocated) != 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(dataset, indices=indices)
        return
    # iter_pixels fails if a frame is no whole number of bytes, because the next one begins in its last byte
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    for i in indices:
        start, stop = i * rows * columns, (i + 1) * rows * columns
        bits = np.unpackbits(packed[start // 8 : (stop + 7) // 8], bitorder="little")
        yield bits[start % 8 :][: stop - start].reshape(rows, columns)


def _segment_number(dataset: Any, index: int) -> int:
    group = functional_group(dataset, index, "SegmentIdentificationSequence")
    number = group.get("ReferencedSegmentNumber")
    if number is None:
        raise ImageError("DICOM: a frame without its segment's number; export the mask again")
    return int(number)


def _frame_alignment(dataset: Any, index: int, like: Volume) -> Alignment:
    """Return how a frame is placed in the scan, as a grid of one slice.

    Raises:
        ImageError: If it is not a part of a slice of the scan.
    """
    plane = plane_affine(dataset, index)
    normal = np.cross(plane[:, 0], plane[:, 1])
    normal /= np.linalg.norm(normal) or 1.0
    spacing = np.linalg.norm(like.affine[:3, :3], axis=0)
    along = np.abs(normal @ (like.affine[:3, :3] / spacing)).argmax()
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = (
        plane[:, :2],
        normal * spacing[along],
        plane[:, 2],
    )
    shape = (int(dataset.Columns), int(dataset.Rows), 1)
    found = alignment(affine, shape, like.affine)
    if found is None or any(
        start < 0 or start + side > whole
        for start, side, whole in zip(found.start, found.shape(shape), like.hu.shape, strict=True)
    ):
        raise ImageError(
            f"DICOM: not the scan's grid: frame {index} has {described(affine, shape)},"
            f" the scan {described(like.affine, like.hu.shape)};"
            f" {RESAMPLE_ADVICE}"
        )
    return found
