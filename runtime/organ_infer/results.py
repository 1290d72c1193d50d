"""The results of classification: one Prediction or ImageFailure per slice, one OrganPrediction per organ of a scan."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["ImageFailure", "OrganPrediction", "OrganPredictions", "Prediction", "SlicePrediction"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result for one slice.

    For models that pair left and right classes, `organ` is the organ without its side ("femur" for
    "femur-left" and "femur-right"). It has the highest probability after both sides are added, so it
    can differ from the organ of `label`.

    Attributes:
        path: The path as given, with `#0`, `#1`, ... for files of many slices. None for arrays and
            Pillow images.
        label: The class with the highest probability.
        index: Index of `label` in `OrganClassifier.classes`.
        probability: Probability of `label`, 0 to 1.
        probabilities: Probabilities of all classes, in the order of `OrganClassifier.classes`. Their
            sum is 1.
        organ: The organ with the highest probability.
        organ_probability: Probability of `organ`, 0 to 1.
        warnings: Every conversion of the input, and anything implausible about it.
        plausibility: Probability that the slice is a crop around one organ in the required orientation, 0 to 1. None
            if the model does not know when not to answer.
        orientation: The most probable orientation: `as required`, what else happened to the axes, such as
            `left-right flipped`, or `no organ crop`. None if `plausibility` is None.
        ok: Always True. Type checkers tell a Prediction from an ImageFailure by `result.ok is True`, mypy also by
            `if result.ok:`.
    """

    ok: ClassVar[Literal[True]] = True

    path: str | None
    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]
    organ: str
    organ_probability: float
    warnings: tuple[str, ...] = ()
    plausibility: float | None = None
    orientation: str | None = None


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """The result for a path that could not be classified.

    Attributes:
        path: The path as given, with `#0`, `#1`, ... for one slice of a file of many.
        error: The reason, one line.
        ok: Always False.
    """

    ok: ClassVar[Literal[False]] = False

    path: str
    error: str


@dataclass(frozen=True, slots=True)
class SlicePrediction:
    """The result for one slice of an organ of a scan.

    Attributes:
        index: Index of the slice in the volume, along the axis that is perpendicular to the view.
        position: Position in mm along that axis of the patient: toward the head (axial), the back (coronal) or the
            left (sagittal).
        prediction: The classifier's result for the crop. Its `path` is None.
    """

    index: int
    position: float
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class OrganPrediction:
    """The result for one organ of a scan with a mask: what its slices look like, beside what the mask says.

    Attributes:
        expected: The class that the mask names.
        structures: Names or numbers of the mask's structures that make up this class.
        view: The plane of the slices: axial, coronal or sagittal.
        label: The class with the highest mean probability over the slices.
        index: Index of `label` in `OrganClassifier.classes`.
        probability: Mean probability of `label`, 0 to 1.
        probabilities: Mean probabilities of all classes, in the order of `OrganClassifier.classes`.
        agrees: Whether `label` is `expected`, side included.
        only_side_differs: Whether `label` is the other side of `expected`, such as "kidney-left" for "kidney-right".
        slices: The results of the slices, from the feet to the head (axial), from the front to the back (coronal) or
            from right to left (sagittal).
        warnings: What makes the organ unreliable: it touches the volume's border, or is very small.
    """

    expected: str
    structures: tuple[str, ...]
    view: str
    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]
    agrees: bool
    only_side_differs: bool
    slices: tuple[SlicePrediction, ...]
    warnings: tuple[str, ...] = ()


class OrganPredictions(list[OrganPrediction]):
    """The results for the organs of one scan, a list with warnings about the scan as a whole.

    Attributes:
        warnings: What the slices of all organs say together: the scan looks flipped, turned, or like no organ crops.
            Empty if the model does not know when not to answer.
    """

    def __init__(
        self, organs: Iterable[OrganPrediction] = (), warnings: tuple[str, ...] = ()
    ) -> None:
        super().__init__(organs)
        self.warnings = warnings
