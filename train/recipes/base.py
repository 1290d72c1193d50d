"""The interface of a recipe to the training loop."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Recipe(Protocol):
    """Optimizer, learning rate, augmentation, loss and weight averaging of a stage.

    A recipe draws random numbers only from the generator that it is given.
    """

    @property
    def ema_decay(self) -> float | None:
        """Decay per step of the exponential moving average of the weights; None for no average."""
        ...

    @property
    def thick_slices(self) -> float | None:
        """Probability that a slice is averaged with its neighbors before `prepare`; None or 0 for never."""
        ...

    @property
    def augmentation(self) -> str:
        """Whether and how slices are augmented, as the report shows it."""
        ...

    def for_view(self, view: str) -> Recipe:
        """Return this recipe for slices of a view (`axial`, `coronal` or `sagittal`)."""
        ...

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Create an optimizer for the network's parameters."""
        ...

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate after a share of all steps, 0 to 1."""
        ...

    def prepare(
        self, x: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            x: normalized slices, float32 (N, 1, S, S) in -1 to 1.
            labels: class indices, int64 (N,).
            classes: number of classes.
            generator: on x's device.

        Returns:
            The slices, float32 (N, 1, S, S), and their targets: class indices int64 (N,), or class
            shares float32 (N, classes) if slices were combined.
        """
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss summed over the batch.

        Args:
            logits: float32 (N, classes).
            targets: as `prepare` returns them.
        """
        ...

    def stored_settings(self) -> dict[str, float | str]:
        """Return the settings as checkpoints store them. A stage resumes only with equal settings."""
        ...
