"""Measure the exported networks of a run on corrupted slices (MedMNIST-C): python -m train.robustness RUN_DIR.

The balanced error is 1 minus the balanced accuracy, averaged over severities and then over corruptions. MedMNIST-C
divides it by AlexNet's error. It publishes AlexNet's error at 224 pixels only, so here the error is not divided.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.console import run_command
from export.machine import machine_failure
from export.member import BATCH, open_session
from organ_infer._packing import pack
from train import fit, parallel, record
from train.arguments import device_name
from train.checkpoint import read_checkpoint
from train.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from train.data import Data, load_data
from train.data_dir import data_dir_of, own_data_of
from train.devices import choose_device
from train.download import digest_of
from train.ensemble import mean_probabilities
from train.errors import DamagedFile, RunError
from train.results_format import (
    ROBUSTNESS_FILE,
    CorruptionScores,
    Dataset,
    Results,
    RobustnessEntry,
    RobustnessTask,
    read_results,
    read_robustness,
    write_robustness,
)
from train.stages import STAGES

SPLITS = ("val", "test")
CPU = torch.device("cpu")


def corrupted_accuracy(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> CorruptionScores:
    """Measure accuracy and balanced error on the slices as they are and on their 65 corrupted copies.

    Args:
        predict: from uint8 (N, S, S) to a score per class, float (N, classes).
        images: uint8 (N, S, S).
        labels: int (N,).
        seed: of the noise.
        report: called with one line of accuracies per corruption.

    Returns:
        The scores by corruption and severity, and their means.
    """
    clean_accuracy, clean_error = _scores(predict(images), labels)
    accuracy: dict[str, list[float]] = {}
    error: dict[str, list[float]] = {}
    for name in CORRUPTIONS:
        scores = [_scores(predict(corrupt(images, name, s, seed)), labels) for s in SEVERITIES]
        accuracy[name], error[name] = map(list, zip(*scores, strict=True))
        report(f"{name:<18}" + "".join(f"{value:>8.4f}" for value in accuracy[name]))
    return CorruptionScores(
        clean_accuracy=clean_accuracy,
        clean_balanced_error=clean_error,
        mean_corrupted_accuracy=float(np.mean(list(accuracy.values()))),
        mean_balanced_error=float(np.mean(list(error.values()))),
        accuracy=accuracy,
        balanced_error=error,
    )


def _scores(class_scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return accuracy, and 1 minus the mean recall of the classes that occur."""
    correct = class_scores.argmax(1) == labels
    recalls = [correct[labels == c].mean() for c in np.unique(labels)]
    return float(correct.mean()), float(1 - np.mean(recalls))


@dataclass(frozen=True)
class _Measurement:
    """A stage to measure, and the exported networks that it averages."""

    task: RobustnessTask
    files: list[Path]


def measure_robustness(
    directory: Path,
    data: Data,
    results: Results,
    names: Sequence[str],
    *,
    split: str = "test",
    slices: int | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    report: Callable[[str], None] = print,
) -> list[RobustnessEntry]:
    """Measure stages on corrupted slices, unless robustness.json has the same measurement.

    For a network its exported float32 file is measured, for an ensemble the mean probability of its members. Of
    several seeds the best on validation is measured. robustness.json is written after each stage.

    Args:
        directory: of the run.
        data: the data set of the run.
        results: of the run.
        names: the stages. Stages without a row in `results` are skipped.
        split: "val" or "test".
        slices: number of slices, spread evenly over the split; None takes all.
        seed: of the noise.
        device: on the CPU onnxruntime runs the exported networks. On a GPU PyTorch runs the networks of the
            checkpoints, whose logits were compared with the exported ones (`export.member`).
        report: called with one line per stage and corruption.

    Returns:
        The entry of each stage, in the order of `names`.

    Raises:
        RunError: an exported network is missing or cannot be opened, or robustness.json is not readable.
    """
    total = len(data.labels[split])
    count = min(slices or total, total)
    rows = np.linspace(0, total - 1, count).round().astype(int)
    images, labels = data.images[split][rows], data.labels[split][rows]
    measurements = [
        _measurement(directory, results, name, split, count, total, seed)
        for name in names
        if results.best_row(name)
    ]
    try:
        entries = read_robustness(directory, md5=data.md5)
    except DamagedFile as e:
        record.set_aside(directory / ROBUSTNESS_FILE, e)
        entries = []
    missing = [m for m in measurements if not _entry_of(entries, m.task)]
    networks = _Networks([file for m in missing for file in m.files], data, device)
    for measurement in missing:
        task = measurement.task
        scores = corrupted_accuracy(
            networks.mean_of(measurement.files),
            images,
            labels,
            seed,
            report=_prefixed(report, task.name),
        )
        entries = [entry for entry in entries if not _is_outdated(entry, task)]
        entries.append(RobustnessEntry.of(task, scores))
        dataset = Dataset(flag=data.flag, size=data.size, md5=data.md5)
        write_robustness(directory, results.smoke, dataset, entries)
    return [entry for m in measurements if (entry := _entry_of(entries, m.task))]


def _prefixed(report: Callable[[str], None], name: str) -> Callable[[str], None]:
    """Return a function that reports lines after the name of a stage."""
    return lambda line: report(f"{name:<15}{line}")


def _measurement(
    directory: Path, results: Results, name: str, split: str, count: int, total: int, seed: int
) -> _Measurement:
    """Describe the measurement of a stage, for its seed that is best on validation."""
    row = results.best_row(name)
    assert row is not None
    files = {
        stage: _member(directory, stage, row.seed) for stage in STAGES[name].members or (name,)
    }
    task = RobustnessTask(
        name=name,
        seed=row.seed,
        members={stage: digest_of(file, "sha256") for stage, file in files.items()},
        split=split,
        slices=count,
        split_slices=total,
        corruption_seed=seed,
    )
    return _Measurement(task, list(files.values()))


def _member(directory: Path, stage: str, seed: int) -> Path:
    """Return the path of a stage's exported network. Raises RunError if there is none."""
    folders = (directory / stage / f"seed-{seed}", directory / stage)
    for folder in folders:
        if (folder / "member.onnx").is_file():
            return folder / "member.onnx"
    raise RunError(f"{folders[-1]}: no member.onnx; rerun the command that trained the stage")


def _entry_of(entries: list[RobustnessEntry], task: RobustnessTask) -> RobustnessEntry | None:
    return next((entry for entry in entries if entry.task == task), None)


def _is_outdated(entry: RobustnessEntry, task: RobustnessTask) -> bool:
    """Return whether a task replaces an entry: it measures the same slices, or the networks have changed."""
    same_slices = (entry.split, entry.slices) == (task.split, task.slices)
    return entry.name == task.name and (same_slices or entry.members != task.members)


class _Networks:
    """The exported networks of several stages. A network of several stages runs once per corrupted copy.

    Args:
        files: the networks of every stage. A network of several stages occurs several times.
        data: the data set.
        device: where the networks run.
    """

    def __init__(self, files: list[Path], data: Data, device: torch.device) -> None:
        self.networks = {
            file: _Network(file, data, device, shared=files.count(file) > 1) for file in files
        }

    def mean_of(self, files: list[Path]) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from uint8 (N, H, W) to the mean probability of these networks."""
        return lambda images: mean_probabilities([self.networks[file](images) for file in files])


class _Network:
    """An exported network, opened at its first call. A shared one caches its probabilities for the next stage."""

    def __init__(self, file: Path, data: Data, device: torch.device, *, shared: bool) -> None:
        self.file, self.data, self.device = file, data, device
        self.session: Any = None
        self.network: nn.Module | None = None
        # by SHA-256 of the images
        self.cache: dict[bytes, np.ndarray] | None = {} if shared else None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (N, classes), of images uint8 (N, H, W)."""
        if self.cache is None:
            return self._run(images)
        key = hashlib.sha256(np.ascontiguousarray(images).data).digest()
        if key not in self.cache:
            self.cache[key] = self._run(images)
        return self.cache[key]

    def _run(self, images: np.ndarray) -> np.ndarray:
        logits = (
            self._logits_on_gpu(images)
            if self.device.type == "cuda"
            else self._logits_exported(images)
        )
        return fit.probabilities(logits)

    def _logits_on_gpu(self, images: np.ndarray) -> np.ndarray:
        if self.network is None:
            checkpoint = read_checkpoint(self.file.with_name("checkpoint.pt"))
            self.network = fit.network_of(checkpoint).to(self.device)
        return fit.evaluate(self.network, self.data.as_network_images(images))

    def _logits_exported(self, images: np.ndarray) -> np.ndarray:
        if self.session is None:
            try:
                self.session = open_session(self.file.read_bytes())
            except OSError:
                raise
            # onnxruntime's errors share no base class
            except Exception as e:
                reason = " ".join(str(e).split())[:200]
                raise RunError(
                    f"{self.file}: cannot be opened ({reason}); rerun the command that trained the stage"
                ) from e
        starts = range(0, len(images), BATCH)
        batches = [
            pack(images[start : start + BATCH], self.data.size, resample=self.data.resample)
            for start in starts
        ]
        return np.concatenate([self.session.run(["logits"], {"images": b})[0] for b in batches])


def table(entries: list[RobustnessEntry]) -> str:
    """Format the table, a column per stage: clean and mean accuracy, balanced error, mean accuracy by corruption."""
    names = [entry.name for entry in entries]
    rows = {
        "clean": [entry.clean_accuracy for entry in entries],
        "mean corrupted": [entry.mean_corrupted_accuracy for entry in entries],
        "balanced error": [entry.mean_balanced_error for entry in entries],
    } | {name: [float(np.mean(entry.accuracy[name])) for entry in entries] for name in CORRUPTIONS}
    width = max(7, *map(len, names)) + 2
    lines = [f"{'':<18}" + "".join(f"{name:>{width}}" for name in names)]
    for name, values in rows.items():
        lines.append(f"{name:<18}" + "".join(f"{value:>{width}.4f}" for value in values))
    lines.insert(4, "-" * len(lines[0]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit code: 0 done, 2 nothing could be done, 130 interrupted.
    """
    return run_command("train.robustness", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    """Run the command. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        print(_measure(options))
    except RunError as e:
        print(f"train.robustness: error: {e}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(
            f"train.robustness: error: {e.filename or options.run_dir}: {e.strerror or e}",
            file=sys.stderr,
        )
        return 2
    except Exception as e:
        if (reason := machine_failure(e)) is None:
            raise
        print(
            f"train.robustness: error: {reason}; free memory or disk space, and rerun the same command to resume",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "train.robustness: interrupted; rerun the same command to resume after the last finished stage",
            file=sys.stderr,
        )
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.robustness",
        description="Measure the exported networks of a run on the 65 corrupted copies of a split (MedMNIST-C).",
        epilog="The results are written to RUN_DIR/robustness.json; python -m train.report shows them.",
    )
    add = parser.add_argument
    add(
        "run_dir",
        type=Path,
        metavar="RUN_DIR",
        help="directory of a data set, such as runs/organsmnist",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="directory of the data set's file (default: the one that the run used)",
    )
    add("--split", choices=SPLITS, default="test", help="split to measure on (default: test)")
    add(
        "--stages",
        metavar="LIST",
        help="stage names separated by commas (default: every stage of the run)",
    )
    add(
        "--slices",
        type=int,
        metavar="N",
        help="number of slices, spread evenly over the split (default: all)",
    )
    add(
        "--device",
        type=device_name,
        default="auto",
        metavar="DEVICE",
        help="auto (default: a GPU if there is one), cpu, cuda or cuda:N",
    )
    return parser


def _measure(options: argparse.Namespace) -> str:
    """Measure what the command line asks for. Returns the table."""
    results = read_results(options.run_dir)
    names = _stage_names(options, results)
    if options.slices is not None and options.slices < 1:
        raise RunError(f"--slices: expected 1 or more, found {options.slices}")
    dataset = results.dataset or Dataset()
    data = own_data_of(dataset, options.data_dir) or load_data(
        dataset.flag,
        size=dataset.size,
        directory=data_dir_of(results, options.data_dir),
        resample_from=dataset.resample_from,
        resample=dataset.resample,
    )
    data = data.smoke() if results.smoke else data
    parallel.limit_threads()
    device = choose_device(options.device)
    with record.locked(options.run_dir):
        entries = measure_robustness(
            options.run_dir,
            data,
            results,
            names,
            split=options.split,
            slices=options.slices,
            device=device,
        )
    first = entries[0]
    head = (
        f"\n{data.flag}, {first.slices:,} of the {first.split_slices:,} slices of {options.split}"
    )
    last = "\nA smoke run: the figures above mean nothing." if results.smoke else ""
    return f"{head}\n{table(entries)}{last}"


def _stage_names(options: argparse.Namespace, results: Results) -> list[str]:
    """Return the stages of --stages, by default all of the run. Raises RunError for a stage that it does not have."""
    trained = list(dict.fromkeys(row.name for row in results.stages))
    names: list[str] = options.stages.split(",") if options.stages else trained
    if unknown := [name for name in trained if name not in STAGES]:
        raise RunError(
            f"{options.run_dir}: stage {unknown[0]!r} is of another version of this program; use that version"
        )
    for name in names:
        if name not in trained:
            raise RunError(
                f"--stages: {name!r} is not in {options.run_dir}; choose from {', '.join(trained) or 'none'}"
            )
    if not names:
        raise RunError(
            f"{options.run_dir}: no finished stage yet; train one with python -m train.all"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
