"""How well labels fit a scan: what the model sees, density, size and order of the organs, in natural units."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..images.axes import NO_CROP
from ..images.orientation import Orientation
from ..volumes.crops import Grid, grid_of, with_margin
from ..volumes.types import Volume
from .anatomy import ORGANS, density_score, order_score, size_score
from .structures import UNMOVED, Move, Structure

if TYPE_CHECKING:
    from ..engine.ensemble import Answer

__all__ = ["IDENTITY", "Axes", "Evidence", "View"]

# int64 (3, 3): one entry of -1 or 1 per row and column. It takes the header's patient coordinates to the true ones.
Axes = NDArray[np.int64]
IDENTITY: Axes = np.eye(3, dtype=np.int64)
# The least probability that counts. The model is confidently wrong about 1 in 100 slices.
LEAST_PROBABILITY = 0.005
# How much the model's answer counts for a structure that is cut off by the border, and for a fragment.
CUT_WEIGHT, SMALL_WEIGHT = 0.75, 0.25
# How much the orientation of a structure counts that is cut off. Intact parts of femurs and lungs look like no organ crops.
# That of a fragment does not count.
CUT_ORIENTATION_WEIGHT = 0.25
# Pixels of a crop's shorter side, below which its orientation does not count. The model's input has twice as many.
LEAST_PIXELS = 14
# Distance in mm to the border of the volume within which a structure may be cut off.
BORDER_MM = 10.0
# HU to which values are limited before their variance, and HU of noise that always remains.
SPREAD_RANGE, NOISE = (-1000, 400), 15.0

# The mean answers to each structure: probabilities, float64 (N, classes), and orientations, float64 (N, 9), or None.
_Seen = tuple[NDArray[np.float64], NDArray[np.float64] | None]


@dataclass(frozen=True, eq=False)
class View:
    """The structures of a mask under one hypothesis about orientation and placement.

    Attributes:
        structures: After the move, None for those that leave the volume.
        probabilities: Mean probabilities over their slices, float64 (N, classes).
        orientations: Mean probabilities of their orientation, float64 (N, 9), or None if the model gives none. The first
            column is that of an organ crop in the required orientation, the last one that of no organ crop. NaN for
            structures that leave the volume.
        centers: In mm toward the patient's left, posterior and head, float64 (N, 3).
        medians: Median HU, float64 (N,).
        spread: Sum of the log variance of the HU of the homogeneous organs, as the mask names them.
    """

    structures: tuple[Structure | None, ...]
    probabilities: NDArray[np.float64]
    orientations: NDArray[np.float64] | None
    centers: NDArray[np.float64]
    medians: NDArray[np.float64]
    spread: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """Looks at one scan under different hypotheses. Answers of the model are kept.

    Attributes:
        volume: The scan.
        structures: Of its mask.
        classes: Of the model.
        orientation: Of the model's input.
        window: Level and width in HU of the model's input.
        margin_mm: Margin around a structure.
        classify: Returns the model's answer to slices, int16 (H, W) each.
        undo: Corrects values of the volume, int16 of any shape, under a hypothesis about them.
    """

    volume: Volume
    structures: tuple[Structure, ...]
    classes: tuple[str, ...]
    orientation: Orientation
    window: tuple[float, float]
    margin_mm: float
    classify: Callable[[Sequence[NDArray[np.int16]]], "Answer"]
    undo: Callable[[NDArray[np.int16]], NDArray[np.int16]] = lambda hu: hu
    _seen_before: dict[object, _Seen] = field(default_factory=dict)

    def grid(self, axes: Axes = IDENTITY) -> Grid:
        """How the model sees the volume, if the patient axes are these."""
        affine = np.eye(4)
        affine[:3, :3] = axes @ np.asarray(self.volume.affine, np.float64)[:3, :3]
        return grid_of(affine, self.orientation, self.volume.source)

    def may_be_cut(self, structure: Structure) -> bool:
        """Whether the border of the volume may cut off a part of a structure. Masks are a few voxels off."""
        spacing = np.linalg.norm(np.asarray(self.volume.affine, np.float64)[:3, :3], axis=0)
        return structure.is_cut or any(
            min(side.start, size - side.stop) * mm < BORDER_MM
            for side, size, mm in zip(structure.box, self.volume.hu.shape, spacing, strict=True)
        )

    @cached_property
    def orientation_weights(self) -> tuple[float, ...]:
        """How much the orientation of each structure counts, whatever the hypothesis."""
        grid = self.grid()
        weights = []
        for one in self.structures:
            box = with_margin(one.box, self.volume.hu.shape, grid, self.margin_mm)
            rows, columns = (box[axis].stop - box[axis].start for axis in grid.axes[1:])
            counts = not one.is_small and min(rows, columns) >= LEAST_PIXELS
            whole = CUT_ORIENTATION_WEIGHT if self.may_be_cut(one) else 1.0
            weights.append(whole if counts else 0.0)
        return tuple(weights)

    def view(self, axes: Axes = IDENTITY, move: Move = UNMOVED) -> View:
        """Look at the scan as if its patient axes were others, and the mask were somewhere else."""
        moved = tuple(one.moved(move, self.volume.hu.shape) for one in self.structures)
        affine = np.asarray(self.volume.affine, np.float64)
        centers = np.array(
            [(one or old).center for one, old in zip(moved, self.structures, strict=True)]
        )
        patient = (centers @ affine[:3, :3].T + affine[:3, 3]) @ axes.T
        medians = np.full(len(moved), np.nan)
        for i, one in enumerate(moved):
            if one is not None:
                medians[i] = np.median(self._hounsfield(one))
        return View(moved, *self._seen(moved, axes, move), patient, medians, self._spread(moved))

    def spread(self, move: Move) -> float:
        """The spread of a view, without the rest of it."""
        return self._spread([one.moved(move, self.volume.hu.shape) for one in self.structures])

    def _hounsfield(self, structure: Structure) -> NDArray[np.int16]:
        return self.undo(structure.hounsfield(self.volume.hu))

    def _spread(self, structures: Sequence[Structure | None]) -> float:
        total = 0.0
        for one in structures:
            if one is None:
                # as spread as anything can be
                total += math.log((SPREAD_RANGE[1] - SPREAD_RANGE[0]) ** 2 / 4)
            elif one.name in ORGANS and ORGANS[one.name].is_homogeneous:
                values = np.clip(self._hounsfield(one), *SPREAD_RANGE)
                total += math.log(float(values.var()) + NOISE**2)
        return total

    def _seen(self, structures: Sequence[Structure | None], axes: Axes, move: Move) -> _Seen:
        grid = self.grid(axes)
        # The direction in which slices are counted changes no crop.
        key = (grid.axes, grid.flips[1:], move)
        if key not in self._seen_before:
            pixels: list[NDArray[np.int16]] = []
            owners: list[int] = []
            for i, one in enumerate(structures):
                if one is not None:
                    crops = one.crops(self.volume.hu, grid, self.margin_mm)
                    pixels += [self.undo(crop) for _, crop in crops]
                    owners += [i] * len(crops)
            self._seen_before[key] = self._means(pixels, np.array(owners), len(structures))
        return self._seen_before[key]

    def _means(
        self, pixels: Sequence[NDArray[np.int16]], owners: NDArray[np.int64], count: int
    ) -> _Seen:
        """Return the mean answers of each structure, uniform ones for those without slices."""
        probabilities = np.full((count, len(self.classes)), 1 / len(self.classes))
        if not pixels:
            return probabilities, None
        answer = self.classify(pixels)
        seen = answer.orientation
        orientations = None if seen is None else np.full((count, seen.shape[1]), np.nan)
        for i in np.unique(owners):
            probabilities[i] = answer.probabilities[owners == i].mean(axis=0)
            if seen is not None and orientations is not None:
                orientations[i] = seen[owners == i].mean(axis=0)
        return probabilities, orientations

    def score(self, view: View, labels: Sequence[str]) -> float:
        """Log likelihood of labels, one per structure: a class, or NO_CROP for a structure that is no organ."""
        return float(self.organ_scores(view, labels).sum()) + order_score(labels, view.centers)

    def organ_scores(self, view: View, labels: Sequence[str]) -> NDArray[np.float64]:
        """The part of the score that each structure has on its own, float64 (N,)."""
        return np.array([self._organ_score(view, i, label) for i, label in enumerate(labels)])

    def _organ_score(self, view: View, i: int, label: str) -> float:
        structure = view.structures[i]
        if structure is None:
            return math.log(LEAST_PROBABILITY)
        weight = SMALL_WEIGHT if structure.is_small else CUT_WEIGHT if structure.is_cut else 1.0
        if label == NO_CROP:
            # Any class is as likely as another, and any density and size.
            return self._orientation_score(view, i, -1) - weight * math.log(len(self.classes))
        return (
            weight * self.class_score(view, i, label)
            + self._orientation_score(view, i, 0)
            + density_score(label, float(view.medians[i]))
            + size_score(label, structure.volume_ml, structure.is_whole)
        )

    def class_score(self, view: View, i: int, label: str) -> float:
        """Log likelihood of what the model sees in a structure, for a class."""
        probability = float(view.probabilities[i, self.classes.index(label)])
        return math.log(max(probability, LEAST_PROBABILITY))

    def _orientation_score(self, view: View, i: int, column: int) -> float:
        """Return the log likelihood of a structure's orientation, 0 if the model gives none."""
        weight = self.orientation_weights[i]
        if view.orientations is None or not weight:
            return 0.0
        return weight * math.log(max(float(view.orientations[i, column]), LEAST_PROBABILITY))
