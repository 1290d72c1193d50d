"""Metrics of predicted probabilities: scikit-learn's, MedMNIST's AUC, and the expected calibration error."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from organ_infer.evaluation.calibration import expected_calibration_error
from train.results_format import SplitMetrics


def area_under_curve(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Compute MedMNIST's AUC: the unweighted mean over classes of one class against the rest.

    Args:
        probabilities: float (N, classes).
        labels: int (N,).

    Returns:
        The mean area, 0 to 1; None if a class is absent or the only one.
    """
    classes = range(probabilities.shape[1])
    if any((labels == c).all() or not (labels == c).any() for c in classes):
        return None
    return float(np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in classes]))


def measure(probabilities: np.ndarray, labels: np.ndarray) -> SplitMetrics:
    """Compute the metrics of one split.

    Args:
        probabilities: float (N, classes); rows sum to 1.
        labels: int (N,).

    Returns:
        The metrics as results.json holds them. Precision, recall and F1 are weighted by support.

    Raises:
        ValueError: the shapes do not match, there are no slices, or a probability is NaN or infinite.
    """
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or not len(labels):
        raise ValueError(
            f"expected (N, C) probabilities for {len(labels)} labels, found {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities hold NaN or infinite values")
    predicted = probabilities.argmax(1)
    classes = np.arange(probabilities.shape[1])
    with warnings.catch_warnings():
        # classes that are absent from a small split count as zero
        warnings.simplefilter("ignore")
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predicted, labels=classes, average="weighted", zero_division=0
        )
    return SplitMetrics(
        accuracy=float(accuracy_score(labels, predicted)),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        auc=area_under_curve(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
        confusion=confusion(probabilities, labels),
    )


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Count the predicted classes of each true class.

    Args:
        probabilities: float (N, classes).
        labels: int (N,).

    Returns:
        (classes, classes) counts, rows true, columns predicted.
    """
    classes = np.arange(probabilities.shape[1])
    counts: list[list[int]] = confusion_matrix(
        labels, probabilities.argmax(1), labels=classes
    ).tolist()
    return counts


def organ_of(label: str) -> str:
    """Return the organ of a class: `kidney` for `kidney-left` and `kidney-right`, else the class itself."""
    for side in ("-left", "-right"):
        if label.endswith(side):
            return label[: -len(side)]
    return label


def side_merged_accuracy(
    confusion: np.ndarray, classes: Sequence[str], organs: Sequence[str] = ()
) -> float | None:
    """Compute the accuracy without regard to the side: `kidney-left` for `kidney-right` counts as correct.

    Args:
        confusion: int (classes, classes) counts, rows true, columns predicted.
        classes: the names of the classes, in the matrix's order.
        organs: the organ of each class; by default what the names of the classes show.

    Returns:
        The share, 0 to 1; None without slices, or if names and matrix differ in length.
    """
    total = int(confusion.sum())
    if total == 0 or len(classes) != len(confusion):
        return None
    names = np.array(organs or [organ_of(label) for label in classes])
    return int(confusion[names[:, None] == names[None, :]].sum()) / total
