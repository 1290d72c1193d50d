"""The bootstrap interval of an accuracy. It is the same in every run, because its seed is fixed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import Interval

__all__ = ["LEVEL", "RESAMPLES", "accuracy_interval"]

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0
# Drawn groups that are in memory at once.
DRAWS = 1 << 20


def accuracy_interval(correct: NDArray[np.bool_], groups: NDArray[Any] | None) -> Interval | None:
    """Compute the interval of the accuracy.

    Slices of one patient resemble each other, so resampling slices makes the interval too short. Resampling groups
    does not.

    Args:
        correct: bool (N,), whether each slice is classified correctly.
        groups: int (N,), the group of each slice from 0, or None to resample slices.

    Returns:
        The percentile interval. None if there are fewer than two slices or groups, or all slices are right or all are
        wrong, because all resamples are alike then.
    """
    if correct.all() or not correct.any():
        return None
    rng = np.random.default_rng(SEED)
    count, number = len(correct), None
    if groups is None:
        # The number of correct slices in a resample is binomial.
        accuracies = rng.binomial(count, correct.sum() / count, RESAMPLES) / count
    else:
        _, indices = np.unique(groups, return_inverse=True)
        number = int(indices.max()) + 1
        if number < 2:
            return None
        accuracies = _resampled_groups(
            rng, np.bincount(indices), np.bincount(indices[correct], minlength=number)
        )
    low, high = np.quantile(accuracies, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(low, high, LEVEL, RESAMPLES, number)


def _resampled_groups(
    rng: np.random.Generator, sizes: NDArray[np.int64], correct: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the accuracies of resampled groups, which can differ in size."""
    number = len(sizes)
    rows = max(DRAWS // number, 1)
    accuracies = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(number, size=(min(rows, RESAMPLES - start), number))
        accuracies[start : start + rows] = correct[drawn].sum(1) / sizes[drawn].sum(1)
    return accuracies
