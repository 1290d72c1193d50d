"""The settings of one stage's training, resolved from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a stage that its row in `train.stages` does not fix.

    Args:
        seed: of the starting weights, the order of the slices and every augmentation.
        batch_size: slices per step.
        max_epochs: epochs at most.
        weights: starting weights of pretrained stages: `imagenet`, or `none` for random ones.
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
