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


@dataclass(frozen=True)
class OwnDataset:
    """A data set of the user: where it is, and what the options of `train.all` say about it. results.json records it.

    Args:
        kind: `folder` or `npz`.
        path: absolute, of the folder or file.
        split: the shares of train, val and test; None if the data set has its own splits.
        group_by: the regular expression of --group-by; None for none.
        pairs: the sides of an organ, as a manifest lists them: two classes and, if their names do not show it, the organ.
        orientation: two DICOM letters, the directions of the patient in which row and column index grow; None if unknown.
        orientation_given: whether the user gave the orientation; otherwise it is that of the files.
        hounsfield: whether slices in Hounsfield units were read through the window of bundles.
    """

    kind: str
    path: str
    split: list[float] | None = None
    group_by: str | None = None
    pairs: list[list[str]] = field(default_factory=list)
    orientation: str | None = None
    orientation_given: bool = False
    hounsfield: bool = False


# What --dataset begins with for a data set of the user.
OWN_KINDS = ("folder", "npz")

# One row per data set, by the name that MedMNIST gives it.
DATASETS = {
    "organsmnist": Dataset("sagittal", "OrganSMNIST"),
    "organamnist": Dataset("axial", "OrganAMNIST", {"train": 115, "val": 16, "test": 70}),
    "organcmnist": Dataset("coronal", "OrganCMNIST"),
}
