"""The cells of CSV files of boxes (docs/guides/formats.md, docs/guides/volumes.md)."""

import math
import re

from .csv_rows import CsvRow
from .errors import ImageError, short_repr

__all__ = ["millimeters", "whole_number"]

# Spreadsheets and pandas write whole numbers as 12.0.
_WHOLE = re.compile(r"([+-]?[0-9]{1,9})(?:\.0*)?")


def whole_number(line: CsvRow, column: str) -> int:
    """Return a number of pixels or voxels.

    Raises:
        ImageError: If it is none.
    """
    match = _WHOLE.fullmatch(line.cells[column])
    if match is None:
        raise ImageError(
            f"{line.where}: {column}: expected a whole number, found {short_repr(line.cells[column])}"
        )
    return int(match[1])


def millimeters(line: CsvRow, column: str) -> float:
    """Return a coordinate.

    Raises:
        ImageError: If it is none.
    """
    text = line.cells[column]
    try:
        value = float(text) if text.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ImageError(
            f"{line.where}: {column}: expected a number of mm, found {short_repr(text)}"
        )
    return value
