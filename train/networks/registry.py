"""The table of networks. Each maps images float32 (N, 1, S, S) to logits float32 (N, classes)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from train.errors import RunError
from train.networks.edge import ResidualNetwork
from train.networks.plain import PlainCNN
from train.networks.resnet import GrayResNet


def _small(classes: int, size: int, seed: int) -> nn.Module:
    return PlainCNN((6, 16), 3, (120, 84), classes=classes, size=size, seed=seed)


def _big(classes: int, size: int, seed: int) -> nn.Module:
    return PlainCNN((24, 64), 5, (480, 240), classes=classes, size=size, seed=seed)


def _big_batch_norm(classes: int, size: int, seed: int) -> nn.Module:
    return PlainCNN((24, 64), 5, (480, 240), classes=classes, size=size, seed=seed, batch_norm=True)


def _resnet(name: str) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, size, seed: GrayResNet(name, classes=classes, seed=seed)


def _edge(classes: int, size: int, seed: int) -> nn.Module:
    """308,203 parameters for 11 classes. At 28 px the maps of the three blocks have 14x14, 7x7 and 4x4 pixels."""
    return ResidualNetwork(32, 2, (32, 64, 128), classes=classes, seed=seed)


def _edge_orientation(classes: int, size: int, seed: int) -> nn.Module:
    """`edge` with a second head: 309,364 parameters for 11 classes."""
    return ResidualNetwork(32, 2, (32, 64, 128), classes=classes, seed=seed, orientation=True)


def _edge_wide(classes: int, size: int, seed: int) -> nn.Module:
    """Twice as many multiplications as `edge`."""
    return ResidualNetwork(48, 2, (48, 96, 160), classes=classes, seed=seed, orientation=True)


def _edge_deep(classes: int, size: int, seed: int) -> nn.Module:
    """At 28 px the maps of the four blocks have 14x14, 7x7, 4x4 and 2x2 pixels."""
    return ResidualNetwork(32, 2, (32, 64, 96, 128), classes=classes, seed=seed, orientation=True)


# One row per network: a function of the number of classes, the pixels per side and the seed.
NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "small": _small,
    "big": _big,
    "big_batch_norm": _big_batch_norm,
    "resnet50": _resnet("resnet50"),
    "resnet101": _resnet("resnet101"),
    "resnet152": _resnet("resnet152"),
    "edge": _edge,
    "edge_orientation": _edge_orientation,
    "edge_wide": _edge_wide,
    "edge_deep": _edge_deep,
}


def make_network(name: str, *, classes: int, size: int, seed: int) -> nn.Module:
    """Build a network with its starting weights, on the CPU.

    Args:
        name: a row of the table.
        classes: number of classes.
        size: pixels per side of the input.
        seed: of the starting weights.

    Raises:
        RunError: the table has no such row.
    """
    if name not in NETWORKS:
        raise RunError(f"network {name!r}: not in this version; choose from {', '.join(NETWORKS)}")
    return NETWORKS[name](classes, size, seed)


def count_parameters(network: nn.Module) -> int:
    """Count the trainable parameters, without running means and variances."""
    return sum(p.numel() for p in network.parameters())
