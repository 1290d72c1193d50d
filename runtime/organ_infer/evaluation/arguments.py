"""The arguments of `OrganClassifier.evaluate`, checked."""

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, short_repr
from .labels import ClassNames

__all__ = ["group_numbers", "label_indices"]


def label_indices(
    labels: Any, classes: Sequence[str], count: int
) -> tuple[NDArray[np.int64], Counter[str]]:
    """Return the index of each label's class.

    Args:
        labels: Names of classes, or their indices. None and NaN are no label.
        classes: The classes of the model.
        count: The number of slices.

    Returns:
        int (N,), -1 without a label and for one that the model does not have, and a count of these names.

    Raises:
        InputError: There is not one label per slice, or one is neither a name nor an index.
    """
    names, unknown = ClassNames(classes), Counter[str]()
    indices = np.full(count, -1, np.int64)
    for i, label in enumerate(_listed(labels, "labels", count)):
        if isinstance(label, str):
            index = names.index(label)
            if index is None:
                unknown[label] += 1
            else:
                indices[i] = index
        elif not _is_missing(label):
            indices[i] = _class_index(label, i, len(classes))
    return indices, unknown


def group_numbers(groups: Any, count: int) -> NDArray[np.int64]:
    """Return a number for each group, from 0.

    Args:
        groups: Anything hashable per slice, such as the name of the patient.
        count: The number of slices.

    Raises:
        InputError: There is not one group per slice, or one is not hashable.
    """
    numbers: dict[Any, int] = {}
    try:
        return np.array(
            [numbers.setdefault(group, len(numbers)) for group in _listed(groups, "groups", count)],
            np.int64,
        )
    except TypeError as e:
        raise InputError(f"groups: expected names or numbers, found another type ({e})") from e


def _listed(values: Any, where: str, count: int) -> list[Any]:
    """Return the elements of a sequence. MedMNIST's labels are an array (N, 1)."""
    if isinstance(values, np.ndarray):
        values = values.reshape(-1) if values.ndim == 2 and values.shape[1] == 1 else values
        values = values.tolist() if values.ndim == 1 else None
    try:
        listed = None if isinstance(values, (str, bytes)) else list(values)
    except TypeError:
        listed = None
    if listed is None:
        raise InputError(
            f"{where}: expected one per slice, found {short_repr(values)}; pass a list"
        )
    if len(listed) != count:
        raise InputError(
            f"{where}: expected one per slice, {count:,} in all, found {len(listed):,}; pass one per slice"
        )
    return listed


def _is_missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and label != label)


def _class_index(label: Any, i: int, count: int) -> int:
    try:
        index = -1 if isinstance(label, (bool, np.bool_)) else operator.index(label)
    except TypeError:
        index = -1
    if not 0 <= index < count:
        raise InputError(
            f"labels[{i}]: expected a class or its index from 0 to {count - 1}, found {short_repr(label)};"
            " pass None for no label"
        )
    return index
