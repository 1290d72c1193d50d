"""The average of trained networks: the mean of their probabilities, not of their logits."""

from __future__ import annotations

import numpy as np


def mean_probabilities(members: list[np.ndarray]) -> np.ndarray:
    """Average the probabilities of several networks.

    Args:
        members: float32 (N, classes) each.

    Returns:
        float32 (N, classes), summed in float64.
    """
    mean: np.ndarray = np.mean(np.stack(members).astype(np.float64), axis=0).astype(np.float32)
    return mean
