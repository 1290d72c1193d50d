"""A network during training: with its optimizer, the moving average of its weights and the scaler of its loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from train.checkpoint import ResumeState
from train.ema import ModelEma
from train.recipes import Recipe


@dataclass
class Learner:
    """A network with everything that a training step changes.

    Args:
        network: on its device.
        recipe: how it is trained.
        optimizer: of the network's parameters.
        ema: the moving average of the weights, if the recipe keeps one.
        scaler: scales the loss for fp16; a disabled one changes nothing.
    """

    network: nn.Module
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    ema: ModelEma | None = None
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler(enabled=False)
    )

    @classmethod
    def of(cls, network: nn.Module, recipe: Recipe, *, precision: str = "fp32") -> Learner:
        """Create a learner for a network that is already on its device."""
        device = next(network.parameters()).device
        return cls(
            network,
            recipe,
            recipe.optimizer(network),
            ModelEma(network, recipe.ema_decay) if recipe.ema_decay else None,
            torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        )

    @property
    def validated(self) -> nn.Module:
        """The network that is validated and saved: the average of the weights if there is one."""
        return self.ema.network if self.ema else self.network

    def resume_state(
        self, best: dict[str, torch.Tensor] | None, best_accuracy: float
    ) -> ResumeState:
        """Return what a checkpoint stores besides the network's weights.

        Args:
            best: the best weights so far, on the CPU.
            best_accuracy: their accuracy on validation, 0 to 1.
        """
        return ResumeState(
            self.optimizer.state_dict(),
            self.ema.state_dict() if self.ema else None,
            self.scaler.state_dict(),
            best,
            best_accuracy,
        )

    def restore(self, weights: dict[str, Any], resume: ResumeState) -> None:
        """Load a checkpoint's weights and what `resume_state` returned."""
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(resume.optimizer)
        if self.ema and resume.ema is not None:
            self.ema.load_state_dict(resume.ema)
        if resume.scaler:
            self.scaler.load_state_dict(resume.scaler)
