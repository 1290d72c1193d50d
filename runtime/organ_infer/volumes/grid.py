"""The grid of voxels of a scan or mask: checks on its geometry, and one grid reoriented to another."""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..images.dicom import MIN_COSINE

__all__ = ["Alignment", "Shape", "alignment", "check_affine", "check_shape", "described"]

Shape = tuple[int, int, int]
# voxels; 2 GiB of int16
VOXEL_LIMIT = 1 << 30
# Millimeters. The second longest side of a scan is no shorter, unless it is in centimeters or meters: of a whole body
# in centimeters, one side is long enough. The longest side is no longer.
LEAST_SIDE, MOST_SIDE = 70, 4_000
# millimeters; voxels of a part of a scan with a shorter side are usually in centimeters or meters
LEAST_SPACING = 0.2
# largest cosine between two axes, 0.5 degrees off the right angle
SHEAR = np.sin(np.radians(0.5))
# degrees off the patient axes above which a warning says so
OBLIQUE = 2.0
# voxels; how far apart the corners of two equal grids may be. Files round their coordinates.
TOLERANCE = 0.1


class Alignment(NamedTuple):
    """How a grid is placed in another one that has the same voxels.

    Attributes:
        order: The axes of the array in the order of the other grid's.
        flips: Whether each axis, after reordering, runs the other way.
        start: The first index in the other grid along each of its axes.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    start: tuple[int, int, int]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of an array (X, Y, Z) with the axes of the other grid."""
        return array.transpose(self.order)[
            tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        ]

    def shape(self, shape: Shape) -> Shape:
        """Return a shape with the axes of the other grid."""
        return shape[self.order[0]], shape[self.order[1]], shape[self.order[2]]


def check_shape(shape: tuple[int, ...]) -> Shape:
    """Return the shape (X, Y, Z) without further axes of length 1.

    Raises:
        ImageError: If it is no volume, or too large.
    """
    if any(side < 1 for side in shape):
        raise ImageError(f"shape {_times(shape)}; the scan is empty")
    if (further := int(np.prod([int(side) for side in shape[3:]], dtype=object))) > 1:
        raise ImageError(
            f"shape {_times(shape)}: a series of {further:,} volumes; write the one to read to a file of its own"
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise ImageError(
            f"shape {_times(shape)}: one slice, not a volume; pass the whole scan, or the slice to organ-infer"
        )
    x, y, z = (int(side) for side in shape[:3])
    if x * y * z > VOXEL_LIMIT:
        raise ImageError(
            f"shape {_times(shape)}: too large, at most {VOXEL_LIMIT:,} voxels are read; crop the scan"
        )
    return x, y, z


def check_affine(
    affine: NDArray[np.float64], shape: Shape, is_resampled: bool = False
) -> tuple[str, ...]:
    """Refuse a geometry that is no right-angled grid in millimeters near the patient axes.

    Args:
        affine: float64 (4, 4), from indices to LPS millimeters.
        shape: (X, Y, Z).
        is_resampled: Whether the grid is that of a mask that is resampled. It may be oblique to the patient axes, and
            be a small part of the scan.

    Returns:
        Warnings.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise ImageError(
            "invalid orientation; an axis has no length or a number is not finite; write the affine again"
        )
    _check_units(spacing, shape, is_resampled)
    axes = affine[:3, :3] / spacing
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    if cosines.max() > SHEAR:
        degrees = 90 - np.degrees(np.arccos(min(1.0, cosines.max())))
        raise ImageError(
            f"gantry tilt, the axes are {degrees:.1f} degrees off a right angle;"
            " resample the scan to a right-angled grid"
        )
    if is_resampled:
        return ()
    largest = np.abs(axes).max(axis=0)
    if largest.min() < MIN_COSINE or len({*np.abs(axes).argmax(axis=0)}) < 3:
        raise ImageError(
            "oblique scan, more than 25 degrees off the patient axes; resample the scan to them"
        )
    degrees = float(np.degrees(np.arccos(min(1.0, largest.min()))))
    if degrees > OBLIQUE:
        return (
            f"oblique scan, {degrees:.0f} degrees off the patient axes; used along its own axes",
        )
    return ()


def _check_units(spacing: NDArray[np.float64], shape: Shape, may_be_part: bool) -> None:
    sides = spacing * shape
    is_part = may_be_part and spacing.min() >= LEAST_SPACING
    if (is_part or sorted(sides)[1] >= LEAST_SIDE) and sides.max() <= MOST_SIDE:
        return
    size = " x ".join(f"{side:.4g}" for side in sides)
    guess = (
        "wrong spacing or unit"
        if sides.max() > MOST_SIDE
        else "the unit may be centimeters or meters"
    )
    raise ImageError(
        f"the scan is {size} mm, hardly a patient ({guess}); write the spacing in millimeters"
    )


def alignment(
    affine: NDArray[np.float64], shape: Shape, like: NDArray[np.float64]
) -> Alignment | None:
    """Find how one grid is placed in another, if their voxels are the same.

    Args:
        affine: float64 (4, 4) of the grid.
        shape: Its shape (X, Y, Z).
        like: float64 (4, 4) of the other grid.

    Returns:
        The alignment, or None if the spacing, the directions or a part of a voxel differ.
    """
    to_other = np.linalg.inv(like) @ affine
    if not np.isfinite(to_other).all():
        return None
    steps = np.rint(to_other[:3, :3])
    if not _is_signed_permutation(steps):
        return None
    origin = np.rint(to_other[:3, 3])
    rounded = np.eye(4)
    rounded[:3, :3], rounded[:3, 3] = steps, origin
    corners = np.array([(*c, 1) for c in product(*((0, side - 1) for side in shape))]).T
    if np.abs((to_other - rounded) @ corners).max() > TOLERANCE:
        return None
    order = np.abs(steps).argmax(axis=1)
    flips = steps.sum(axis=1) < 0
    last = [(shape[axis] - 1) if flip else 0 for axis, flip in zip(order, flips, strict=True)]
    start = origin.astype(np.int64) - last
    return Alignment(
        (int(order[0]), int(order[1]), int(order[2])),
        (bool(flips[0]), bool(flips[1]), bool(flips[2])),
        (int(start[0]), int(start[1]), int(start[2])),
    )


def _is_signed_permutation(steps: NDArray[np.float64]) -> bool:
    sizes = np.abs(steps)
    return bool((sizes.sum(axis=0) == 1).all() and (sizes.sum(axis=1) == 1).all())


def described(affine: NDArray[np.float64], shape: tuple[int, ...]) -> str:
    """Return a grid in words: voxels, spacing, and the position of the first voxel."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = " x ".join(f"{side:.5g}" for side in spacing)
    letters = "".join(
        ("LPH" if direction[axis] > 0 else "RAF")[axis]
        for direction in affine[:3, :3].T
        for axis in [int(np.abs(direction).argmax())]
    )
    corner = ", ".join(f"{side:.5g}" for side in affine[:3, 3])
    return f"{_times(shape)} voxels of {size} mm toward {letters} from ({corner})"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
