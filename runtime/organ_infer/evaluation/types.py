"""The result of an evaluation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["ClassMetrics", "Evaluation", "Interval", "Mistake", "ReliabilityBin"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A bootstrap interval: percentiles of the accuracy of resampled slices or groups.

    Attributes:
        low: The lower bound.
        high: The upper bound.
        level: The share of the resamples between the bounds.
        resamples: The number of resamples.
        groups: The number of groups that were resampled, or None if slices were.
    """

    low: float
    high: float
    level: float
    resamples: int
    groups: int | None = None


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The metrics of one class against the rest. A metric is None if it is undefined.

    Attributes:
        label: The class.
        slices: Slices with this label.
        predicted: Slices that the model gives this label.
        precision: The share of `predicted` with this label. None if there is none.
        recall: The share of `slices` that the model gives this label. None if there is none.
        f1: The harmonic mean of precision and recall. None if there is neither.
    """

    label: str
    slices: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The slices whose highest probability is in one of equal bins.

    Attributes:
        lower: The lower bound, not included.
        upper: The upper bound, included.
        slices: The number of slices.
        confidence: The mean of their highest probabilities, or None if there are none.
        accuracy: The share that is correct, or None if there are none.
    """

    lower: float
    upper: float
    slices: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer.

    Attributes:
        index: Index of the slice among those that were given.
        label: The true class.
        predicted: The model's class.
        probability: The model's probability of `predicted`.
    """

    index: int
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well the model does on labeled slices.

    Attributes:
        classes: The classes, in the order of `confusion`.
        slices: Slices with a label of the model. All figures are about these.
        accuracy: The share that is correct.
        interval: A 95 % bootstrap interval of the accuracy. None if there is only one slice or group, or if all slices
            are right or all are wrong, because all resamples are alike then.
        precision: The mean over the classes, weighted by their slices. An undefined precision counts as 0.
        recall: The same of the recall. It equals the accuracy.
        f1: The same of the F1 score.
        ece: The expected calibration error.
        per_class: The metrics of each class.
        confusion: Slices by true class (row) and predicted class (column).
        reliability: 15 equal bins of the highest probability.
        mistakes: The most confident wrong answers, the most confident first.
        unlabeled: Slices that were left out because they have no label.
        unknown_labels: Labels that the model does not have, each with the number of slices that were left out.
    """

    classes: tuple[str, ...]
    slices: int
    accuracy: float
    interval: Interval | None
    precision: float
    recall: float
    f1: float
    ece: float
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]
    mistakes: tuple[Mistake, ...]
    unlabeled: int = 0
    unknown_labels: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, lists, texts and numbers, as `--metrics` writes it."""
        values = asdict(self)
        values["unknown_labels"] = dict(self.unknown_labels)
        return values
