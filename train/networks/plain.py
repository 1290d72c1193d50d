"""The plain convolutional networks of the reference study's first stages."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from train.networks.init import draw_layer


class PlainCNN(nn.Module):
    """Two convolutions with 2x2 max pooling and three linear layers, with ReLU and optional batch normalization.

    The first linear layer has (size // 4)**2 inputs per filter.

    Args:
        channels: filters of the two convolutions.
        kernel: pixels per side of both kernels.
        hidden: units of the two hidden linear layers.
        classes: number of classes.
        size: pixels per side of the input.
        seed: of the starting weights.
        batch_norm: whether every layer but the last is followed by batch normalization.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        hidden: tuple[int, int],
        *,
        classes: int,
        size: int,
        seed: int,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        first, second = channels
        bias = not batch_norm
        self.conv1 = nn.Conv2d(1, first, kernel, padding=kernel // 2, bias=bias)
        self.conv2 = nn.Conv2d(first, second, kernel, padding=kernel // 2, bias=bias)
        self.linear1 = nn.Linear(second * (size // 4) ** 2, hidden[0], bias=bias)
        self.linear2 = nn.Linear(hidden[0], hidden[1], bias=bias)
        self.head = nn.Linear(hidden[1], classes)
        self.norm1 = nn.BatchNorm2d(first) if batch_norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(second) if batch_norm else nn.Identity()
        self.norm3 = nn.BatchNorm1d(hidden[0]) if batch_norm else nn.Identity()
        self.norm4 = nn.BatchNorm1d(hidden[1]) if batch_norm else nn.Identity()
        for name in ("conv1", "conv2", "linear1", "linear2", "head"):
            draw_layer(getattr(self, name), seed, name)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, S, S)
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)  # (N, first, S/2, S/2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)  # (N, second, S/4, S/4)
        x = F.relu(self.norm3(self.linear1(x.flatten(1))))
        x = F.relu(self.norm4(self.linear2(x)))
        logits: Tensor = self.head(x)  # (N, classes)
        return logits

    def for_export(self) -> nn.Module:
        """Return the module to export: this one."""
        return self
