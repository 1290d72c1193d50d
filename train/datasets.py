"""The table of data sets, readable without NumPy or PyTorch."""

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
        title: as its authors write it.
        scans: CT scans behind each split, if they are known.
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
