"""Compares probabilities with labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .bootstrap import accuracy_interval
from .calibration import expected_calibration_error, reliability_bins
from .types import ClassMetrics, Evaluation, Mistake

__all__ = ["evaluate"]

# The most confident mistakes that are listed.
MISTAKES = 24


def evaluate(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    classes: Sequence[str],
    *,
    groups: NDArray[Any] | None = None,
    unknown_labels: Mapping[str, int] | None = None,
) -> Evaluation:
    """Compute every metric.

    Args:
        probabilities: float (N, classes).
        labels: int (N,), index of the true class. A slice with a negative one is left out.
        classes: The names of the classes.
        groups: int (N,), a number per group of slices, such as those of one patient. The interval then
            resamples groups.
        unknown_labels: Labels that the model does not have, with the number of their slices, which are among the
            negative ones.

    Returns:
        The metrics.

    Raises:
        InputError: If the shapes do not match, no slice is left, or a probability is NaN.
    """
    unknown = dict(unknown_labels or {})
    expected = (len(labels), len(classes))
    if (
        probabilities.shape != expected
        or labels.ndim != 1
        or labels.max(initial=-1) >= len(classes)
    ):
        raise InputError(
            f"probabilities: expected the shape {expected} and labels below {len(classes)},"
            f" found {probabilities.shape} and {labels.max(initial=-1)}; pass one row and one label per slice"
        )
    if groups is not None and groups.shape != labels.shape:
        raise InputError(
            f"groups: expected one per slice, so {len(labels):,}, found {len(groups):,}; pass one per slice"
        )
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise InputError(
            f"labels: no slice has one of the model's classes; they are {', '.join(classes)}"
        )
    unlabeled = len(labels) - len(kept) - sum(unknown.values())
    probabilities, labels = probabilities[kept], labels[kept]
    if not np.isfinite(probabilities).all():
        raise InputError("probabilities: NaN or infinite; pass those of predict_proba")
    predicted = probabilities.argmax(1)
    correct = predicted == labels
    confusion = np.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
    confusion = confusion.reshape(len(classes), len(classes))
    per_class = [_class_metrics(label, confusion, i) for i, label in enumerate(classes)]
    support = [row.slices for row in per_class]
    return Evaluation(
        classes=tuple(classes),
        slices=len(kept),
        accuracy=float(correct.mean()),
        interval=accuracy_interval(correct, None if groups is None else groups[kept]),
        precision=_weighted([row.precision for row in per_class], support),
        recall=_weighted([row.recall for row in per_class], support),
        f1=_weighted([row.f1 for row in per_class], support),
        ece=expected_calibration_error(probabilities, labels),
        per_class=tuple(per_class),
        confusion=tuple(map(tuple, confusion.tolist())),
        reliability=reliability_bins(probabilities, labels),
        mistakes=_mistakes(probabilities, labels, predicted, kept, classes),
        unlabeled=unlabeled,
        unknown_labels=unknown,
    )


def _class_metrics(label: str, confusion: NDArray[np.int64], i: int) -> ClassMetrics:
    hits, true, predicted = confusion[i, i], confusion[i].sum(), confusion[:, i].sum()
    return ClassMetrics(
        label=label,
        slices=int(true),
        predicted=int(predicted),
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, true),
        f1=_ratio(2 * hits, true + predicted),
    )


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _weighted(values: Sequence[float | None], weights: Sequence[int]) -> float:
    """Return the weighted mean. An undefined value counts as 0."""
    return float(np.average([value or 0.0 for value in values], weights=weights))


def _mistakes(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    predicted: NDArray[np.int64],
    indices: NDArray[np.int64],
    classes: Sequence[str],
) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    # Of equal ones, the first.
    order = np.argsort(-confidence, kind="stable")[:MISTAKES]
    return tuple(
        Mistake(
            index=int(indices[wrong[i]]),
            label=classes[labels[wrong[i]]],
            predicted=classes[predicted[wrong[i]]],
            probability=float(confidence[i]),
        )
        for i in order
    )
