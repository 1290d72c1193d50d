"""A DICOM series to a volume: files grouped, sorted by position and checked, then decoded one at a time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, InputError, short_repr
from ..images.dicom import (
    check_dataset,
    check_kind,
    frame_count,
    functional_group,
    kind_warnings,
    load_pydicom,
    read_frame,
)
from ..images.types import PIXEL_LIMIT
from .dicom_files import (
    DicomFile,
    check_pixel_bytes,
    dicom_files,
    file_errors,
    is_dicom,
    read_dataset,
)
from .grid import check_affine, check_shape
from .hounsfield import check_range
from .scan_files import scan_names
from .types import Volume

__all__ = ["plane_affine", "read_series"]

_TAGS = [
    "BitsAllocated",
    "Columns",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PixelSpacing",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SharedFunctionalGroupsSequence",
]
_CHOOSE = "choose one with --series or series=, or pass a directory of one"
# largest difference of the direction cosines of slices of one series
COSINE = 1e-3
# part of the distance between slices by which it may vary; scanners round positions
UNEVEN = 0.1
# millimeters
ROUNDING = 0.02
# series that a message lists
MOST_LISTED = 8


@dataclass(frozen=True)
class _Frame:
    """The header of one slice.

    Attributes:
        file: Where it is.
        index: Its number in the file.
        series: SeriesInstanceUID, or "".
        number: SeriesNumber as text, or "".
        description: SeriesDescription.
        instance: SOPInstanceUID, or "".
        reference: FrameOfReferenceUID, or "".
        size: Columns and rows.
        affine: float64 (3, 3), see `plane_affine`.
    """

    file: DicomFile
    index: int
    series: str
    number: str
    description: str
    instance: str
    reference: str
    size: tuple[int, int]
    affine: NDArray[np.float64]

    @property
    def position(self) -> NDArray[np.float64]:
        return self.affine[:, 2]


def read_series(path: str, series: int | str | None) -> Volume:
    """Read the CT series of a directory, a zip or a multi-frame file.

    Args:
        path: The directory or file.
        series: SeriesNumber or SeriesInstanceUID, or None if there is only one.

    Raises:
        ImageError: If there is no series that can be read.
        InputError: If several series match `series`, or none.
    """
    with dicom_files(path) as files:
        frames, left_out = _headers(path, files)
        frames = _chosen(path, frames, series)
        frames, doubled = _without_copies(frames)
        if len(frames) < 2:
            raise ImageError(
                f"{frames[0].file.name}: one slice, not a volume; pass the directory of its series"
            )
        frames, affine = _sorted_stack(frames)
        columns, rows = frames[0].size
        shape = check_shape((columns, rows, len(frames)))
        warnings = [*left_out, *doubled, *check_affine(affine, shape)]
        hu = np.empty(shape[::-1], np.int16)
        low, high = np.inf, -np.inf
        for k, pixels, own in _decoded(frames):
            hu[k] = pixels
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
            warnings += [warning for warning in own if warning not in warnings]
    check_range(low, high, None)
    references = {frame.reference for frame in frames}
    return Volume(
        hu.transpose(2, 1, 0),
        affine,
        path,
        tuple(warnings),
        # some anonymizers give every file its own UID, which then says nothing
        references.pop() if len(references) == 1 else "",
        frames[0].series,
    )


# Headers.


def _headers(path: str, files: Sequence[DicomFile]) -> tuple[list[_Frame], list[str]]:
    """Return the slices of every CT image, and a warning about other objects."""
    frames: list[_Frame] = []
    others: list[str] = []
    for file in files:
        with file_errors(file):
            reason, own = _file_frames(file)
        if reason:
            others.append(f"{file.name}: {reason}")
        frames += own
    if frames:
        return frames, [_left_out(others)] if others else []
    if others:
        more = f" ({len(others) - 1:,} more files like it)" if len(others) > 1 else ""
        raise ImageError(f"{others[0]}{more}")
    if os.path.isdir(path) and (names := scan_names(path)):
        raise ImageError(
            f"{path}: no DICOM file found, but {len(names)} files such as {names[0]}; pass one of them"
        )
    if not os.path.isdir(path):
        raise ImageError(
            f"{path}: no DICOM file found in the zip; unpack it and pass the scan in it"
        )
    raise ImageError(f"{path}: no DICOM file found; pass a directory that contains a CT series")


def _file_frames(file: DicomFile) -> tuple[str, list[_Frame]]:
    """Return why a file holds no CT slices, or its slices."""
    with file.open() as opened:
        if not is_dicom(opened.read(132) or b""):
            raise ImageError(
                "unknown format; supported: NIfTI, NRRD, MetaImage, DICOM (a series' directory or zip)"
            )
        opened.seek(0)
        dataset = read_dataset(opened, stop_before_pixels=True, specific_tags=_TAGS)
    if reason := _unsuitable(dataset):
        return reason, []
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    positions = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if max(count, positions) > 1 and positions != count:
        raise ImageError(
            f"DICOM: {count:,} frames with {positions:,} positions, so the geometry is unknown;"
            " export the series again from its source"
        )
    return "", [_frame_header(file, dataset, i) for i in range(count)]


def _unsuitable(dataset: Any) -> str:
    """Return why a dataset is no CT slice of a volume, or ""."""
    try:
        check_kind(dataset)
    except ImageError as e:
        what, _, _ = str(e.args[0]).removeprefix("DICOM: ").partition(";")
        return f"{what}; pass the CT series, and a SEG as its mask"
    if "Rows" not in dataset:
        return "no image; pass the directory of a CT series"
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        return "color, so a dose page or screenshot; pass the series of axial slices"
    if (modality := dataset.get("Modality") or "CT") != "CT":
        return f"modality {modality}, not CT; pass the CT series"
    for warning in kind_warnings(dataset):
        return f"{warning.removeprefix('implausible: ')}; pass the series of axial slices"
    return ""


def _frame_header(file: DicomFile, dataset: Any, index: int) -> _Frame:
    return _Frame(
        file=file,
        index=index,
        series=str(dataset.get("SeriesInstanceUID") or ""),
        number=str(dataset.get("SeriesNumber") if dataset.get("SeriesNumber") is not None else ""),
        description=str(dataset.get("SeriesDescription") or ""),
        instance=str(dataset.get("SOPInstanceUID") or ""),
        reference=str(dataset.get("FrameOfReferenceUID") or ""),
        size=(int(dataset.Columns), int(dataset.Rows)),
        affine=plane_affine(dataset, index),
    )


def plane_affine(dataset: Any, index: int) -> NDArray[np.float64]:
    """Return where a frame is.

    Returns:
        float64 (3, 3): the steps to the next column and to the next row, and the first pixel's center, in LPS
        millimeters.

    Raises:
        ImageError: If the file does not say.
    """
    values = {}
    for name, sequence, count in (
        ("ImageOrientationPatient", "PlaneOrientationSequence", 6),
        ("ImagePositionPatient", "PlanePositionSequence", 3),
        ("PixelSpacing", "PixelMeasuresSequence", 2),
    ):
        numbers = functional_group(dataset, index, sequence).get(name)
        try:
            value = np.array([float(number) for number in numbers], np.float64)
        except (TypeError, ValueError):
            value = np.zeros(0)
        if len(value) != count or not np.isfinite(value).all():
            raise ImageError(
                f"DICOM: no {name}, so the geometry is unknown; export the series again from its source"
            )
        values[name] = value
    cosines, spacing = values["ImageOrientationPatient"].reshape(2, 3), values["PixelSpacing"]
    # the first number of PixelSpacing is the distance between rows
    return np.column_stack(
        [cosines[0] * spacing[1], cosines[1] * spacing[0], values["ImagePositionPatient"]]
    )


def _left_out(others: Sequence[str]) -> str:
    """Return a warning that names the first file, without the advice: a SEG may be here and be the mask."""
    first = others[0].partition("; ")[0]
    return (
        f"1 file left out, {first}"
        if len(others) == 1
        else f"{len(others):,} files left out, the first {first}"
    )


# One series.


def _chosen(path: str, frames: list[_Frame], series: int | str | None) -> list[_Frame]:
    """Return the slices of the series that was asked for."""
    by_uid: dict[str, list[_Frame]] = {}
    for frame in frames:
        by_uid.setdefault(frame.series, []).append(frame)
    if series is None:
        if len(by_uid) > 1:
            raise InputError(f"{path}: {len(by_uid)} series; {_CHOOSE}: {_listed(by_uid)}")
        return frames
    text = str(series).strip()
    matching = {
        uid: own
        for uid, own in by_uid.items()
        if text == uid
        or (text.isdigit() and own[0].number.isdigit() and int(text) == int(own[0].number))
    }
    if len(matching) != 1:
        problem = "no such series" if not matching else "several series have this number"
        raise InputError(
            f"{path}: series {short_repr(text)}: {problem};"
            f" {_CHOOSE}: {_listed(matching or by_uid)}"
        )
    return next(iter(matching.values()))


def _listed(by_uid: dict[str, list[_Frame]]) -> str:
    rows = []
    for uid, own in list(by_uid.items())[:MOST_LISTED]:
        columns, height = own[0].size
        rows.append(
            f"{own[0].number or '-'} ({columns} x {height} x {len(own)}"
            f"{', ' + short_repr(own[0].description) if own[0].description else ''}, {uid})"
        )
    more = f", and {len(by_uid) - MOST_LISTED} more" if len(by_uid) > MOST_LISTED else ""
    return ", ".join(rows) + more


def _without_copies(frames: list[_Frame]) -> tuple[list[_Frame], list[str]]:
    """Leave out files that are copies of others, and say so."""
    own: dict[object, _Frame] = {}
    for number, frame in enumerate(frames):
        # positions too, because some anonymizers give every file the same UID
        key = (frame.instance, frame.index, *frame.position) if frame.instance else number
        own.setdefault(key, frame)
    copies = len(frames) - len(own)
    return list(own.values()), [
        f"{copies:,} slices are in two files; one is used"
    ] if copies else []


def _sorted_stack(frames: list[_Frame]) -> tuple[list[_Frame], NDArray[np.float64]]:
    """Return the slices from one end to the other, and the volume's affine, float64 (4, 4)."""
    first = frames[0]
    for frame in frames[1:]:
        _check_same_plane(first, frame)
    normal = np.cross(first.affine[:, 0], first.affine[:, 1])
    normal /= np.linalg.norm(normal) or 1.0
    heights = np.array([frame.position @ normal for frame in frames])
    order = np.argsort(heights, kind="stable")
    frames, heights = [frames[i] for i in order], heights[order]
    _check_distances(frames, np.diff(heights))
    positions = np.array([frame.position for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = first.affine[:, :2], step, positions[0]
    _check_line(frames, positions, step, normal)
    return frames, affine


def _check_same_plane(first: _Frame, frame: _Frame) -> None:
    if frame.size != first.size:
        problem = f"{frame.size[0]} x {frame.size[1]} pixels, not {first.size[0]} x {first.size[1]}"
    else:
        spacing = np.linalg.norm(first.affine[:, :2], axis=0)
        other = np.linalg.norm(frame.affine[:, :2], axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            turned = np.abs(first.affine[:, :2] / spacing - frame.affine[:, :2] / other).max()
        if turned > COSINE:
            problem = "another orientation"
        elif not np.allclose(spacing, other, rtol=COSINE):
            problem = "another PixelSpacing"
        else:
            return
    raise ImageError(
        f"{frame.file.name}: {problem} as in {first.file.name}: slices of several acquisitions in one series;"
        " pass a directory with the files of one"
    )


def _check_distances(frames: list[_Frame], distances: NDArray[np.float64]) -> None:
    usual = float(np.median(distances))
    for i, distance in enumerate(distances):
        here, there = frames[i].file.name, frames[i + 1].file.name
        if distance <= ROUNDING:
            raise ImageError(
                f"{there}: at the same position as {here}: a doubled slice or several acquisitions in one series;"
                " pass a directory with the files of one"
            )
        if abs(distance - usual) <= UNEVEN * usual + ROUNDING:
            continue
        if distance > 1.5 * usual:
            raise ImageError(
                f"{there}: {distance:.4g} mm after {here}, elsewhere {usual:.4g} mm: slices are missing;"
                " copy the series again, or pass the part before or after the gap"
            )
        raise ImageError(
            f"{there}: {distance:.4g} mm after {here}, elsewhere {usual:.4g} mm: unevenly spaced slices;"
            " resample the scan to even distances"
        )


def _check_line(
    frames: list[_Frame],
    positions: NDArray[np.float64],
    step: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> None:
    """Refuse slices that are shifted against each other in their plane. An even shift is a gantry tilt."""
    expected = positions[0] + np.arange(len(frames))[:, None] * step
    off = positions - expected
    off -= (off @ normal)[:, None] * normal
    worst = int(np.linalg.norm(off, axis=1).argmax())
    shift = float(np.linalg.norm(off[worst]))
    if shift > max(float(np.linalg.norm(frames[0].affine[:, 0])) / 2, ROUNDING):
        raise ImageError(
            f"{frames[worst].file.name}: shifted by {shift:.4g} mm against the other slices;"
            " pass a directory with the files of one acquisition"
        )


# Pixels.


def _decoded(frames: list[_Frame]) -> Iterator[tuple[int, NDArray[np.int16], tuple[str, ...]]]:
    """Yield (k, int16 (H, W), warnings) per slice. Only one file is open."""
    numbered = sorted(enumerate(frames), key=lambda item: (item[1].file.name, item[1].index))
    for _, group in groupby(numbered, key=lambda item: item[1].file.name):
        own = list(group)
        file = own[0][1].file
        with file_errors(file):
            yield from _decoded_file(file, own)


def _decoded_file(
    file: DicomFile, own: list[tuple[int, _Frame]]
) -> Iterator[tuple[int, NDArray[np.int16], tuple[str, ...]]]:
    _, pixel_array = load_pydicom("volume")
    from pydicom.pixels.utils import iter_pixels

    with file.open() as opened:
        dataset = read_dataset(opened)
    check_dataset(dataset, PIXEL_LIMIT)
    check_pixel_bytes(dataset)
    indices = [frame.index for _, frame in own]
    if frame_count(dataset) == 1:
        stored = iter([pixel_array(dataset, index=0)])
    else:
        stored = iter_pixels(dataset, indices=indices)
    for (k, frame), pixels in zip(own, stored, strict=True):
        decoded = read_frame(dataset, frame.index, np.asarray(pixels))
        if decoded.pixels.dtype != np.int16:
            raise ImageError(
                "DICOM: no RescaleSlope and RescaleIntercept to Hounsfield units;"
                " export the series again from its source"
            )
        yield k, decoded.pixels, decoded.warnings
