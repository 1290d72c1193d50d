"""One stage: epochs, validation, early stopping, a checkpoint after each epoch, restart from the last one.

The order of the slices and every augmentation are drawn from a generator seeded by (seed, stage, epoch), so an epoch
is the same whether the run was interrupted before it or not.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from train.edge.method import Edge
from train.method import Method, Study
from train.networks import count_parameters, find_weights, make_network
from train.parallel import ALONE, Group
from train.record import RunError
from train.stages import Stage

EVALUATION_BATCH = 1024


class StageFailed(RunError):
    """A stage broke off while it ran; the last good checkpoint is kept. Exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


@dataclass(frozen=True)
class Recipe:
    """What a stage is trained with, beside its row: resolved from the command line, kept in the checkpoint."""

    seed: int
    batch_size: int
    max_epochs: int
    weights: str  # "imagenet" or "none"
    weights_dir: Path | None = None
    smoke: bool = False


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
    """Train `stage` to its end, or go on from `directory`/checkpoint.pt; the finished checkpoint.

    method: by default the stage's own. The stage's `history.csv` and `checkpoint.pt` are replaced after every epoch. Raises StageFailed for a loss that is
    not finite or memory that runs out, RunError for weights that cannot be had.
    """
    path = directory / "checkpoint.pt"
    state = record.load_checkpoint(path) if path.exists() else None
    method = method or method_of(stage, data.view)
    asked = {"batch_size": recipe.batch_size, "max_epochs": recipe.max_epochs, "method": method.described()}
    if state:
        found = {key: state["recipe"].get(key) for key in asked} | {"data_md5": state["data_md5"]}
        if found != (wanted := asked | {"data_md5": data.md5}):
            key = next(key for key, value in wanted.items() if found[key] != value)
            raise RunError(
                f"{path} was trained with another {key}; use --fresh to start over, or another --out"
            )
        if state["finished"]:
            return state
    if state and state["recipe"].get("precision") != precision(device):
        before = state["recipe"].get("precision", "a precision that was not noted")
        raise RunError(
            f"{path} was trained in {before} so far, this machine trains in {precision(device)}; use --fresh to start over"
        )
    network, weights = starting_network(stage, data, recipe, fresh=state is None)
    network.to(device, memory_format=torch.channels_last)
    optimiser = method.optimiser(network)
    average = Average(network, method.averaged) if method.averaged else None
    best, best_epoch, best_accuracy, history = None, 0, -1.0, []
    if state:
        network.load_state_dict(state["state"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.load_state_dict(state["average"])
        weights, history = state["weights"], state["history"]
        best, best_epoch, best_accuracy = state["best"], state["best_epoch"], state["best_accuracy"]
        say(f"{stage.name}: goes on after epoch {len(history)}")

    images = {split: torch.from_numpy(data.network_images(split)).to(device) for split in ("train", "val")}
    labels = {split: torch.from_numpy(data.labels[split]).to(device) for split in ("train", "val")}
    trained = group.wrap(network)
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
        "recipe": asked | {"precision": precision(device)},
    }
    learner = Learner(trained, method, optimiser, average)

    while not _stops(stage, recipe, len(history), best_epoch):
        epoch = len(history) + 1
        begun = time.perf_counter()
        try:
            loss, accuracy = train_epoch(
                learner, images["train"], labels["train"], len(data.classes), stage, recipe, epoch, group
            )
            logits = evaluate(average.network if average else network, images["val"])
        except (torch.OutOfMemoryError, MemoryError) as e:
            smaller = max(1, recipe.batch_size // 2)
            raise StageFailed(
                f"{stage.name}: out of memory on {device} at batch size {recipe.batch_size}; "
                f"try --batch-size {smaller} --fresh"
            ) from e
        if not (np.isfinite(loss) and np.isfinite(logits).all()):
            kept = f"epoch {epoch - 1} is kept in {path}" if history else "no epoch was finished"
            raise StageFailed(
                f"{stage.name}: the loss is not finite in epoch {epoch}; {kept}; try another --seed"
            )
        val_accuracy = float((logits.argmax(1) == data.labels["val"]).mean())
        val_loss = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(data.labels["val"])))
        val_accuracy = group.agree(val_accuracy)
        if (
            val_accuracy > best_accuracy or stage.patience is None
        ):  # a stage without patience keeps its last weights
            kept = average.network if average else network
            best, best_epoch, best_accuracy = _on_cpu(kept.state_dict()), epoch, val_accuracy
        row = {
            "epoch": epoch,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "seconds": time.perf_counter() - begun,
            "learning_rate": optimiser.param_groups[0]["lr"],
        }
        history.append(row)
        if group.first:
            record.save_checkpoint(
                path,
                about
                | {
                    "finished": False,
                    "state": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average.state_dict() if average else None,
                    "best": best,
                    "best_epoch": best_epoch,
                    "best_accuracy": best_accuracy,
                    "history": history,
                },
            )
            record.write_history(directory / "history.csv", history)
            say(_progress_line(stage, recipe, history, best_epoch, best_accuracy))
        group.wait()

    finished = about | {"finished": True, "state": best, "best_epoch": best_epoch, "history": history}
    if group.first:
        record.write_history(directory / "history.csv", history)
        record.save_checkpoint(path, finished)
    group.wait()
    return finished


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


@dataclass(frozen=True)
class Learner:
    """A network while it is trained, with everything that an epoch changes."""

    network: nn.Module
    method: Method
    optimiser: torch.optim.Optimizer
    average: Average | None = None


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

    Nothing is read back from the device before the end of the epoch.
    """
    device, network, method = images.device, learner.network, learner.method
    generator = torch.Generator(device).manual_seed(_epoch_seed(recipe.seed, stage.name, epoch))
    order = torch.randperm(len(images), generator=generator, device=device)
    losses = torch.zeros((), device=device)
    hits = torch.zeros((), device=device)
    bf16 = precision(device) == "bf16"
    network.train()
    batches = cut(order, recipe.batch_size, at_least=2 * group.size)
    for step, chosen in enumerate(batches):
        for parameters in learner.optimiser.param_groups:
            parameters["lr"] = method.learning_rate((epoch - 1 + step / len(batches)) / recipe.max_epochs)
        x, targets = method.prepare(normalise(images[chosen]), labels[chosen], classes, generator)
        x, targets, y = group.share(x), group.share(targets), group.share(labels[chosen])
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(x)
        loss = method.loss(logits.float(), targets)
        learner.optimiser.zero_grad(set_to_none=True)
        (loss * (group.size / len(chosen))).backward()  # the group averages gradients over its processes
        learner.optimiser.step()
        if learner.average:
            learner.average.update(getattr(network, "module", network))
        losses += loss.detach()
        hits += (logits.argmax(1) == y).sum()
    total = group.sum(torch.stack([losses, hits])) / len(images)
    return float(total[0]), float(total[1])


def precision(device: torch.device) -> str:
    """What the forward pass of training computes in on `device`: "bf16" (autocast) where it is native, else "fp32"."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if platform.machine() in ("x86_64", "AMD64"):  # there it also says yes where bfloat16 is emulated
            native = native and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if native else "fp32"


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor | np.ndarray) -> np.ndarray:
    """Logits float32 (N, classes) of images uint8 (N, S, S), in evaluation mode and full float32."""
    network.eval()
    device = next(network.parameters()).device
    images = torch.as_tensor(images)
    parts = []
    with torch.backends.cudnn.flags(allow_tf32=False):
        for start in range(0, len(images), EVALUATION_BATCH):
            x = normalise(images[start : start + EVALUATION_BATCH].to(device))
            parts.append(network(x).cpu())
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


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}


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
