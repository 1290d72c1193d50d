"""RTSTRUCT to a mask: closed contours filled on the slices of the scan."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, short_repr
from .label_maps import LabelMap
from .masks import Layers
from .types import Volume

__all__ = ["place_contours"]

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# voxels by which a contour may leave its plane, and its plane the middle of a slice
FLAT, BETWEEN = 0.1, 0.25


def place_contours(dataset: Any, like: Volume, row: LabelMap, layers: Layers) -> None:
    """Add the regions of interest that have a class.

    A voxel belongs to a region if its center is inside an odd number of the region's contours on the slice, so that
    a contour inside another one is a hole.

    Raises:
        ImageError: If a contour is not on a slice of the scan.
    """
    names = {
        number: str(region.get("ROIName") or number)
        for region in dataset.get("StructureSetROISequence") or ()
        for number in [_number(region, "ROINumber")]
    }
    to_index = np.linalg.inv(like.affine)
    for region in dataset.get("ROIContourSequence") or ():
        number = _number(region, "ReferencedROINumber")
        name = names.get(number, str(number))
        organ = row.class_of(None, name)
        if organ is None:
            layers.unmapped.add(name)
            continue
        planes: dict[tuple[int, int], NDArray[np.bool_]] = {}
        for contour in _closed(region, name):
            points = contour @ to_index[:3, :3].T + to_index[:3, 3]
            if np.count_nonzero(np.ptp(points, axis=0) > FLAT) < 2:
                # a point or line has no area, and is in more than one plane
                continue
            axis, index = _plane(points, name, like)
            sides = [side for i, side in enumerate(like.hu.shape) if i != axis]
            inside = _filled(np.delete(points, axis, axis=1), (sides[0], sides[1]))
            planes[axis, index] = planes.get((axis, index), np.False_) ^ inside
        if not any(plane.any() for plane in planes.values()):
            layers.empty.add(name)
        for (axis, index), plane in planes.items():
            if plane.any():
                start = [0, 0, 0]
                start[axis] = index
                layers.add(organ, name, np.expand_dims(plane, axis), (start[0], start[1], start[2]))


def _number(region: Any, attribute: str) -> int:
    number = region.get(attribute)
    if number is None:
        raise ImageError(f"DICOM: a region without {attribute}; export the contours again")
    return int(number)


def _closed(region: Any, name: str) -> Iterator[NDArray[np.float64]]:
    """Yield the points of each closed contour, LPS millimeters (N, 3)."""
    for contour in region.get("ContourSequence") or ():
        if contour.get("ContourGeometricType") not in _CLOSED:
            continue
        points = np.array(contour.get("ContourData") or (), np.float64)
        if len(points) % 3 or not np.isfinite(points).all():
            raise ImageError(
                f"DICOM: a contour of {short_repr(name)} is damaged; export the contours again"
            )
        if len(points):
            yield points.reshape(-1, 3)


def _plane(points: NDArray[np.float64], name: str, like: Volume) -> tuple[int, int]:
    """Return the axis across a contour's plane and the index of its slice."""
    extent = np.ptp(points, axis=0)
    axis = int(extent.argmin())
    middle = float(points[:, axis].mean())
    index = round(middle)
    if extent[axis] > FLAT or abs(middle - index) > BETWEEN or not 0 <= index < like.hu.shape[axis]:
        raise ImageError(
            f"DICOM: not the scan's grid: a contour of {short_repr(name)} is not on a slice of the scan"
            f" (slice {middle:.2f} of {like.hu.shape[axis]}); pass the scan that it was drawn on"
        )
    return axis, index


def _filled(points: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose center is inside a polygon, by the even-odd rule.

    Args:
        points: (N, 2), in pixels.
        shape: (U, V).

    Returns:
        bool (U, V).
    """
    u, v = points.T
    next_u, next_v = np.roll(u, -1), np.roll(v, -1)
    # the columns v that an edge crosses: from its lower end on, without its upper end
    low = np.clip(np.ceil(np.minimum(v, next_v)), 0, shape[1]).astype(np.int64)
    high = np.clip(np.ceil(np.maximum(v, next_v)), 0, shape[1]).astype(np.int64)
    counts = high - low
    edge = np.repeat(np.arange(len(u)), counts)
    column = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + low[edge]
    slope = (next_u - u)[edge] / (next_v - v)[edge]
    crossing = u[edge] + (column - v[edge]) * slope
    start = np.clip(np.ceil(crossing), 0, shape[0]).astype(np.int64)
    toggles = np.bincount(start * shape[1] + column, minlength=(shape[0] + 1) * shape[1])
    crossed = np.cumsum(toggles.reshape(shape[0] + 1, shape[1]), axis=0)[:-1]
    inside: NDArray[np.bool_] = crossed % 2 == 1
    return inside
