"""The settings of one stage's training, resolved from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainConfig:
    """What a stage is trained with, besides its row in `train.stages`.

    Args:
        seed: of the starting weights, the order of the slices and every augmentation.
        batch_size: slices per step.
        max_epochs: epochs at most.
        weights: what pretrained stages start from: `imagenet`, or `none` for random weights.
        weights_dir: where the ImageNet weights are; None downloads them.
        smoke: whether this is a smoke run; checkpoints record it.
        amp: precision of the forward pass: `auto`, `bf16`, `fp16` or `off`.
    """

    seed: int
    batch_size: int
    max_epochs: int
    weights: str
    weights_dir: Path | None = None
    smoke: bool = False
    amp: str = "auto"
