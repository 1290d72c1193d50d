"""Collects the predictions of labeled files, one at a time, for one evaluation at the end."""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..results import Prediction
from .evaluate import evaluate
from .labels import ClassNames
from .types import Evaluation

__all__ = ["Collection"]

# Paths that messages name.
NAMED = 3


@dataclass
class LeftOut:
    """Slices that are not evaluated as they should be: their number, and the first paths."""

    count: int = 0
    paths: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Count a path."""
        self.count += 1
        if self.count <= NAMED:
            self.paths.append(path)


class Collection:
    """The predictions, as arrays, and their labels.

    Args:
        names: The classes of the model.
        label_of: The label of a path, or None.
        group_of: The group of a path, or None if it has none. None for no groups.

    Attributes:
        unlabeled: Slices without a label.
        unknown: Labels that are no class of the model, with the number of their slices.
        ungrouped: Slices without a group, each of which counts as a group.
        paths: Index of each wrong prediction -> its path.
    """

    def __init__(
        self,
        names: ClassNames,
        label_of: Callable[[str], str | None],
        group_of: Callable[[str], str | None] | None = None,
    ) -> None:
        self._names, self._label_of, self._group_of = names, label_of, group_of
        self._probabilities, self._labels, self._groups = array("f"), array("q"), array("q")
        self._group_numbers: dict[str, int] = {}
        self.unlabeled, self.ungrouped = LeftOut(), LeftOut()
        self.unknown: Counter[str] = Counter()
        self.paths: dict[int, str] = {}

    def add(self, prediction: Prediction) -> str | None:
        """Add a prediction. Returns its label, in the words of the model if the model has it."""
        path = prediction.path or ""
        label = self._label_of(path)
        index = None if label is None else self._names.index(label)
        if label is None:
            self.unlabeled.add(path)
        elif index is None:
            self.unknown[label] += 1
        elif index != prediction.index:
            self.paths[len(self._labels)] = path
        if self._group_of is not None and index is not None:
            self._groups.append(self._group_number(path))
        elif self._group_of is not None:
            self._groups.append(-1)
        self._labels.append(-1 if index is None else index)
        self._probabilities.extend(prediction.probabilities)
        return label if index is None else self._names.classes[index]

    def _group_number(self, path: str) -> int:
        assert self._group_of is not None
        group = self._group_of(path)
        if group is None:
            self.ungrouped.add(path)
            # Below all numbers of groups, and different for each slice.
            return -2 - self.ungrouped.count
        return self._group_numbers.setdefault(group, len(self._group_numbers))

    @property
    def groups(self) -> int:
        """The number of groups of the labeled slices."""
        return len(self._group_numbers) + self.ungrouped.count

    @property
    def is_empty(self) -> bool:
        """Whether no slice can be evaluated."""
        return all(label < 0 for label in self._labels)

    def evaluation(self) -> Evaluation:
        """Evaluate everything that was added.

        Raises:
            InputError: No slice can be evaluated.
        """
        classes = self._names.classes
        return evaluate(
            np.array(self._probabilities, np.float32).reshape(-1, len(classes)),
            np.array(self._labels, np.int64),
            classes,
            groups=None if self._group_of is None else np.array(self._groups, np.int64),
            unknown_labels=dict(self.unknown),
        )
