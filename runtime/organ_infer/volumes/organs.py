"""From predictions of slices to one answer per organ."""

from collections.abc import Iterable, Sequence

import numpy as np

from ..bundle.manifest import Task
from ..results import OrganPrediction, Prediction, SlicePrediction, remember
from .crops import Crop
from .types import Mask

__all__ = ["organ_predictions"]


def organ_predictions(
    mask: Mask, task: Task, crops: Sequence[Crop], predictions: Iterable[Prediction]
) -> list[OrganPrediction]:
    """Collect the predictions of slices into one per organ.

    Args:
        mask: Names the structures of each class.
        task: The model's classes.
        crops: The slices of all organs. Those of one organ follow each other.
        predictions: One per crop, in the same order.

    Returns:
        One per organ, in the order of the crops.
    """
    organs: dict[str, list[tuple[Crop, Prediction]]] = {}
    for crop, prediction in zip(crops, predictions, strict=True):
        organs.setdefault(crop.name, []).append((crop, prediction))
    return [_organ_prediction(mask, task, pairs) for pairs in organs.values()]


def _organ_prediction(
    mask: Mask, task: Task, pairs: list[tuple[Crop, Prediction]]
) -> OrganPrediction:
    crop = pairs[0][0]
    means = np.mean([prediction.probabilities for _, prediction in pairs], axis=0)
    index = int(means.argmax())
    label = task.classes[index]
    agrees = label == crop.name
    organ_of = dict(zip(task.classes, task.organs(), strict=True))
    organ = OrganPrediction(
        expected=crop.name,
        structures=tuple(mask.structures(crop.name)),
        view=crop.view,
        label=label,
        index=index,
        probability=float(means[index]),
        probabilities=tuple(means.tolist()),
        agrees=agrees,
        only_side_differs=not agrees and organ_of[label] == organ_of[crop.name],
        slices=tuple(
            SlicePrediction(crop.index, crop.position, prediction) for crop, prediction in pairs
        ),
        warnings=crop.warnings,
    )
    remember(organ, task.classes)
    return organ
