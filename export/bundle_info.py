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
class OwnSlices:
    """What is known about slices of the user, and not about MedMNIST's.

    Attributes:
        counts: Slices by split.
        paired: The pairs of classes, as the manifest lists them.
        orientation: The patient directions in which row and column index grow, as DICOM letters. None if unknown.
        window: Level and width of the window for slices in Hounsfield units. None if the networks saw none.
    """

    counts: Mapping[str, int]
    paired: tuple[tuple[str, ...], ...] = ()
    orientation: tuple[str, str] | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class BundleInfo:
    """The facts that a bundle's manifest and model card state about its networks.

    Attributes:
        name: The bundle's name, as in `organamnist-edge`.
        dataset: MedMNIST's name of the data set, as in `organamnist`, or that of a data set of the user.
        view: `axial`, `coronal`, `sagittal` or `unknown`.
        classes: The class names, in the order of the networks' logits.
        size: Height and width of the networks' input, pixels.
        metrics: Of the float32 networks before calibration, by split: `accuracy`, `auc`, `ece` and, if measured,
            `ece_calibrated`. `seeds`, if there were several: `count`, and by split and metric `mean` and `std`. The
            manifest stores this JSON object as it is.
        training: `seed`, `data_md5`, `weights`, `versions`, and for the card `temperature_fitted_on` in words, `smoke`
            and `recipe`. The manifest stores this JSON object as it is.
        resample: How the runtime resamples slices: `area`, `linear` or `cubic`.
        own: About slices of the user. None for those of MedMNIST.
    """

    name: str
    dataset: str
    view: str
    classes: Sequence[str]
    size: int
    metrics: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    resample: str = "area"
    own: OwnSlices | None = None
