"""The rows of results: one class per output format, all of them listed in FORMATS.

This module stays light, because --help lists the formats.
"""

import io
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ..errors import escape_bytes
from ..names import escape_path

if TYPE_CHECKING:
    from ..results import ImageFailure, Prediction

__all__ = ["FORMATS", "RowFormat", "RowOptions", "format_of"]

UNCERTAIN = "uncertain"
# The columns of a model that knows when not to answer, and their types in Parquet. They follow all others, so that those
# keep their places.
PLAUSIBILITY_COLUMNS = {"plausibility": "number", "orientation": "text"}


class RowOptions(NamedTuple):
    """What the rows show.

    Attributes:
        classes: The class names, in the order of the probabilities.
        organs: The organ of each class.
        top: How many of the most probable names to list; None for the label alone.
        by_organ: Whether text shows organs, and whether `min_probability` applies to the organ
            instead of the label.
        min_probability: A name with a lower probability is replaced by `uncertain`.
        min_plausibility: So is the name of a slice with a lower plausibility.
        has_plausibility: Whether the model gives a plausibility and an orientation, which then have columns.
    """

    classes: Sequence[str]
    organs: Sequence[str]
    top: int | None = None
    by_organ: bool = False
    min_probability: float | None = None
    min_plausibility: float | None = None
    has_plausibility: bool = False


class RowFormat(ABC):
    """One output format. Every row, the header and the footer end with their newline.

    Attributes:
        suffixes: Names of files that end in one of these are written in this format.
        header: The text before the first row.
        footer: The text after the last row.
        has_warnings: Whether rows contain the warnings. If not, they go to standard error.
        lists_organs: Whether --top lists organs if --organs is given.
        is_binary: Whether the output is no text, so that it needs --output.
    """

    suffixes: tuple[str, ...] = ()
    header = ""
    footer = ""
    has_warnings = True
    lists_organs = False
    is_binary = False

    def __init__(self, options: RowOptions) -> None:
        self.options = options
        # Probabilities are float32. The thresholds are rounded to float32 as well, so that a
        # probability copied from a row is not below itself.
        thresholds = options.min_probability or 0.0, options.min_plausibility or 0.0
        self.threshold, self.least_plausibility = struct.unpack(
            "2f", struct.pack("2f", *thresholds)
        )

    @abstractmethod
    def row(self, prediction: "Prediction") -> str:
        """The row of a classified slice."""

    @abstractmethod
    def failure(self, failure: "ImageFailure") -> str:
        """The row of an image that could not be classified."""

    def end(self) -> str | bytes:
        """What is written after the last row."""
        return self.footer

    def is_uncertain(self, prediction: "Prediction") -> bool:
        if (
            prediction.plausibility is not None
            and prediction.plausibility < self.least_plausibility
        ):
            return True
        by_organ = self.options.by_organ
        return bool(
            (prediction.organ_probability if by_organ else prediction.probability) < self.threshold
        )

    def label_and_organ(self, prediction: "Prediction") -> tuple[str, str]:
        """The label and the organ, either of them possibly replaced by `uncertain`."""
        label, organ = prediction.label, prediction.organ
        if not self.is_uncertain(prediction):
            return label, organ
        return (label, UNCERTAIN) if self.options.by_organ else (UNCERTAIN, organ)

    def top_classes(self, prediction: "Prediction", count: int) -> list[tuple[str, float]]:
        """The most probable classes. Of equal ones, the label comes first, then the class order decides."""
        if count == 1:
            return [(prediction.label, prediction.probability)]
        probabilities, classes = prediction.probabilities, self.options.classes
        order = sorted(
            range(len(classes)), key=lambda i: (-probabilities[i], i != prediction.index, i)
        )
        return [(classes[i], probabilities[i]) for i in order[:count]]

    def top_organs(self, prediction: "Prediction", count: int) -> list[tuple[str, float]]:
        """The most probable organs, `prediction.organ` first."""
        sums = dict.fromkeys(self.options.organs, 0.0)
        for organ, probability in zip(self.options.organs, prediction.probabilities, strict=True):
            sums[organ] += probability
        sums[prediction.organ] = prediction.organ_probability
        order = sorted(sums, key=lambda organ: (organ != prediction.organ, -sums[organ]))
        return [(organ, sums[organ]) for organ in order[:count]]


class TextFormat(RowFormat):
    """One line per slice for a terminal: names, probabilities, path. Failures are on standard error alone."""

    suffixes = (".txt",)
    has_warnings = False
    lists_organs = True

    def __init__(self, options: RowOptions) -> None:
        super().__init__(options)
        names = options.organs if options.by_organ else options.classes
        has_threshold = self.threshold or self.least_plausibility
        self._width = max(map(len, [*names, UNCERTAIN] if has_threshold else names))

    def row(self, prediction: "Prediction") -> str:
        top = self.top_organs if self.options.by_organ else self.top_classes
        pairs = top(prediction, self.options.top or 1)
        if self.is_uncertain(prediction):
            pairs[0] = UNCERTAIN, pairs[0][1]
        columns = " ".join(
            f"{name:<{self._width}} {probability:.3f}" for name, probability in pairs
        )
        return f"{columns} {escape_path(prediction.path or '', one_line=True)}\n"

    def failure(self, failure: "ImageFailure") -> str:
        return ""


class CsvFormat(RowFormat):
    """A table with a header and one column per class.

    With `--min-plausibility`, plausibility and orientation are the last columns. Otherwise the columns are those of earlier
    versions, because programs may read them by position.
    """

    suffixes = (".csv",)
    COLUMNS = ("path", "label", "probability", "organ", "organ_probability", "warnings", "error")

    def __init__(self, options: RowOptions) -> None:
        super().__init__(options)
        is_asked = options.has_plausibility and options.min_plausibility is not None
        self._more = PLAUSIBILITY_COLUMNS if is_asked else ()
        self.header = _csv_line([*self.COLUMNS, *options.classes, *self._more])

    def row(self, prediction: "Prediction") -> str:
        label, organ = self.label_and_organ(prediction)
        return _csv_line(
            [
                escape_path(prediction.path or ""),
                label,
                _nine_digits(prediction.probability),
                organ,
                _nine_digits(prediction.organ_probability),
                escape_bytes("; ".join(prediction.warnings)),
                "",
                *map(_nine_digits, prediction.probabilities),
                *(plausibility_values(prediction) if self._more else ()),
            ]
        )

    def failure(self, failure: "ImageFailure") -> str:
        no_probabilities = [""] * (len(self.options.classes) + len(self._more))
        path, error = escape_path(failure.path), escape_bytes(failure.error)
        return _csv_line([path, "", "", "", "", "", error, *no_probabilities])


class JsonlFormat(RowFormat):
    """One JSON object per line."""

    suffixes: tuple[str, ...] = (".jsonl", ".ndjson")

    def row(self, prediction: "Prediction") -> str:
        label, organ = self.label_and_organ(prediction)
        probabilities = map(_nine_digits, prediction.probabilities)
        row: dict[str, object] = {
            "path": None if prediction.path is None else escape_path(prediction.path),
            "label": label,
            "index": prediction.index,
            "probability": _nine_digits(prediction.probability),
            "organ": organ,
            "organ_probability": _nine_digits(prediction.organ_probability),
            "probabilities": dict(zip(self.options.classes, probabilities, strict=True)),
            "warnings": list(map(escape_bytes, prediction.warnings)),
        }
        if self.options.has_plausibility:
            row |= zip(PLAUSIBILITY_COLUMNS, plausibility_values(prediction), strict=True)
        if self.options.top is not None:
            row["top"] = [
                {"label": name, "probability": _nine_digits(probability)}
                for name, probability in self.top_classes(prediction, self.options.top)
            ]
        return _json_line(row)

    def failure(self, failure: "ImageFailure") -> str:
        return _json_line({"path": escape_path(failure.path), "error": escape_bytes(failure.error)})


class JsonFormat(JsonlFormat):
    """One JSON array. Its objects are those of JSON lines, each on its own line."""

    suffixes = (".json",)
    header = "[\n"
    footer = "]\n"

    def __init__(self, options: RowOptions) -> None:
        super().__init__(options)
        self._separator = ""

    def row(self, prediction: "Prediction") -> str:
        return self._separated(super().row(prediction))

    def failure(self, failure: "ImageFailure") -> str:
        return self._separated(super().failure(failure))

    def _separated(self, line: str) -> str:
        separator, self._separator = self._separator, ","
        return separator + line


class ParquetFormat(RowFormat):
    """One Parquet file, written after the last row."""

    suffixes = (".parquet", ".pq")
    is_binary = True
    COLUMNS: ClassVar = {
        **{"path": "text", "label": "text", "index": "whole", "probability": "number"},
        **{"organ": "text", "organ_probability": "number", "warnings": "texts", "error": "text"},
    }

    def __init__(self, options: RowOptions) -> None:
        super().__init__(options)
        # Imported here: the other formats do not need it.
        from .parquet import ParquetTable

        more = PLAUSIBILITY_COLUMNS if options.has_plausibility else {}
        self._table = ParquetTable(self.COLUMNS, tuple(options.classes), more)

    def row(self, prediction: "Prediction") -> str:
        label, organ = self.label_and_organ(prediction)
        row = {
            "path": escape_path(prediction.path or ""),
            "label": label,
            "index": prediction.index,
            "probability": prediction.probability,
            "organ": organ,
            "organ_probability": prediction.organ_probability,
            "warnings": list(map(escape_bytes, prediction.warnings)),
        }
        if self.options.has_plausibility:
            row |= {"plausibility": prediction.plausibility, "orientation": prediction.orientation}
        self._table.add(row, prediction.probabilities)
        return ""

    def failure(self, failure: "ImageFailure") -> str:
        error = escape_bytes(failure.error)
        self._table.add({"path": escape_path(failure.path), "warnings": [], "error": error})
        return ""

    def end(self) -> bytes:
        return self._table.finish()


# One row per output format: its name for --format, and its class.
FORMATS: dict[str, type[RowFormat]] = {
    "text": TextFormat,
    "csv": CsvFormat,
    "jsonl": JsonlFormat,
    "json": JsonFormat,
    "parquet": ParquetFormat,
}
# Suffixes of tables and archives that are not written. Rows of text under such a name would mislead.
_NOT_WRITTEN = (
    *(".arrow", ".feather", ".tsv", ".xls", ".xlsx", ".ods", ".html"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip"),
)


def format_of(path: str) -> str:
    """Return the name of the format for a file's suffix. Any unknown suffix is text.

    Raises:
        ValueError: The suffix names a format that is not written.
    """
    _, suffix = os.path.splitext(path.lower())
    if suffix in _NOT_WRITTEN:
        raise ValueError(suffix)
    return next((name for name, row in FORMATS.items() if suffix in row.suffixes), "text")


def plausibility_values(prediction: "Prediction") -> tuple[float | None, str | None]:
    """The values of PLAUSIBILITY_COLUMNS."""
    plausibility = prediction.plausibility
    return None if plausibility is None else _nine_digits(plausibility), prediction.orientation


def _nine_digits(value: float) -> float:
    """The value in the nine significant digits that identify a float32."""
    return float(f"{value:.9g}")


def _csv_line(values: Sequence[object]) -> str:
    # Imported here: the other formats do not need it.
    import csv

    line = io.StringIO()
    # Before Python 3.11.9 and 3.12.3 a carriage return is quoted only if the line terminator has one:
    # https://github.com/python/cpython/issues/67044
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return f"{line.getvalue()[:-2]}\n"


def _json_line(row: object) -> str:
    # Imported here: the other formats do not need it.
    import json

    return json.dumps(row, ensure_ascii=False) + "\n"
