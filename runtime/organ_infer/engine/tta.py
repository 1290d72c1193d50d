"""Test-time augmentation: the mean over a slice and four copies of it, shifted by one pixel."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .ensemble import Probabilities

__all__ = ["shifted_mean"]


def shifted_mean(
    predict: Callable[[NDArray[np.float32]], Probabilities], packed: NDArray[np.float32]
) -> Probabilities:
    """Return the mean probabilities of slices as they are and shifted by one pixel up, down, left and right.

    The edge of a shifted slice is repeated. One shifted copy is in memory at a time.

    Args:
        predict: Maps an array like `packed` to probabilities, float64 (N, classes). It is called five times.
        packed: Packed slices, float32 (N, 1, S, S). They are not modified.

    Returns:
        Probabilities, float64 (N, classes).

    Raises:
        Exception: Whatever `predict` raises.
    """
    index = np.arange(packed.shape[-1])
    # The source of each pixel: its next or its previous neighbor.
    following, previous = np.minimum(index + 1, index[-1]), np.maximum(index - 1, 0)
    answers = [predict(packed)]
    for axis in (2, 3):
        for source in (following, previous):
            # The result of np.take is C-contiguous. That of packed[..., source] is not.
            answers.append(predict(np.take(packed, source, axis=axis)))
    return np.asarray(np.mean(answers, axis=0))
