"""The rows of the page: of many slices the least certain ones, so that the page stays small."""

import heapq
from collections import Counter
from dataclasses import dataclass

__all__ = ["FAILURES_LIMIT", "ROWS_LIMIT", "Row", "Rows"]

# Classified slices and failed images in the page.
ROWS_LIMIT, FAILURES_LIMIT = 5000, 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One slice, or an image that failed.

    Attributes:
        number: The position in the input, from 0.
        path: As in the results.
        top: The most probable names with their probabilities. Empty if the image failed.
        is_uncertain: Whether the first is below `--min-probability`.
        warnings: Of the prediction.
        truth: The true label, or None.
        is_correct: Whether the label of the prediction is the true one, or None without a label that the model has.
        error: Why the image failed, or None.
    """

    number: int
    path: str
    top: tuple[tuple[str, float], ...] = ()
    is_uncertain: bool = False
    warnings: tuple[str, ...] = ()
    truth: str | None = None
    is_correct: bool | None = None
    error: str | None = None


class Rows:
    """Collects the rows. Memory does not grow with their number.

    Args:
        rows_limit: Classified slices that are kept, the least certain ones.
        failures_limit: Failed images that are kept, the first ones.

    Attributes:
        classified: All classified slices.
        failed: All failed images.
        uncertain: All uncertain slices.
        warned: All slices with a warning.
        names: Name -> slices that the model gives this name.
    """

    def __init__(self, rows_limit: int = ROWS_LIMIT, failures_limit: int = FAILURES_LIMIT) -> None:
        self._limits = rows_limit, failures_limit
        # (-probability, -number, row), so that the first is the most certain, of equal ones the last.
        self._least_certain: list[tuple[float, int, Row]] = []
        self.failures: list[Row] = []
        self.classified = self.failed = self.uncertain = self.warned = 0
        self.names: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count a row, and keep it if it is among the least certain ones."""
        rows_limit, failures_limit = self._limits
        if row.error is not None:
            self.failed += 1
            if len(self.failures) < failures_limit:
                self.failures.append(row)
            return
        self.classified += 1
        self.uncertain += row.is_uncertain
        self.warned += bool(row.warnings)
        name, probability = row.top[0]
        self.names[name] += 1
        entry = (-probability, -row.number, row)
        if len(self._least_certain) < rows_limit:
            heapq.heappush(self._least_certain, entry)
        else:
            heapq.heappushpop(self._least_certain, entry)

    def kept(self) -> list[Row]:
        """Return the classified slices of the page, the least certain first."""
        entries = sorted(self._least_certain, key=lambda entry: (-entry[0], -entry[1]))
        return [row for _, _, row in entries]
