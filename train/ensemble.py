"""The average of trained networks: the mean of their probabilities (never of their logits)."""

from __future__ import annotations

import numpy as np


def mean_probabilities(members: list[np.ndarray]) -> np.ndarray:
    """Mean over members of float32 (N, classes) probabilities, summed in float64, as float32."""
    return np.mean(np.stack(members).astype(np.float64), axis=0).astype(np.float32)
