"""The results of classification: one Prediction or ImageFailure per slice, one OrganPrediction per organ of a scan."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

__all__ = ["ImageFailure", "OrganPrediction", "OrganPredictions", "Prediction", "SlicePrediction"]

# The other labels that the text of a prediction names: this many, from this probability on.
OTHER_LABELS, OTHER_PROBABILITY = 2, 0.01


class _Shown:
    """What a notebook shows of a result beside its fields.

    These are no fields, so that `asdict`, `==`, data frames and JSON of a result do not contain them.

    Attributes:
        _classes: The names of all classes, in the order of `probabilities`. Empty for a result that a program made itself.
        _is_file: Whether `path` was read as a file. `predict_bytes` gives any name.
    """

    __slots__ = ("_classes", "_is_file")

    _classes: tuple[str, ...]
    _is_file: bool

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, each.name) for each in fields(self)]  # type: ignore[arg-type]
        return _restored, (type(self), values, _classes_of(self), _is_file(self))


def remember(result: _Shown, classes: tuple[str, ...], *, is_file: bool = False) -> None:
    """Store what a notebook shows of a result beside its fields."""
    # the dataclasses are frozen
    object.__setattr__(result, "_classes", classes)
    object.__setattr__(result, "_is_file", is_file)


def _classes_of(result: _Shown) -> tuple[str, ...]:
    """Return the names of the classes of a result, or none if they are not known."""
    return getattr(result, "_classes", ())


def _is_file(result: _Shown) -> bool:
    """Return whether the path of a result was read as a file."""
    return getattr(result, "_is_file", False)


def _restored(
    kind: type[_Shown], values: list[Any], classes: tuple[str, ...], is_file: bool
) -> _Shown:
    result = kind(*values)
    remember(result, classes, is_file=is_file)
    return result


def _answer(label: str, probabilities: Sequence[float], index: int, classes: Sequence[str]) -> str:
    """Return the label with its probability, and the next labels: `lung-right 0.960, liver 0.040`."""
    ranked = sorted(range(len(classes)), key=lambda i: -probabilities[i])
    others = [
        f"{classes[i]} {probabilities[i]:.3f}"
        for i in ranked
        if i != index and probabilities[i] >= OTHER_PROBABILITY
    ]
    return ", ".join([label, *others[:OTHER_LABELS]])


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Prediction(_Shown):
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

    def __repr__(self) -> str:
        label = f"{self.label} {self.probability:.3f}"
        parts = [_answer(label, self.probabilities, self.index, _classes_of(self))]
        if self.path is not None:
            parts.append(repr(self.path))
        if self.warnings:
            parts.append(_counted(len(self.warnings), "warning"))
        return f"<Prediction {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        # Imported here, because only notebooks call this.
        from .notebook import prediction_html

        return prediction_html(self, _classes_of(self), is_file=_is_file(self))


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
class OrganPrediction(_Shown):
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

    def __repr__(self) -> str:
        verdict = (
            "as expected"
            if self.agrees
            else "the other side"
            if self.only_side_differs
            else "not as expected"
        )
        label = f"{self.label} {self.probability:.3f}"
        parts = [
            _answer(label, self.probabilities, self.index, _classes_of(self)),
            verdict,
            _counted(len(self.slices), f"{self.view} slice"),
        ]
        if self.warnings:
            parts.append(_counted(len(self.warnings), "warning"))
        return f"<OrganPrediction {self.expected}: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        # Imported here, because only notebooks call this.
        from .notebook import organ_html

        return organ_html(self, _classes_of(self))


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
