"""Plausibility checks: warnings for slices that are unlikely to be a crop around one organ (docs/guides/formats.md).

All checks but those of size, corners and color run on the network's input, so they hold for every kind of image.
No slice of OrganAMNIST's validation split comes near their thresholds.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle.manifest import Input

__all__ = [
    "WHOLE_SLICE",
    "WHOLE_SLICE_SIDE",
    "air_warnings",
    "field_warnings",
    "pixel_warnings",
    "shape_warnings",
]

# Part of the warnings about slices that are no crops.
WHOLE_SLICE = "likely a whole slice"
# Pixels. At CT's usual resolution, at least one side of a crop around one organ is shorter.
WHOLE_SLICE_SIDE = 400
# Millimeters. No organ is this large both ways, nor that large one way. The liver is the largest, some 200 mm wide.
WHOLE_SLICE_FIELD, WHOLE_SLICE_LENGTH = 250.0, 300.0
# Hounsfield units of air. The mean of a corner in a crop of a lung is higher.
AIR = -900
# A corner's side is this fraction of the slice's shorter side.
CORNER = 16
# Pixels up to BLACK count as black, pixels from WHITE on as white. Black is 0, white is 1.
BLACK, WHITE = 0.02, 0.98
# Difference between the brightest and the darkest pixel. Validation: 0.44 and more.
MIN_SPAN = 0.25
# Share of pixels that are black or white. Validation: 0.84 at most.
CLIPPED_LIMIT = 0.9
# Share of the border's pixels that are black. Validation: 0.82 at most.
BLACK_BORDER_LIMIT = 0.9


def shape_warnings(
    height: int, width: int, field: tuple[float, float] | None = None
) -> tuple[str, ...]:
    """Return the warnings about a slice's size.

    Args:
        height: Pixels.
        width: Pixels.
        field: Height and width in millimeters, if known.
    """
    if min(height, width) >= WHOLE_SLICE_SIDE:
        return _whole_slice(f"{width} x {height} pixels")
    return field_warnings(field) if field else ()


def field_warnings(field: tuple[float, float]) -> tuple[str, ...]:
    """Return the warnings about a slice's height and width in millimeters, whatever its pixels."""
    if min(field) >= WHOLE_SLICE_FIELD or max(field) >= WHOLE_SLICE_LENGTH:
        return _whole_slice(f"{field[1]:.0f} x {field[0]:.0f} mm")
    return ()


def air_warnings(pixels: NDArray[Any]) -> tuple[str, ...]:
    """Return the warning about a slice in Hounsfield units whose corners are all outside the body."""
    if pixels.dtype != np.int16:
        return ()
    side = max(1, min(pixels.shape) // CORNER)
    rows, columns = (slice(None, side), slice(-side, None)), (slice(None, side), slice(-side, None))
    is_air = (pixels[row, column].mean() <= AIR for row in rows for column in columns)
    return _whole_slice("air in all four corners") if all(is_air) else ()


def _whole_slice(size: str) -> tuple[str, ...]:
    return (f"implausible: {size}; {WHOLE_SLICE}, crop it around one organ",)


def pixel_warnings(packed: NDArray[np.float32], spec: Input) -> list[tuple[str, ...]]:
    """Return the warnings about each slice's pixels.

    Args:
        packed: float32 (N, 1, S, S), the network's input.
        spec: The manifest's description of that input.
    """
    pixels = packed.reshape(len(packed), -1)
    low, high = (np.float32((value - spec.mean) / spec.std) for value in (BLACK, WHITE))
    black, border = pixels <= low, _border_indices(spec.size)
    span = (pixels.max(axis=1) - pixels.min(axis=1)) * spec.std
    clipped = _count_true(black | (pixels >= high)) / pixels.shape[1]
    black_border = _count_true(black.take(border, axis=1)) / len(border)
    implausible = (
        (span < MIN_SPAN) | (clipped >= CLIPPED_LIMIT) | (black_border >= BLACK_BORDER_LIMIT)
    )
    if not implausible.any():
        return [()] * len(packed)
    warnings: list[tuple[str, ...]] = [()] * len(packed)
    for i in np.flatnonzero(implausible):
        if span[i] < MIN_SPAN:
            reason = f"pixels span {span[i]:.0%} of black to white; likely a constant image or a wrong window"
        elif clipped[i] >= CLIPPED_LIMIT:
            reason = f"{clipped[i]:.0%} of the pixels are black or white; likely a wrong window or no CT slice"
        else:
            reason = f"black border; {WHOLE_SLICE}, crop it around one organ"
        warnings[i] = (f"implausible: {reason}",)
    return warnings


def _count_true(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Count per row. `np.count_nonzero` along an axis takes three times as long."""
    counts: NDArray[np.int32] = np.add.reduce(mask, axis=1, dtype=np.int32)
    return counts


@lru_cache
def _border_indices(size: int) -> NDArray[np.intp]:
    """Indices of the outermost pixels of (S, S) in a flat row of S * S."""
    rows, columns = np.indices((size, size))
    ends = (0, size - 1)
    return np.flatnonzero(np.isin(rows, ends) | np.isin(columns, ends))
