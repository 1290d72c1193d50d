"""How a stage is trained: optimiser, learning rate, augmentation, loss, averaging of weights.

`Study` is the study's way, for every stage of its ladder; `train.edge.method.Edge` is the edge network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train import augment

LEARNING_RATE = 1e-3


class Method(Protocol):
    """What `train.fit` asks of a way to train. Whatever is drawn at random comes from the generator it is given."""

    averaged: float | None  # decay, a step, of the average of weights that is kept in place of the last ones

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer: ...

    def learning_rate(self, done: float) -> float:
        """The learning rate where the share `done` (0 to 1) of all steps has been made."""
        ...

    def prepare(
        self, x: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Normalised slices float32 (N, 1, S, S), changed at random, and their targets: labels int64 (N,), or shares
        float32 (N, C) where slices were mixed."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of float32 logits (N, C) for targets as `prepare` gives them."""
        ...

    def described(self) -> dict[str, float | str]:
        """What stands in the checkpoint: a stage is not continued by another method."""
        ...


@dataclass(frozen=True)
class Study:
    """Adam at a constant rate, cross-entropy; rotation, erasing and perspective where the stage is augmented."""

    augmented: bool
    averaged: float | None = None

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)

    def learning_rate(self, done: float) -> float:
        return LEARNING_RATE

    def prepare(
        self, x: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return (augment.augment(x, generator) if self.augmented else x), labels

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="sum")

    def described(self) -> dict[str, float | str]:
        return {"learning_rate": LEARNING_RATE}
