"""Trains one stage: epochs, validation, early stopping, and resumption from the last checkpoint.

The order of the slices and every augmentation are drawn from a generator seeded by (seed, stage, epoch). An epoch is
therefore the same whether or not the run was interrupted before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train import record
from train.augment import normalize
from train.batches import split_order
from train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    ResumeState,
    StageFacts,
    StageSettings,
    copy_to_cpu,
    read_checkpoint,
)
from train.config import TrainConfig
from train.data import Data
from train.devices import amp_option, precision
from train.errors import RunError, StageFailed
from train.learner import Learner
from train.networks import GrayResNet, count_parameters, find_weights, make_network
from train.options import option_text
from train.parallel import ALONE, Group
from train.progress import progress_line, taken_line
from train.recipes import Recipe
from train.recipes.edge_augment import thick_slices
from train.stages import Stage

# pixels per evaluation batch: 1,024 slices of 28x28, 16 of 224x224
EVALUATION_PIXELS = 1024 * 28 * 28
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


@dataclass
class Progress:
    """The outcome of a stage's epochs so far.

    Args:
        history: one row per epoch, columns `record.HISTORY_COLUMNS`.
        best: the weights that the finished stage gets, on the CPU; None before the first epoch.
        best_epoch: the epoch of these weights, counted from 1.
        best_accuracy: its accuracy on validation, 0 to 1.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    best_accuracy: float = -1.0


@dataclass(frozen=True)
class _Training:
    """What the epochs of one stage share."""

    stage: Stage
    data: Data
    config: TrainConfig
    device: torch.device
    facts: StageFacts
    learner: Learner
    progress: Progress
    writer: CheckpointWriter
    report: Callable[[str], None]
    group: Group
    label: str
    watch: Callable[[Mapping[str, float]], object]

    def checkpoint(self) -> Checkpoint:
        """Return the checkpoint after the last epoch, from which training can resume."""
        progress = self.progress
        return Checkpoint(
            self.facts,
            self.learner.network.state_dict(),
            progress.best_epoch,
            list(progress.history),
            self.learner.resume_state(progress.best, progress.best_accuracy),
        )


def fit(
    stage: Stage,
    data: Data,
    config: TrainConfig,
    device: torch.device,
    directory: Path,
    *,
    recipe: Recipe | None = None,
    report: Callable[[str], None] = print,
    group: Group = ALONE,
    label: str = "",
    watch: Callable[[Mapping[str, float]], object] = lambda row: None,
) -> Checkpoint:
    """Train a stage to its end, or resume it from `directory`/checkpoint.pt.

    `history.csv` is replaced after every epoch. `CheckpointWriter` describes when `checkpoint.pt` is replaced.

    Args:
        stage: a row of `train.stages`, with a network.
        data: trained on its split `train`, validated on `val`.
        config: settings from the command line.
        device: where the network is trained.
        directory: for the stage's files.
        recipe: by default the stage's own.
        report: called with one line per epoch.
        group: the processes that train this network together.
        label: what the lines begin with; by default the stage's name.
        watch: called with each row of the history, also those of before a resumption.

    Returns:
        The finished checkpoint.

    Raises:
        StageFailed: the loss is not finite, or memory ran out.
        RunError: the checkpoint is from another run, or ImageNet weights are not available.
    """
    recipe = recipe or stage.recipe_for(data.recipe_view)
    settings = StageSettings(
        config.batch_size,
        config.max_epochs,
        recipe.stored_settings(),
        precision(device, config.amp),
    )
    writer = CheckpointWriter(directory / "checkpoint.pt")
    previous = _previous_checkpoint(writer.path, stage, settings, data, config, device)
    for row in previous.history if previous else []:
        watch(row)
    if previous and previous.finished:
        if group.first:
            _restore_history(directory / "history.csv", previous.history)
            report(taken_line(label or stage.name, writer.path, previous.val_accuracy))
        return previous

    # the network, with the state of an interrupted run if there is one
    network, weights = starting_network(stage, data, config, fresh=previous is None)
    network.to(device).to(memory_format=torch.channels_last)
    learner = Learner.of(network, recipe, precision=precision(device, config.amp))
    progress = Progress()
    if previous and previous.resume:
        _restore(learner, previous.state, previous.resume, writer.path)
        weights = previous.facts.weights
        progress = Progress(
            previous.history,
            previous.resume.best,
            previous.best_epoch,
            previous.resume.best_accuracy,
        )
        report(f"{label or stage.name}: continues after epoch {len(progress.history)}")

    # the epochs
    facts = _facts(stage, data, config, network, weights, settings)
    training = _Training(
        stage, data, config, device, facts, learner, progress, writer, report, group, label, watch
    )
    try:
        _run_epochs(training)
    except BaseException:
        writer.write_pending()
        raise

    # the finished checkpoint
    finished = Checkpoint(facts, progress.best or {}, progress.best_epoch, progress.history)
    if group.first:
        record.write_history(directory / "history.csv", progress.history)
        writer.write(finished)
    group.wait()
    return finished


def _restore(learner: Learner, state: dict[str, Tensor], resume: ResumeState, path: Path) -> None:
    """Continue from a checkpoint. Raises RunError if it is of another network."""
    try:
        learner.restore(state, resume)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise RunError(
            f"{path}: not a checkpoint of this stage's network; remove it to train the stage again, or start over with"
            " --fresh"
        ) from e


def _restore_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write history.csv again if it is damaged or not the checkpoint's."""
    try:
        expected = record.history_text(history)
    # columns of another version
    except ValueError:
        return
    try:
        text = path.read_bytes()
    except OSError:
        text = b""
    if text != expected.encode():
        record.note(f"{path}: not the history of the checkpoint; rebuilt from it")
        record.atomic_write(path, expected)


def _facts(
    stage: Stage,
    data: Data,
    config: TrainConfig,
    network: nn.Module,
    weights: str,
    settings: StageSettings,
) -> StageFacts:
    """Collect what the stage's checkpoints record besides weights and epochs."""
    return StageFacts(
        stage=stage.name,
        network=_network_name(stage),
        dataset=data.flag,
        classes=data.classes,
        size=data.size,
        stored=data.stored,
        resample=data.resample,
        data_md5=data.md5,
        seed=config.seed,
        weights=weights,
        smoke=config.smoke,
        parameters=count_parameters(network),
        settings=settings,
    )


def _previous_checkpoint(
    path: Path,
    stage: Stage,
    settings: StageSettings,
    data: Data,
    config: TrainConfig,
    device: torch.device,
) -> Checkpoint | None:
    """Read the checkpoint to resume from; None if there is none. Raises RunError if it is from another run."""
    if not path.exists():
        return None
    checkpoint = read_checkpoint(path)
    previous = checkpoint.facts.settings
    facts, remedy = checkpoint.facts, "use --fresh to start over, or another --out"
    if facts.smoke != config.smoke:
        kind = "of a smoke run" if facts.smoke else "of a run without --smoke"
        raise RunError(f"{path}: {kind}; {remedy}")
    for key, stored, current in (
        ("batch_size", previous.batch_size, settings.batch_size),
        ("max_epochs", previous.max_epochs, settings.max_epochs),
        ("resample", facts.resample, data.resample),
        ("seed", facts.seed, config.seed),
    ):
        if stored != current:
            raise RunError(
                f"{path}: trained with {option_text(key, stored)}, but this command has"
                f" {option_text(key, current)}; {remedy}"
            )
    for name, same in (
        ("of another stage", facts.stage == stage.name),
        ("trained on another file of the data set", facts.data_md5 == data.md5),
        ("trained with another recipe", previous.method == settings.method),
    ):
        if not same:
            raise RunError(f"{path}: {name}; {remedy}")
    if not checkpoint.finished and previous.precision != settings.precision:
        remedy = (
            f"continue with --amp {amp_option(previous.precision)}, or start over with"
            if previous.precision
            else "use"
        )
        raise RunError(
            f"{path}: trained in {previous.precision or 'a precision that was not recorded'} so far, but --amp"
            f" {config.amp} trains in {settings.precision} on {device}; {remedy} --fresh"
        )
    return checkpoint


def _run_epochs(training: _Training) -> None:
    """Train and validate until the stage stops."""
    stage, config, data, device = training.stage, training.config, training.data, training.device
    learner, progress, group = training.learner, training.progress, training.group
    images = {
        split: torch.from_numpy(data.network_images(split)).to(device) for split in ("train", "val")
    }
    labels = torch.from_numpy(data.labels["train"]).to(device)
    around = _neighbors(data).to(device) if learner.recipe.thick_slices else None
    history = progress.history
    group_learner = replace(learner, network=group.wrap(learner.network))
    # the seconds of an epoch include the checkpoint written before it
    epoch_start = time.perf_counter()
    while not _stops(stage, config, len(history), progress.best_epoch):
        epoch = len(history) + 1

        # one pass over the training slices, then validation
        with _memory_errors(training):
            loss, accuracy = train_epoch(
                group_learner,
                images["train"],
                labels,
                len(data.classes),
                stage,
                config,
                epoch,
                group,
                around,
            )
            logits = evaluate(learner.validated, images["val"])  # (N, classes)
        if not (np.isfinite(loss) and np.isfinite(logits).all()):
            last_good = (
                f"{training.writer.path} holds epoch {epoch - 1}"
                if history
                else "no epoch was finished"
            )
            raise StageFailed(
                f"{stage.name}: the loss is not finite in epoch {epoch}; {last_good}; try another --seed"
            )
        val_loss, val_accuracy = _scores(logits, data.labels["val"])
        val_accuracy = group.agree(val_accuracy)

        # the stage gets the weights that are best on validation, or without patience the last ones
        new_best = val_accuracy > progress.best_accuracy
        if new_best or stage.patience is None:
            progress.best = copy_to_cpu(learner.validated.state_dict())
            progress.best_epoch, progress.best_accuracy = epoch, val_accuracy

        # the history, the checkpoint, and the line for the user
        now = time.perf_counter()
        history.append(
            {
                "epoch": epoch,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": now - epoch_start,
                "learning_rate": learner.optimizer.param_groups[0]["lr"],
            }
        )
        epoch_start = now
        if group.first:
            _write_epoch(training, new_best=new_best)
        group.wait()
    if history:
        history[-1]["seconds"] += time.perf_counter() - epoch_start


def _neighbors(data: Data) -> Tensor:
    """Return the training slices before and after each training slice, as indices int64 (N, 2)."""
    # scikit-learn takes a second to import
    from train.chains import neighbors

    return torch.from_numpy(neighbors(data.images["train"], data.labels["train"]))


@contextlib.contextmanager
def _memory_errors(training: _Training) -> Iterator[None]:
    """Turn an out-of-memory error into StageFailed, which names a smaller batch size."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as e:
        batch = training.config.batch_size
        raise StageFailed(
            f"{training.stage.name}: out of memory on {training.device} at batch size {batch}; "
            f"try --batch-size {max(1, batch // 2)} --fresh"
        ) from e


def _scores(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mean cross-entropy in nats and accuracy, for logits float32 (N, classes) and labels int64 (N,)."""
    loss = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
    return loss, float((logits.argmax(1) == labels).mean())


def _write_epoch(training: _Training, *, new_best: bool) -> None:
    """Write the files of the last epoch and report it."""
    progress, writer = training.progress, training.writer
    writer.epoch_ended(training.checkpoint(), new_best=new_best)
    record.write_history(writer.path.with_name("history.csv"), progress.history)
    training.watch(progress.history[-1])
    training.report(
        progress_line(
            training.stage,
            training.config.max_epochs,
            progress.history,
            progress.best_epoch,
            progress.best_accuracy,
            label=training.label,
        )
    )


def starting_network(
    stage: Stage, data: Data, config: TrainConfig, *, fresh: bool = True
) -> tuple[nn.Module, str]:
    """Build the stage's network with its starting weights, on the CPU.

    Args:
        stage: a row of `train.stages`, with a network.
        data: for the number of classes and the size of the slices.
        config: for the seed and the ImageNet weights.
        fresh: whether training starts; a resumed stage needs no ImageNet weights.

    Returns:
        The network, and the source of its weights: `none` if they were drawn from the seed.

    Raises:
        RunError: ImageNet weights are not available.
    """
    name = _network_name(stage)
    network = make_network(name, classes=len(data.classes), size=data.size, seed=config.seed)
    if not (stage.pretrained and config.weights == "imagenet" and fresh):
        return network, "none"
    state, source = find_weights(name, config.weights_dir)
    cast(GrayResNet, network).load_imagenet(state, source)
    return network, source


def _network_name(stage: Stage) -> str:
    if stage.network is None:
        raise ValueError(f"stage {stage.name} trains no network of its own")
    return stage.network


def network_of(checkpoint: Checkpoint) -> nn.Module:
    """Build the network of a checkpoint with its weights, on the CPU. A finished stage has its best weights."""
    facts = checkpoint.facts
    network = make_network(
        facts.network, classes=len(facts.classes), size=facts.size, seed=facts.seed
    )
    try:
        network.load_state_dict(checkpoint.state)
    except (RuntimeError, TypeError, AttributeError) as e:
        raise RunError(
            f"checkpoint of {facts.stage}: its weights are not those of {facts.network}; remove the checkpoint to train"
            " the stage again, or start over with --fresh"
        ) from e
    return network


def train_epoch(
    learner: Learner,
    images: Tensor,
    labels: Tensor,
    classes: int,
    stage: Stage,
    config: TrainConfig,
    epoch: int,
    group: Group = ALONE,
    neighbors: Tensor | None = None,
) -> tuple[float, float]:
    """Train one epoch: one pass over the training slices in a new order.

    The host waits for the device only at the end of the epoch.

    Args:
        learner: its network is trained in place.
        images: uint8 (N, S, S), or float32 (N, S, S) as `Data.network_images` gives them.
        labels: class indices, int64 (N,).
        classes: number of classes.
        stage: for its name, which seeds the epoch.
        config: settings from the command line.
        epoch: counted from 1.
        group: the processes that share each batch.
        neighbors: the slices before and after each slice, int64 (N, 2), for recipes with `thick_slices`.

    Returns:
        The mean loss in nats and the accuracy, each batch with the weights before its step.
    """
    device, network, recipe = images.device, learner.network, learner.recipe
    generator = torch.Generator(device).manual_seed(_epoch_seed(config.seed, stage.name, epoch))
    order = torch.randperm(len(images), generator=generator, device=device)
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    autocast = AUTOCAST[precision(device, config.amp)]
    network.train()
    batches = split_order(order, config.batch_size, at_least=2 * group.size)
    for step, batch in enumerate(batches):  # indices, (B,)
        for parameters in learner.optimizer.param_groups:
            parameters["lr"] = recipe.learning_rate(
                (epoch - 1 + step / len(batches)) / config.max_epochs
            )

        # augment the whole batch, then take this process's rows
        x = normalize(images[batch])  # (B, 1, S, S)
        if neighbors is not None and recipe.thick_slices:
            around = normalize(images[neighbors[batch].flatten()]).view(-1, 2, *x.shape[2:])
            x = thick_slices(x, around, recipe.thick_slices, generator)
        x, targets = recipe.prepare(x, labels[batch], classes, generator)
        x, targets, y = group.share(x), group.share(targets), group.share(labels[batch])

        # forward
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = network(x)  # (B, classes), and more columns if the network has a second output
        loss = recipe.loss(logits.float(), targets)

        # backward and step; the group averages gradients over its processes
        learner.optimizer.zero_grad(set_to_none=True)
        scaled = learner.scaler.scale(loss * (group.size / len(batch)))
        scaled.backward()  # type: ignore[no-untyped-call]
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        if learner.ema:
            learner.ema.update(getattr(network, "module", network))

        # sums stay on the device
        loss_sum += loss.detach()
        correct += (logits[:, :classes].argmax(1) == y).sum()
    means = group.sum(torch.stack([loss_sum, correct])) / len(images)
    return float(means[0]), float(means[1])


def evaluate(network: nn.Module, images: Tensor | np.ndarray) -> np.ndarray:
    """Run a network in evaluation mode and full float32.

    Args:
        network: on its device.
        images: uint8 (N, S, S), or float32 (N, S, S) as `Data.network_images` gives them.

    Returns:
        Logits, float32 (N, classes).

    Raises:
        StageFailed: memory ran out, also with half the batch.
    """
    images = torch.as_tensor(images)
    batch = evaluation_batch(images.shape[-1])
    for size in (batch, max(1, batch // 2)):
        with contextlib.suppress(torch.OutOfMemoryError):
            return _logits(network, images, size)
        torch.cuda.empty_cache()
    device = next(network.parameters()).device
    raise StageFailed(
        f"{device}: out of memory while evaluating {max(1, batch // 2)} slices at a time; free memory on the device,"
        " or use --device cpu"
    )


def evaluation_batch(size: int) -> int:
    """Return the slices per evaluation batch, for slices of `size` pixels per side."""
    return max(1, EVALUATION_PIXELS // size**2)


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor, batch: int) -> np.ndarray:
    network.eval()
    device = next(network.parameters()).device
    # an omitted argument is reset to its default, and the default of `enabled` is False
    flags = torch.backends.cudnn.flags(
        enabled=True,
        benchmark=False,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    )
    with flags:
        parts = [network(normalize(chunk.to(device))).cpu() for chunk in torch.split(images, batch)]
    logits: np.ndarray = torch.cat(parts).numpy()
    return logits


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis as float32, computed in float64."""
    z = logits.astype(np.float64)
    z = np.exp(z - z.max(-1, keepdims=True))
    softmax: np.ndarray = (z / z.sum(-1, keepdims=True)).astype(np.float32)
    return softmax


def _epoch_seed(seed: int, stage: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{stage}/epoch {epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _stops(stage: Stage, config: TrainConfig, epochs: int, best_epoch: int) -> bool:
    """Return whether a stage stops after this number of epochs."""
    return epochs >= config.max_epochs or (
        stage.patience is not None and epochs - best_epoch >= stage.patience
    )
