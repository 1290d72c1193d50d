"""Test-time augmentation: a slice is asked about five times, moved by no more than a pixel."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .ensemble import Probabilities

__all__ = ["shifted_mean"]


def shifted_mean(
    answers: Callable[[NDArray[np.float32]], Probabilities], packed: NDArray[np.float32]
) -> Probabilities:
    """The mean of what `answers` gives for the slices as they are and shifted by one pixel up, down, left and right,
    the edge repeated: float64 (N, classes).

    packed: float32 (N, 1, S, S), not written to. answers: from such an array to float64 (N, classes), called five
    times; one shifted copy is held at a time. Raises what `answers` raises.
    """
    at = np.arange(packed.shape[-1])
    after, before = np.minimum(at + 1, at[-1]), np.maximum(at - 1, 0)  # where each pixel comes from
    rows = [answers(packed)]
    for axis in (2, 3):
        for source in (after, before):
            rows.append(answers(np.take(packed, source, axis=axis)))  # C-contiguous, as [..., source] is not
    return np.asarray(np.mean(rows, axis=0))
