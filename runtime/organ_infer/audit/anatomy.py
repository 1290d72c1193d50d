"""What is known about the organs of the abdomen without a model: density, size, and place relative to each other.

The ranges are wide on purpose. They exclude gross contradictions only, such as a "lung" of fluid, or a "liver" on the
left of a "spleen". Situs inversus, about 1 in 10,000 people, contradicts them as well.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ORGANS", "SIDE_PAIRS", "Organ", "density_score", "order_score", "size_score"]


@dataclass(frozen=True)
class Organ:
    """One row of the table of organs.

    Attributes:
        density: Range of the median in HU, with and without contrast medium.
        volume: Range of the volume in mL, children and enlarged organs included.
        is_homogeneous: Whether the organ's HU vary little, so that a shifted mask is noticed by their variance.
        side: -1 on the patient's right, 1 on the left, 0 in the middle.
        height: Rank from the feet to the head.
        depth: Rank from the front to the back, or None if it depends on the patient.
    """

    density: tuple[float, float]
    volume: tuple[float, float]
    is_homogeneous: bool
    side: int
    height: int
    depth: int | None


# One row per class of the packaged model. Classes without a row are judged by the model alone.
ORGANS: Mapping[str, Organ] = {
    "bladder": Organ((-30, 3000), (10, 1500), True, 0, 1, None),
    "femur-left": Organ((60, 3000), (20, 700), False, 1, 0, None),
    "femur-right": Organ((60, 3000), (20, 700), False, -1, 0, None),
    "heart": Organ((-20, 600), (100, 1800), False, 0, 5, 0),
    "kidney-left": Organ((-20, 400), (25, 600), True, 1, 3, 1),
    "kidney-right": Organ((-20, 400), (25, 600), True, -1, 3, 1),
    "liver": Organ((-40, 250), (300, 5000), True, -1, 4, 0),
    "lung-left": Organ((-1000, -350), (300, 6000), True, 1, 5, None),
    "lung-right": Organ((-1000, -350), (300, 6000), True, -1, 5, None),
    "pancreas": Organ((-60, 200), (8, 250), False, 0, 4, 0),
    "spleen": Organ((-20, 300), (20, 2500), True, 1, 4, 1),
}
# Classes of which a patient has one on either side.
SIDE_PAIRS = (
    ("femur-left", "femur-right"),
    ("kidney-left", "kidney-right"),
    ("lung-left", "lung-right"),
)
# Ranks of `height` that differ by less overlap in many patients.
HEIGHTS_APART = 2
# HU outside the range that halve the likelihood three times
DENSITY_STEP = 25.0
# The least likelihood that one contradiction leaves, in natural units.
FLOOR = -4.0
# Distance in mm at which the order of two organs is likely right, and the share of patients without this order.
ORDER_STEP, EXCEPTIONS = 8.0, 0.02


def density_score(name: str, median_hu: float) -> float:
    """Log likelihood, 0 to -4, of a structure's median HU for a class."""
    if name not in ORGANS:
        return 0.0
    low, high = ORGANS[name].density
    outside = max(low - median_hu, median_hu - high, 0.0)
    return max(-outside / DENSITY_STEP, FLOOR)


def size_score(name: str, volume_ml: float, is_whole: bool) -> float:
    """Log likelihood, 0 to -4, of a structure's volume for a class. A part of an organ may have any small volume."""
    if name not in ORGANS:
        return 0.0
    low, high = ORGANS[name].volume
    ratio = max(volume_ml / high, low / volume_ml if is_whole else 0.0, 1.0)
    return max(-2 * math.log2(ratio), FLOOR)


def order_score(names: Sequence[str], centers: NDArray[np.float64]) -> float:
    """Log likelihood of the order of organs along the patient's axes.

    Args:
        names: A class per organ.
        centers: float64 (N, 3), the organs' centers in mm toward the patient's left, posterior and head.

    Returns:
        The sum over all pairs of organs and all axes on which their order is known, each -4 to 0. With more than four
        organs, pairs are weighted, because they are not independent.
    """
    total = 0.0
    for i, j, axis, direction in _ordered_pairs(tuple(names)):
        distance = direction * (centers[i, axis] - centers[j, axis])
        total += math.log(EXCEPTIONS + (1 - 2 * EXCEPTIONS) * _sigmoid(distance / ORDER_STEP))
    return total * min(1.0, 4 / max(len(names), 1))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(min(x, 50.0), -50.0)))


def _ordered_pairs(names: tuple[str, ...]) -> list[tuple[int, int, int, int]]:
    """Return (i, j, axis, direction): organ i is expected on this side of organ j."""
    pairs = []
    for i, first in enumerate(names):
        for j in range(i):
            one, other = ORGANS.get(first), ORGANS.get(names[j])
            if one is None or other is None:
                continue
            if one.side * other.side == -1:
                pairs.append((i, j, 0, one.side))
            if one.depth is not None and other.depth is not None and one.depth != other.depth:
                pairs.append((i, j, 1, 1 if one.depth > other.depth else -1))
            if abs(one.height - other.height) >= HEIGHTS_APART:
                pairs.append((i, j, 2, 1 if one.height > other.height else -1))
    return pairs
