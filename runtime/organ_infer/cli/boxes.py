"""The boxes that --boxes names, each as a path that ends in its box."""

import os
import re
from collections.abc import Iterator

from ..box_files import whole_number
from ..csv_rows import CsvRow, csv_rows
from ..errors import ImageError, InputError, short_repr
from ..images.boxes import Box
from ..images.discovery import Candidate
from ..images.registry import split_selector
from .arguments import UsageError

__all__ = ["boxed_candidates"]

COLUMNS = ("path", "x0", "y0", "x1", "y1")
# In a name they would end the box, or the line.
_NOT_IN_NAMES = re.compile(r"[\[\]\x00-\x1f]")


def boxed_candidates(path: str) -> Iterator[Candidate]:
    """Yield the boxes of a CSV file in its order. A line that is no box of an image is a Candidate with an error.

    Args:
        path: The file. Relative paths in it are relative to its directory.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        for line in csv_rows(path, COLUMNS, ("name",)):
            image = os.path.join(os.path.dirname(path), line.cells.get("path") or "")
            try:
                yield Candidate(_boxed_path(line, image))
            except ImageError as e:
                yield Candidate(image if line.cells.get("path") else path, str(e))
    except InputError as e:
        raise UsageError(f"--boxes {e}") from e


def _boxed_path(line: CsvRow, image: str) -> str:
    """Return the path with its box.

    Raises:
        ImageError: The line has no box or names no file.
    """
    if line.error is not None:
        raise ImageError(line.error)
    x0, y0, x1, y1 = (whole_number(line, column) for column in COLUMNS[1:])
    if x1 <= x0 or y1 <= y0:
        raise ImageError(
            f"{line.where}: no pixels in the box; x1 and y1 must be larger than x0 and y0"
        )
    if _NOT_IN_NAMES.search(line.cells["name"]):
        raise ImageError(
            f"{line.where}: name: expected text without brackets, found {short_repr(line.cells['name'])}"
        )
    if not os.path.isfile(split_selector(image)[0]):
        kind = "a directory, not an image" if os.path.isdir(image) else "no such file"
        raise ImageError(f"{line.where}: {kind}; name the file of an image")
    boxed = f"{image}{Box(x0, y0, x1, y1, line.cells['name'])}"
    if os.path.lexists(boxed):
        raise ImageError(f"{line.where}: a file is named like this box; rename the file")
    return boxed
