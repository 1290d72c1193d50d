"""The table of data sets. It imports neither NumPy nor PyTorch, so that --help stays fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# pixels per side, as MedMNIST+ publishes each data set
SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class Dataset:
    """A data set of the table.

    Args:
        view: of its slices: axial, coronal or sagittal.
        title: the name as its authors write it.
        scans: number of CT scans by split; empty if unknown.
    """

    view: str
    title: str
    scans: Mapping[str, int] = field(default_factory=dict)


# One row per data set, by the name that MedMNIST gives it.
DATASETS = {
    "organsmnist": Dataset("sagittal", "OrganSMNIST"),
    "organamnist": Dataset("axial", "OrganAMNIST", {"train": 115, "val": 16, "test": 70}),
    "organcmnist": Dataset("coronal", "OrganCMNIST"),
}
