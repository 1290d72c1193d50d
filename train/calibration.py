"""The slices that temperatures are fitted on, and a stage's calibration error with its temperature.

A network is right on nearly all validation slices, because their scans resemble those of training. A temperature fitted
on them alone gives too high a confidence on other scans. It is therefore fitted on validation slices together with
corrupted copies of them (Tomani et al., "Post-hoc uncertainty calibration for domain drift scenarios", CVPR 2021): each of MedMNIST-C's
corruptions, at its middle severity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from export.temperature import (
    Labeled,
    fit_temperature,
    mean_softmax,
    why_rejected,
)
from export.variants import Slices
from organ_infer.evaluation.calibration import expected_calibration_error
from train.corruptions import CORRUPTIONS, corrupt
from train.data import Data
from train.results_format import Calibration

SPLIT = "val_corrupted"
# validation slices, each used as it is and in one copy per corruption
SLICES, SEVERITY = 1000, 3
# replaces a probability that was rounded to zero, so that its logarithm is finite
TINY = np.finfo(np.float32).tiny


def add_calibration_split(data: Data, slices: int = SLICES) -> Data:
    """Add the split that temperatures are fitted on, SPLIT.

    Args:
        data: with the split "val".
        slices: number of validation slices to take, spread evenly over the split.

    Returns:
        The data with SPLIT: the slices as they are, then a copy of all of them per corruption.
    """
    total = len(data.labels["val"])
    rows = np.linspace(0, total - 1, min(slices, total)).round().astype(int)
    plain = data.images["val"][rows]
    images = np.concatenate([plain, *(corrupt(plain, name, SEVERITY) for name in CORRUPTIONS)])
    labels = np.tile(data.labels["val"][rows], 1 + len(CORRUPTIONS))
    return replace(data, images=data.images | {SPLIT: images}, labels=data.labels | {SPLIT: labels})


def variant_slices(data: Data) -> Slices:
    """Return the slices that the variants of a bundle are converted, measured and calibrated with.

    Args:
        data: with the split SPLIT, from `add_calibration_split`.
    """
    fitting = (data.images[SPLIT], data.labels[SPLIT])
    return Slices(
        data.images["train"],
        data.images["val"],
        data.labels["val"],
        data.size,
        fitting,
        data.resample,
    )


def describe_split(data: Data) -> str:
    """Describe the split SPLIT in words, for results.json and manifests.

    Args:
        data: with the split SPLIT, from `add_calibration_split`.
    """
    slices = len(data.labels[SPLIT]) // (1 + len(CORRUPTIONS))
    return (
        f"{slices:,} validation slices and {len(CORRUPTIONS)} corrupted copies of each"
        f" (MedMNIST-C, severity {SEVERITY})"
    )


def fit_calibration(
    members: Sequence[Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    *,
    fitted_on: str | None = None,
) -> Calibration:
    """Fit a temperature on the split SPLIT, and measure the calibration error with it on validation and test.

    Args:
        members: the probabilities of each averaged network by split, float32 (N, classes). Their logarithms differ
            from the logits only by a constant per row, which the softmax removes.
        labels: int (N,) by split.
        fitted_on: SPLIT in words, from `describe_split`.

    Returns:
        The temperature and the calibration errors with it. The temperature is 1 if the fitted one would make validation
        worse.
    """
    logits = {s: [np.log(np.maximum(m[s], TINY)) for m in members] for s in (SPLIT, "val", "test")}
    temperature = fit_temperature(logits[SPLIT], labels[SPLIT])
    rejected = why_rejected(
        temperature, Labeled(logits[SPLIT], labels[SPLIT]), Labeled(logits["val"], labels["val"])
    )
    if rejected:
        temperature = 1.0
    errors = {
        split: expected_calibration_error(mean_softmax(logits[split], temperature), labels[split])
        for split in ("val", "test")
    }
    return Calibration(temperature, errors["val"], errors["test"], fitted_on, rejected or None)
