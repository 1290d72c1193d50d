"""The slices that temperatures are fitted on, and a stage's calibration error with its temperature.

The scans of validation resemble those of training, and a network is right on nearly all of them: a temperature fitted
there makes it too sure of slices from elsewhere. It is fitted on validation slices with corrupted copies of them
instead (Tomani et al., "Post-hoc uncertainty calibration for domain drift scenarios", CVPR 2021): each of MedMNIST-C's
corruptions, at its middle severity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from export.temperature import expected_calibration_error, fit_temperature, mean_softmax
from export.variants import Slices
from train.corruptions import CORRUPTIONS, corrupt
from train.data import Data
from train.results_format import Calibration

SPLIT = "val_corrupted"
# slices of validation, each as it is and in 13 corrupted copies
SLICES, SEVERITY = 1000, 3
# smallest probability, so that the logarithm of one that was rounded to zero is finite
TINY = np.finfo(np.float32).tiny


def fitted_on(data: Data, slices: int = SLICES) -> Data:
    """Add the split SPLIT, which temperatures are fitted on.

    Args:
        data: with the split "val".
        slices: how many of validation to take, spread evenly over it.

    Returns:
        The data with SPLIT: the slices as they are, then a copy of all of them per corruption.
    """
    total = len(data.labels["val"])
    chosen = np.linspace(0, total - 1, min(slices, total)).round().astype(int)
    plain = data.images["val"][chosen]
    images = np.concatenate([plain, *(corrupt(plain, name, SEVERITY) for name in CORRUPTIONS)])
    labels = np.tile(data.labels["val"][chosen], 1 + len(CORRUPTIONS))
    return replace(data, images=data.images | {SPLIT: images}, labels=data.labels | {SPLIT: labels})


def judged_with(data: Data) -> Slices:
    """The slices that the variants of a bundle are made, judged and calibrated with.

    Args:
        data: with the split SPLIT, from `fitted_on`.
    """
    fitting = (data.images[SPLIT], data.labels[SPLIT])
    return Slices(data.images["train"], data.images["val"], data.labels["val"], data.size, fitting)


def described(data: Data) -> str:
    """The split SPLIT in words, for results.json and manifests.

    Args:
        data: with the split SPLIT, from `fitted_on`.
    """
    slices = len(data.labels[SPLIT]) // (1 + len(CORRUPTIONS))
    return (
        f"{slices:,} validation slices and {len(CORRUPTIONS)} corrupted copies of each"
        f" (MedMNIST-C, severity {SEVERITY})"
    )


def calibration(
    members: Sequence[Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    *,
    fitted_on: str | None = None,
) -> Calibration:
    """Fit a temperature on the split SPLIT, and measure the calibration error with it on validation and test.

    Args:
        members: of each network that is averaged, its probabilities by split, float32 (N, classes). Their logarithm
            is the logits but for a constant per row, which the softmax takes away.
        labels: int (N,) by split.
        fitted_on: SPLIT in words, from `described`.
    """
    logits = {s: [np.log(np.maximum(m[s], TINY)) for m in members] for s in (SPLIT, "val", "test")}
    temperature = fit_temperature(logits[SPLIT], labels[SPLIT])
    errors = {
        split: expected_calibration_error(mean_softmax(logits[split], temperature), labels[split])
        for split in ("val", "test")
    }
    return Calibration(temperature, errors["val"], errors["test"], fitted_on)
