"""Golden answers: what the networks of a bundle said of some drawn slices where they were made, kept in the manifest
(`metrics.golden`), to be asked for again on another device.

One file of int8 gave 74.76 % on two processors and 68.95 % on a third (intel/neural-compressor's table): a network that
is whole can still answer otherwise.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .json_fields import MANIFEST_FILE
from .manifest import Manifest
from .precision import BY_NAME

__all__ = ["GOLDEN", "golden_answers", "golden_rows", "golden_slices", "tolerance"]

GOLDEN = "golden"  # the key in `metrics`
COUNT = 16


def golden_slices() -> list[NDArray[Any]]:
    """The slices that are asked about, the same everywhere: tiles and a brighter disc, of 28 to 64 pixels a side, uint8
    and uint16 in turn. Real networks are unsure of them, so that small differences show."""
    found: list[NDArray[Any]] = []
    for i in range(COUNT):
        drawn = np.frombuffer(hashlib.shake_256(b"organ_infer %d" % i).digest(64), np.uint8).astype(np.int64)
        height, width = 28 + drawn[49:51] % 5 * 9
        y, x = np.mgrid[:height, :width]
        pixels = drawn[:49].reshape(7, 7)[y * 7 // height, x * 7 // width] % 200 // 2
        inside = (y - drawn[51] % height) ** 2 + (x - drawn[52] % width) ** 2 < (6 + drawn[53] % 12) ** 2
        pixels = np.where(inside, pixels // 2 + 100 + drawn[54] % 56, pixels)
        found.append(pixels.astype(np.uint8) if i % 2 == 0 else (pixels * 257).astype(np.uint16))
    return found


def golden_rows(probabilities: NDArray[np.float64]) -> list[str]:
    """Answers (slices, classes) as the manifest holds them, a text a slice."""
    return [" ".join(f"{value:.6f}" for value in row) for row in probabilities.tolist()]


def golden_answers(manifest: Manifest, device: str) -> NDArray[np.float64] | None:
    """The stored probabilities of `golden_slices()` (slices, classes) for the forms that `device` runs, or None where the
    bundle holds none. Raises BundleError where they are not what they should be."""
    stored = manifest.metrics.get(GOLDEN)
    if stored is None:
        return None
    shape = (COUNT, len(manifest.task.classes))
    try:
        found = np.array([[float(value) for value in row.split()] for row in stored[device]])
        right = found.shape == shape and bool((np.abs(found.sum(axis=1) - 1) < 1e-3).all())
    except (AttributeError, KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise BundleError(
            f"{MANIFEST_FILE}: metrics.{GOLDEN}.{device} must be {shape[0]} texts of {shape[1]} probabilities:"
            " export the bundle again"
        )
    return found


def tolerance(manifest: Manifest, device: str) -> float:
    """The widest of the forms that `device` runs."""
    return max(BY_NAME[form.precision].tolerance for form in manifest.forms(device))
