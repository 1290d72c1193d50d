"""Calibration: the temperature of an ensemble, fitted to labeled slices, and the calibration error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

LOWEST, HIGHEST = 0.05, 20.0  # within the range that a manifest may hold
ECE_BINS = 15


def fit_temperature(logits: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Fit the temperature at which the mean probability gives the labels the least negative log likelihood.

    Each member's logits are divided by the temperature before its softmax, as the runtime does (Guo et al., ICML 2017,
    for one network).

    Args:
        logits: float (N, C) of each member.
        labels: int (N,).

    Returns:
        The temperature, rounded to three decimals, from 0.05 to 20. It is 1 if the labels cannot determine it: if
        every slice is right, which favors ever lower temperatures, or if no temperature is better than none.
    """
    members = [np.asarray(z, np.float64) for z in logits]
    rows = np.arange(len(labels))

    def loss(temperature: float) -> float:
        log_likelihoods = [log_softmax(z / temperature, axis=1)[rows, labels] for z in members]
        return float(-logsumexp(log_likelihoods, axis=0).mean())

    if (mean_softmax(members).argmax(1) == labels).all():
        return 1.0
    bounds = (np.log(LOWEST), np.log(HIGHEST))
    minimum = minimize_scalar(lambda x: loss(np.exp(x)), bounds=bounds, method="bounded")
    temperature = round(float(np.clip(np.exp(minimum.x), LOWEST, HIGHEST)), 3)
    return temperature if loss(temperature) < loss(1.0) else 1.0


def mean_softmax(logits: Sequence[np.ndarray], temperature: float = 1.0) -> np.ndarray:
    """Average the members' probabilities.

    Args:
        logits: float (N, C) of each member.
        temperature: Divides the logits.

    Returns:
        float64 (N, C), the mean over the members of their softmax.
    """
    members = [np.asarray(z, np.float64) / temperature for z in logits]
    mean: np.ndarray = np.mean([np.exp(log_softmax(z, axis=1)) for z in members], axis=0)
    return mean


def confidence_bins(confidence: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """The bin of each top probability among equal bins from 0 to 1.

    Args:
        confidence: float (N,), top probabilities. One on an edge counts to the bin below it.
        bins: how many.

    Returns:
        int (N,), from 0 to bins - 1.
    """
    places: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return places


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS
) -> float:
    """Compute the expected calibration error of the top probability over equal bins (Guo et al., ICML 2017).

    Args:
        probabilities: float (N, C).
        labels: int (N,).
        bins: Number of bins. A probability on an edge counts to the bin below it.

    Returns:
        The error, 0 to 1.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    which = confidence_bins(confidence, bins)
    gaps = np.bincount(which, weights=correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
