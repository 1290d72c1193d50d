"""Reads what a run left in its directory, finished or not, one seed or several."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import RunError
from train.metrics import side_merged_accuracy
from train.record import read_json
from train.stages import STAGES

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """One trained stage with one seed: its entry in results.json and the files beside it."""

    name: str
    seed: int | None
    directory: Path
    entry: dict[str, Any]
    classes: tuple[str, ...]

    def confusion(self, split: str) -> np.ndarray | None:
        """int64 (classes, classes), rows true, columns predicted; None where not known."""
        matrix = (self.entry.get(split) or {}).get("confusion")
        return None if not matrix else np.asarray(matrix, dtype=np.int64)

    def metric(self, split: str, metric: str) -> float | None:
        """One metric of results.json: `ece_calibrated` is ECE with the temperature, not known of train; `side_merged`
        follows from the confusion matrix."""
        if metric == "side_merged":
            matrix = self.confusion(split)
            return None if matrix is None else side_merged_accuracy(matrix, self.classes)
        if metric == "ece_calibrated":
            value = (self.entry.get("calibration") or {}).get(f"{split}_ece")
        else:
            value = (self.entry.get(split) or {}).get(metric)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    @property
    def temperature(self) -> float | None:
        return (self.entry.get("calibration") or {}).get("temperature")

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """One row an epoch; empty where the stage has no history of its own (the ensemble)."""
        path = self.directory / "history.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {key: float(value) if value else math.nan for key, value in row.items() if key}
                for row in csv.DictReader(file)
            ]

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """float32 (N, classes) by split, rows in the split's order; empty where they were not kept."""
        path = self.directory / "probabilities.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return {split: arrays[split] for split in SPLITS if split in arrays.files}


@dataclass(frozen=True)
class Stage:
    """A stage of the ladder: one row, or one a seed."""

    name: str
    rows: tuple[Row, ...]
    summary: dict[str, Any] = field(default_factory=dict)

    def value(self, split: str, metric: str) -> tuple[float | None, float | None]:
        """Mean and, over several seeds, standard deviation; None where undefined."""
        if len(self.rows) == 1:
            return self.rows[0].metric(split, metric), None
        recorded = (self.summary.get(split) or {}).get(metric)
        if isinstance(recorded, dict) and recorded.get("mean") is not None:
            return recorded["mean"], recorded.get("std")
        values = [row.metric(split, metric) for row in self.rows]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None, None
        return statistics.fmean(known), statistics.stdev(known)

    @property
    def shown(self) -> Row:
        """The row whose matrices and pictures are shown: the seed that is best on validation, the first of equals."""
        return max(self.rows, key=lambda row: _or_lowest(row.metric("val", "accuracy")))


@dataclass(frozen=True)
class Run:
    """A run directory: results.json as it is, its stages in order, and stages begun but not finished."""

    directory: Path
    results: dict[str, Any]
    stages: tuple[Stage, ...]
    unfinished: tuple[Row, ...]
    robustness: tuple[dict[str, Any], ...] = ()  # the entries of robustness.json

    @property
    def smoke(self) -> bool:
        return bool(self.results.get("smoke"))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(r.seed for s in self.stages for r in s.rows if r.seed is not None))

    @property
    def best(self) -> Stage | None:
        """The stage with the highest validation accuracy, the first of equals. Test is never looked at."""
        known = [stage for stage in self.stages if stage.value("val", "accuracy")[0] is not None]
        return max(known, key=lambda stage: stage.value("val", "accuracy")[0] or 0.0, default=None)


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value


def read(directory: Path) -> Run:
    """Read a run directory; RunError where it has no readable results.json."""
    path = directory / "results.json"
    if not path.is_file():
        raise RunError(
            f"no results.json in {directory}; pass the directory of a data set, as in runs/organsmnist"
        )
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("stages", []), list):
        raise RunError(f"{path} is not the results.json of a run: it has no list of stages")
    classes = tuple((results.get("dataset") or {}).get("classes") or ())
    grouped: dict[str, list[Row]] = {}
    for entry in results.get("stages", []):
        name, seed = str(entry["name"]), entry.get("seed")
        stage_dir = directory / name
        seeded = stage_dir / f"seed-{seed}"
        row = Row(name, seed, seeded if seeded.is_dir() else stage_dir, entry, classes)
        grouped.setdefault(name, []).append(row)
    summaries = {summary.get("name"): summary for summary in results.get("summary") or []}
    stages = tuple(Stage(name, tuple(rows), summaries.get(name, {})) for name, rows in grouped.items())
    known = {row.directory for rows in grouped.values() for row in rows}
    begun = [path.parent for name in STAGES for path in sorted((directory / name).glob("**/history.csv"))]
    unfinished = tuple(
        Row(str(path.relative_to(directory)), None, path, {}, classes) for path in begun if path not in known
    )
    path = directory / "robustness.json"
    robustness = tuple(read_json(path)["stages"]) if path.is_file() else ()
    return Run(directory, results, stages, unfinished, robustness)
