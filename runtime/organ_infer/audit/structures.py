"""The structures of a mask as an audit sees them: boxes, sampled voxels and centers, which can be moved cheaply."""

from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from ..volumes.crops import Box, Grid, middle_slices, with_margin
from ..volumes.types import Mask, Volume

__all__ = ["UNMOVED", "Move", "Structure", "moves_of_axes", "structures_of"]

# Voxels of a structure whose HU are looked at.
SAMPLES = 3000
GOLDEN_RATIO = 0.6180339887498949
# Slices of a structure that the model sees per hypothesis.
SLICES = 7
# Share of a moved structure that must stay inside the volume.
LEAST_LEFT = 0.5


@dataclass(frozen=True)
class Move:
    """A rearrangement of a mask's array: first its axes, then their directions, then a shift.

    Attributes:
        axes: The new array's axis i is the old one's axes[i].
        flips: Whether each new axis is reversed.
        shift: Voxels along each new axis.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    shift: tuple[int, int, int] = (0, 0, 0)


UNMOVED = Move()


def moves_of_axes(shape: tuple[int, ...]) -> list[Move]:
    """Every rearrangement of the axes that keeps the array's shape, without the one that changes nothing."""
    moves = [
        Move((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
        for axes in permutations(range(3))
        if tuple(shape[axis] for axis in axes) == tuple(shape)
        for flips in product((False, True), repeat=3)
    ]
    return [move for move in moves if move != UNMOVED]


@dataclass(frozen=True, eq=False)
class Structure:
    """One class of a mask.

    Attributes:
        name: The class that the mask names.
        box: The smallest box of indices that contains the structure.
        occupied: Per axis of the volume, bool per index of the box: whether it has voxels.
        points: Indices of some voxels, int64 (N, 3), spread over the structure.
        center: Mean index, float64 (3,).
        volume_ml: Volume in milliliters.
        is_cut: Whether it touches the border of the volume, so that a part may be missing.
        is_small: Whether it has so few voxels that it is likely a fragment.
    """

    name: str
    box: Box
    occupied: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]
    points: NDArray[np.int64]
    center: NDArray[np.float64]
    volume_ml: float
    is_cut: bool
    is_small: bool

    @property
    def is_whole(self) -> bool:
        """Whether all of the organ is likely there."""
        return not (self.is_cut or self.is_small)

    def moved(self, move: Move, shape: tuple[int, ...]) -> "Structure | None":
        """The structure after a move of the mask, without the part that leaves the volume.

        Returns:
            None if more than half leaves the volume.
        """
        if move == UNMOVED:
            return self
        sides, occupied = [], []
        points = self.points[:, move.axes].copy()
        for i, axis in enumerate(move.axes):
            start, stop = self.box[axis].start, self.box[axis].stop
            line = self.occupied[axis]
            if move.flips[i]:
                start, stop = shape[i] - stop, shape[i] - start
                line = line[::-1]
                points[:, i] = shape[i] - 1 - points[:, i]
            start, stop = start + move.shift[i], stop + move.shift[i]
            points[:, i] += move.shift[i]
            first, last = max(start, 0), min(stop, shape[i])
            if first >= last:
                return None
            sides.append(slice(first, last))
            occupied.append(line[first - start : last - start])
        for i, side in enumerate(sides):
            # Only along axes on which a part has left the volume.
            if side.stop - side.start < len(self.occupied[move.axes[i]]):
                inside = (points[:, i] >= 0) & (points[:, i] < shape[i])
                points = points[inside]
        if len(points) < LEAST_LEFT * len(self.points) or not all(line.any() for line in occupied):
            return None
        is_cut = len(points) < len(self.points) or any(
            side.start == 0 or side.stop == n for side, n in zip(sides, shape, strict=True)
        )
        return replace(
            self,
            box=(sides[0], sides[1], sides[2]),
            occupied=(occupied[0], occupied[1], occupied[2]),
            points=points,
            center=points.mean(axis=0),
            is_cut=is_cut,
        )

    def crops(
        self, hu: NDArray[np.int16], grid: Grid, margin_mm: float
    ) -> list[tuple[int, NDArray[np.int16]]]:
        """Some of the middle slices of the structure, each with its index along the grid's first axis."""
        axis = grid.axes[0]
        box = with_margin(self.box, hu.shape, grid, margin_mm)
        indices = np.flatnonzero(self.occupied[axis])
        indices = indices[middle_slices(len(indices))]
        if len(indices) > SLICES:
            # the middles of as many equal parts
            indices = indices[(2 * np.arange(SLICES) + 1) * len(indices) // (2 * SLICES)]
        crops = []
        for index in (indices + self.box[axis].start).tolist():
            sides = list(box)
            sides[axis] = slice(index, index + 1)
            crops.append((index, grid.oriented(hu[tuple(sides)])[0]))
        return crops

    def hounsfield(self, hu: NDArray[np.int16]) -> NDArray[np.int16]:
        """HU of the sampled voxels."""
        x, y, z = self.points.T
        values: NDArray[np.int16] = hu[x, y, z]
        return values


def structures_of(volume: Volume, mask: Mask, few_voxels: int) -> list[Structure]:
    """Return the classes of a mask that have voxels, in its order."""
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    structures = []
    for name in mask:
        box = mask.box(name)
        if any(side.start == side.stop for side in box):
            continue
        voxels = mask.region(name, box)
        lines = _occupied(voxels)
        points, center, count = _sampled(voxels)
        start = np.array([side.start for side in box])
        structures.append(
            Structure(
                name,
                box,
                lines,
                points + start,
                center + start,
                count * voxel_ml,
                any(
                    side.start == 0 or side.stop == n
                    for side, n in zip(box, volume.hu.shape, strict=True)
                ),
                count < few_voxels,
            )
        )
    return structures


def _occupied(
    voxels: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    shadow = np.asarray(voxels.any(axis=2))
    x, y, z = (
        np.asarray(a) for a in (shadow.any(axis=1), shadow.any(axis=0), voxels.any(axis=(0, 1)))
    )
    return x, y, z


def _sampled(voxels: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Return the indices of some voxels, their mean, and the number of all."""
    # in memory order, so that nothing is copied
    order = sorted(range(3), key=lambda axis: -abs(voxels.strides[axis]))
    flat = np.flatnonzero(voxels.transpose(order))
    count = len(flat)
    # One of each of as many equal parts, but never in step with the rows of the array.
    parts = np.arange(min(count, SAMPLES))
    chosen = flat[((parts + parts * GOLDEN_RATIO % 1) * count / len(parts)).astype(np.int64)]
    shape = tuple(voxels.shape[axis] for axis in order)
    points = np.empty((len(chosen), 3), np.int64)
    for axis, index in zip(order, np.unravel_index(chosen, shape), strict=True):
        points[:, axis] = index
    return points, points.mean(axis=0), count
