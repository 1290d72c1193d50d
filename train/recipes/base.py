"""What the training loop asks of a recipe."""

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
        """Decay per step of the exponential moving average of the weights; None keeps no average."""
        ...

    @property
    def augmentation(self) -> str:
        """Whether and how slices are augmented, as the report shows it."""
        ...

    def for_view(self, view: str) -> Recipe:
        """This recipe for slices of a view (`axial`, `coronal` or `sagittal`)."""
        ...

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer for the network's parameters."""
        ...

    def learning_rate(self, done: float) -> float:
        """The learning rate after the share `done` of all steps, 0 to 1."""
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
        """The loss summed over the batch, for logits float32 (N, classes) and targets as `prepare` returns them."""
        ...

    def described(self) -> dict[str, float | str]:
        """The settings as checkpoints store them; a stage is not continued with other settings."""
        ...
