"""The networks of the ladder. Each maps images float32 (N, 1, S, S) to logits float32 (N, classes)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.download import download
from train.edge import network as edge
from train.record import RunError


def _generator(seed: int, layer: str) -> torch.Generator:
    """A generator of its own for each layer, so that two networks that share a layer start it equal."""
    digest = hashlib.sha256(f"{seed}/{layer}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def draw_layer(layer: nn.Conv2d | nn.Linear, seed: int, name: str) -> None:
    """Draw a layer's weight, then its bias, from PyTorch's default distributions (He et al. 2015, a = sqrt 5)."""
    generator = _generator(seed, name)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


class PlainCNN(nn.Module):
    """Two convolutions with 2x2 max pooling, three linear layers, ReLU between; batch normalisation on request.

    The first linear layer grows with the feature map, (size // 4) squared.
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
        return self.head(x)  # (N, classes)

    def for_export(self) -> nn.Module:
        """The module to export: this one."""
        return self


class SmallMapConv2d(nn.Conv2d):
    """A convolution as one matrix product: a 1x1 kernel anywhere, a padded 3x3 kernel on a map of 1x1 or 2x2 pixels.

    At 28 px a ResNet's maps shrink to 2x2 pixels and one, where most taps of a 3x3 kernel meet only padding and a
    library's convolution spends its time on zeros. In channels-last memory neither product copies its input.
    Only for the CPU: the products for 2x2 maps take 60 % more operations, so a GPU runs the convolution itself.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> SmallMapConv2d:
        """The same convolution, sharing `conv`'s weight."""
        own = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            bias=False,
            device="meta",
        )
        own.weight = conv.weight
        return own

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        if x.is_cuda:
            return super().forward(x)
        stride, height, width = self.stride[0], *x.shape[2:]
        if self.kernel_size == (1, 1):
            pixels = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1)  # (N, H', W', C)
            return F.linear(pixels, self.weight.flatten(1)).permute(0, 3, 1, 2)
        if max(height, width) > 2:
            return super().forward(x)
        # output pixel (i, j) sees the whole map through the taps that are not over padding
        taps = self.weight.to(x.dtype).permute(0, 2, 3, 1)  # (O, 3, 3, C)
        rows = [slice(1 - i, 1 - i + height) for i in range(0, height, stride)]
        columns = [slice(1 - j, 1 - j + width) for j in range(0, width, stride)]
        dense = torch.cat([taps[:, i, j].flatten(1) for i in rows for j in columns])  # (H' W' O, H W C)
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), dense)
        return y.view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)


class GrayResNet(nn.Module):
    """torchvision's ResNet on gray slices: the gray channel stands for all three, the head has a row a class.

    Repeating the input three times and convolving equals convolving once with the kernel summed over its input
    channels; the sum is taken in the forward pass, so the parameters and their gradients stay those of the
    three-channel network. The weights lie channels-last, and the bottlenecks' convolutions are SmallMapConv2d.
    """

    def __init__(self, name: str, *, classes: int, seed: int) -> None:
        super().__init__()
        import torchvision

        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_generator(seed, name).initial_seed())
            self.resnet = torchvision.models.get_model(name, weights=None)
        self.resnet.fc = nn.Linear(self.resnet.fc.in_features, classes)
        draw_layer(self.resnet.fc, seed, f"{name}.fc")
        self.resnet.to(memory_format=torch.channels_last)
        for block in self.resnet.modules():
            for child, layer in block.named_children():
                if isinstance(layer, nn.Conv2d) and block is not self.resnet:
                    setattr(block, child, SmallMapConv2d.like(layer))

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, S, S)
        net = self.resnet
        stem = net.conv1.weight.sum(1, keepdim=True)  # (64, 1, 7, 7)
        x = F.conv2d(x, stem, stride=2, padding=3)
        x = net.maxpool(net.relu(net.bn1(x)))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return net.fc(net.avgpool(x).flatten(1))  # (N, classes)

    def load_imagenet(self, weights: dict[str, Tensor], source: str) -> None:
        """Take all layers but the head from an ImageNet state dict; RunError where a shape differs."""
        own = self.resnet.state_dict()
        expected = {
            key for key in own if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
        }
        missing = sorted(expected - weights.keys())
        if missing:
            raise RunError(
                f"{source} lacks {missing[0]} and {len(missing) - 1} other tensors: not these weights"
            )
        for key in sorted(expected):
            if weights[key].shape != own[key].shape:
                found, needed = tuple(weights[key].shape), tuple(own[key].shape)
                raise RunError(f"{source}: {key} has shape {found}, the network needs {needed}")
        self.resnet.load_state_dict({key: weights[key] for key in expected}, strict=False)

    def for_export(self) -> nn.Module:
        """torchvision's network with these weights, the channel sum folded into a one-channel stem."""
        import torchvision

        plain = torchvision.models.get_model(self.name, weights=None, num_classes=self.resnet.fc.out_features)
        plain.load_state_dict(self.resnet.state_dict())
        stem = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        stem.weight = nn.Parameter(plain.conv1.weight.detach().sum(1, keepdim=True))
        plain.conv1 = stem
        return plain


def _small(classes: int, size: int, seed: int) -> nn.Module:
    return PlainCNN((6, 16), 3, (120, 84), classes=classes, size=size, seed=seed)


def _big(classes: int, size: int, seed: int) -> nn.Module:
    return PlainCNN((24, 64), 5, (480, 240), classes=classes, size=size, seed=seed)


def _big_batch_norm(classes: int, size: int, seed: int) -> nn.Module:
    return PlainCNN((24, 64), 5, (480, 240), classes=classes, size=size, seed=seed, batch_norm=True)


def _resnet(name: str) -> Callable[[int, int, int], nn.Module]:
    return lambda classes, size, seed: GrayResNet(name, classes=classes, seed=seed)


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "small": _small,
    "big": _big,
    "big_batch_norm": _big_batch_norm,
    "resnet50": _resnet("resnet50"),
    "resnet101": _resnet("resnet101"),
    "resnet152": _resnet("resnet152"),
    "edge": edge.edge,
}


def make_network(name: str, *, classes: int, size: int, seed: int) -> nn.Module:
    """A network of the table with its starting weights, on the CPU. RunError names the rows for an unknown one."""
    if name not in NETWORKS:
        raise RunError(f"unknown network {name!r}; choose from {', '.join(NETWORKS)}")
    return NETWORKS[name](classes, size, seed)


def count_parameters(network: nn.Module) -> int:
    """Trainable parameters; running means and variances are not among them."""
    return sum(p.numel() for p in network.parameters())


def find_weights(name: str, directory: Path | None) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights of a ResNet and where they are from: a file of `directory`, else torchvision's download.

    `directory` holds `resnet50.pth` or torchvision's own name with its hash (`resnet50-0676ba61.pth`).
    RunError says the two ways to get them where there are none.
    """
    import torchvision

    entry = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    own_name = entry.url.rsplit("/", 1)[1]
    if directory is None:
        return _download_weights(name, entry.url, own_name), "torchvision IMAGENET1K_V1"
    for candidate in (directory / own_name, directory / f"{name}.pth"):
        if candidate.is_file():
            return _read_weights(candidate), f"{candidate.name} (sha256 {_sha256(candidate)[:16]})"
    raise RunError(
        f"no {name}.pth or {own_name} in {directory}; fetch {entry.url} into it, or use --weights none"
    )


def _download_weights(name: str, url: str, own_name: str) -> dict[str, Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / own_name
    begin = own_name.removesuffix(".pth").rpartition("-")[2]  # of the file's SHA-256
    try:
        if not path.exists():
            download(url, path, begin, algorithm="sha256")
    except RunError as e:
        raise RunError(
            f"no ImageNet weights for {name}: {e}; or fetch {own_name} and pass its directory as --weights-dir, or train"
            " from scratch with --weights none"
        ) from e
    if not (found := _sha256(path)).startswith(begin):
        raise RunError(f"{path} is not torchvision's: its SHA-256 begins with {found[:8]}; remove it")
    return _read_weights(path)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds for a damaged file
        raise RunError(f"{path} is not a readable PyTorch weights file ({type(e).__name__})") from e
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise RunError(f"{path} is not a state dict of tensors")
    return weights


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
