"""Calibration: how far the highest probability and the accuracy differ."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import ReliabilityBin

__all__ = ["ECE_BINS", "confidence_bins", "expected_calibration_error", "reliability_bins"]

ECE_BINS = 15


def confidence_bins(confidence: NDArray[Any], bins: int = ECE_BINS) -> NDArray[np.int64]:
    """Assign each top probability to one of equal bins from 0 to 1.

    Args:
        confidence: float (N,), top probabilities. A probability on an edge belongs to the bin below it.
        bins: Number of bins.

    Returns:
        int (N,), from 0 to bins - 1.
    """
    indices: NDArray[np.int64] = np.clip(
        np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1
    )
    return indices


def expected_calibration_error(
    probabilities: NDArray[Any], labels: NDArray[Any], bins: int = ECE_BINS
) -> float:
    """Compute the expected calibration error of the top probability over equal bins (Guo et al., ICML 2017).

    Args:
        probabilities: float (N, classes).
        labels: int (N,).
        bins: Number of bins. A probability on an edge belongs to the bin below it.

    Returns:
        The error, 0 to 1.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    indices = confidence_bins(confidence, bins)
    gaps = np.bincount(indices, weights=correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def reliability_bins(
    probabilities: NDArray[Any], labels: NDArray[Any], bins: int = ECE_BINS
) -> tuple[ReliabilityBin, ...]:
    """Compute the mean confidence and the accuracy of each bin of the top probability.

    Args:
        probabilities: float (N, classes).
        labels: int (N,).
        bins: Number of bins.

    Returns:
        One entry per bin, the lowest first.
    """
    confidence = probabilities.max(1)
    indices = confidence_bins(confidence, bins)
    counts = np.bincount(indices, minlength=bins).tolist()
    sums = np.bincount(indices, weights=confidence.astype(np.float64), minlength=bins).tolist()
    correct = np.bincount(indices[probabilities.argmax(1) == labels], minlength=bins).tolist()
    return tuple(
        ReliabilityBin(
            lower=i / bins,
            upper=(i + 1) / bins,
            slices=counts[i],
            confidence=sums[i] / counts[i] if counts[i] else None,
            accuracy=correct[i] / counts[i] if counts[i] else None,
        )
        for i in range(bins)
    )
