"""Boxes around organs, in the place of a mask."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from operator import index
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..box_files import millimeters, whole_number
from ..csv_rows import CsvRow, csv_rows
from ..errors import ImageError, InputError, short_repr, shorten_names
from ..names import escape_path, path_text
from .label_maps import label_map
from .types import Mask, Volume

__all__ = ["BoxMask", "Units", "open_boxes"]

Units = Literal["voxels", "mm"]
Box = tuple[slice, slice, slice]

UNITS: tuple[Units, ...] = ("voxels", "mm")
COLUMNS = ("organ", "x0", "y0", "z0", "x1", "y1", "z1")
# voxels; a center that is nearer than this to the side of a box is in the box
ROUNDING = 1e-6
# characters of a list of names in a message
NAMES_LIMIT = 300


class BoxMask(Mask):
    """One box per organ instead of a mask. Every voxel of a box counts as the organ.

    Crops have no margin unless one is given.
    """

    margin_mm = 0.0

    def __init__(
        self,
        boxes: Mapping[str, Box],
        shape: tuple[int, int, int],
        *,
        unmapped: Sequence[str] = (),
        source: str = "boxes",
        warnings: Sequence[str] = (),
        structures: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Create a mask of boxes.

        Args:
            boxes: Class name -> indices of the first voxel, and after the last one, along x, y and z.
            shape: X, Y and Z of the volume.
            unmapped: Names without a class.
            source: The path that they were read from.
            warnings: What was clipped.
            structures: Class name -> what the user calls it. By default the class.
        """
        for name, box in boxes.items():
            if len(box) != 3 or not all(map(_is_inside, box, shape)):
                raise InputError(
                    f"boxes: {short_repr(name)}: expected three slices inside {shape}, found {short_repr(box)}"
                )
        self._organs = dict(boxes)
        self._shape = shape
        self._structures = dict(structures or {})
        self.unmapped = tuple(unmapped)
        self.source = source
        self.warnings = tuple(warnings)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._organs)

    def __len__(self) -> int:
        return len(self._organs)

    def __contains__(self, name: object) -> bool:
        return name in self._organs

    def __repr__(self) -> str:
        return f"BoxMask({', '.join(self._organs)})"

    def box(self, name: str) -> Box:
        return self._organs[name]

    def region(self, name: str, box: Box) -> NDArray[np.bool_]:
        ranges = [side.indices(most) for side, most in zip(box, self._shape, strict=True)]
        region = np.zeros([len(range(*each)) for each in ranges], np.bool_)
        organ = self._organs[name]
        inside = tuple(
            slice(max(side.start - start, 0), max(side.stop - start, 0))
            for side, (start, _, _) in zip(organ, ranges, strict=True)
        )
        region[inside] = True
        return region


def _is_inside(side: Any, most: int) -> bool:
    """Whether a slice has indices, at least one of them, inside an axis of `most` voxels."""
    try:
        return side.step in (None, 1) and 0 <= index(side.start) < index(side.stop) <= most
    except (AttributeError, TypeError):
        return False


def open_boxes(
    path: str | os.PathLike[str],
    like: Volume,
    labels: str = "totalsegmentator",
    *,
    units: Units = "voxels",
) -> BoxMask:
    """Read a CSV file with one box per organ.

    Args:
        path: A file with lines `organ,x0,y0,z0,x1,y1,z1`, with or without a header.
        like: The scan. What is outside of it is left out of a box, with a warning.
        labels: The label map whose names the organs have, or a CSV file of one's own, as for `open_mask`.
        units: `voxels`: indices of `like.hu`, from the first one to the one after the last, as in Python. `mm`: LPS
            coordinates. A voxel is in the box if its center is.

    Returns:
        The boxes, for `predict_volume` and `organ_crops`.

    Raises:
        InputError: If an argument is wrong, the file cannot be read, or a line is no box inside the scan.
    """
    name = path_text(path, "path")
    if not isinstance(like, Volume):
        raise InputError("like: expected a Volume; pass what open_volume returned")
    if units not in UNITS:
        raise InputError(f"units: expected 'voxels' or 'mm', found {short_repr(units)}")
    row = label_map(labels)
    boxes: dict[str, Box] = {}
    structures: dict[str, list[str]] = {}
    unmapped: dict[str, None] = {}
    warnings: list[str] = []
    for line in csv_rows(name, COLUMNS):
        if line.error is not None:
            raise InputError(line.error)
        structure = line.cells["organ"]
        organ = row.class_of(None, structure)
        if organ is None:
            unmapped[structure] = None
            continue
        if organ in boxes:
            raise InputError(
                f"{line.where}: a second box of {organ}; pass one box per organ, around all of its parts"
            )
        try:
            boxes[organ], structures[organ] = _box(line, like, units, warnings), [structure]
        except ImageError as e:
            raise InputError(str(e)) from e
    if not boxes and not unmapped:
        raise InputError(
            f"{escape_path(name, one_line=True)}: no box in the file; write a line {','.join(COLUMNS)} per organ"
        )
    if not boxes:
        raise InputError(
            f"{escape_path(name, one_line=True)}: no organ is in the label map {row.name}: found"
            f" {shorten_names(list(unmapped), NAMES_LIMIT)}; write names such as liver and kidney-left, or choose the"
            " label map of the names with --labels or labels="
        )
    return BoxMask(
        boxes,
        like.hu.shape,
        unmapped=sorted(unmapped),
        source=name,
        warnings=warnings,
        structures=structures,
    )


def _box(line: CsvRow, like: Volume, units: Units, warnings: list[str]) -> Box:
    """Return the box of a line, clipped to the scan.

    Raises:
        ImageError: The line has no box, or no voxel is in it.
    """
    read = whole_number if units == "voxels" else millimeters
    values = np.array([read(line, column) for column in COLUMNS[1:]], np.float64).reshape(2, 3)
    if not (values[0] < values[1]).all():
        raise ImageError(
            f"{line.where}: no voxels in the box; x1, y1 and z1 must be larger than x0, y0 and z0"
        )
    sides = _indices(values, like) if units == "mm" else values.astype(np.int64)
    if not (sides[0] < sides[1]).all():
        raise ImageError(f"{line.where}: no voxel has its center in the box; correct the box")
    shape = np.array(like.hu.shape)
    clipped = np.stack([np.maximum(sides[0], 0), np.minimum(sides[1], shape)])
    if not (clipped[0] < clipped[1]).all():
        size = " x ".join(map(str, like.hu.shape))
        raise ImageError(
            f"{line.where}: outside the scan of {size} voxels; correct the box, or choose its units with"
            " --box-units or units="
        )
    x, y, z = (slice(int(start), int(stop)) for start, stop in clipped.T)
    if (clipped != sides).any():
        voxels = ", ".join(f"{side.start}:{side.stop}" for side in (x, y, z))
        warnings.append(
            f"{line.cells['organ']}: the box reaches beyond the scan; clipped to voxels {voxels}"
        )
    return x, y, z


def _indices(corners: NDArray[np.float64], like: Volume) -> NDArray[np.int64]:
    """Return the first voxel in a box of LPS millimeters and the one after the last, (2, 3)."""
    # An oblique scan gets the smallest box of voxels that contains the box.
    points = np.array(
        [
            [corners[bit, axis] for axis, bit in enumerate(bits)]
            for bits in product((0, 1), repeat=3)
        ]
    )
    to_index = np.linalg.inv(like.affine)
    places = points @ to_index[:3, :3].T + to_index[:3, 3]
    limit = float(1 << 40)
    low = np.ceil(places.min(axis=0).clip(-limit, limit) - ROUNDING)
    high = np.floor(places.max(axis=0).clip(-limit, limit) + ROUNDING)
    return np.stack([low, high + 1]).astype(np.int64)
