"""Test-time augmentation: the mean over a slice and four copies of it, shifted by one pixel."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from .ensemble import Answer, Probabilities

__all__ = ["shifted_answer", "shifted_mean"]


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
    return np.asarray(np.mean([predict(view) for view in _views(packed)], axis=0))


def shifted_answer(
    predict: Callable[[NDArray[np.float32]], Answer], packed: NDArray[np.float32]
) -> Answer:
    """Return the mean answer for slices as they are and shifted, as `shifted_mean`, with the mean of the orientation.

    Args:
        predict: Maps an array like `packed` to an answer. It is called five times.
        packed: Packed slices, float32 (N, 1, S, S). They are not modified.

    Returns:
        The answer. Its orientation is None if those of `predict` are.

    Raises:
        Exception: Whatever `predict` raises.
    """
    answers = [predict(view) for view in _views(packed)]
    orientations = [answer.orientation for answer in answers if answer.orientation is not None]
    return Answer(
        np.asarray(np.mean([answer.probabilities for answer in answers], axis=0)),
        np.mean(orientations, axis=0, dtype=np.float32) if orientations else None,
    )


def _views(packed: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield the slices as they are, then shifted up, down, left and right."""
    index = np.arange(packed.shape[-1])
    # The source of each pixel: its next or its previous neighbor.
    following, previous = np.minimum(index + 1, index[-1]), np.maximum(index - 1, 0)
    yield packed
    for axis in (2, 3):
        for source in (following, previous):
            # The result of np.take is C-contiguous. That of packed[..., source] is not.
            yield np.take(packed, source, axis=axis)
