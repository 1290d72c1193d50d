"""The exponential average of a network's weights over the steps of its training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Average:
    """A network whose weights, and running statistics, are the exponential average of another's over its steps."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """After a step of `network`; over the first steps the average is a shorter one."""
        self.steps += 1
        new = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        own, other = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_lerp_(list(own), list(other), new)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "state": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.network.load_state_dict(state["state"])
