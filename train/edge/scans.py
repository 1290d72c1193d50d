"""Crops of two public CT scans, to measure networks on: one without contrast medium and one with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.errors import RunError

# scan and mask of TotalSegmentator's example files
SCANS = {
    "unenhanced": ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"),
    "enhanced": ("example_ct_dicom", "example_seg_dicom.nii.gz"),
}
# millimeters
MARGINS = (0.0, 5.0)
RESAMPLE = ("area", "linear")
# in which the rows and columns of OrganAMNIST's slices grow: to the patient's left, and to the back
ORIENTATION = "LP"


@dataclass(frozen=True)
class ScanCrops:
    """The crops of one scan with a margin and a way to resample.

    Args:
        scan: a key of SCANS.
        margin: in millimeters.
        resample: see `organ_infer._packing.pack`.
        images: normalized, float32 (N, 1, S, S).
        labels: class indices, int64 (N,).
    """

    scan: str
    margin: float
    resample: str
    images: np.ndarray
    labels: np.ndarray


def scan_crops(
    directory: Path, classes: Sequence[str], size: int, window: tuple[float, float]
) -> list[ScanCrops]:
    """Cut the organs out of the scans.

    Args:
        directory: holds TotalSegmentator's example files in `totalsegmentator`.
        classes: names of the classes, for the labels.
        size: S, pixels.
        window: level and width, HU.

    Returns:
        The crops by scan, margin and way to resample: the middle 60 % of each organ's slices.

    Raises:
        RunError: a file is missing or cannot be read.
    """
    from organ_infer import OrganInferError
    from organ_infer._packing import pack
    from organ_infer.volumes import open_mask, open_volume, organ_crops

    files = directory / "totalsegmentator"
    result = []
    try:
        for scan, (volume_name, mask_name) in SCANS.items():
            volume = open_volume(files / volume_name)
            mask = open_mask(files / mask_name, like=volume)
            for margin in MARGINS:
                crops = organ_crops(volume, mask, orientation=ORIENTATION, margin_mm=margin)
                labels = np.array([classes.index(crop.name) for crop in crops], np.int64)
                pixels = [crop.pixels for crop in crops]
                for resample in RESAMPLE:
                    images = pack(pixels, size, window=window, resample=resample)
                    result.append(ScanCrops(scan, margin, resample, images, labels))
    except (OrganInferError, OSError) as e:
        raise RunError(f"--scans {directory}: {e}") from e
    return result
