"""The edge network: a residual network of basic blocks (He et al. 2016) for small gray slices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.networks.init import draw_layer

# eight ways to reorient a slice, and a last one for images of no organ; see `edge_augment.reorient`
ORIENTATIONS = 9
# features between the layers of the second head
HIDDEN = 64


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalization, added to the input.

    If the shapes differ, a 1x1 convolution adapts the input.

    Args:
        channels: channels of the input.
        width: filters of both convolutions.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.fit: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.fit = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:  # (N, channels, H, W)
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.fit(x))  # (N, width, H / stride, W / stride)


class ResidualNetwork(nn.Module):
    """A 3x3 convolution (the stem), residual blocks, the mean over the map, and a linear head.

    Every block but the first halves the map. A second linear head may tell the orientation of the slice, one of
    ORIENTATIONS. As for torchvision's auxiliary heads, its output is there only in training, beside the classes' in one
    tensor. `for_export` has both outputs.

    Args:
        stem: filters of the stem.
        stem_stride: stride of the stem.
        widths: filters of each block.
        classes: number of classes.
        seed: of the starting weights.
        orientation: whether there is a second head.
    """

    def __init__(
        self,
        stem: int,
        stem_stride: int,
        widths: Sequence[int],
        *,
        classes: int,
        seed: int,
        orientation: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, stem_stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        blocks, channels = [], stem
        for i, width in enumerate(widths):
            blocks.append(Block(channels, width, 2 if i else 1))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)
        self.orientation_head = (
            nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, ORIENTATIONS))
            if orientation
            else None
        )
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                draw_layer(layer, seed, name)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, S, S)
        features = self.features(x)
        logits: Tensor = self.head(features)  # (N, classes)
        if self.orientation_head is not None and self.training:
            logits = torch.cat([logits, self.orientation_head(features)], 1)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Compute what the heads get, (N, channels), from slices (N, 1, S, S)."""
        maps: Tensor = self.blocks(F.relu(self.norm(self.stem(x))))  # (N, channels, h, w)
        return maps.mean((2, 3))

    def for_export(self) -> nn.Module:
        """Return the module that is exported: this network, or with a second head one that returns both outputs."""
        return self if self.orientation_head is None else _TwoOutputs(self)


class _TwoOutputs(nn.Module):
    """Returns logits (N, classes) and the probabilities of the orientations (N, ORIENTATIONS) of slices.

    Images of no organ are also recognized by classes that are all alike: outlier exposure trains for that. So the
    probability of the first orientation is multiplied by 1 minus the entropy of the classes, in units of its largest value.
    The others share the rest, as they do by the second head.
    """

    def __init__(self, network: ResidualNetwork) -> None:
        super().__init__()
        assert network.orientation_head is not None
        self.network, self.orientation_head = network, network.orientation_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, 1, S, S)
        features = self.network.features(x)
        logits = self.network.head(features)
        orientation = self.orientation_head(features)
        log = logits.log_softmax(1)
        certainty = 1 + (log.exp() * log).sum(1, keepdim=True) / math.log(logits.shape[1])
        upright = orientation.softmax(1)[:, :1] * certainty
        others = orientation[:, 1:].softmax(1) * (1 - upright)
        return logits, torch.cat([upright, others], 1)
