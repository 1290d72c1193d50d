"""The results of classification: one Prediction or ImageFailure per slice."""

from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["ImageFailure", "Prediction"]


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
