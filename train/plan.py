"""`--plan`: what a run would train, and the disk, memory and time that it needs, from a few timed steps."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from train import fit, record
from train.config import TrainConfig
from train.data import Data
from train.devices import device_name, precision
from train.disk import needed_bytes, size_text
from train.errors import DamagedFile, StageFailed
from train.jobs import Job
from train.learner import Learner
from train.networks import count_parameters, make_network
from train.results import PROBABILITIES_FILE
from train.stages import Stage

# a measurement is repeated with more slices until it takes so long, or is a whole pass
LEAST_SECONDS = 1.0
# slices grow by this factor from one measurement to the next
GROWTH = 4


@dataclass(frozen=True)
class Estimate:
    """What the training of one stage takes.

    Args:
        label: the stage, and one of several seeds.
        parameters: trainable ones; 0 for an average.
        least, most: epochs that it still trains.
        seconds: per epoch.
    """

    label: str
    parameters: int
    least: int
    most: int
    seconds: float

    @property
    def minutes(self) -> tuple[float, float]:
        """At least and at most."""
        return self.least * self.seconds / 60, self.most * self.seconds / 60


def plan_lines(
    jobs: Sequence[Job],
    data: Data,
    device: torch.device,
    directory: Path,
    precisions: Sequence[str],
    *,
    fresh: bool = False,
) -> list[str]:
    """Measure a few steps of each stage. Nothing is written.

    Args:
        jobs: of the run.
        data: its data set.
        device: where it trains.
        directory: of the run, which need not exist.
        precisions: of the bundles.
        fresh: whether the run starts over.

    Returns:
        The lines for the user.

    Raises:
        StageFailed: memory ran out.
    """
    estimates = [_estimate(job, data, device, fresh=fresh) for job in jobs]
    head = f"{'stage':<18}{'parameters':>12}{'epochs':>12}{'s/epoch':>10}{'minutes':>16}"
    lines = [head, "-" * len(head)]
    for job, estimate in zip(jobs, estimates, strict=True):
        if job.stage.network:
            lines.append(_row(estimate))
        else:
            lines.append(f"{estimate.label:<18}the mean of {', '.join(job.stage.members)}")
    low, high = (sum(e.minutes[i] for e in estimates) for i in (0, 1))
    return [
        *lines,
        "",
        _disk_line(directory, jobs, data, precisions),
        *_memory_lines(data, device),
        f"time    about {_range(low, high)} minutes of training on {device_name(device)}; export, measuring and the report"
        " follow",
        "plan    nothing was trained or written; run the command without --plan to train",
    ]


def _row(estimate: Estimate) -> str:
    epochs = (
        f"{estimate.most}"
        if estimate.least == estimate.most
        else f"{estimate.least} to {estimate.most}"
    )
    return (
        f"{estimate.label:<18}{estimate.parameters:>12,}{epochs:>12}{estimate.seconds:>10.2f}"
        f"{_range(*estimate.minutes):>16}"
    )


def _range(low: float, high: float) -> str:
    """Format minutes, `2.5` or `0.4 to 6.5`."""
    first, last = f"{low:.1f}", f"{high:.1f}"
    return first if first == last else f"{first} to {last}"


def _estimate(job: Job, data: Data, device: torch.device, *, fresh: bool) -> Estimate:
    if not job.stage.network:
        return Estimate(job.label, 0, 0, 0, 0.0)
    try:
        parameters, seconds = _epoch(job.stage, job.config, data, device)
    except (torch.OutOfMemoryError, MemoryError) as e:
        batch = job.config.batch_size
        raise StageFailed(
            f"{job.stage.name}: out of memory on {device} at batch size {batch}; try --batch-size {max(1, batch // 2)}"
        ) from e
    least, most = (0, 0) if not fresh and _is_finished(job) else _epochs_left(job, fresh=fresh)
    return Estimate(job.label, parameters, least, most, seconds)


def _is_finished(job: Job) -> bool:
    return (job.directory / PROBABILITIES_FILE).exists()


def _epochs_left(job: Job, *, fresh: bool) -> tuple[int, int]:
    """Return how many epochs a stage still trains, at least and at most."""
    try:
        history = [] if fresh else record.read_history(job.directory / "history.csv")
    except DamagedFile:
        history = []
    most = max(0, job.config.max_epochs - len(history))
    if job.stage.patience is None:
        return most, most
    accuracies = [row["val_accuracy"] for row in history]
    since_best = len(accuracies) - 1 - int(np.argmax(accuracies)) if accuracies else -1
    return min(most, max(0, job.stage.patience - since_best)), most


def _epoch(
    stage: Stage, config: TrainConfig, data: Data, device: torch.device
) -> tuple[int, float]:
    """Return a stage's parameters, and the seconds of an epoch with its validation. The weights are random."""
    network = make_network(
        stage.network or "", classes=len(data.classes), size=data.size, seed=config.seed
    )
    network.to(device).to(memory_format=torch.channels_last)
    learner = Learner.of(
        network, stage.recipe_for(data.recipe_view), precision=precision(device, config.amp)
    )

    def train(rows: int) -> float:
        images = torch.from_numpy(data.as_network_images(data.images["train"][:rows])).to(device)
        labels = torch.from_numpy(data.labels["train"][:rows]).to(device)
        start = time.perf_counter()
        fit.train_epoch(learner, images, labels, len(data.classes), stage, config, 1)
        return time.perf_counter() - start

    def validate(rows: int) -> float:
        images = torch.from_numpy(data.as_network_images(data.images["val"][:rows])).to(device)
        start = time.perf_counter()
        fit.evaluate(learner.validated, images)
        return time.perf_counter() - start

    training = _seconds_of_pass(train, len(data.labels["train"]), 2 * config.batch_size)
    validation = _seconds_of_pass(
        validate, len(data.labels["val"]), fit.evaluation_batch(data.size)
    )
    return count_parameters(network), training + validation


def _seconds_of_pass(timed: Callable[[int], float], total: int, rows: int) -> float:
    """Return the seconds of a pass over all slices, from a pass over some of them.

    Args:
        timed: makes a pass over the first slices and returns its seconds.
        total: number of slices.
        rows: to begin with.
    """
    # the first pass allocates memory and chooses algorithms
    timed(min(rows, total))
    while True:
        rows = min(rows, total)
        seconds = timed(rows)
        if seconds >= LEAST_SECONDS or rows == total:
            return seconds * total / rows
        rows *= GROWTH


def _disk_line(directory: Path, jobs: Sequence[Job], data: Data, precisions: Sequence[str]) -> str:
    needed = needed_bytes(directory, jobs, data, precisions)
    existing = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    short = "; too little, free disk space or choose another --out" if free < needed else ""
    return (
        f"disk    about {size_text(needed)} needed below {directory}, {size_text(free)} free{short}"
    )


def _memory_lines(data: Data, device: torch.device) -> list[str]:
    """Describe the most memory that was used during the steps, with the images that training keeps besides."""
    resampled = 0
    if data.stored != data.size:
        slices = sum(len(data.labels[split]) for split in ("train", "val"))
        resampled = slices * data.size**2 * 4
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + resampled
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [f"memory  about {size_text(used)} of {size_text(physical)}"]
    if device.type == "cuda":
        images = resampled or sum(data.images[split].nbytes for split in ("train", "val"))
        on_device = torch.cuda.max_memory_reserved(device) + images
        total = torch.cuda.get_device_properties(device).total_memory
        lines.append(f"GPU     about {size_text(on_device)} of {size_text(total)} on {device}")
    return lines
