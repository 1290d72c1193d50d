"""The lines of CSV files that users write, with a number for messages."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .errors import ImageError, InputError, file_reason, one_line, short_repr
from .names import escape_path

if TYPE_CHECKING:
    import _csv

__all__ = ["CsvRow", "csv_rows"]


class CsvRow(NamedTuple):
    """One line of a CSV file.

    Attributes:
        where: The file and the line, for messages.
        cells: Column -> text. Missing optional columns are empty.
        error: Why the line is not what the file lists, or None.
    """

    where: str
    cells: dict[str, str]
    error: str | None = None


def csv_rows(
    path: str, columns: Sequence[str], optional: Sequence[str] = (), *, kind: str = "a box"
) -> Iterator[CsvRow]:
    """Yield the lines of a CSV file. Empty lines are left out.

    Args:
        path: The file.
        columns: Names of the columns, in their order in a file without a header. With a header that names all of
            them, they may have any order, and other columns are ignored.
        optional: Names of columns that may follow.
        kind: What a line is, for messages.

    Raises:
        InputError: If the file cannot be read.
    """
    name = escape_path(path, one_line=True)
    try:
        # The file is opened once, because it may be a pipe.
        with open(path, "rb") as raw:
            _check_encoding(raw, name)
            # Bytes of file names that are not UTF-8 stay what they are.
            file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            order = {each: i for i, each in enumerate((*columns, *optional))}
            is_first, has_header = True, False
            for row in _whole_rows(reader, name):
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if any("\0" in cell for cell in cells):
                    raise InputError(
                        f"{name}, line {reader.line_num}: NUL in the text; save the file as CSV in UTF-8"
                    )
                header = [cell.lower() for cell in cells]
                if is_first and set(columns) <= set(header):
                    order = {each: header.index(each) for each in order if each in header}
                    has_header = True
                else:
                    most = None if has_header else len(order)
                    where = f"{name}, line {reader.line_num}"
                    yield _line(where, cells, order, columns, optional, most, kind)
                is_first = False
    except (OSError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{name}: cannot be read ({file_reason(e)})") from e


def _whole_rows(reader: "_csv.Reader", name: str) -> Iterator[list[str]]:
    """Yield the rows of a reader. Raises InputError with the line in which a damaged row begins."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise InputError(
                f"{name}, line {line}: no valid CSV ({one_line(e)}); save it as CSV, with closed quotation marks"
            ) from e
        yield row


def _check_encoding(file: io.BufferedReader, name: str) -> None:
    if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise InputError(f"{name}: the file is UTF-16; save it as UTF-8")


def _line(
    where: str,
    cells: list[str],
    order: dict[str, int],
    columns: Sequence[str],
    optional: Sequence[str],
    most: int | None,
    kind: str,
) -> CsvRow:
    """Return one line. `most` is the number of its cells at most, or None."""
    named = dict.fromkeys((*columns, *optional), "")
    named |= {each: cells[i] for each, i in order.items() if i < len(cells)}
    try:
        if (most is not None and len(cells) > most) or not all(named[each] for each in columns):
            expected = ",".join(columns) + "".join(f"[,{each}]" for each in optional)
            found = short_repr(",".join(cells))
            raise ImageError(f"{where}: not {kind}, expected {expected}, found {found}")
    except ImageError as e:
        return CsvRow(where, named, str(e))
    return CsvRow(where, named)
