"""Starting weights, drawn layer by layer from the seed and the layer's name."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn


def layer_generator(seed: int, layer: str) -> torch.Generator:
    """Return a generator for one layer. Equal seeds and names give equal weights in every network."""
    digest = hashlib.sha256(f"{seed}/{layer}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def draw_layer(layer: nn.Conv2d | nn.Linear, seed: int, name: str) -> None:
    """Draw a layer's weight and then its bias from PyTorch's default distributions (He et al. 2015, a = sqrt 5).

    Args:
        layer: its parameters are replaced in place.
        seed: the run's seed.
        name: the layer's name; equal names and shapes give equal weights.
    """
    generator = layer_generator(seed, name)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
