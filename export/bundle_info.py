"""What is known about a bundle before its variants are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# For each view, the patient directions in which the row index and the column index of MedMNIST's slices grow, as DICOM
# letters. Measured for axial slices (README, "Orientation"), unknown for the other views.
ORIENTATION: dict[str, tuple[str, str] | None] = {
    "axial": ("L", "P"),
    "sagittal": None,
    "coronal": None,
}

# `training.temperature_fitted_on` of a bundle whose temperature was not fitted when it was written
GIVEN_TEMPERATURE = "other slices (--temperature)"


@dataclass(frozen=True)
class BundleInfo:
    """The facts that a bundle's manifest and model card state about its networks.

    Attributes:
        name: The bundle's name, as in `organamnist-edge`.
        dataset: MedMNIST's name of the data set, as in `organamnist`.
        view: `axial`, `coronal` or `sagittal`.
        classes: The class names, in the order of the networks' logits.
        size: Height and width of the networks' input, pixels.
        metrics: Of the float32 networks before calibration, by split: `accuracy`, `auc`, `ece` and, if measured,
            `ece_calibrated`. `seeds`, if there were several: `count`, and by split and metric `mean` and `std`. The
            manifest stores this JSON object as it is.
        training: `seed`, `data_md5`, `weights`, `versions`, and for the card `temperature_fitted_on` in words, `smoke`
            and `recipe`. The manifest stores this JSON object as it is.
        resample: How the runtime resamples slices: `area`, `linear` or `cubic`.
    """

    name: str
    dataset: str
    view: str
    classes: Sequence[str]
    size: int
    metrics: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    resample: str = "area"
