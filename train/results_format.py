"""results.json and robustness.json as dataclasses: what a run has measured, a row per stage and seed.

Field names are the keys of the files, in the order in which they are written. They must not change, because earlier
runs have stored them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from organ_infer.bundle.manifest import organ_of_pair
from train.datasets import OwnDataset
from train.errors import RunError
from train.json_format import OPTIONAL, from_json, to_json
from train.record import read_json, relative_names, write_json

RESULTS_FILE = "results.json"
ROBUSTNESS_FILE = "robustness.json"
SPLITS = ("train", "val", "test")
# the fields of `SplitMetrics` that are single numbers
METRICS = ("accuracy", "precision", "recall", "f1", "auc", "ece")
# those of them that a bundle's manifest has
MANIFEST_METRICS = ("accuracy", "auc", "ece")


@dataclass(frozen=True)
class SplitMetrics:
    """The metrics of one stage on one split. Precision, recall and F1 are weighted by support."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    # unweighted mean of one class against the rest; None if the split lacks a class
    auc: float | None
    # expected calibration error over 15 bins
    ece: float
    # (classes, classes) counts, rows true, columns predicted
    confusion: list[list[int]]

    def for_manifest(self) -> dict[str, float | None]:
        """Return the metrics of a split that a bundle's manifest has."""
        return {key: getattr(self, key) for key in MANIFEST_METRICS}


@dataclass(frozen=True)
class Calibration:
    """The temperature of a stage, and its expected calibration error with it."""

    temperature: float
    val_ece: float
    test_ece: float
    # in words, the slices that the temperature was fitted on; None in old runs
    fitted_on: str | None = field(default=None, metadata=OPTIONAL)
    # why the fitted temperature is not used and `temperature` is 1
    rejected: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class ExportCheck:
    """The exported network compared with PyTorch's on validation."""

    # largest difference between the logits
    max_abs: float
    val_accuracy: float
    slices: int
    # of member.onnx; None in old runs
    sha256: str | None = field(default=None, metadata=OPTIONAL)


@dataclass
class StageResult:
    """One stage trained with one seed. An ensemble sums parameters, epochs and seconds over its members."""

    name: str
    seed: int
    # the row of `train.networks`, or the members of the ensemble in words
    network: str
    parameters: int
    epochs: int
    # from 1 on; None for an ensemble
    best_epoch: int | None
    seconds: float
    seconds_per_epoch: float
    # where the starting weights are from; "none" if drawn from the seed
    weights: str
    # of the forward pass: fp32, bf16 or fp16; "" for an ensemble, None if the checkpoint did not record it
    precision: str | None = field(default="", metadata=OPTIONAL)
    export: ExportCheck | None = field(default=None, metadata=OPTIONAL)
    train: SplitMetrics | None = None
    val: SplitMetrics | None = None
    # None until every stage of the run is trained
    test: SplitMetrics | None = None
    calibration: Calibration | None = field(default=None, metadata=OPTIONAL)

    def on(self, split: str) -> SplitMetrics | None:
        """Return the metrics on "train", "val" or "test"; None if not measured."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over seeds. Both are None if a seed has no value, `std` also for one seed."""

    mean: float | None
    std: float | None = None


@dataclass(frozen=True)
class StageSummary:
    """The metrics of one stage over its seeds, by split and metric."""

    name: str
    seeds: list[int]
    train: dict[str, MeanStd] = field(default_factory=dict)
    val: dict[str, MeanStd] = field(default_factory=dict)
    test: dict[str, MeanStd] = field(default_factory=dict)

    def on(self, split: str) -> dict[str, MeanStd]:
        """Return mean and deviation by metric on "train", "val" or "test"."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


@dataclass(frozen=True)
class Dataset:
    """The data set of a run. The defaults are those of runs that did not record a key."""

    flag: str = ""
    # pixels per side of the networks' input
    size: int = 28
    # pixels per side of the file's slices, if they are larger than `size`
    resample_from: int | None = None
    # how slices are resampled, in training and by the bundle
    resample: str = "area"
    md5: str = ""
    # slices of each class in the whole file, by split
    counts: dict[str, list[int]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    # what a data set of the user is
    own: OwnDataset | None = field(default=None, metadata=OPTIONAL)

    def organs(self) -> tuple[str, ...]:
        """Return the organ of each class of a data set of the user: the class itself unless it is one of a pair."""
        pairs = self.own.pairs if self.own else []
        organ_of = {name: organ_of_pair(pair) for pair in pairs for name in pair[:2]}
        return tuple(organ_of.get(name) or name for name in self.classes)


@dataclass
class Results:
    """results.json: the data, the settings and a row per stage and seed."""

    format: int = 1
    smoke: bool = False
    dataset: Dataset | None = None
    device: str = ""
    # absolute path of the folder of --data-dir; None for medmnist's own, and in old runs
    data_dir: str | None = field(default=None, metadata=OPTIONAL)
    versions: dict[str, str] = field(default_factory=dict)
    # options of the run, which are compared key by key when the run is resumed
    settings: dict[str, object] = field(default_factory=dict)
    stages: list[StageResult] = field(default_factory=list)
    # only of runs with several seeds
    summary: list[StageSummary] = field(default_factory=list, metadata=OPTIONAL)

    def rows_of(self, name: str) -> list[StageResult]:
        """Return the rows of one stage, one per seed."""
        return [row for row in self.stages if row.name == name]

    def best_row(self, name: str, *, tested: bool = False) -> StageResult | None:
        """Return the row of a stage with the highest validation accuracy.

        Args:
            name: of the stage.
            tested: whether to consider only rows that were measured on test.

        Returns:
            The row, the first of equally good ones; None if the stage has no row.
        """
        rows = [row for row in self.rows_of(name) if row.test or not tested]
        return max(rows, key=_val_accuracy, default=None)


@dataclass(frozen=True)
class CorruptionScores:
    """Accuracy and balanced error (1 minus the mean recall) on clean and on corrupted slices."""

    clean_accuracy: float
    clean_balanced_error: float
    # means over severities, then over corruptions
    mean_corrupted_accuracy: float
    mean_balanced_error: float
    # five values per corruption, mildest severity first
    accuracy: dict[str, list[float]]
    balanced_error: dict[str, list[float]]


@dataclass(frozen=True)
class RobustnessTask:
    """Which networks of a stage were measured, and on which slices."""

    name: str
    seed: int
    # SHA-256 of each exported network, by stage
    members: dict[str, str]
    split: str
    slices: int
    # slices of the whole split
    split_slices: int
    corruption_seed: int


@dataclass(frozen=True)
class RobustnessEntry(CorruptionScores, RobustnessTask):
    """A row of robustness.json: the keys of RobustnessTask, then those of CorruptionScores."""

    @classmethod
    def of(cls, task: RobustnessTask, scores: CorruptionScores) -> RobustnessEntry:
        """Combine a task with its scores."""
        return cls(**vars(task), **vars(scores))

    @property
    def task(self) -> RobustnessTask:
        """The task of this row, for comparison with another task."""
        return RobustnessTask(
            **{key: getattr(self, key) for key in RobustnessTask.__dataclass_fields__}
        )


@dataclass(frozen=True)
class RobustnessFile:
    """robustness.json of one data set."""

    format: int = 1
    smoke: bool = False
    dataset: Dataset | None = None
    stages: list[RobustnessEntry] = field(default_factory=list)


def read_results(directory: Path) -> Results:
    """Read results.json of a run's directory.

    Raises:
        RunError: there is no such file, it is not valid JSON, or it is not in this format.
    """
    path = directory / RESULTS_FILE
    if not path.is_file():
        below = relative_names(directory, RESULTS_FILE, 2)
        example = (directory / below.partition(",")[0]).parent if below else "runs/organsmnist"
        has = f", but it has {below}" if below else ""
        raise RunError(
            f"{directory}: no results.json{has}; pass the directory of a data set, such as {example}"
        )
    return results_from_json(read_json(path), path)


def results_from_json(content: object, path: Path) -> Results:
    """Convert parsed JSON to results.

    Args:
        content: the parsed JSON.
        path: of the file, for messages.

    Raises:
        RunError: the content is not in this format.
    """
    if not isinstance(content, dict) or not isinstance(content.get("stages", []), list):
        raise RunError(
            f"{path}: not the results.json of a run, it has no list of stages; pass another directory"
        )
    return from_json(Results, content, str(path))


def write_results(directory: Path, results: Results) -> None:
    """Write results.json into a run's directory, whole or not at all."""
    write_json(directory / RESULTS_FILE, to_json(results))


def read_robustness(directory: Path, md5: str | None = None) -> list[RobustnessEntry]:
    """Read the rows of robustness.json of a run's directory.

    Args:
        directory: of the run.
        md5: of the data set's file that the rows must belong to; None accepts any.

    Returns:
        The rows; an empty list if there is no file, or if it belongs to another data set.

    Raises:
        RunError: the file is not valid JSON or not in this format.
    """
    path = directory / ROBUSTNESS_FILE
    if not path.is_file():
        return []
    content = read_json(path)
    if md5 is not None and _md5_of(content) != md5:
        return []
    return from_json(RobustnessFile, content, str(path)).stages


def write_robustness(
    directory: Path, smoke: bool, dataset: Dataset, entries: Iterable[RobustnessEntry]
) -> None:
    """Write robustness.json into a run's directory, whole or not at all."""
    about = {"flag": dataset.flag, "size": dataset.size, "md5": dataset.md5}
    content = {"format": 1, "smoke": smoke, "dataset": about, "stages": to_json(list(entries))}
    write_json(directory / ROBUSTNESS_FILE, content)


def _md5_of(content: object) -> object:
    """Return the MD5 of the data set in a parsed robustness.json; None if there is none."""
    dataset = content.get("dataset") if isinstance(content, dict) else None
    return dataset.get("md5") if isinstance(dataset, dict) else None


def _val_accuracy(row: StageResult) -> float:
    return row.val.accuracy if row.val else float("-inf")
