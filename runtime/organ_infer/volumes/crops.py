"""Crops around the organs of a mask: one box per organ, oriented for the model, as views of the volume."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import AXES
from ..errors import InputError, short_repr, shorten
from ..images.orientation import Orientation, parse_orientation, plane_of
from ..images.types import SIDE_LIMIT
from ..names import escape_path
from .types import Mask, Volume

__all__ = [
    "MARGIN_LIMIT",
    "MIN_VOXELS",
    "SLICES",
    "Box",
    "Crop",
    "Grid",
    "Slices",
    "check_classes",
    "check_types",
    "checked_affine",
    "grid_of",
    "middle_slices",
    "organ_crops",
    "with_margin",
]

Slices = Literal["middle", "all"]
Box = tuple[slice, slice, slice]

SLICES: tuple[Slices, ...] = ("middle", "all")
# Millimeters on every side.
MARGIN_LIMIT = 1000.0
# A structure with fewer voxels is marked. A whole pancreas, the smallest organ, has 700 voxels of 3 mm and more.
MIN_VOXELS = 100
# The cosine of 25 degrees. An axis that is farther from the patient's axes is oblique.
MIN_COSINE = math.cos(math.radians(25))
# The patient's axes of LPS coordinates, each with the letter of its increasing direction.
_LPS = {"LR": (0, "L"), "AP": (1, "P"), "HF": (2, "H")}


@dataclass(frozen=True, eq=False)
class Crop:
    """One slice of the box around an organ.

    Attributes:
        name: The class that the mask names.
        view: The plane of the slice: axial, coronal or sagittal.
        index: Index of the slice in the volume, along the axis that is perpendicular to the view.
        position: Position of the crop's center in mm along that axis of the patient: toward the head (axial), the
            back (coronal) or the left (sagittal).
        pixels: Hounsfield units, int16 (H, W), oriented for the model. A view of the volume, with any strides.
        field: Height and width of the crop in mm.
        warnings: What makes the organ unreliable: it touches the volume's border, or is very small.
    """

    name: str
    view: str
    index: int
    position: float
    pixels: NDArray[np.int16]
    field: tuple[float, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """How the axes of a volume are read to get slices of the wanted orientation.

    Attributes:
        axes: The volume's axes that become the slices, the rows and the columns.
        flips: Whether each of them is reversed.
        spacing: Millimeters between voxels along each of them.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]

    def oriented(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array of the volume's shape as (slices, rows, columns), a view."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array.transpose(self.axes)[steps]


def check_types(volume: Any, mask: Any) -> None:
    """Raise InputError if these are no Volume and no Mask."""
    if not isinstance(volume, Volume):
        raise InputError(
            f"volume: expected a Volume, found {type(volume).__name__}; open it with open_volume"
        )
    if not isinstance(mask, Mask):
        raise InputError(
            f"mask: expected a Mask, found {type(mask).__name__}; open it with open_mask"
        )


def check_classes(mask: Mask, classes: Sequence[str]) -> None:
    """Raise InputError if the mask names no class at all, or one that a model does not have."""
    source = escape_path(mask.source, one_line=True)
    if not len(mask):
        unmapped = (
            f" (not mapped: {shorten(', '.join(mask.unmapped), 200)})" if mask.unmapped else ""
        )
        raise InputError(
            f"{source}: the mask contains no structure of a class{unmapped}; choose the label map that fits it"
        )
    unknown = [name for name in mask if name not in classes]
    if unknown:
        raise InputError(
            f"{source}: the model has no class {short_repr(unknown[0])}, but {', '.join(classes)};"
            " use a label map to these classes"
        )


def organ_crops(
    volume: Volume,
    mask: Mask,
    *,
    orientation: Orientation | str,
    margin_mm: float | None = None,
    slices: Slices = "middle",
) -> list[Crop]:
    """Cut one box per organ out of a volume and return its slices.

    The box is the smallest that contains the organ, with a margin on the four sides of each slice, cut off at the
    volume's border. Pixels outside the organ are kept. The slices are those that contain voxels of the organ.

    Args:
        volume: The scan. Its axes must be within 25 degrees of the patient's.
        mask: The organs on the same grid. Organs without voxels are skipped.
        orientation: The patient directions in which the row index and the column index of the crops grow, such as
            `manifest.input.orientation`. They also determine the view.
        margin_mm: Margin in millimeters, 0 to 1,000, rounded to whole voxels. By default 5, for boxes 0.
        slices: `middle`, the middle 60 % of each organ's slices, or `all`.

    Returns:
        Crops in the order of the mask's classes, and of each organ from the feet to the head (axial), from the front
        to the back (coronal) or from right to left (sagittal).

    Raises:
        InputError: If an argument has the wrong type or value, the volume is oblique, or the mask has another shape.
    """
    directions = parse_orientation(orientation)
    check_types(volume, mask)
    margin = _margin(mask.margin_mm if margin_mm is None else margin_mm)
    if slices not in SLICES:
        raise InputError(f"slices: expected 'middle' or 'all', found {short_repr(slices)}")
    source = escape_path(volume.source, one_line=True)
    affine = checked_affine(volume, source)
    _check_shape(volume, mask)
    grid = grid_of(affine, directions, source)
    return [
        crop
        for name in mask
        for crop in _crops_of_organ(volume, affine, mask, name, grid, directions, margin, slices)
    ]


def _check_shape(volume: Volume, mask: Mask) -> None:
    """Raise InputError if the mask is of another grid. Masks of other classes may not know their shape."""
    shape = getattr(mask, "shape", volume.hu.shape)
    if tuple(shape) != volume.hu.shape:
        raise InputError(
            f"mask: {short_repr(tuple(shape))} voxels, but the volume has {short_repr(volume.hu.shape)};"
            " pass the mask of this scan"
        )


def _margin(value: Any) -> float:
    try:
        margin = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not 0 <= margin <= MARGIN_LIMIT:
        raise InputError(
            f"margin_mm: expected a number from 0 to {MARGIN_LIMIT:,.0f}, found {short_repr(value)}"
        )
    return margin


def checked_affine(volume: Volume, source: str) -> NDArray[np.float64]:
    """Return the affine. Raises InputError if the volume has another dtype or shape than documented."""
    hu = volume.hu
    if not (isinstance(hu, np.ndarray) and hu.dtype == np.int16 and hu.ndim == 3):
        raise InputError(
            f"{source}: expected Hounsfield units as an int16 array (X, Y, Z), found {_described(hu)};"
            " use open_volume, or convert them"
        )
    if 0 in hu.shape or max(hu.shape) > SIDE_LIMIT:
        raise InputError(f"{source}: expected 1 to 65,535 voxels per side, found {hu.shape}")
    try:
        affine = np.asarray(volume.affine, np.float64)
    except (TypeError, ValueError):
        affine = np.empty(0)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(
            f"{source}: expected a finite affine (4, 4) to LPS millimeters, found {_described(volume.affine)}"
        )
    return affine


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", type(value).__name__)
    return f"{dtype} {getattr(value, 'shape', '')}".strip()


def grid_of(affine: NDArray[np.float64], directions: Orientation, source: str) -> Grid:
    """Find the volume's axis nearest to each axis of the patient.

    Raises:
        InputError: An axis has no length, or is more than 25 degrees off.
    """
    # Column i is the step in mm along axis i of the volume.
    steps = affine[:3, :3]
    lengths = np.linalg.norm(steps, axis=0)
    if not (lengths > 0).all():
        raise InputError(f"{source}: an axis of the affine has no length; correct the header")
    cosines = steps / lengths
    # along[p] is the volume's axis that runs along axis p of the patient.
    along = max(
        permutations(range(3)), key=lambda axes: sum(abs(cosines[p, axes[p]]) for p in range(3))
    )
    worst = min(abs(cosines[p, along[p]]) for p in range(3))
    if worst < MIN_COSINE:
        degrees = math.degrees(math.acos(worst))
        raise InputError(
            f"{source}: oblique volume, an axis is {degrees:.0f} degrees off the patient axes, at most 25 are"
            " accepted; resample the volume to the patient axes"
        )
    normal = next(axis for axis in _LPS if axis not in {AXES[letter] for letter in directions})
    letters = (_LPS[normal][1], *directions)
    axes: list[int] = []
    flips: list[bool] = []
    for letter in letters:
        patient_axis, increasing = _LPS[AXES[letter]]
        axis = along[patient_axis]
        axes.append(axis)
        flips.append((cosines[patient_axis, axis] > 0) != (letter == increasing))
    slice_axis, row_axis, column_axis = axes
    return Grid(
        (slice_axis, row_axis, column_axis),
        (flips[0], flips[1], flips[2]),
        (float(lengths[slice_axis]), float(lengths[row_axis]), float(lengths[column_axis])),
    )


def _crops_of_organ(
    volume: Volume,
    affine: NDArray[np.float64],
    mask: Mask,
    name: str,
    grid: Grid,
    directions: Orientation,
    margin: float,
    slices: Slices,
) -> list[Crop]:
    box = mask.box(name)
    voxels = mask.region(name, box)
    _check_region(voxels, box, volume, mask, name)
    count = int(np.count_nonzero(voxels))
    if count == 0:
        return []
    slice_axis = grid.axes[0]
    has_organ = np.asarray(voxels.any(axis=grid.axes[1:]))
    crop_box = with_margin(box, volume.hu.shape, grid, margin)
    pixels = grid.oriented(volume.hu[crop_box])
    # Indices of the box's slices in the order of `pixels`.
    indices = range(crop_box[slice_axis].start, crop_box[slice_axis].stop)
    if grid.flips[0]:
        indices, has_organ = indices[::-1], has_organ[::-1]
    chosen = np.flatnonzero(has_organ)
    if slices == "middle":
        chosen = chosen[middle_slices(len(chosen))]
    view = plane_of(directions)
    center = [(side.start + side.stop - 1) / 2 for side in crop_box]
    warnings = _organ_warnings(box, volume.hu.shape, count)
    field = (pixels.shape[1] * grid.spacing[1], pixels.shape[2] * grid.spacing[2])
    crops = []
    for i in chosen.tolist():
        center[slice_axis] = indices[i]
        position = _position(affine, center, directions)
        crops.append(Crop(name, view, indices[i], position, pixels[i], field, warnings))
    return crops


def _check_region(
    voxels: NDArray[np.bool_], box: Box, volume: Volume, mask: Mask, name: str
) -> None:
    """Raise InputError if the mask reaches beyond the volume or is not an array of bool."""
    shape = tuple(side.stop - side.start for side in box)
    inside = all(
        side.start >= 0 and side.stop <= n for side, n in zip(box, volume.hu.shape, strict=True)
    )
    if voxels.dtype != np.bool_ or voxels.shape != shape or not inside:
        raise InputError(
            f"{escape_path(mask.source, one_line=True)}: {short_repr(name)} does not fit the volume"
            f" {volume.hu.shape}; open the mask with open_mask(path, like=volume)"
        )


def with_margin(box: Box, shape: tuple[int, ...], grid: Grid, margin: float) -> Box:
    """Enlarge a box in the plane of the slices, up to the volume's border."""
    sides = list(box)
    for axis, spacing in zip(grid.axes[1:], grid.spacing[1:], strict=True):
        # Rounded twice, so that the last bits of an affine do not decide a tie.
        voxels = math.floor(round(margin / spacing, 6) + 0.5)
        side = sides[axis]
        sides[axis] = slice(max(side.start - voxels, 0), min(side.stop + voxels, shape[axis]))
    return sides[0], sides[1], sides[2]


def middle_slices(count: int) -> slice:
    """The middle 60 % of `count` slices, at least one: those whose centers lie between 0.2 and 0.8 of the height."""
    # The center of slice i is at (2 i + 1) / (2 count).
    first = next(i for i in range(count) if 5 * (2 * i + 1) >= 2 * count)
    return slice(first, count - first)


def _position(affine: NDArray[np.float64], center: list[float], directions: Orientation) -> float:
    """The coordinate in mm of a voxel along the axis of the patient that is perpendicular to the view."""
    planar = {AXES[letter] for letter in directions}
    row = next(row for axis, (row, _) in _LPS.items() if axis not in planar)
    return float(affine[row, :3] @ center + affine[row, 3])


def _organ_warnings(box: Box, shape: tuple[int, ...], count: int) -> tuple[str, ...]:
    warnings = []
    if any(side.start == 0 or side.stop == n for side, n in zip(box, shape, strict=True)):
        warnings.append(
            "the structure touches the border of the volume; part of the organ may be missing"
        )
    if count < MIN_VOXELS:
        noun = "voxel" if count == 1 else "voxels"
        warnings.append(f"the structure has only {count} {noun}; likely a fragment, check the mask")
    return tuple(warnings)
