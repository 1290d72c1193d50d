"""Plausibility checks: warnings for slices that are unlikely to be a crop around one organ (docs/guides/formats.md).

All checks but those of size and color run on the network's input, so they hold for every kind of image.
No slice of OrganAMNIST's validation split comes near their thresholds. A network that knows when not to answer adds one
more check, of its own output.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .bundle.manifest import Input
from .images.axes import NO_CROP, appearance

__all__ = [
    "IMPLAUSIBLE",
    "WHOLE_SLICE",
    "WHOLE_SLICE_SIDE",
    "field_warnings",
    "orientation_warnings",
    "pixel_warnings",
    "shape_warnings",
    "without_orientation_warnings",
    "without_plausibility",
]

# The beginning of a warning about an input that is hardly an organ crop.
IMPLAUSIBLE = "implausible: "
# The beginning of a warning that comes from the network itself.
_BY_NETWORK = "plausibility "
# Part of the warnings about slices that are no crops.
WHOLE_SLICE = "likely a whole slice"
# Pixels. At CT's usual resolution, at least one side of a crop around one organ is shorter.
WHOLE_SLICE_SIDE = 400
# Millimeters. No organ is this large both ways, nor that large one way. The liver is the largest, some 200 mm wide.
WHOLE_SLICE_FIELD, WHOLE_SLICE_LENGTH = 250.0, 300.0
# Pixels up to BLACK count as black, pixels from WHITE on as white. Black is 0, white is 1.
BLACK, WHITE = 0.02, 0.98
# Difference between the brightest and the darkest pixel. Validation: 0.44 and more.
MIN_SPAN = 0.25
# Share of pixels that are black or white. Validation: 0.84 at most.
CLIPPED_LIMIT = 0.9
# Share of the border's pixels that are black. Validation: 0.82 at most.
BLACK_BORDER_LIMIT = 0.9
# Mean brightness where a body in air begins. Skin and fat are dark. Validation: 0.30 and more, at hearts in black lungs.
SKIN_LIMIT = 0.15
# Pixels of a side. Larger inputs are reduced to it, because edges are darker in large slices.
SKIN_SIDE = 28


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


def _whole_slice(size: str) -> tuple[str, ...]:
    return (f"{IMPLAUSIBLE}{size}; {WHOLE_SLICE}, crop it around one organ",)


def pixel_warnings(packed: NDArray[np.float32], spec: Input) -> list[tuple[str, ...]]:
    """Return the warnings about each slice's pixels.

    Args:
        packed: float32 (N, 1, S, S), the network's input.
        spec: The manifest's description of that input.
    """
    pixels = packed.reshape(len(packed), -1)
    low, high = (np.float32((value - spec.mean) / spec.std) for value in (BLACK, WHITE))
    black, border = pixels <= low, _border_indices(spec.size)
    in_air = _in_air(packed, black, spec)
    span = (pixels.max(axis=1) - pixels.min(axis=1)) * spec.std
    clipped = _count_true(black | (pixels >= high)) / pixels.shape[1]
    black_border = _count_true(black.take(border, axis=1)) / len(border)
    implausible = (
        (span < MIN_SPAN)
        | (clipped >= CLIPPED_LIMIT)
        | (black_border >= BLACK_BORDER_LIMIT)
        | in_air
    )
    if not implausible.any():
        return [()] * len(packed)
    warnings: list[tuple[str, ...]] = [()] * len(packed)
    for i in np.flatnonzero(implausible):
        if span[i] < MIN_SPAN:
            reason = f"pixels span {span[i]:.0%} of black to white; likely a constant image or a wrong window"
        elif clipped[i] >= CLIPPED_LIMIT:
            reason = f"{clipped[i]:.0%} of the pixels are black or white; likely a wrong window or no CT slice"
        elif black_border[i] >= BLACK_BORDER_LIMIT:
            reason = f"black border; {WHOLE_SLICE}, crop it around one organ"
        else:
            reason = f"a body in air; {WHOLE_SLICE}, crop it around one organ"
        warnings[i] = (f"{IMPLAUSIBLE}{reason}",)
    return warnings


def orientation_warnings(
    orientation: NDArray[np.float32],
    threshold: float,
    names: Sequence[str],
    warnings: Sequence[tuple[str, ...]],
) -> list[tuple[str, ...]]:
    """Return each slice's warnings, with one more if its plausibility is below the threshold.

    A slice that another check calls implausible gets no second warning that it is no organ crop, and a whole slice none
    about its orientation either.

    Args:
        orientation: float32 (N, 9), probabilities. Column 0 is the plausibility.
        threshold: The least plausibility without a warning.
        names: Of the columns, see `images.axes.orientation_names`.
        warnings: Of the other checks, one tuple per slice.
    """
    complete = list(warnings)
    for i in np.flatnonzero(orientation[:, 0] < threshold).tolist():
        # Column 0 can be the most probable one and still be below the threshold.
        name = names[1 + int(orientation[i, 1:].argmax())]
        others = [text for text in complete[i] if text.startswith(IMPLAUSIBLE)]
        if (others and name == NO_CROP) or any("whole slice" in text for text in others):
            continue
        value, limit = _distinct(float(orientation[i, 0]), threshold)
        problem = (
            f"{NO_CROP}; crop it around one organ, with the window of an abdominal CT"
            if name == NO_CROP
            else f"looks {appearance(name)}; check the orientation, or pass it with --orientation or orientation="
        )
        complete[i] += (f"{_BY_NETWORK}{value}, below {limit}: {problem}",)
    return complete


def without_orientation_warnings(warnings: tuple[str, ...], scan: str) -> tuple[str, ...]:
    """Return the warnings of a slice without those that the orientation of its scan replaces.

    Args:
        warnings: Of a slice.
        scan: What the slices of the scan look like together. If that is an orientation, a slice that is no organ crop
            is still reported.
    """
    return tuple(
        text
        for text in warnings
        if not text.startswith(_BY_NETWORK) or (NO_CROP in text and scan != NO_CROP)
    )


def without_plausibility(warning: str) -> str:
    """Return a warning without the plausibility of its slice, so that it is the same for others: "plausibility below 0.042: ..."."""
    if not warning.startswith(_BY_NETWORK):
        return warning
    return _BY_NETWORK + warning.partition(", ")[2]


def _distinct(value: float, limit: float) -> tuple[str, str]:
    """Return two numbers with three decimal places, or with as many more as they differ in."""
    for places in range(3, 9):
        texts = f"{value:.{places}f}", f"{limit:.{places}f}"
        if texts[0] != texts[1]:
            break
    return texts


def _in_air(
    packed: NDArray[np.float32], black: NDArray[np.bool_], spec: Input
) -> NDArray[np.bool_]:
    """Return whether each slice shows a body with skin in air: black corners, and dark gray next to the black.

    Args:
        packed: float32 (N, 1, S, S), the network's input.
        black: bool (N, S * S), its black pixels.
        spec: The manifest's description of that input.
    """
    corners = black[:, [0, spec.size - 1, -spec.size, -1]]
    found: NDArray[np.bool_] = np.logical_and.reduce(corners, axis=1)
    # hardly any crop has four black corners, so that the rest is seldom computed
    for i in np.flatnonzero(found):
        gray = packed[i, 0] * np.float32(spec.std) + np.float32(spec.mean)
        found[i] = _skin_brightness(gray) < SKIN_LIMIT
    return found


def _skin_brightness(gray: NDArray[np.float32]) -> float:
    """Return the mean of the pixels (S, S) next to the black ones around them, or 1 if there are none."""
    small = _reduced(gray)
    black = small <= BLACK
    skin = _grown(_seen_from_outside(black)) & ~black
    return float(small[skin].mean()) if skin.any() else 1.0


def _reduced(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the slice (S, S) with SKIN_SIDE rows and columns, each the mean of an area, or as it is if it is smaller."""
    if len(gray) <= SKIN_SIDE:
        return gray
    weights = _area_weights(len(gray))
    reduced: NDArray[np.float32] = np.linalg.multi_dot([weights, gray, weights.T])
    return reduced


@lru_cache
def _area_weights(size: int) -> NDArray[np.float32]:
    """Return the parts of `size` pixels of which each of SKIN_SIDE pixels is the mean, (SKIN_SIDE, size)."""
    edges = np.linspace(0, size, SKIN_SIDE + 1)[:, None]
    pixels = np.arange(size)
    covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (covered.clip(0) * (SKIN_SIDE / size)).astype(np.float32)


def _seen_from_outside(black: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels (S, S) from which a side of the slice is reached straight through black ones."""
    seen = np.zeros_like(black)
    for view, into in (
        (black, seen),
        (black[::-1], seen[::-1]),
        (black.T, seen.T),
        (black.T[::-1], seen.T[::-1]),
    ):
        into |= np.logical_and.accumulate(view, axis=0)
    return seen


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask (S, S) with the pixels above, below and beside it."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


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
