"""How the training's checks reach train/: imports that are allowed to be incomplete, recipes, learners, data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from proof import slices
from proof.harness import Context, Settings, Skip
from proof.machine import missing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from train.config import TrainConfig
    from train.data import Data
    from train.learner import Learner

# What `python -m train.all` imports from its first epoch to its report.
COMMAND_PACKAGES = (
    "torch",
    "torchvision",
    "medmnist",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
)


def needs_training(settings: Settings) -> None:
    """Make train/ importable; raise Skip if PyTorch is missing or sees no GPU although one is asked for."""
    if absent := missing(["torch", "torchvision"]):
        raise Skip(f"needs {' and '.join(absent)}: pip install -e '.[train,gpu]'")
    import torch

    if settings.cuda and not torch.cuda.is_available():
        raise Skip(f"needs a PyTorch that sees the GPU; torch {torch.__version__} sees none")


def needs_command(settings: Settings) -> None:
    """Raise Skip unless `python -m train.all` can run here, with the data set's file."""
    if absent := missing(COMMAND_PACKAGES):
        raise Skip(f"python -m train.all needs {', '.join(absent)}: not installed")
    if settings.data_dir is None or not (settings.data_dir / slices.FILE).is_file():
        raise Skip(f"python -m train.all needs {slices.FILE}: give its directory with --data-dir")
    needs_training(settings)


def device_of(settings: Settings) -> torch.device:
    """The device with its number, which `torch.cuda.set_device` demands; the current one from now on."""
    import torch

    device = torch.device(settings.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def config(max_epochs: int, *, batch_size: int = 128, amp: str = "auto") -> TrainConfig:
    """The settings of a training from scratch with seed 1."""
    from train.config import TrainConfig

    return TrainConfig(
        seed=1, batch_size=batch_size, max_epochs=max_epochs, weights="none", amp=amp
    )


def make_learner(stage: str, settings: Settings, amp: str = "auto") -> Learner:
    """A stage's network on the device, not yet trained."""
    import torch

    from train.devices import precision
    from train.learner import Learner
    from train.networks import make_network
    from train.stages import STAGES

    device = device_of(settings)
    network: Any = make_network(
        str(STAGES[stage].network), classes=len(slices.CLASSES), size=28, seed=1
    )
    network.to(device, memory_format=torch.channels_last)
    return Learner.of(network, STAGES[stage].recipe_for("axial"), precision=precision(device, amp))


def on_device(ctx: Context, count: int | None) -> dict[str, tuple[Tensor, Tensor]]:
    """split -> images uint8 (N, 28, 28) and labels int64 (N,) on the device, `count` of them per split."""
    import torch

    device = device_of(ctx.settings)
    data = slices.load(ctx.settings.data_dir)
    ctx.figures["data"] = data.source
    return {
        split: (
            torch.from_numpy(data.images[split][:count]).to(device),
            torch.from_numpy(data.labels[split][:count]).to(device),
        )
        for split in ("train", "val")
    }


def as_data(found: slices.Slices) -> Data:
    """The slices as train/ holds a data set."""
    from train.data import Data

    counts = {split: [0] * len(slices.CLASSES) for split in found.labels}
    for split, labels in found.labels.items():
        for label in labels:
            counts[split][label] += 1
    return Data(
        flag="organamnist",
        view="axial",
        size=28,
        md5=found.digest,
        classes=list(slices.CLASSES),
        images=dict(found.images),
        labels=dict(found.labels),
        counts=counts,
    )


def train_epoch(
    learner: Learner, stage: str, data: tuple[Tensor, Tensor], settings: TrainConfig, epoch: int
) -> tuple[float, float, float]:
    """One epoch; its mean loss, its accuracy and its seconds."""
    from train import fit
    from train.stages import STAGES

    images, labels = data
    _wait(images)
    begun = time.perf_counter()
    loss, accuracy = fit.train_epoch(
        learner, images, labels, len(slices.CLASSES), STAGES[stage], settings, epoch
    )
    _wait(images)
    return loss, accuracy, time.perf_counter() - begun


def _wait(tensor: Tensor) -> None:
    import torch

    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def milliseconds(work: Callable[[], Any], settings: Settings, turns: int, warm: int = 3) -> float:
    """The mean time of `work`, the device waited for at the end."""
    import torch

    for _ in range(warm):
        work()
    marker = torch.zeros((), device=settings.device)
    _wait(marker)
    begun = time.perf_counter()
    for _ in range(turns):
        work()
    _wait(marker)
    return (time.perf_counter() - begun) / turns * 1e3


@contextlib.contextmanager
def peak_memory(settings: Settings) -> Iterator[dict[str, int | None]]:
    """`mib`: the most that PyTorch had allocated on the GPU within the block; None on the CPU."""
    import torch

    found: dict[str, int | None] = {"mib": None}
    if settings.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if settings.cuda:
        found["mib"] = torch.cuda.max_memory_allocated() >> 20
