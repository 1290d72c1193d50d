"""Metrics that only the report needs, from confusion matrices and probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from organ_infer.evaluation.calibration import ECE_BINS as BINS
from organ_infer.evaluation.calibration import confidence_bins


def per_class(confusion: np.ndarray) -> list[dict[str, float | None]]:
    """Compute precision, recall, F1 and support of each class.

    Args:
        confusion: int (classes, classes) counts, rows true, columns predicted.

    Returns:
        A dict per class; a value is None if its denominator is 0.
    """
    rows: list[dict[str, float | None]] = []
    for i in range(len(confusion)):
        hits, support = int(confusion[i, i]), int(confusion[i].sum())
        predicted = int(confusion[:, i].sum())
        rows.append(
            {
                "precision": hits / predicted if predicted else None,
                "recall": hits / support if support else None,
                "f1": 2 * hits / (support + predicted) if support + predicted else None,
                "support": support,
            }
        )
    return rows


def accuracy_interval(
    confusion: np.ndarray | None, draws: int = 10_000
) -> tuple[float, float] | None:
    """Compute the 95 % percentile bootstrap interval of the accuracy, with slices drawn with replacement.

    A slice is either right or wrong, so a bootstrap sample of n slices is one binomial draw. Slices of one scan
    resemble each other, so the true uncertainty is larger than the interval.

    Args:
        confusion: int (classes, classes) counts, rows true, columns predicted; None if not known.
        draws: number of bootstrap samples.

    Returns:
        Low and high, 0 to 1; None without slices.
    """
    if confusion is None or (total := int(confusion.sum())) == 0:
        return None
    accuracy = int(np.trace(confusion)) / total
    samples = np.random.default_rng(0).binomial(total, accuracy, draws) / total
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Mistake:
    """A wrongly classified slice: its index in the split, its true and predicted class, its top probability."""

    index: int
    true: int
    predicted: int
    probability: float


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> list[Mistake]:
    """Return the wrongly classified slices with the highest top probability.

    Args:
        probabilities: float (N, classes).
        labels: int (M,) with M >= N, because a smoke run evaluates only the first slices.
        count: how many to return at most.

    Returns:
        The highest probability first; of equal probabilities the earlier slice first.
    """
    if len(probabilities) == 0:
        return []
    truth = np.asarray(labels).reshape(-1)[: len(probabilities)]
    predicted, top = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero((predicted != truth) & np.isfinite(top))
    order = wrong[np.argsort(-top[wrong], kind="stable")][:count]
    return [Mistake(int(i), int(truth[i]), int(predicted[i]), float(top[i])) for i in order]


@dataclass(frozen=True)
class Reliability:
    """The points of a reliability diagram, one per bin that is not empty: arrays (bins,)."""

    # mean top probability
    confidence: np.ndarray
    # share of slices that are right
    accuracy: np.ndarray
    # number of slices
    counts: np.ndarray


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> Reliability:
    """Compute the reliability diagram, in 15 equal bins of the top probability, closed on the right.

    Args:
        probabilities: float (N, classes).
        labels: int (M,) with M >= N, because a smoke run evaluates only the first slices.
    """
    truth = np.asarray(labels).reshape(-1)[: len(probabilities)]
    top = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    bins = confidence_bins(top)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    return Reliability(
        np.bincount(bins, top, BINS)[filled] / counts[filled],
        np.bincount(bins, right, BINS)[filled] / counts[filled],
        counts[filled],
    )
