"""Plausibility checks: warnings for slices that can hardly be a crop around one organ (docs/formats.md).

The checks look at the network's input, so they hold for every kind of image. No slice of OrganAMNIST's validation split
comes near their thresholds.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .bundle.manifest import Input

__all__ = ["WHOLE_SIDE", "pixel_warnings", "shape_warnings"]

WHOLE_SIDE = 400  # pixels: a crop around one organ is smaller on one side at least, at CT's usual resolution
BLACK, WHITE = 0.02, 0.98  # from black, 0, to white, 1
LEAST_SPAN = 0.25  # from the darkest pixel to the brightest; validation: 0.44 and more
MOST_CLIPPED = 0.9  # share of pixels that are black or white; validation: 0.84 at most
MOST_BLACK_EDGE = 0.9  # share of the outermost pixels that are black; validation: 0.82 at most


def shape_warnings(height: int, width: int) -> tuple[str, ...]:
    """Warnings from a slice's size in pixels."""
    if min(height, width) < WHOLE_SIDE:
        return ()
    return (f"implausible: {width} x {height} pixels, as of a whole slice, not of a crop around one organ",)


def pixel_warnings(packed: NDArray[np.float32], spec: Input) -> list[tuple[str, ...]]:
    """Warnings from the pixels of each slice.

    Args:
        packed: float32 (N, 1, S, S), the network's input.
        spec: How it was normalized.
    """
    lines = packed.reshape(len(packed), -1)
    low, high = (np.float32((value - spec.mean) / spec.std) for value in (BLACK, WHITE))
    black, ring = lines <= low, _edge(spec.size)
    span = (lines.max(axis=1) - lines.min(axis=1)) * spec.std
    clipped = _count(black | (lines >= high)) / lines.shape[1]
    edge = _count(black.take(ring, axis=1)) / len(ring)
    odd = (span < LEAST_SPAN) | (clipped >= MOST_CLIPPED) | (edge >= MOST_BLACK_EDGE)
    if not odd.any():
        return [()] * len(packed)
    warnings: list[tuple[str, ...]] = [()] * len(packed)
    for i in np.flatnonzero(odd):
        if span[i] < LEAST_SPAN:
            why = f"its pixels span {span[i]:.0%} of black to white: a constant image, or a wrong window"
        elif clipped[i] >= MOST_CLIPPED:
            why = f"{clipped[i]:.0%} of its pixels are black or white: a wrong window, or no CT slice"
        else:
            why = "black all around, as of a whole slice, not of a crop around one organ"
        warnings[i] = (f"implausible: {why}",)
    return warnings


def _count(true: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Per row. (np.count_nonzero along an axis takes three times as long.)"""
    counts: NDArray[np.int32] = np.add.reduce(true, axis=1, dtype=np.int32)
    return counts


@lru_cache
def _edge(size: int) -> NDArray[np.intp]:
    """Where the outermost pixels of (S, S) are in a row of S * S."""
    rows, columns = np.indices((size, size))
    ends = (0, size - 1)
    return np.flatnonzero(np.isin(rows, ends) | np.isin(columns, ends))
