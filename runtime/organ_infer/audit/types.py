"""What an audit finds out about one scan and its mask."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "AuditedOrgan", "Finding", "Picture", "ScanAudit"]

# The kinds of findings, and what each of them means.
KINDS: Mapping[str, str] = {
    "orientation": "scan and mask are flipped, turned, or have exchanged axes",
    "mask placement": "the mask is flipped or turned relative to the scan",
    "mask shifted": "the mask, or that of one organ, is shifted relative to the scan",
    "labels swapped": "two organs have each other's label",
    "wrong label": "one organ has the label of another",
    "no organ crop": "the mask of an organ, or of all of them, is around something else than the organ",
    "size": "the mask of an organ is far too small or too large",
    "density": "the mask of an organ has the Hounsfield units of something else",
    "values": "the values of the scan are no Hounsfield units",
    "label map": "the numbers of the mask fit another data set's label map",
    "unexplained": "the mask does not fit the scan, and nothing that was tried explains it",
}


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One slice of an organ, as evidence of a finding.

    Attributes:
        organ: The class that the mask names.
        index: Index of the slice in the volume, along the axis that is perpendicular to the view.
        position: Position of the slice in mm along that axis of the patient, in LPS coordinates.
        label: The class that the model names for this slice.
        probability: Of `label`, 0 to 1.
        pixels: uint8 (H, W), through the model's window, oriented for the model, at most 160 pixels per side.
    """

    organ: str
    index: int
    position: float
    label: str
    probability: float
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """One explanation of why a mask does not fit its scan.

    Attributes:
        kind: A key of `KINDS`.
        message: One line, such as "labels swapped: kidney-left <-> kidney-right".
        evidence: By how much the explanation fits better than the labels as they are: the difference of the log
            likelihoods, in natural units. 3 means 20 times as likely.
        organs: The classes that it is about, as the mask names them.
        numbers: The numbers behind it, name -> value, in the order in which they are shown.
        pictures: Slices of these organs.
    """

    kind: str
    message: str
    evidence: float
    organs: tuple[str, ...]
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditedOrgan:
    """One organ of the mask as it is, before any explanation.

    Attributes:
        expected: The class that the mask names.
        structures: Names or numbers of the mask's structures that make up this class.
        label: The class with the highest mean probability over the slices.
        probability: Mean probability of `label`, 0 to 1.
        expected_probability: Mean probability of `expected`, 0 to 1.
        agrees: Whether `label` is `expected`, side included.
        slices: Number of slices that were classified.
        volume_ml: Volume of the structure in milliliters.
        median_hu: Median of its Hounsfield units.
        warnings: What makes the organ unreliable: it touches the volume's border, or is very small.
    """

    expected: str
    structures: tuple[str, ...]
    label: str
    probability: float
    expected_probability: float
    agrees: bool
    slices: int
    volume_ml: float
    median_hu: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScanAudit:
    """The result for one scan and its mask.

    Attributes:
        scan: Path of the scan.
        mask: Path of the mask.
        organs: In the order of the mask.
        findings: The strongest first. Empty if the labels as they are explain the scan best.
        unmapped: Structures of the mask without a class.
        warnings: About the scan and the mask as files.
    """

    scan: str
    mask: str
    organs: tuple[AuditedOrgan, ...]
    findings: tuple[Finding, ...]
    unmapped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
