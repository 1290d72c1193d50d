"""The exponential moving average of a network's weights over the steps of its training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class ModelEma:
    """A copy of a network whose weights and running statistics are moving averages of the network's.

    Args:
        network: the network that is trained; the average starts from its weights.
        decay: per step, 0 to 1. The first steps use a smaller decay, so that the starting weights soon lose their
            influence.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Average in the network's weights after one of its steps."""
        self.steps += 1
        new_share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        averages, values = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_lerp_(list(averages), list(values), new_share)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the number of steps and the averaged state dict."""
        return {"steps": self.steps, "state": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.steps = state["steps"]
        self.network.load_state_dict(state["state"])
