"""The recipe of the reference study, for every stage of its ladder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train import augment

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class ReferenceRecipe:
    """Adam at a constant learning rate and cross-entropy; rotation, erasing and perspective if `augmented`."""

    augmented: bool = False
    ema_decay: float | None = None
    thick_slices: float | None = None

    @property
    def augmentation(self) -> str:
        """Whether slices are augmented, as the report shows it."""
        return "yes" if self.augmented else "no"

    def for_view(self, view: str) -> ReferenceRecipe:
        """Return this recipe; it is the same for every view."""
        return self

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Create Adam with PyTorch's default betas."""
        return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate, which is constant."""
        return LEARNING_RATE

    def prepare(
        self, x: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment the slices if `augmented`; see `Recipe.prepare`."""
        return (augment.augment(x, generator) if self.augmented else x), labels

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the summed cross-entropy."""
        return F.cross_entropy(logits, targets, reduction="sum")

    def stored_settings(self) -> dict[str, float | str]:
        """Return the settings as checkpoints store them."""
        return {"learning_rate": LEARNING_RATE}
