"""Golden answers: stored probabilities of a bundle's networks for a fixed set of generated slices, the golden slices.

They are computed when the bundle is created and stored in its manifest (`metrics.golden`). Another machine compares its
own probabilities with them, because an intact file can give other results on another processor: one int8 file of https://github.com/intel/neural-compressor scored 74.76 % on two
processors and 68.95 % on a third.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .json_fields import MANIFEST_FILE
from .manifest import ORIENTATION_COLUMNS, Manifest
from .precision import BY_NAME

__all__ = [
    "FAST_METRICS",
    "GOLDEN",
    "GOLDEN_ORIENTATION",
    "METRICS",
    "golden_answers",
    "golden_orientation",
    "golden_rows",
    "golden_slices",
    "tolerance",
]

# The keys in `metrics`: of the probabilities of the classes, and of the orientation.
GOLDEN, GOLDEN_ORIENTATION = "golden", "golden_orientation"
# Where manifest.json holds the metrics: those of all networks, and those of the fast member alone.
METRICS, FAST_METRICS = "metrics", "fast.metrics"
COUNT = 16


def golden_slices() -> list[NDArray[Any]]:
    """Generate the golden slices, the same on every machine: gray tiles with a brighter disc.

    Networks give no clear answer for them, so that small differences in arithmetic become visible.

    Returns:
        16 arrays (H, W) with sides of 28 to 64 pixels, alternately uint8 and uint16.
    """
    slices: list[NDArray[Any]] = []
    for i in range(COUNT):
        random = np.frombuffer(
            hashlib.shake_256(b"organ_infer %d" % i).digest(64), np.uint8
        ).astype(np.int64)
        height, width = 28 + random[49:51] % 5 * 9
        y, x = np.mgrid[:height, :width]
        pixels = random[:49].reshape(7, 7)[y * 7 // height, x * 7 // width] % 200 // 2
        disc = (y - random[51] % height) ** 2 + (x - random[52] % width) ** 2 < (
            6 + random[53] % 12
        ) ** 2
        pixels = np.where(disc, pixels // 2 + 100 + random[54] % 56, pixels)
        slices.append(pixels.astype(np.uint8) if i % 2 == 0 else (pixels * 257).astype(np.uint16))
    return slices


def golden_rows(probabilities: NDArray[np.floating[Any]]) -> list[str]:
    """Format golden answers as the manifest stores them.

    Args:
        probabilities: Floating point (slices, columns).

    Returns:
        One string per slice: its probabilities with six digits, separated by spaces.
    """
    return [" ".join(f"{value:.6f}" for value in row) for row in probabilities.tolist()]


def golden_answers(
    manifest: Manifest, device: str, *, within: str = METRICS
) -> NDArray[np.float64] | None:
    """Return the stored probabilities for the golden slices.

    Args:
        manifest: Of the bundle.
        device: `cpu` or `cuda`, which may run different variants of the networks.
        within: Where manifest.json holds the metrics, for errors: METRICS or FAST_METRICS.

    Returns:
        Probabilities, float64 (slices, classes), or None if the bundle stores none.

    Raises:
        BundleError: The stored answers have another shape or are not probabilities.
    """
    return _stored(manifest, GOLDEN, device, len(manifest.task.classes), within)


def golden_orientation(
    manifest: Manifest, device: str, *, within: str = METRICS
) -> NDArray[np.float64] | None:
    """Return the stored orientations of the golden slices, as `golden_answers`, float64 (slices, 9).

    Raises:
        BundleError: The stored answers have another shape or are not probabilities.
    """
    if manifest.plausibility is None:
        return None
    return _stored(manifest, GOLDEN_ORIENTATION, device, ORIENTATION_COLUMNS, within)


def _stored(
    manifest: Manifest, key: str, device: str, columns: int, within: str
) -> NDArray[np.float64] | None:
    """Return the rows below a key of `metrics`, or None. Raises BundleError if they are no probabilities."""
    stored = manifest.metrics.get(key)
    if stored is None:
        return None
    shape = (COUNT, columns)
    try:
        answers = np.array([[float(value) for value in row.split()] for row in stored[device]])
        valid = answers.shape == shape and bool((np.abs(answers.sum(axis=1) - 1) < 1e-3).all())
    except (AttributeError, KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise BundleError(
            f"{MANIFEST_FILE}: {within}.{key}.{device} must be {shape[0]} strings of {shape[1]} probabilities;"
            " export the bundle again"
        )
    return answers


def tolerance(manifest: Manifest, device: str) -> float:
    """Return the largest accepted difference from a golden answer on a device.

    Args:
        manifest: Of the bundle.
        device: `cpu` or `cuda`.

    Returns:
        The largest tolerance among the variants that the device runs.
    """
    return max(BY_NAME[variant.precision].tolerance for variant in manifest.variants(device))
