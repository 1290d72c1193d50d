"""Knowledge distillation: a network learns the answers of trained ones to the slices of its own batch.

The teachers see the augmented slices that the student sees (Beyer et al., "Knowledge distillation: A good teacher is
patient and consistent", CVPR 2022). Their mean probability at a temperature is part of the targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train import fit
from train.checkpoint import Checkpoint
from train.devices import precision
from train.networks.edge import ORIENTATIONS
from train.recipes import EdgeRecipe

# Hinton et al., "Distilling the knowledge in a neural network", 2015
TEMPERATURE = 2.0
WEIGHT = 0.7


@dataclass(frozen=True)
class Distillation:
    """An edge recipe whose targets are also the answers of teachers. The orientations are learned from the labels.

    Args:
        recipe: for the augmentation, the optimizer and the loss of the labels.
        teachers: networks in evaluation mode, on the training device.
        source: tells these teachers from others; stored in checkpoints.
        weight: share of the teachers in the loss of the classes, 0 to 1.
    """

    recipe: EdgeRecipe
    teachers: tuple[nn.Module, ...]
    source: str
    weight: float = WEIGHT

    @classmethod
    def from_checkpoints(
        cls,
        recipe: EdgeRecipe,
        checkpoints: Sequence[Checkpoint],
        device: torch.device,
        weight: float = WEIGHT,
    ) -> Distillation:
        """Take the networks of finished checkpoints as teachers."""
        digest = hashlib.sha256()
        teachers = []
        for checkpoint in checkpoints:
            for value in checkpoint.state.values():
                digest.update(value.cpu().contiguous().numpy().tobytes())
            network = fit.network_of(checkpoint).to(device).eval().requires_grad_(False)
            teachers.append(network.to(memory_format=torch.channels_last))
        return cls(recipe, tuple(teachers), digest.hexdigest()[:16], weight)

    @property
    def ema_decay(self) -> float | None:
        """That of the recipe."""
        return self.recipe.ema_decay

    @property
    def thick_slices(self) -> float | None:
        """That of the recipe."""
        return self.recipe.thick_slices

    @property
    def augmentation(self) -> str:
        """That of the recipe."""
        return self.recipe.augmentation

    def for_view(self, view: str) -> Distillation:
        """Return the distillation with the recipe for a view."""
        return replace(self, recipe=self.recipe.for_view(view))

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Create the recipe's optimizer."""
        return self.recipe.optimizer(network)

    def learning_rate(self, progress: float) -> float:
        """Return the recipe's learning rate."""
        return self.recipe.learning_rate(progress)

    def prepare(
        self, x: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment as the recipe does, and append the teachers' mean probability to the targets, `classes` more columns."""
        x, targets = self.recipe.prepare(x, labels, classes, generator)
        autocast = fit.AUTOCAST[precision(x.device, "auto")]
        with torch.no_grad(), torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            logits = torch.stack([teacher(x) for teacher in self.teachers])
        soft = (logits.float() / TEMPERATURE).softmax(2).mean(0)  # (N, classes)
        return x, torch.cat([targets, soft], 1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the summed loss: of the labels, of the teachers, and of the orientations if there are any.

        The divergence from the teachers is multiplied by the square of the temperature, so that its gradients are as large
        as those of the labels. Slices without a class as target do not count in it.
        """
        columns = targets.shape[1] - (ORIENTATIONS if self.recipe.reoriented else 0)
        classes = columns // 2
        hard, soft = targets[:, :-classes], targets[:, -classes:]
        has_class = hard[:, :classes].sum(1, keepdim=True)  # 0 or 1
        student = (logits[:, :classes] / TEMPERATURE).log_softmax(1)
        divergence = (F.kl_div(student, soft, reduction="none") * has_class).sum()
        loss = (1 - self.weight) * self.recipe.class_loss(logits, hard)
        loss = loss + self.weight * TEMPERATURE**2 * divergence
        return loss + self.recipe.orientation_loss(logits, hard)

    def stored_settings(self) -> dict[str, float | str]:
        """Return the recipe's settings, the weight and the teachers."""
        return self.recipe.stored_settings() | {
            "teachers": self.source,
            "teachers_weight": self.weight,
            "teachers_temperature": TEMPERATURE,
        }
