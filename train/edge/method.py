"""The edge network's recipe: every ingredient a field, so that one can be taken away (train.edge.ablate)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.edge import augment


@dataclass(frozen=True)
class Edge:
    """AdamW along one cycle, label smoothing, shifts, mirroring, slices cut into each other, other windows, erasing, an
    average of weights."""

    peak: float = 3e-3  # learning rate
    decay: float = 0.05  # of weights, not of biases and normalisation
    smoothing: float = 0.1  # of labels
    shift: int = 2  # pixels
    mirror: float = 0.25  # probability
    erase: float = 0.5  # probability
    cut: float = 0.5  # probability
    mix: float = 0.0  # probability
    affine: float = 0.0  # 1: by up to 10 degrees and a tenth
    intensity: float = 0.3  # of another window and gamma, see augment.intensity
    noise: float = 0.0
    averaged: float | None = 0.998

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        weights = [p for p in network.parameters() if p.ndim > 1]
        rest = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": self.decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.peak, fused=True)

    def learning_rate(self, done: float) -> float:
        """Up in a straight line over a fifth of the steps, then down along half a cosine."""
        warm = 0.2
        share = done / warm if done < warm else 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
        return self.peak * max(share, 1e-3)

    def prepare(
        self, x: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Moved, cut into each other, seen through another window, a part erased."""
        if self.mirror:
            x = augment.mirror(x, self.mirror, generator)
        if self.shift:
            x = augment.shift(x, self.shift, generator)
        if self.affine:
            x = augment.affine(x, 10 * self.affine, 0.1 * self.affine, generator)
        targets = F.one_hot(labels, classes).float()
        if self.cut:
            x, targets = augment.cut(x, targets, self.cut, generator)
        if self.mix:
            x, targets = augment.mix(x, targets, self.mix, generator)
        if self.intensity:
            x = augment.intensity(x, self.intensity, generator)
        if self.noise:
            x = augment.noise(x, self.noise, generator)
        if self.erase:
            x = augment.erase(x, self.erase, 0.25, generator)
        return x, targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="sum")

    def described(self) -> dict[str, float | str]:
        return {key: value for key, value in asdict(self).items() if value is not None}
