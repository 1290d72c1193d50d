"""An evaluation as lines of text, for a terminal."""

from collections.abc import Iterator

from .types import Evaluation

__all__ = ["interval_text", "metric_text", "text_lines"]

# A confusion matrix of more classes does not fit a terminal.
MATRIX_CLASSES = 20


def text_lines(evaluation: Evaluation) -> Iterator[str]:
    """Yield the metrics, the table of the classes and the confusion matrix."""
    yield f"accuracy   {evaluation.accuracy:.4f}{interval_text(evaluation)}"
    for name, value in (
        ("precision", evaluation.precision),
        ("recall", evaluation.recall),
        ("F1", evaluation.f1),
    ):
        yield f"{name:<10} {value:.4f}, weighted by the slices of the classes"
    yield f"ECE        {evaluation.ece:.4f}"
    width = max(5, *map(len, evaluation.classes))
    digits = len(f"{evaluation.slices:,}")
    column = max(digits, len("predicted"))
    yield ""
    yield f"{'class':<{width}}  {'slices':>{column}}  {'predicted':>{column}}  precision  recall     F1"
    for row in evaluation.per_class:
        yield (
            f"{row.label:<{width}}  {row.slices:>{column},}  {row.predicted:>{column},}"
            f"  {metric_text(row.precision):>9}  {metric_text(row.recall):>6}  {metric_text(row.f1):>5}"
        )
    if len(evaluation.classes) <= MATRIX_CLASSES:
        yield ""
        yield from _matrix_lines(evaluation, width, max(digits, 2))


def _matrix_lines(evaluation: Evaluation, width: int, digits: int) -> Iterator[str]:
    numbers = "  ".join(f"{i:>{digits}}" for i in range(1, len(evaluation.classes) + 1))
    yield f"{'true class':<{width + 4}}  predicted class, by number"
    yield f"{'':<{width + 4}}  {numbers}"
    for i, (label, counts) in enumerate(
        zip(evaluation.classes, evaluation.confusion, strict=True), 1
    ):
        cells = "  ".join(f"{count or '.':>{digits}}" for count in counts)
        yield f"{i:>2}  {label:<{width}}  {cells}"


def interval_text(evaluation: Evaluation) -> str:
    """Return the interval as the end of a line, or "" if there is none."""
    interval = evaluation.interval
    if interval is None:
        return ""
    by_group = "" if interval.groups is None else f", by {interval.groups:,} groups"
    return f", {interval.level:.0%} interval {interval.low:.4f} to {interval.high:.4f}{by_group}"


def metric_text(value: float | None) -> str:
    """Return three decimals, or a dash for an undefined metric."""
    return "-" if value is None else f"{value:.3f}"
