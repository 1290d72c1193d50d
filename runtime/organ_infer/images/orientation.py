"""How a slice lies: the patient direction in which its rows and its columns run, as DICOM letters."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import AXES
from ..errors import InputError

__all__ = ["LETTERS_TEXT", "Orientation", "parse_orientation", "plane_of", "turn", "turnable"]

Orientation = tuple[str, str]  # (direction of the growing row index, of the growing column index)

LETTERS_TEXT = "two letters of L R A P H F at right angles, rows then columns (PL is the usual axial display)"
_PLANES = {
    frozenset(("LR", "AP")): "axial",
    frozenset(("LR", "HF")): "coronal",
    frozenset(("AP", "HF")): "sagittal",
}


def parse_orientation(value: str | Sequence[str]) -> Orientation:
    """ "PL" or ("P", "L") as an orientation. Raises InputError."""
    letters = tuple(value) if isinstance(value, (str, Sequence)) else ()
    if len(letters) != 2 or any(not isinstance(letter, str) for letter in letters):
        raise InputError(f"orientation: {LETTERS_TEXT} expected, found {value!r}")
    rows, columns = (letter.upper() for letter in letters)
    if rows not in AXES or columns not in AXES or AXES[rows] == AXES[columns]:
        raise InputError(f"orientation: {LETTERS_TEXT} expected, found {value!r}")
    return rows, columns


def plane_of(orientation: Orientation) -> str:
    """axial, coronal or sagittal."""
    return _PLANES[frozenset(AXES[letter] for letter in orientation)]


def turnable(given: Orientation, wanted: Orientation) -> bool:
    """Whether a slice that lies as `given` can be turned, within its plane, to lie as `wanted`."""
    return {AXES[letter] for letter in given} == {AXES[letter] for letter in wanted}


def turn(pixels: NDArray[np.generic], given: Orientation, wanted: Orientation) -> NDArray[np.generic]:
    """A view of pixels (..., H, W) turned from `given` to `wanted`, which must be `turnable`."""
    if AXES[given[0]] != AXES[wanted[0]]:
        pixels = pixels.swapaxes(-1, -2)
        given = (given[1], given[0])
    rows = slice(None) if given[0] == wanted[0] else slice(None, None, -1)
    columns = slice(None) if given[1] == wanted[1] else slice(None, None, -1)
    return pixels[..., rows, columns]
