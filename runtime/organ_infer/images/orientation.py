"""In-plane orientation: the patient directions in which row and column index grow, as DICOM letters."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import AXES
from ..errors import InputError, short_repr

__all__ = [
    "LETTERS_TEXT",
    "Orientation",
    "can_reorient",
    "parse_orientation",
    "plane_of",
    "reorient",
]

# (direction in which the row index grows, direction in which the column index grows)
Orientation = tuple[str, str]

LETTERS_TEXT = "two letters of L R A P H F at right angles, for row then column index (PL is the usual axial display)"
_PLANES = {
    frozenset(("LR", "AP")): "axial",
    frozenset(("LR", "HF")): "coronal",
    frozenset(("AP", "HF")): "sagittal",
}


def parse_orientation(value: str | Sequence[str]) -> Orientation:
    """Return "PL" or ("P", "L"), in upper or lower case, as an orientation.

    Raises:
        InputError: If `value` is not two letters at right angles.
    """
    letters = tuple(value) if isinstance(value, (str, Sequence)) else ()
    if len(letters) != 2 or any(not isinstance(letter, str) for letter in letters):
        raise InputError(f"orientation: expected {LETTERS_TEXT}, found {short_repr(value)}")
    rows, columns = (letter.upper() for letter in letters)
    if rows not in AXES or columns not in AXES or AXES[rows] == AXES[columns]:
        raise InputError(f"orientation: expected {LETTERS_TEXT}, found {short_repr(value)}")
    return rows, columns


def plane_of(orientation: Orientation) -> str:
    """Return `axial`, `coronal` or `sagittal`."""
    return _PLANES[frozenset(AXES[letter] for letter in orientation)]


def can_reorient(source: Orientation, target: Orientation) -> bool:
    """Return whether both orientations are of the same plane."""
    return {AXES[letter] for letter in source} == {AXES[letter] for letter in target}


def reorient(
    pixels: NDArray[np.generic], source: Orientation, target: Orientation
) -> NDArray[np.generic]:
    """Flip and transpose a slice or a stack of slices.

    Args:
        pixels: (..., H, W), any dtype.
        source: Orientation of `pixels`.
        target: Orientation of the result, in the same plane (`can_reorient`).

    Returns:
        A view of `pixels`.
    """
    if AXES[source[0]] != AXES[target[0]]:
        pixels = pixels.swapaxes(-1, -2)
        source = (source[1], source[0])
    rows = slice(None) if source[0] == target[0] else slice(None, None, -1)
    columns = slice(None) if source[1] == target[1] else slice(None, None, -1)
    return pixels[..., rows, columns]
