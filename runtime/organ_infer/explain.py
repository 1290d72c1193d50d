"""Where a classifier looked: maps by occlusion, and a picture of such a map to lay over a slice.

A square of the network's input is hidden, and the log odds of a class drop by some amount. The map of a slice holds, for
each pixel, the mean drop over the squares that cover it (Zeiler and Fergus, https://arxiv.org/abs/1311.2901). Log odds,
because a probability near 1 hardly changes whatever is hidden.
"""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .engine.ensemble import Probabilities

if TYPE_CHECKING:
    from .classifier import OrganClassifier
    from .images.inputs import Images

__all__ = ["explanation_overlay", "occlusion_map", "overlay_png", "stretched"]

# The side of the hidden squares and the step between them, as parts of the input's side. Measured on validation: wide
# squares are as faithful alone, and small ones add detail (docs/guides/explanations.md).
SQUARES, STEP = (4 / 28, 10 / 28), 2 / 28

# Probabilities below this count as this one, so that log odds are finite.
SMALLEST = 1e-12

# Pixels of an overlay's longest side. A browser enlarges it smoothly.
OVERLAY_SIDE = 56
# A drop of the log odds that is drawn in full color, at least. Smaller drops are therefore never drawn as large ones.
FULL_COLOR = 0.5
# Orange raises the probability of the label, blue lowers it. Both are visible on gray and for the color-blind.
SUPPORT, AGAINST = (255, 140, 0), (40, 120, 255)
# Steps of opacity for each of the two colors. With the transparent one, 15 colors fit into 4 bits per pixel.
LEVELS, OPACITY = 7, 200


def occlusion_map(
    classify: Callable[[NDArray[np.float32]], Probabilities],
    packed: NDArray[np.float32],
    index: int,
    batch_size: int,
    *,
    squares: Sequence[float] = SQUARES,
    filling: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Hide squares of a network's input one after another, and average how much the log odds of a class drop.

    Squares at the border are cut off there, so that every pixel is covered about equally often.

    Args:
        classify: Takes float32 (N, 1, S, S), returns float64 (N, classes).
        packed: The network's input for one slice, float32 (1, 1, S, S).
        index: The class that is looked at.
        batch_size: Inputs per call of `classify`, at most.
        squares: The sides of the hidden squares, as parts of S.
        filling: What a hidden square shows, float32 (1, 1, S, S). By default the mean gray of the slice.

    Returns:
        float32 (S, S), the mean drop of the log odds.
    """
    *_, size = packed.shape
    if filling is None:
        filling = np.full_like(packed, packed.mean(dtype=np.float64))
    (unchanged,) = _log_odds(classify(packed), index)
    heat = np.zeros((size, size))
    for square in squares:
        # bool (positions, S): the pixels of an axis that a square at each position covers
        covered = _covered(size, max(1, round(square * size)))
        drops = np.empty(len(covered) ** 2)
        for start in range(0, len(drops), batch_size):
            batch = np.arange(start, min(start + batch_size, len(drops)))
            rows, columns = (covered[position] for position in np.divmod(batch, len(covered)))
            hidden = rows[:, None, :, None] & columns[:, None, None, :]
            occluded = np.where(hidden, filling, packed)
            drops[batch] = unchanged - _log_odds(classify(occluded), index)
        grid = drops.reshape(len(covered), len(covered))
        heat += _mean_over_covering(grid, covered) / len(squares)
    return heat.astype(np.float32)


def _log_odds(probabilities: Probabilities, index: int) -> NDArray[np.float64]:
    """Return ln(p / (1 - p)) of a class, (N,). 1 - p is the sum of the others, which stays exact if p is near 1."""
    others = np.delete(probabilities, index, axis=1).sum(axis=1)
    odds = np.maximum(probabilities[:, index], SMALLEST) / np.maximum(others, SMALLEST)
    return np.asarray(np.log(odds), np.float64)


def _covered(size: int, side: int) -> NDArray[np.bool_]:
    """Return which pixels of an axis are covered by a square at each position, bool (positions, size)."""
    pixels = np.arange(size)
    step = max(1, round(STEP * size))
    first = np.arange(min(step, side) - side, size, step)[:, None]
    return (pixels >= first) & (pixels < first + side)


def _mean_over_covering(
    drops: NDArray[np.float64], covered: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Average drops (positions, positions) over the squares that cover each pixel -> (S, S)."""
    weights = covered.astype(np.float64)
    times = weights.sum(axis=0)
    total: NDArray[np.float64] = weights.T @ drops @ weights
    return total / np.outer(times, times)


def stretched(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return a map (S, T) as float32 (height, width), with linear interpolation between the centers of its pixels."""
    return _stretched_rows(_stretched_rows(heat, height).T, width).T


def _stretched_rows(heat: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    count = len(heat)
    if count == length:
        return heat
    position = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
    before = position.astype(np.intp)
    part = (position - before).astype(np.float32)[:, None]
    return heat[before] * (1 - part) + heat[np.minimum(before + 1, count - 1)] * part


def overlay_png(heat: NDArray[np.float32]) -> bytes:
    """Draw a map as a small picture with transparency, to lay over the slice.

    Orange raises the probability of the label, blue lowers it, and the more opaque, the more. The largest value of the map is
    drawn in full color, or a drop of 0.5 if the largest one is smaller.

    Args:
        heat: float32 (H, W), from `OrganClassifier.explain`.

    Returns:
        A PNG of 16 colors (palette with alpha), of the slice's proportions and with at most 56 pixels per side.
    """
    from PIL import Image

    factor = min(1.0, OVERLAY_SIDE / max(heat.shape))
    height, width = (max(1, round(side * factor)) for side in heat.shape)
    small = stretched(heat, height, width)
    scale = max(float(np.abs(heat).max()), FULL_COLOR)
    # 0: transparent, 1 to LEVELS: orange, LEVELS + 1 to 2 * LEVELS: blue
    levels = np.clip(np.rint(small * (LEVELS / scale)), -LEVELS, LEVELS).astype(int)
    indices = np.where(levels < 0, LEVELS - levels, levels).astype(np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(bytes((0, 0, 0, *SUPPORT * LEVELS, *AGAINST * LEVELS)))
    opacity = [round(OPACITY * level / LEVELS) for level in range(1, LEVELS + 1)]
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, optimize=True, transparency=bytes((0, *opacity, *opacity)))
    return file.getvalue()


def explanation_overlay(
    classifier: "OrganClassifier", image: "Images", label: str | None = None
) -> bytes:
    """Return the overlay (`overlay_png`) of the map that `OrganClassifier.explain` returns for the same arguments."""
    return overlay_png(classifier.explain(image, label))
