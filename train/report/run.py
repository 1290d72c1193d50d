"""Reads the directory of a run for the report. The run may be unfinished and have one seed or several."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from organ_infer import BundleError
from organ_infer.bundle.files import read_manifest
from train.bundled import stage_of_members
from train.errors import DamagedFile
from train.metrics import side_merged_accuracy
from train.record import note, read_arrays, read_history
from train.results_format import (
    SPLITS,
    Dataset,
    Results,
    RobustnessEntry,
    StageResult,
    StageSummary,
    read_results,
    read_robustness,
)
from train.stages import STAGES

__all__ = ["SPLITS", "Row", "Run", "Stage", "StageFiles", "Unfinished", "read_run"]


@dataclass(frozen=True)
class StageFiles:
    """The directory of a stage with one seed."""

    directory: Path

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """The rows of history.csv, one per epoch; empty for a stage without epochs of its own (the ensemble)."""
        try:
            return read_history(self.directory / "history.csv")
        except DamagedFile as e:
            _note_left_out(e)
            return []

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """float32 (N, classes) by split, rows in the split's order; empty if there is no file."""
        try:
            arrays = read_arrays(self.directory / "probabilities.npz")
        except DamagedFile as e:
            _note_left_out(e)
            return {}
        return {split: arrays[split] for split in SPLITS if split in arrays}

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the stage's final weights, counted from 1; None if not known."""
        return None


@dataclass(frozen=True)
class Unfinished(StageFiles):
    """A stage that was started and is not in results.json."""

    # path of its directory, relative to the run's
    name: str


@dataclass(frozen=True)
class Row(StageFiles):
    """One stage with one seed: its row in results.json and its directory."""

    result: StageResult
    classes: tuple[str, ...]
    # the organ of each class of a data set of the user; empty if the names of the classes show it
    organs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.result.name

    @property
    def seed(self) -> int:
        return self.result.seed

    @property
    def best_epoch(self) -> int | None:
        return self.result.best_epoch

    @property
    def temperature(self) -> float | None:
        return self.result.calibration.temperature if self.result.calibration else None

    def confusion(self, split: str) -> np.ndarray | None:
        """Return the confusion matrix of a split.

        Returns:
            int64 (classes, classes), rows true, columns predicted; None if the split is not measured.
        """
        metrics = self.result.on(split)
        return None if metrics is None else np.asarray(metrics.confusion, dtype=np.int64)

    def metric(self, split: str, metric: str) -> float | None:
        """Return one metric on a split.

        Args:
            split: "train", "val" or "test".
            metric: a field of SplitMetrics; `side_merged`, see `train.metrics.side_merged_accuracy`; or
                `ece_calibrated`, the calibration error with the temperature.

        Returns:
            The value; None if it is undefined or not measured.
        """
        if metric == "side_merged":
            matrix = self.confusion(split)
            return (
                None if matrix is None else side_merged_accuracy(matrix, self.classes, self.organs)
            )
        if metric == "ece_calibrated":
            # not measured on train
            value = getattr(self.result.calibration, f"{split}_ece", None)
        else:
            value = getattr(self.result.on(split), metric, None)
        return None if value is None else float(value)


@dataclass(frozen=True)
class Stage:
    """A stage of the ladder: one row, or one per seed."""

    name: str
    rows: tuple[Row, ...]
    summary: StageSummary | None = None

    def value(self, split: str, metric: str) -> tuple[float | None, float | None]:
        """Return a metric of the stage over its seeds.

        Args:
            split: "train", "val" or "test".
            metric: as for `Row.metric`.

        Returns:
            Mean and standard deviation; None if undefined. A single seed has no standard deviation.
        """
        if len(self.rows) == 1:
            return self.rows[0].metric(split, metric), None
        recorded = self.summary.on(split).get(metric) if self.summary else None
        if recorded and recorded.mean is not None:
            return recorded.mean, recorded.std
        values = [row.metric(split, metric) for row in self.rows]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None, None
        return statistics.fmean(known), statistics.stdev(known)

    @property
    def shown(self) -> Row:
        """The row of the seed that is best on validation, the first of equals. Its matrices and pictures are shown."""
        return max(self.rows, key=lambda row: _or_lowest(row.metric("val", "accuracy")))


@dataclass(frozen=True)
class Run:
    """A run's directory: results.json, its stages in order, and unfinished stages."""

    directory: Path
    results: Results
    stages: tuple[Stage, ...]
    unfinished: tuple[Unfinished, ...]
    robustness: tuple[RobustnessEntry, ...] = ()
    # stage and seed of the networks in bundle/; None if there is no bundle
    bundle: tuple[str, int] | None = None

    @property
    def smoke(self) -> bool:
        return self.results.smoke

    @property
    def dataset(self) -> Dataset:
        """The data set of results.json; an empty Dataset if there is none."""
        return self.results.dataset or Dataset()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(row.seed for stage in self.stages for row in stage.rows))

    @property
    def best(self) -> Stage | None:
        """The stage with the highest validation accuracy, the first of equals. Test plays no part."""
        known = [stage for stage in self.stages if stage.value("val", "accuracy")[0] is not None]
        return max(known, key=lambda stage: stage.value("val", "accuracy")[0] or 0.0, default=None)


def _note_left_out(problem: DamagedFile) -> None:
    what, _, remedy = str(problem).partition("; ")
    note(f"{what}; left out of the report, {remedy}")


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value


def read_run(directory: Path) -> Run:
    """Read the directory of a run.

    Args:
        directory: of the run, with results.json. robustness.json and the stages' directories may be missing.

    Raises:
        RunError: results.json is missing, or results.json or robustness.json is not readable.
    """
    results = read_results(directory)
    dataset = results.dataset or Dataset()
    classes, organs = tuple(dataset.classes), dataset.organs() if dataset.own else ()
    by_stage: dict[str, list[Row]] = {}
    for result in results.stages:
        stage_dir = directory / result.name
        seed_dir = stage_dir / f"seed-{result.seed}"
        row = Row(seed_dir if seed_dir.is_dir() else stage_dir, result, classes, organs)
        by_stage.setdefault(result.name, []).append(row)
    summaries = {summary.name: summary for summary in results.summary}
    stages = tuple(Stage(name, tuple(rows), summaries.get(name)) for name, rows in by_stage.items())
    measured = {row.directory for rows in by_stage.values() for row in rows}
    unfinished = tuple(
        Unfinished(folder, str(folder.relative_to(directory)))
        for folder in _started_stages(directory)
        if folder not in measured
    )
    return Run(
        directory,
        results,
        stages,
        unfinished,
        tuple(read_robustness(directory)),
        _bundled(directory / "bundle"),
    )


def _bundled(bundle: Path) -> tuple[str, int] | None:
    """Return stage and seed of the networks in a bundle of the run; None if there is none, or it cannot be read."""
    try:
        manifest = read_manifest(bundle)
    except BundleError:
        return None
    seed = manifest.training.get("seed")
    stage = stage_of_members({member.stage for member in manifest.members})
    return (stage, seed) if isinstance(seed, int) else None


def _started_stages(directory: Path) -> list[Path]:
    """Return the directories with a history.csv, in the ladder's order."""
    return [
        path.parent for name in STAGES for path in sorted((directory / name).glob("**/history.csv"))
    ]
