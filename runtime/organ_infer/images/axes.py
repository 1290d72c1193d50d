"""Words for flipped, turned and exchanged axes, of a scan's patient axes and of a slice."""

import numpy as np
from numpy.typing import NDArray

from .orientation import Orientation

__all__ = ["AS_REQUIRED", "NO_CROP", "appearance", "axes_message", "orientation_names"]

# The first and the last of a slice's orientations.
AS_REQUIRED, NO_CROP = "as required", "no organ crop"
_DIRECTIONS = ("left-right", "front-back", "head-feet")
# The axis of each DICOM letter in patient coordinates (toward left, back, head), and its sign.
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}
# What happened to the pixels, for a model that defines no orientation. The index is that of `orientation_names`.
_PIXELS = (
    AS_REQUIRED,
    "flipped vertically",
    "flipped horizontally",
    "turned by 180 degrees",
    "rows and columns exchanged",
    "turned by 90 degrees clockwise",
    "turned by 90 degrees counterclockwise",
    "rows and columns exchanged, both flipped",
)


def axes_message(axes: NDArray[np.int64]) -> str:
    """Describe what happened to the axes, such as "left-right flipped".

    Turns are those of an axial slice in the usual display: the patient's front at the top, the left on the right.

    Args:
        axes: (3, 3), one entry of -1 or 1 per row and column. It takes the assumed patient coordinates to the true ones.
    """
    order = [int(np.flatnonzero(row)[0]) for row in axes]
    signs = [int(row.sum()) for row in axes]
    flipped = [name for name, sign in zip(_DIRECTIONS, signs, strict=True) if sign < 0]
    if order == [0, 1, 2]:
        if flipped == ["left-right", "front-back"]:
            return "turned by 180 degrees"
        return f"{' and '.join(flipped)} flipped"
    if order == [1, 0, 2] and signs[2] == 1:
        if signs[0] * signs[1] == -1:
            return f"turned by 90 degrees {'clockwise' if signs[1] < 0 else 'counterclockwise'}"
        return (
            f"axes exchanged: left-right <-> front-back{', both flipped' if signs[0] < 0 else ''}"
        )
    names = [
        f"{_DIRECTIONS[true]} is {'flipped ' if sign < 0 else ''}{_DIRECTIONS[header]}"
        for true, (header, sign) in enumerate(zip(order, signs, strict=True))
        if true != header or sign < 0
    ]
    return f"axes exchanged: {', '.join(names)}"


def orientation_names(orientation: Orientation | None) -> tuple[str, ...]:
    """Describe the nine orientations that a network distinguishes (docs/reference/bundle_format.md, "Orientation").

    Args:
        orientation: The required one, or None if it is not known.

    Returns:
        The eight in-plane orientations: if bit 0 of the index is set, the rows of a slice are in reverse order, if bit 1 is
        set, the columns, and if bit 2 is set, rows and columns are exchanged after that. The last one is NO_CROP.
    """
    if orientation is None:
        return (*_PIXELS, NO_CROP)
    others = (axes_message(_axes(orientation, index)) for index in range(1, 8))
    return (AS_REQUIRED, *others, NO_CROP)


def appearance(name: str) -> str:
    """Return a name of an orientation so that it can follow "looks"."""
    if "exchanged" not in name:
        return name
    return f"as if {name.replace('exchanged', 'were exchanged', 1)}"


def _axes(orientation: Orientation, index: int) -> NDArray[np.int64]:
    """Return the matrix from the patient coordinates that a changed slice seems to have to its true ones."""
    rows, columns = (_unit_vector(letter) for letter in orientation)
    row_sign, column_sign = -1 if index & 1 else 1, -1 if index & 2 else 1
    # The third axis stays as it is.
    through = np.eye(3, dtype=np.int64) - np.outer(rows, rows) - np.outer(columns, columns)
    if index & 4:
        exchanged = column_sign * np.outer(columns, rows) + row_sign * np.outer(rows, columns)
        return np.asarray(through + exchanged, np.int64)
    kept = row_sign * np.outer(rows, rows) + column_sign * np.outer(columns, columns)
    return np.asarray(through + kept, np.int64)


def _unit_vector(letter: str) -> NDArray[np.int64]:
    vector = np.zeros(3, np.int64)
    axis, sign = _LETTERS[letter]
    vector[axis] = sign
    return vector
