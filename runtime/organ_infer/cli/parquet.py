"""Rows as a Parquet file, with pyarrow (extra `parquet`)."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from ..errors import InputError, OrganInferError, short_repr

__all__ = ["ParquetTable"]

# rows that are compressed together
GROUP = 1 << 14
# The types of columns -> how pyarrow makes them.
_TYPES = {
    "text": lambda arrow: arrow.string(),
    "texts": lambda arrow: arrow.list_(arrow.string()),
    "whole": lambda arrow: arrow.int32(),
    "number": lambda arrow: arrow.float32(),
    "position": lambda arrow: arrow.float64(),
    "bool": lambda arrow: arrow.bool_(),
}


class ParquetTable:
    """Collects rows, compressed, into the bytes of one file.

    A Parquet file ends with its index, so it can only be written whole.

    Args:
        columns: Name -> type: `text`, `texts`, `whole`, `number`, `position` or `bool`.
        classes: Names of further columns, the probabilities.
        more: Name -> type of the last columns.

    Raises:
        OrganInferError: pyarrow is missing, or a class has the name of a column.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        classes: tuple[str, ...],
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError as e:
            raise OrganInferError(
                "--format parquet: pyarrow is not installed; pip install 'organ-infer[parquet]'"
            ) from e
        for name in classes:
            if name in columns or name in more:
                raise InputError(
                    f"--format parquet: class {short_repr(name)}: this is the name of another column;"
                    " choose another format"
                )
        self._classes = classes
        types = {**columns, **dict.fromkeys(classes, "number"), **more}
        self._schema = self._arrow.schema(
            [(name, _TYPES[kind](self._arrow)) for name, kind in types.items()]
        )
        self._rows: list[dict[str, Any]] = []
        self._file = self._arrow.BufferOutputStream()
        self._writer = parquet.ParquetWriter(self._file, self._schema)

    def add(self, row: Mapping[str, Any], probabilities: tuple[float, ...] = ()) -> None:
        """Add a row. Columns that it lacks are null. `probabilities` are those of the classes."""
        by_class = zip(self._classes, probabilities, strict=bool(probabilities))
        self._rows.append({**row, **dict(by_class)})
        if len(self._rows) == GROUP:
            self._write_group()

    def finish(self) -> bytes:
        """Return the whole file."""
        self._write_group()
        self._writer.close()
        return bytes(self._file.getvalue())

    def _write_group(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._writer.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))
