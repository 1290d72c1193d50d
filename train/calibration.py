"""What temperatures are fitted on, and how far a stage's probabilities are off with one.

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

SPLIT = "val_corrupted"
SLICES, SEVERITY = 1000, 3  # slices of validation, each as it is and in 13 corrupted copies
TINY = np.finfo(np.float32).tiny  # the logarithm of a probability that was rounded to zero is finite


def fitted_on(data: Data, slices: int = SLICES) -> Data:
    """The data with the split SPLIT: `slices` of validation, spread evenly over it, then their corrupted copies."""
    total = len(data.labels["val"])
    chosen = np.linspace(0, total - 1, min(slices, total)).round().astype(int)
    plain = data.images["val"][chosen]
    images = np.concatenate([plain, *(corrupt(plain, name, SEVERITY) for name in CORRUPTIONS)])
    labels = np.tile(data.labels["val"][chosen], 1 + len(CORRUPTIONS))
    return replace(data, images=data.images | {SPLIT: images}, labels=data.labels | {SPLIT: labels})


def judged_with(data: Data) -> Slices:
    """What a bundle's variants are converted, measured and calibrated with, of what `fitted_on` returned."""
    fitting = (data.images[SPLIT], data.labels[SPLIT])
    return Slices(data.images["train"], data.images["val"], data.labels["val"], data.size, fitting)


def described(data: Data) -> str:
    """In words, of what `fitted_on` returned."""
    slices = len(data.labels[SPLIT]) // (1 + len(CORRUPTIONS))
    return f"{slices:,} validation slices and {len(CORRUPTIONS)} corrupted copies of each (MedMNIST-C, severity {SEVERITY})"


def calibration(
    members: Sequence[Mapping[str, np.ndarray]], labels: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The temperature fitted on the split SPLIT, and the calibration error with it on validation and test.

    members: the probabilities (N, C) by split of each network that is averaged. Their logarithm is the logits but for a
    constant a row, which the softmax takes away.
    """
    logits = {s: [np.log(np.maximum(m[s], TINY)) for m in members] for s in (SPLIT, "val", "test")}
    temperature = fit_temperature(logits[SPLIT], labels[SPLIT])
    errors = {
        f"{s}_ece": expected_calibration_error(mean_softmax(logits[s], temperature), labels[s])
        for s in ("val", "test")
    }
    return {"temperature": temperature} | errors
