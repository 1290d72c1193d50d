"""What the report works out from confusion matrices and probabilities, and the comparison table as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.temperature import ECE_BINS as BINS

if TYPE_CHECKING:
    from train.report.run import Run

METRICS = ("accuracy", "precision", "recall", "f1", "auc", "ece", "ece_calibrated", "side_merged")
CSV_COLUMNS = ("dataset", "size", "smoke", "stage", "seed", "split", *METRICS)
CSV_RECORD = ("network", "parameters", "weights", "epochs", "best_epoch", "seconds")


def per_class(confusion: np.ndarray) -> list[dict[str, float | None]]:
    """Precision, recall, F1 and support of each class; None where there is nothing to divide by."""
    rows: list[dict[str, float | None]] = []
    for i in range(len(confusion)):
        hit, true, said = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
        rows.append(
            {
                "precision": hit / said if said else None,
                "recall": hit / true if true else None,
                "f1": 2 * hit / (true + said) if true + said else None,
                "support": true,
            }
        )
    return rows


def accuracy_interval(confusion: np.ndarray | None, draws: int = 10_000) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the accuracy, slices drawn with replacement.

    Right or wrong is all that counts of a slice, so drawing n slices anew is one binomial draw. Slices of one
    scan resemble each other: the interval is narrower than the truth.
    """
    if confusion is None or (total := int(confusion.sum())) == 0:
        return None
    share = int(np.trace(confusion)) / total
    drawn = np.random.default_rng(0).binomial(total, share, draws) / total
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Mistake:
    """A slice that was taken for another class: its row in the split, class indices, top probability."""

    index: int
    true: int
    predicted: int
    probability: float


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> list[Mistake]:
    """The `count` wrong slices with the highest top probability, highest first; earlier slices first of equals.

    probabilities: (N, classes). labels: (M,) with M >= N, for a smoke run evaluates the first slices only.
    """
    if len(probabilities) == 0:
        return []
    truth = np.asarray(labels).reshape(-1)[: len(probabilities)]
    predicted, top = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero((predicted != truth) & np.isfinite(top))
    order = wrong[np.argsort(-top[wrong], kind="stable")][:count]
    return [Mistake(int(i), int(truth[i]), int(predicted[i]), float(top[i])) for i in order]


@dataclass(frozen=True)
class Reliability:
    """Of each bin that holds slices: mean top probability, share right, number of slices."""

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> Reliability:
    """The reliability diagram's points, in 15 equal bins of the top probability, closed on the right."""
    truth = np.asarray(labels).reshape(-1)[: len(probabilities)]
    top = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    bins = np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    return Reliability(
        np.bincount(bins, top, BINS)[filled] / counts[filled],
        np.bincount(bins, right, BINS)[filled] / counts[filled],
        counts[filled],
    )


def comparison_csv(run: Run, split: Any) -> str:
    """results.csv: one row a stage, seed and split, with every metric; what is undefined is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*CSV_COLUMNS, *CSV_RECORD, "temperature"), lineterminator="\n")
    writer.writeheader()
    for stage in run.stages:
        for row in stage.rows:
            for name in ("train", "val", "test"):
                writer.writerow(
                    {
                        "dataset": split.flag,
                        "size": split.size,
                        "smoke": "true" if run.smoke else "false",
                        "stage": row.name,
                        "seed": row.seed,
                        "split": name,
                        **{metric: row.metric(name, metric) for metric in METRICS},
                        **{key: row.entry.get(key) for key in CSV_RECORD},
                        "temperature": row.temperature,
                    }
                )
    return text.getvalue()
