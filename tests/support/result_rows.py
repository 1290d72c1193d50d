"""Rows of results.json and robustness.json, of which a test gives only what it is about."""

from __future__ import annotations

from typing import Any

from train.results_format import RobustnessEntry, SplitMetrics, StageResult


def split_metrics(accuracy: float = 0.5, **changed: Any) -> SplitMetrics:
    """The metrics of a split; every one but the accuracy is 0.5, and the matrix is of no slices."""
    others: dict[str, Any] = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "auc": 0.5, "ece": 0.5}
    return SplitMetrics(accuracy=accuracy, **others | {"confusion": [[0, 0], [0, 0]]} | changed)


def stage_result(name: str = "base", seed: int = 1, **changed: Any) -> StageResult:
    """The row of a network that was trained from scratch, and is not measured on any split."""
    usual: dict[str, Any] = {"network": "small", "parameters": 7, "epochs": 2, "best_epoch": 1}
    usual |= {"seconds": 3.0, "seconds_per_epoch": 1.5, "weights": "none"}
    return StageResult(name=name, seed=seed, **usual | changed)


def robustness_entry(name: str = "base", **changed: Any) -> RobustnessEntry:
    """An entry of two corruptions, on 9 of 16 slices of test."""
    usual: dict[str, Any] = {"seed": 1, "members": {name: "ab"}, "split": "test", "slices": 9}
    usual |= {
        "split_slices": 16,
        "corruption_seed": 0,
        "clean_accuracy": 0.9,
        "clean_balanced_error": 0.1,
    }
    usual |= {"mean_corrupted_accuracy": 0.7, "mean_balanced_error": 0.3}
    usual |= {
        key: {"shot_noise": [0.5] * 5, "contrast_up": [0.5] * 5}
        for key in ("accuracy", "balanced_error")
    }
    return RobustnessEntry(name=name, **usual | changed)
