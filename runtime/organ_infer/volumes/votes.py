"""The orientation of a whole scan, on which its slices vote."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..images.axes import AS_REQUIRED, NO_CROP, appearance

__all__ = ["scan_orientation", "scan_warnings", "votes"]

# The least probability that counts, so that a few slices of which the network is wrongly sure do not decide.
LEAST_PROBABILITY = 0.005
# The winner must be 20 times as likely as the second.
LEAST_EVIDENCE = 3.0


def votes(orientation: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log likelihood of each orientation, float64 (9,).

    Args:
        orientation: float32 (N, 9), the probabilities of each slice.
    """
    logs = np.log(np.maximum(orientation, LEAST_PROBABILITY), dtype=np.float64)
    return np.asarray(logs.sum(axis=0))


def scan_orientation(orientation: NDArray[np.float32], names: Sequence[str]) -> str | None:
    """Return the orientation that fits all slices of a scan best, or None if none wins clearly.

    Args:
        orientation: float32 (N, 9), the probabilities of each slice.
        names: Of the columns, see `images.axes.orientation_names`.
    """
    likelihoods = votes(orientation)
    second, first = likelihoods.argsort()[-2:]
    return names[first] if likelihoods[first] - likelihoods[second] >= LEAST_EVIDENCE else None


def scan_warnings(winner: str | None, slices: int) -> tuple[str, ...]:
    """Return the warning about a scan whose slices look like another orientation.

    Args:
        winner: What `scan_orientation` returns.
        slices: How many slices have voted.
    """
    if winner is None or winner == AS_REQUIRED:
        return ()
    if winner == NO_CROP:
        return (
            f"its {slices:,} crops look like no organ crops; check that the mask belongs to the scan, and that its"
            " values are Hounsfield units",
        )
    return (
        f"its {slices:,} crops look {appearance(winner)}; check the orientation in its header (affine or"
        " ImageOrientationPatient)",
    )
