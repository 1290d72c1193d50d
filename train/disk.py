"""Estimates the disk space that a run still needs, and compares it with what is free."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from export.variants import PRECISIONS
from train.data import SPLITS, Data
from train.errors import RunError
from train.jobs import Job
from train.networks import count_parameters, make_network
from train.results import PREDICTIONS_FILES
from train.stages import STAGES

# bytes per parameter of a finished checkpoint and of an exported network, float32
FLOAT = 4
# of a checkpoint to resume from: the weights, two moments of the optimizer, and the best weights so far
RESUMED = 4 * FLOAT
# per slice and class: probabilities in float32, and as text in predictions_SPLIT.csv
PREDICTION = 16


def check_space(
    directory: Path, jobs: Sequence[Job], data: Data, precisions: Sequence[str], processes: int = 1
) -> str:
    """Check that the disk has enough space for the run.

    Args:
        directory: of the run, which exists.
        jobs: of the run.
        data: its data set.
        precisions: of the bundles.
        processes: that train a network each.

    Returns:
        One line for the user.

    Raises:
        RunError: less is free than the run needs.
    """
    needed = needed_bytes(directory, jobs, data, precisions, processes)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RunError(
            f"{directory}: about {size_text(needed)} needed, {size_text(free)} free; free disk space, or choose another --out"
        )
    return f"disk    about {size_text(needed)} needed below {directory}, {size_text(free)} free"


def needed_bytes(
    directory: Path, jobs: Sequence[Job], data: Data, precisions: Sequence[str], processes: int = 1
) -> int:
    """Estimate the bytes that a run adds to its directory, at the moment when it needs the most.

    A checkpoint is replaced by renaming, so for a moment the old one and the new one exist.

    Args:
        directory, jobs, data, precisions, processes: as for `check_space`.
    """
    parameters = _parameters(jobs, data)
    # the checkpoints that remain, the largest ones while they are trained, exported networks, and bundles
    remaining, training, later = 0, [], 0
    for job in jobs:
        if not (size := parameters[job.stage.name] * FLOAT):
            continue
        checkpoint = _bytes_of(job.directory / "checkpoint.pt")
        # a finished checkpoint has the weights alone
        if not 0 < checkpoint < 2 * size:
            remaining += size - checkpoint
            training.append(2 * size * RESUMED // FLOAT - size)
        later += max(0, size - _bytes_of(job.directory / "member.onnx"))
    predictions = sum(len(data.labels[split]) for split in SPLITS) * len(data.classes) * PREDICTION
    later += predictions * sum(
        1 for job in jobs if not (job.directory / PREDICTIONS_FILES["test"]).exists()
    )
    names = list(dict.fromkeys(job.stage.name for job in jobs))
    per_value = sum(PRECISIONS[name].value_bytes for name in {*precisions, "fp32"})
    for name in names:
        bundle = directory / ("bundle" if name == names[-1] else f"bundle-{name}")
        members = STAGES[name].members
        if (members or name == names[-1]) and not bundle.exists():
            later += sum(parameters[member] for member in members or (name,)) * per_value
    largest = sorted(training)[-processes:]
    return max(0, remaining + max(sum(largest), later))


def _parameters(jobs: Sequence[Job], data: Data) -> dict[str, int]:
    """Count the parameters of each stage's own network, 0 for an average."""
    counts = {}
    for stage in {job.stage.name: job.stage for job in jobs}.values():
        counts[stage.name] = 0
        if stage.network:
            # tensors without storage
            with torch.device("meta"):
                network = make_network(
                    stage.network, classes=len(data.classes), size=data.size, seed=1
                )
            counts[stage.name] = count_parameters(network)
    return counts


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def size_text(count: int) -> str:
    """Format bytes, `12 MB` or `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
