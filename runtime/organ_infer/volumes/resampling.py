"""Resamples a mask to the grid of a scan with nearest neighbor, in blocks (docs/guides/volumes.md)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .grid import Shape
from .types import Volume

__all__ = ["Resampling", "resampling"]

# voxels of the scan that are computed together
BLOCK = 1 << 18
# voxels of the mask; a point that is nearer than this to the middle between two of them is in the middle
ROUNDING = 1e-6


class Resampling(NamedTuple):
    """How the voxels of a scan take their values from a mask on another grid.

    Attributes:
        affine: float64 (4, 4), from indices of the scan to indices of the mask.
        shape: (X, Y, Z) of the scan.
        rising: For each axis of the mask, whether the index grows toward the patient's left, posterior or head.
    """

    affine: NDArray[np.float64]
    shape: Shape
    rising: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the values of an array (X, Y, Z) of the mask at the voxels of the scan, 0 outside of it."""
        result = np.zeros(self.shape, array.dtype, order="F")
        x, y, z = self.shape
        step = max(1, BLOCK // x)
        for k in range(z):
            for start in range(0, y, step):
                stop = min(start + step, y)
                result[:, start:stop, k] = self._block(array, start, stop, k)
        return result

    def _block(self, array: NDArray[Any], start: int, stop: int, k: int) -> NDArray[Any]:
        """Return the values at the voxels (all, start to stop, k) of the scan."""
        points = np.arange(self.shape[0])[:, None], np.arange(start, stop)[None, :]
        indices: list[NDArray[np.int64]] = []
        inside: NDArray[np.bool_] = np.ones((1, 1), np.bool_)
        for axis, side in enumerate(array.shape):
            row = self.affine[axis]
            place = np.full((1, 1), row[2] * k + row[3])
            # Axes that run along each other need one sum per line of voxels.
            for point, weight in zip(points, row, strict=False):
                if weight:
                    place = place + weight * point
            index = self._nearest(place, axis)
            inside = inside & (index >= 0) & (index < side)
            indices.append(index.clip(0, side - 1).astype(np.int64))
        return np.where(inside, array[tuple(indices)], array.dtype.type(0))

    def _nearest(self, place: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        """Round to whole indices, in the middle to the one on the left, posterior or head side."""
        if self.rising[axis]:
            return np.floor(place + (0.5 + ROUNDING))
        return np.ceil(place - (0.5 + ROUNDING))


def resampling(affine: NDArray[np.float64], like: Volume) -> Resampling:
    """Find how a scan takes its values from a mask.

    Args:
        affine: float64 (4, 4) of the mask, from indices to LPS millimeters.
        like: The scan.
    """
    to_mask = np.linalg.inv(affine) @ like.affine
    # What rounding leaves of a zero moves no voxel.
    moved = np.abs(to_mask[:3, :3]) * np.array(like.hu.shape)
    to_mask[:3, :3][moved < ROUNDING / 3] = 0
    largest = np.abs(affine[:3, :3]).argmax(axis=0)
    x, y, z = (bool(affine[row, axis] > 0) for axis, row in enumerate(largest))
    return Resampling(to_mask, like.hu.shape, (x, y, z))
