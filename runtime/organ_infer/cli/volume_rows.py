"""The rows of organ-infer volume: one per organ, followed by one per slice of it. One class per output format."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..errors import escape_bytes
from ..names import escape_path
from .formats import (
    PLAUSIBILITY_COLUMNS,
    _csv_line,
    _json_line,
    _nine_digits,
    plausibility_values,
)

if TYPE_CHECKING:
    from ..results import OrganPrediction, SlicePrediction

__all__ = ["VOLUME_FORMATS", "VolumeFormat"]

# Decimal places of a position in mm.
PLACES = 3


class VolumeFormat(ABC):
    """One output format. Every row and the header end with their newline.

    Attributes:
        header: The text before the first row.
        has_warnings: Whether rows contain the warnings. If not, they go to standard error.
        is_binary: Whether the output is no text, so that it needs --output.
    """

    header = ""
    is_binary = False
    has_warnings = True

    def __init__(self, scan: str, classes: Sequence[str], has_plausibility: bool = False) -> None:
        self.scan = scan
        self.classes = classes
        self.has_plausibility = has_plausibility

    def rows(self, organ: "OrganPrediction") -> str:
        """The row of an organ, and the rows of its slices."""
        rows = [self.organ_row(organ)]
        rows += [self.slice_row(organ, prediction) for prediction in organ.slices]
        return "".join(rows)

    def end(self) -> str | bytes:
        """What is written after the last row."""
        return ""

    @abstractmethod
    def organ_row(self, organ: "OrganPrediction") -> str:
        """The row of an organ."""

    @abstractmethod
    def slice_row(self, organ: "OrganPrediction", result: "SlicePrediction") -> str:
        """The row of one of its slices."""


class TextFormat(VolumeFormat):
    """For a terminal: a line per organ, below it an indented line per slice."""

    has_warnings = False

    def __init__(self, scan: str, classes: Sequence[str], has_plausibility: bool = False) -> None:
        super().__init__(scan, classes, has_plausibility)
        self._width = max(map(len, classes))

    def organ_row(self, organ: "OrganPrediction") -> str:
        verdict = "agrees" if organ.agrees else "differs"
        if organ.only_side_differs:
            verdict = "other side"
        names = (
            f"{organ.expected:<{self._width}}  {organ.label:<{self._width}} {organ.probability:.3f}"
        )
        count = f"{len(organ.slices):>4} {'slice ' if len(organ.slices) == 1 else 'slices'}"
        return f"{names}  {verdict:<10} {count}  {escape_path(self.scan, one_line=True)}\n"

    def slice_row(self, organ: "OrganPrediction", result: "SlicePrediction") -> str:
        place = f"  {organ.view} {result.index:>4} {result.position:>8.1f} mm"
        return f"{place}  {result.prediction.label:<{self._width}} {result.prediction.probability:.3f}\n"


class CsvFormat(VolumeFormat):
    """One table. Cells that a kind of row does not have are empty."""

    COLUMNS = (
        *("row", "scan", "structure", "expected", "view"),
        *("index", "position", "label", "probability"),
        *("slices", "organ_label", "organ_probability", "agrees", "only_side_differs"),
        "warnings",
    )

    def __init__(self, scan: str, classes: Sequence[str], has_plausibility: bool = False) -> None:
        super().__init__(scan, classes, has_plausibility)
        self._more = PLAUSIBILITY_COLUMNS if has_plausibility else ()
        self.header = _csv_line([*self.COLUMNS, *classes, *self._more])

    def organ_row(self, organ: "OrganPrediction") -> str:
        answer = [
            len(organ.slices),
            organ.label,
            _nine_digits(organ.probability),
            *(str(value).lower() for value in (organ.agrees, organ.only_side_differs)),
        ]
        probabilities = map(_nine_digits, organ.probabilities)
        cells = [*self._subject("organ", organ), *[""] * 4, *answer, _joined(organ.warnings)]
        return _csv_line([*cells, *probabilities, *[""] * len(self._more)])

    def slice_row(self, organ: "OrganPrediction", result: "SlicePrediction") -> str:
        prediction = result.prediction
        answer = [
            result.index,
            round(result.position, PLACES),
            prediction.label,
            _nine_digits(prediction.probability),
        ]
        probabilities = map(_nine_digits, prediction.probabilities)
        cells = [*self._subject("slice", organ), *answer, *[""] * 5, _joined(prediction.warnings)]
        more = plausibility_values(prediction) if self._more else ()
        return _csv_line([*cells, *probabilities, *more])

    def _subject(self, row: str, organ: "OrganPrediction") -> list[str]:
        structure = escape_bytes("; ".join(organ.structures))
        return [row, escape_path(self.scan), structure, organ.expected, organ.view]


class JsonlFormat(VolumeFormat):
    """One JSON object per line."""

    def organ_row(self, organ: "OrganPrediction") -> str:
        return _json_line(
            {
                **_subject(self.scan, "organ", organ),
                "slices": len(organ.slices),
                "organ_label": organ.label,
                "organ_probability": _nine_digits(organ.probability),
                "agrees": organ.agrees,
                "only_side_differs": organ.only_side_differs,
                "probabilities": self._by_class(organ.probabilities),
                "warnings": list(map(escape_bytes, organ.warnings)),
            }
        )

    def slice_row(self, organ: "OrganPrediction", result: "SlicePrediction") -> str:
        prediction = result.prediction
        row: dict[str, object] = {
            **_subject(self.scan, "slice", organ),
            "index": result.index,
            "position": round(result.position, PLACES),
            "label": prediction.label,
            "probability": _nine_digits(prediction.probability),
            "probabilities": self._by_class(prediction.probabilities),
            "warnings": list(map(escape_bytes, prediction.warnings)),
        }
        if self.has_plausibility:
            row |= zip(PLAUSIBILITY_COLUMNS, plausibility_values(prediction), strict=True)
        return _json_line(row)

    def _by_class(self, probabilities: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.classes, map(_nine_digits, probabilities), strict=True))


class ParquetFormat(VolumeFormat):
    """One Parquet file, written after the last row. Columns that a kind of row does not have are null."""

    is_binary = True
    COLUMNS: ClassVar = {
        **{"row": "text", "scan": "text", "structure": "texts", "expected": "text", "view": "text"},
        **{"index": "whole", "position": "position", "label": "text", "probability": "number"},
        **{"slices": "whole", "organ_label": "text", "organ_probability": "number"},
        **{"agrees": "bool", "only_side_differs": "bool", "warnings": "texts"},
    }

    def __init__(self, scan: str, classes: Sequence[str], has_plausibility: bool = False) -> None:
        super().__init__(scan, classes, has_plausibility)
        # Imported here: the other formats do not need it.
        from .parquet import ParquetTable

        more = PLAUSIBILITY_COLUMNS if has_plausibility else {}
        self._table = ParquetTable(self.COLUMNS, tuple(classes), more)

    def organ_row(self, organ: "OrganPrediction") -> str:
        row = {
            **_subject(self.scan, "organ", organ),
            "slices": len(organ.slices),
            "organ_label": organ.label,
            "organ_probability": organ.probability,
            "agrees": organ.agrees,
            "only_side_differs": organ.only_side_differs,
            "warnings": list(map(escape_bytes, organ.warnings)),
        }
        self._table.add(row, organ.probabilities)
        return ""

    def slice_row(self, organ: "OrganPrediction", result: "SlicePrediction") -> str:
        prediction = result.prediction
        row = {
            **_subject(self.scan, "slice", organ),
            "index": result.index,
            "position": round(result.position, PLACES),
            "label": prediction.label,
            "probability": prediction.probability,
            "warnings": list(map(escape_bytes, prediction.warnings)),
        }
        if self.has_plausibility:
            row |= {"plausibility": prediction.plausibility, "orientation": prediction.orientation}
        self._table.add(row, prediction.probabilities)
        return ""

    def end(self) -> bytes:
        return self._table.finish()


# One row per output format: its name for --format, and its class.
VOLUME_FORMATS: dict[str, type[VolumeFormat]] = {
    "text": TextFormat,
    "csv": CsvFormat,
    "jsonl": JsonlFormat,
    "parquet": ParquetFormat,
}


def _subject(scan: str, row: str, organ: "OrganPrediction") -> dict[str, object]:
    """What every row of a format with typed values begins with."""
    return {
        "row": row,
        "scan": escape_path(scan),
        "structure": list(map(escape_bytes, organ.structures)),
        "expected": organ.expected,
        "view": organ.view,
    }


def _joined(warnings: Sequence[str]) -> str:
    return escape_bytes("; ".join(warnings))
