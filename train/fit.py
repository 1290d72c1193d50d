"""One stage: epochs, validation, early stopping, a checkpoint after each epoch, restart from the last one.

The order of the slices and every augmentation are drawn from a generator seeded by (seed, stage, epoch), so an epoch
is the same whether the run was interrupted before it or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train import record
from train.augment import normalise
from train.average import Average
from train.batches import cut
from train.data import Data
from train.devices import amp_option, precision
from train.edge.method import Edge
from train.errors import RunError, StageFailed
from train.method import Method, Study
from train.networks import count_parameters, find_weights, make_network
from train.parallel import ALONE, Group
from train.stages import Stage

EVALUATION_PIXELS = 1024 * 28 * 28  # per batch: 1,024 slices of 28x28, 16 of 224x224
CHECKPOINT_SECONDS = 60.0
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


@dataclass(frozen=True)
class Recipe:
    """What a stage is trained with, beside its row: resolved from the command line, kept in the checkpoint."""

    seed: int
    batch_size: int
    max_epochs: int
    weights: str  # "imagenet" or "none"
    weights_dir: Path | None = None
    smoke: bool = False
    amp: str = "auto"  # or "bf16", "fp16", "off"


@dataclass
class Learner:
    """A network while it is trained, with everything that an epoch changes."""

    network: nn.Module
    method: Method
    optimiser: torch.optim.Optimizer
    average: Average | None = None
    # scales the loss for fp16; disabled it passes everything through
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))

    @classmethod
    def of(cls, network: nn.Module, method: Method, *, precision: str = "fp32") -> Learner:
        """A learner that has not begun, for a network that is already on its device."""
        device = next(network.parameters()).device
        return cls(
            network,
            method,
            method.optimiser(network),
            Average(network, method.averaged) if method.averaged else None,
            torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        )

    @property
    def validated(self) -> nn.Module:
        """The network that validation sees, and that is kept: the average of the weights if there is one."""
        return self.average.network if self.average else self.network

    def state_dict(self) -> dict[str, Any]:
        return {
            "state": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["state"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


@dataclass
class Progress:
    """What the epochs of a stage have shown so far."""

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None  # the weights that are kept, on the CPU
    best_epoch: int = 0
    best_accuracy: float = -1.0


class CheckpointWriter:
    """Writes a stage's checkpoint at a new best, and otherwise at most every CHECKPOINT_SECONDS.

    A checkpoint of ResNet-152 holds 0.93 GB and can take longer to write than its epoch to train. An epoch that is not
    written is copied to memory, and written when training breaks off (a signal, an error).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written_at = float("-inf")
        self._unwritten: dict[str, Any] | None = None

    def epoch_ended(self, state: dict[str, Any], *, new_best: bool) -> None:
        if new_best or time.monotonic() - self._written_at >= CHECKPOINT_SECONDS:
            self.write(state)
        else:
            self._unwritten = _copied(state)

    def write(self, state: dict[str, Any]) -> None:
        record.save_checkpoint(self.path, state)
        self._written_at, self._unwritten = time.monotonic(), None

    def broke_off(self) -> None:
        """Write the last epoch if it has not been."""
        if self._unwritten is not None:
            self.write(self._unwritten)


def method_of(stage: Stage, view: str) -> Method:
    """How a stage is trained on slices of a view; only axial slices are mirrored front to back."""
    if stage.method == "study":
        return Study(stage.augmented)
    return Edge() if view == "axial" else replace(Edge(), mirror=0.0)


def fit(
    stage: Stage,
    data: Data,
    recipe: Recipe,
    device: torch.device,
    directory: Path,
    *,
    method: Method | None = None,
    say: Callable[[str], None] = print,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Train `stage` to its end, or continue from `directory`/checkpoint.pt. Returns the finished checkpoint.

    Args:
        method: by default the stage's own.
        group: the processes that train this network together.

    `history.csv` is replaced after every epoch, `checkpoint.pt` as CheckpointWriter says.

    Raises:
        StageFailed: the loss is not finite, or memory ran out.
        RunError: the checkpoint is of another run, or ImageNet weights are not available.
    """
    path = directory / "checkpoint.pt"
    method = method or method_of(stage, data.view)
    settings = {
        "batch_size": recipe.batch_size,
        "max_epochs": recipe.max_epochs,
        "method": method.described(),
    }
    state = _previous(path, settings | {"data_md5": data.md5}, recipe, device)
    if state and state["finished"]:
        return state
    network, weights = starting_network(stage, data, recipe, fresh=state is None)
    network.to(device, memory_format=torch.channels_last)
    learner = Learner.of(network, method, precision=precision(device, recipe.amp))
    progress = Progress()
    if state:
        learner.load_state_dict(state)
        weights = state["weights"]
        progress = Progress(state["history"], state["best"], state["best_epoch"], state["best_accuracy"])
        say(f"{stage.name}: goes on after epoch {len(progress.history)}")
    about = {
        "format": 1,
        "stage": stage.name,
        "network": stage.network,
        "dataset": data.flag,
        "classes": data.classes,
        "size": data.size,
        "stored": data.stored,
        "data_md5": data.md5,
        "seed": recipe.seed,
        "weights": weights,
        "smoke": recipe.smoke,
        "parameters": count_parameters(network),
        "recipe": settings | {"precision": precision(device, recipe.amp)},
    }
    writer = CheckpointWriter(path)
    try:
        _run_epochs(stage, data, recipe, device, learner, progress, about, writer, say, group)
    except BaseException:
        writer.broke_off()
        raise
    finished = about | {
        "finished": True,
        "state": progress.best,
        "best_epoch": progress.best_epoch,
        "history": progress.history,
    }
    if group.first:
        record.write_history(directory / "history.csv", progress.history)
        writer.write(finished)
    group.wait()
    return finished


def _previous(
    path: Path, settings: dict[str, Any], recipe: Recipe, device: torch.device
) -> dict[str, Any] | None:
    """The checkpoint to continue from, or None. Raises RunError if it is of another run."""
    if not path.exists():
        return None
    state = record.load_checkpoint(path)
    before = state["recipe"] | {"data_md5": state["data_md5"]}
    for key, value in settings.items():
        if before.get(key) != value:
            raise RunError(
                f"{path} was trained with another {key}; use --fresh to start over, or another --out"
            )
    trained_in, trains_in = before.get("precision"), precision(device, recipe.amp)
    if not state["finished"] and trained_in != trains_in:
        how = f"continue with --amp {amp_option(trained_in)}, or start over with" if trained_in else "use"
        raise RunError(
            f"{path} was trained in {trained_in or 'a precision that was not recorded'} so far, and --amp {recipe.amp}"
            f" trains in {trains_in} on {device}; {how} --fresh"
        )
    return state


def _run_epochs(
    stage: Stage,
    data: Data,
    recipe: Recipe,
    device: torch.device,
    learner: Learner,
    progress: Progress,
    about: dict[str, Any],
    writer: CheckpointWriter,
    say: Callable[[str], None],
    group: Group,
) -> None:
    """Train and validate epoch after epoch until the stage stops; `progress` holds the outcome."""
    images = {split: torch.from_numpy(data.network_images(split)).to(device) for split in ("train", "val")}
    labels = torch.from_numpy(data.labels["train"]).to(device)
    val_labels = data.labels["val"]
    network, history = learner.network, progress.history
    shared = replace(learner, network=group.wrap(network))
    clock = time.perf_counter()  # seconds of an epoch include the checkpoint written before it
    while not _stops(stage, recipe, len(history), progress.best_epoch):
        epoch = len(history) + 1
        try:
            loss, accuracy = train_epoch(
                shared, images["train"], labels, len(data.classes), stage, recipe, epoch, group
            )
            logits = evaluate(learner.validated, images["val"])
        except (torch.OutOfMemoryError, MemoryError) as e:
            smaller = max(1, recipe.batch_size // 2)
            raise StageFailed(
                f"{stage.name}: out of memory on {device} at batch size {recipe.batch_size}; "
                f"try --batch-size {smaller} --fresh"
            ) from e
        if not (np.isfinite(loss) and np.isfinite(logits).all()):
            kept = f"epoch {epoch - 1} is kept in {writer.path}" if history else "no epoch was finished"
            raise StageFailed(
                f"{stage.name}: the loss is not finite in epoch {epoch}; {kept}; try another --seed"
            )
        val_accuracy = group.agree(float((logits.argmax(1) == val_labels).mean()))
        val_loss = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(val_labels)))
        new_best = val_accuracy > progress.best_accuracy
        # a stage without patience keeps its last weights
        if new_best or stage.patience is None:
            progress.best = _copied(learner.validated.state_dict())
            progress.best_epoch, progress.best_accuracy = epoch, val_accuracy
        now = time.perf_counter()
        history.append(
            {
                "epoch": epoch,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": now - clock,
                "learning_rate": learner.optimiser.param_groups[0]["lr"],
            }
        )
        clock = now
        if group.first:
            state = about | {"finished": False} | learner.state_dict()
            state |= {key: getattr(progress, key) for key in ("best", "best_epoch", "best_accuracy")}
            writer.epoch_ended(state | {"history": list(history)}, new_best=new_best)
            record.write_history(writer.path.with_name("history.csv"), history)
            say(_progress_line(stage, recipe, history, progress.best_epoch, progress.best_accuracy))
        group.wait()
    if history:
        history[-1]["seconds"] += time.perf_counter() - clock


def starting_network(
    stage: Stage, data: Data, recipe: Recipe, *, fresh: bool = True
) -> tuple[nn.Module, str]:
    """The stage's network with its starting weights, and where they are from ("none": drawn from the seed)."""
    network = make_network(stage.network, classes=len(data.classes), size=data.size, seed=recipe.seed)
    if not (stage.pretrained and recipe.weights == "imagenet" and fresh):
        return network, "none"
    state, source = find_weights(stage.network, recipe.weights_dir)
    network.load_imagenet(state, source)
    return network, source


def network_of(state: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint with its weights, on the CPU: of a finished stage the best ones."""
    network = make_network(
        state["network"], classes=len(state["classes"]), size=state["size"], seed=state["seed"]
    )
    network.load_state_dict(state["state"])
    return network


def train_epoch(
    learner: Learner,
    images: Tensor,
    labels: Tensor,
    classes: int,
    stage: Stage,
    recipe: Recipe,
    epoch: int,
    group: Group = ALONE,
) -> tuple[float, float]:
    """One pass over images uint8 (N, S, S) in a new order; the mean loss and accuracy over the batches it saw.

    The host never waits for the device before the end of the epoch.
    """
    device, network, method = images.device, learner.network, learner.method
    generator = torch.Generator(device).manual_seed(_epoch_seed(recipe.seed, stage.name, epoch))
    order = torch.randperm(len(images), generator=generator, device=device)
    losses = torch.zeros((), device=device)
    hits = torch.zeros((), device=device)
    autocast = AUTOCAST[precision(device, recipe.amp)]
    network.train()
    batches = cut(order, recipe.batch_size, at_least=2 * group.size)
    for step, chosen in enumerate(batches):
        for parameters in learner.optimiser.param_groups:
            parameters["lr"] = method.learning_rate((epoch - 1 + step / len(batches)) / recipe.max_epochs)
        x, targets = method.prepare(normalise(images[chosen]), labels[chosen], classes, generator)
        x, targets, y = group.share(x), group.share(targets), group.share(labels[chosen])
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = network(x)
        loss = method.loss(logits.float(), targets)
        learner.optimiser.zero_grad(set_to_none=True)
        # the group averages gradients over its processes
        learner.scaler.scale(loss * (group.size / len(chosen))).backward()
        learner.scaler.step(learner.optimiser)
        learner.scaler.update()
        if learner.average:
            learner.average.update(getattr(network, "module", network))
        losses += loss.detach()
        hits += (logits.argmax(1) == y).sum()
    total = group.sum(torch.stack([losses, hits])) / len(images)
    return float(total[0]), float(total[1])


def evaluate(network: nn.Module, images: Tensor | np.ndarray) -> np.ndarray:
    """Logits float32 (N, classes) in evaluation mode and full float32.

    Args:
        images: uint8 (N, S, S), or float32 (N, S, S) as `Data.network_images` gives them.

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
        f"out of memory on {device} while evaluating {max(1, batch // 2)} slices at a time; free memory on the device,"
        " or use --device cpu"
    )


def evaluation_batch(size: int) -> int:
    """Slices per batch of evaluation, for slices of `size` pixels a side."""
    return max(1, EVALUATION_PIXELS // size**2)


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor, batch: int) -> np.ndarray:
    network.eval()
    device = next(network.parameters()).device
    # every argument that is left out is reset to its default, which for `enabled` is False
    flags = torch.backends.cudnn.flags(
        enabled=True,
        benchmark=False,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    )
    with flags:
        parts = [network(normalise(chunk.to(device))).cpu() for chunk in images.split(batch)]
    return torch.cat(parts).numpy()


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, computed in float64, as float32."""
    z = logits.astype(np.float64)
    z = np.exp(z - z.max(-1, keepdims=True))
    return (z / z.sum(-1, keepdims=True)).astype(np.float32)


def _epoch_seed(seed: int, stage: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{stage}/epoch {epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _stops(stage: Stage, recipe: Recipe, epochs: int, best_epoch: int) -> bool:
    return epochs >= recipe.max_epochs or (
        stage.patience is not None and epochs - best_epoch >= stage.patience
    )


def _copied(value: Any) -> Any:
    """A copy on the CPU of nested dictionaries and lists of tensors and plain values."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def _progress_line(stage: Stage, recipe: Recipe, history: list[dict], best_epoch: int, best: float) -> str:
    row, epoch = history[-1], len(history)
    seconds = float(np.mean([h["seconds"] for h in history]))
    most = (recipe.max_epochs - epoch) * seconds
    least = most if stage.patience is None else min(most, (best_epoch + stage.patience - epoch) * seconds)
    left = _clock(most) if least == most else f"{_clock(least)} to {_clock(most)}"
    return (
        f"{stage.name:<14} epoch {epoch:>3}/{recipe.max_epochs}  loss {row['train_loss']:.3f}  "
        f"val accuracy {row['val_accuracy']:.4f} (best {best:.4f}, epoch {best_epoch})  "
        f"{row['seconds']:.1f} s  left {left}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
