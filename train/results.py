"""Computes the rows of results.json: each stage on train and validation, and once, at the end, on test."""

from __future__ import annotations

import csv
import io
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from export.member import ExportError, export_member
from train import fit, record
from train.calibration import SPLIT, describe_split, fit_calibration
from train.checkpoint import Checkpoint, read_checkpoint
from train.data import Data
from train.devices import device_name
from train.download import digest_of
from train.ensemble import mean_probabilities
from train.errors import DamagedFile, RunError
from train.jobs import Job, member_of
from train.metrics import confusion, measure
from train.options import option_name, option_text
from train.progress import taken_line
from train.results_format import (
    METRICS,
    RESULTS_FILE,
    SPLITS,
    Dataset,
    ExportCheck,
    MeanStd,
    Results,
    StageResult,
    StageSummary,
    results_from_json,
)
from train.stages import STAGES

VERSIONS = (
    "torch",
    "torchvision",
    "medmnist",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "scikit-learn",
    "numpy",
)

# settings that older runs did not record, with the value that they had
UNRECORDED_SETTINGS: dict[str, object] = {"deterministic": False, "resample": "area"}
# a resumed run may change --amp: each stage records its own precision and resumes only in that precision
NOT_COMPARED = ("amp",)
PROBABILITIES_FILE = "probabilities.npz"
# what the names of the labels in it begin with, before the split
LABELS = "labels_"
PREDICTIONS_FILES = {split: f"predictions_{split}.csv" for split in SPLITS}


def open_results(
    directory: Path,
    data: Data,
    device: torch.device,
    settings: dict[str, object],
    *,
    data_dir: Path | None = None,
) -> Results:
    """Read the results of a resumed run, or create those of a new one.

    Args:
        directory: of the run, with results.json if it is resumed.
        data: the data set.
        device: the device of this run.
        settings: the options of this run, by name.
        data_dir: the folder of the data set, which later commands use; None for medmnist's own.

    Returns:
        The existing rows, with the device, data folder, versions and settings of this run.

    Raises:
        RunError: results.json is of another program or version, or one of its settings differs from this run's.
    """
    path = directory / RESULTS_FILE
    results = Results(
        smoke=bool(settings["smoke"]),
        dataset=Dataset(
            flag=data.flag,
            size=data.size,
            resample_from=None if data.stored == data.size else data.stored,
            resample=data.resample,
            md5=data.md5,
            counts=data.counts,
            classes=data.classes,
            own=data.own,
        ),
        device=device_name(device),
        data_dir=None if data_dir is None else os.path.abspath(data_dir),
        versions=_versions(),
        settings=settings,
    )
    if not path.exists():
        return results
    try:
        content = record.read_json(path)
    except DamagedFile as e:
        record.set_aside(path, e)
        return results
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise RunError(
            f"{path}: not a results file of this program; move it away or start over with --fresh"
        )
    _check_settings(directory, content["settings"], settings)
    _check_data(directory, content.get("dataset"), data)
    _check_stages(path, content.get("stages"))
    results.stages = results_from_json(content, path).stages
    return results


def _check_data(directory: Path, recorded: object, data: Data) -> None:
    """Raise RunError if a data set of the user has other content than that of the run."""
    md5 = recorded.get("md5") if isinstance(recorded, dict) else None
    if data.own and md5 and md5 != data.md5:
        raise RunError(
            f"{directory}: holds a run on other images (MD5 {md5}), but {data.own.path} has MD5 {data.md5}; restore the"
            " images to resume it, use --fresh to start over, or another --out"
        )


def _check_stages(path: Path, rows: object) -> None:
    """Raise RunError for a stage that this version does not have."""
    names = (
        [row.get("name") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    )
    if unknown := [name for name in names if name not in STAGES]:
        raise RunError(
            f"{path}: stage {unknown[0]!r} is of another version of this program; use another --out"
        )


def _check_settings(
    directory: Path, recorded: dict[str, object], settings: dict[str, object]
) -> None:
    """Raise RunError if settings differ from the recorded ones. A smoke run is named as such."""
    recorded = UNRECORDED_SETTINGS | recorded
    smoke = bool(settings["smoke"])
    if bool(recorded.get("smoke")) != smoke:
        raise RunError(
            f"{directory}: holds a run without --smoke; use another --out for the smoke run"
            if smoke
            else f"{directory}: holds a smoke run, whose results mean nothing; use --fresh to remove it, or another"
            " --out"
        )
    different = [
        key
        for key, value in settings.items()
        if key not in NOT_COMPARED and recorded.get(key) != value
    ]
    if different:
        before = ", ".join(
            option_text(key, recorded[key])
            if key in recorded
            else f"{option_name(key)} not recorded"
            for key in different
        )
        now = ", ".join(option_text(key, settings[key]) for key in different)
        raise RunError(
            f"{directory}: holds a run with {before}, but this command has {now}; repeat the options of that run to"
            " resume it, use --fresh to start over, or another --out"
        )


def measure_stage(job: Job, data: Data, device: torch.device, results: Results) -> None:
    """Measure a trained stage on train and validation, and add its row to the results.

    A network is also exported, verified, and run on the slices that its temperature is fitted on
    (`train.calibration.add_calibration_split`). Nothing is done if the row and the files of the stage exist. Files that
    are damaged, or are not those of the row, are rebuilt from the checkpoint.

    Args:
        job: the stage, already trained.
        data: with the split `train.calibration.SPLIT`.
        device: where PyTorch runs the network.
        results: the row is added here, in place of an older one.

    Raises:
        RunError: the exported network differs from PyTorch's. Exit code 1.
    """
    row = row_of(results, job)
    if row and _has_files(job, row, data):
        # a stage with a network was reported when its training was skipped
        if not job.stage.network:
            accuracy = row.val.accuracy if row.val else None
            print(taken_line(job.label, job.directory / PROBABILITIES_FILE, accuracy), flush=True)
        return
    if job.stage.network:
        row, probabilities = _measured_network(job, data, device)
    else:
        row, probabilities = _averaged_members(job, results)
    _save_probabilities(job, probabilities, data)
    row.train = measure(probabilities["train"], data.labels["train"])
    row.val = measure(probabilities["val"], data.labels["val"])
    results.stages = [*(r for r in results.stages if not _is_of(r, job)), row]


def _has_files(job: Job, row: StageResult, data: Data) -> bool:
    """Return whether the stage's directory has all files that `measure_stage` writes, and they are those of its row."""
    path = job.directory / PROBABILITIES_FILE
    splits = {"train", "val", SPLIT} if job.stage.network else {"train", "val"}
    try:
        probabilities = record.read_arrays(path)
        if not splits <= probabilities.keys():
            return False
        _check_probabilities(path, probabilities, row, data)
        return not job.stage.network or _has_member(job.directory / "member.onnx", row)
    except DamagedFile as e:
        record.note(f"{str(e).partition(';')[0]}; rebuilt from the checkpoint")
        return False


def _check_probabilities(
    path: Path, probabilities: dict[str, np.ndarray], row: StageResult, data: Data
) -> None:
    """Raise DamagedFile if probabilities are not those that a row was measured with."""
    for split in probabilities.keys() & data.labels.keys():
        labels, found = data.labels[split], probabilities[split]
        shape = (len(labels), len(data.classes))
        measured = row.on(split) if split in SPLITS else None
        if (
            found.shape != shape
            or found.dtype != np.float32
            or not np.isfinite(found).all()
            or (measured and confusion(found, labels) != measured.confusion)
        ):
            raise DamagedFile(f"{path}: not the probabilities of this stage; rerun its command")


def _has_member(path: Path, row: StageResult) -> bool:
    """Return whether the exported network exists. Raises DamagedFile if it is not the one that was measured."""
    if not path.exists():
        return False
    try:
        if row.export and row.export.sha256:
            sound = digest_of(path, "sha256") == row.export.sha256
        else:
            onnx.checker.check_model(onnx.load(path))
            sound = True
    # onnx and protobuf raise many kinds of errors for a damaged file
    except Exception:
        sound = False
    if not sound:
        raise DamagedFile(f"{path}: not the network that was measured; rerun its command")
    return True


def _measured_network(
    job: Job, data: Data, device: torch.device
) -> tuple[StageResult, dict[str, np.ndarray]]:
    """Export and run a network. Returns its row without metrics, and its probabilities by split."""
    network, checkpoint = load_trained(job)
    path = job.directory / "member.onnx"
    start = time.perf_counter()
    try:
        parity = export_member(
            network,
            path,
            data.images["val"],
            data.labels["val"],
            size=data.size,
            resample=data.resample,
        )
    except ExportError as e:
        raise RunError(f"export of {job.stage.name}: {e}", exit_code=1) from e
    print(
        f"{job.label:<14} exported: {parity.slices} slices through onnxruntime, logits within "
        f"{parity.max_abs:.1e} of PyTorch's, val accuracy {parity.accuracy:.4f}, {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    exported = time.perf_counter()
    network.to(device)
    probabilities = {
        split: fit.probabilities(fit.evaluate(network, data.network_images(split)))
        for split in ("train", "val", SPLIT)
    }
    print(
        f"{job.label:<14} measured: train, validation and the slices of the temperature,"
        f" {time.perf_counter() - exported:.1f} s",
        flush=True,
    )
    facts = checkpoint.facts
    seconds = [epoch["seconds"] for epoch in checkpoint.history]
    row = StageResult(
        name=job.stage.name,
        seed=job.config.seed,
        network=facts.network,
        parameters=facts.parameters,
        epochs=len(checkpoint.history),
        best_epoch=checkpoint.best_epoch,
        seconds=sum(seconds),
        seconds_per_epoch=sum(seconds) / len(seconds),
        weights=facts.weights,
        precision=facts.settings.precision,
        export=ExportCheck(
            max_abs=parity.max_abs,
            val_accuracy=parity.accuracy,
            slices=parity.slices,
            sha256=digest_of(path, "sha256"),
        ),
    )
    return row, probabilities


def _averaged_members(job: Job, results: Results) -> tuple[StageResult, dict[str, np.ndarray]]:
    """Average the members of an ensemble. Returns its row without metrics, and its probabilities by split."""
    files = [_probabilities(member_of(job, name)) for name in job.stage.members]
    probabilities = {
        split: mean_probabilities([file[split] for file in files]) for split in ("train", "val")
    }
    rows = [_row(results, name, job.config.seed) for name in job.stage.members]
    row = StageResult(
        name=job.stage.name,
        seed=job.config.seed,
        network="mean probability of " + ", ".join(job.stage.members),
        parameters=sum(row.parameters for row in rows),
        epochs=sum(row.epochs for row in rows),
        best_epoch=None,
        seconds=sum(row.seconds for row in rows),
        seconds_per_epoch=sum(row.seconds_per_epoch for row in rows),
        weights="; ".join(dict.fromkeys(row.weights for row in rows if row.weights != "none"))
        or "none",
    )
    return row, probabilities


def measure_test(job: Job, data: Data, device: torch.device, results: Results) -> None:
    """Measure a stage on test and fit its temperature, unless its row has both.

    Args:
        job: a stage that `measure_stage` has measured.
        data: with the split `train.calibration.SPLIT`.
        device: where PyTorch runs the network.
        results: the stage's row in them is completed.
    """
    row = _row(results, job.stage.name, job.config.seed)
    members = [member_of(job, name) for name in job.stage.members]
    probabilities = _probabilities(job.directory)
    if not row.test or "test" not in probabilities:
        if job.stage.network:
            network, _ = load_trained(job)
            logits = fit.evaluate(network.to(device), data.network_images("test"))
            probabilities["test"] = fit.probabilities(logits)
        else:
            probabilities["test"] = mean_probabilities(
                [_probabilities(member)["test"] for member in members]
            )
        _save_probabilities(job, probabilities, data)
        row.test = measure(probabilities["test"], data.labels["test"])
    _write_predictions(job, probabilities, data)
    if row.calibration is None or row.calibration.fitted_on != describe_split(data):
        networks = [_probabilities(folder) for folder in members or (job.directory,)]
        row.calibration = fit_calibration(networks, data.labels, fitted_on=describe_split(data))
        if row.calibration.rejected:
            print(f"{job.label:<14} {row.calibration.rejected}; it stays 1", flush=True)


def _probabilities(directory: Path) -> dict[str, np.ndarray]:
    """Read the probabilities of a stage by split, float32 (N, classes). Raises RunError if there are none."""
    path = directory / PROBABILITIES_FILE
    probabilities = record.read_arrays(path)
    if not probabilities:
        raise RunError(f"{path}: no such file; rerun the command that trained the stage")
    return {name: array for name, array in probabilities.items() if not name.startswith(LABELS)}


def _save_probabilities(job: Job, probabilities: dict[str, np.ndarray], data: Data) -> None:
    """Write the probabilities, float32 (N, classes) by split, and the labels, int64 (N,), to the stage's directory."""
    labels = {f"{LABELS}{split}": data.labels[split] for split in probabilities}
    arrays: dict[str, Any] = probabilities | labels
    record.atomic_save(job.directory / PROBABILITIES_FILE, lambda file: np.savez(file, **arrays))


def _write_predictions(job: Job, probabilities: dict[str, np.ndarray], data: Data) -> None:
    """Write a table per split, unless it is there and newer than the probabilities."""
    source = job.directory / PROBABILITIES_FILE
    for split, name in PREDICTIONS_FILES.items():
        path = job.directory / name
        if not path.exists() or path.stat().st_mtime_ns < source.stat().st_mtime_ns:
            record.atomic_write(
                path, predictions_csv(probabilities[split], data.labels[split], data.classes)
            )


def predictions_csv(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> str:
    """Return the predictions on one split as CSV.

    Args:
        probabilities: float32 (N, classes).
        labels: int64 (N,).
        classes: names, by index.

    Returns:
        A header, then a line per slice: its index in the split, label, predicted class, the probability of that class,
        and the probability of each class, with nine digits.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "predicted", "probability", *classes])
    for i, (row, label) in enumerate(zip(probabilities.tolist(), labels.tolist(), strict=True)):
        best = int(np.argmax(probabilities[i]))
        numbers = [f"{value:.9g}" for value in row]
        writer.writerow([i, classes[label], classes[best], numbers[best], *numbers])
    return text.getvalue()


def _is_of(row: StageResult, job: Job) -> bool:
    return row.name == job.stage.name and row.seed == job.config.seed


def _row(results: Results, name: str, seed: int) -> StageResult:
    """Return the row of a stage and seed, which must exist."""
    return next(row for row in results.stages if (row.name, row.seed) == (name, seed))


def row_of(results: Results, job: Job) -> StageResult | None:
    """Return the row of a stage and seed; None if it has not been measured."""
    return next((row for row in results.stages if _is_of(row, job)), None)


def summary(rows: list[StageResult]) -> list[StageSummary]:
    """Compute mean and sample standard deviation over seeds.

    A metric that is undefined for one of the seeds has no mean. A stage with a single seed has no deviation.

    Args:
        rows: of all stages and seeds.

    Returns:
        One summary per stage, in the order of the rows.
    """
    summaries = []
    for name in dict.fromkeys(row.name for row in rows):
        of_stage = [row for row in rows if row.name == name]
        splits = {
            split: {key: _mean_std(of_stage, split, key) for key in METRICS} for split in SPLITS
        }
        summaries.append(StageSummary(name, [row.seed for row in of_stage], **splits))
    return summaries


def _mean_std(rows: list[StageResult], split: str, metric: str) -> MeanStd:
    on_split = [row.on(split) for row in rows]
    values = [getattr(metrics, metric) for metrics in on_split if metrics]
    known = [value for value in values if value is not None]
    if len(known) < len(rows):
        return MeanStd(None, None)
    return MeanStd(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


def table(results: Results) -> str:
    """Format the table that ends a run: a line per stage and seed, then the means over seeds."""
    head = f"{'stage':<15}{'parameters':>12}{'epochs':>8}{'kept':>6}{'s/epoch':>9}{'train':>9}{'val':>9}{'test':>9}"
    flag = results.dataset.flag if results.dataset else ""
    lines = ["", f"{flag}, accuracy on {results.device}", head, "-" * len(head)]
    several = len({row.seed for row in results.stages}) > 1
    for row in results.stages:
        name = f"{row.name} #{row.seed}" if several else row.name
        on_splits = [row.on(split) for split in SPLITS]
        accuracy = "".join(f"{m.accuracy:>9.4f}" if m else f"{'–':>9}" for m in on_splits)
        lines.append(
            f"{name:<15}{row.parameters:>12,}{row.epochs:>8}{row.best_epoch or '':>6}"
            f"{row.seconds_per_epoch:>9.1f}{accuracy}"
        )
    for entry in results.summary:
        accuracy_on_test = entry.test["accuracy"]
        if accuracy_on_test.std is not None:
            lines.append(
                f"{entry.name:<15}test accuracy {accuracy_on_test.mean:.4f} ± {accuracy_on_test.std:.4f}"
                f" as the mean over {len(entry.seeds)} seeds"
            )
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages."""
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def load_trained(job: Job) -> tuple[nn.Module, Checkpoint]:
    """Load a finished stage: its network with the best weights, on the CPU, and its checkpoint."""
    checkpoint = read_checkpoint(job.directory / "checkpoint.pt")
    return fit.network_of(checkpoint), checkpoint
