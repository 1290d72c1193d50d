"""torchvision's ResNets for one gray channel, and their convolution for small maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.errors import RunError
from train.networks.init import draw_layer, layer_generator


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is computed as one matrix product for a 1x1 kernel, and on maps of 1x1 or 2x2 pixels.

    At 28 px the maps of a ResNet shrink to 2x2 pixels and then to one. There most taps of a padded 3x3 kernel are over
    padding, and a library's convolution spends its time on zeros. In channels-last memory the product needs no copy of
    its input. The product for 2x2 maps takes 60 % more operations, so a GPU runs the convolution instead.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> SmallMapConv2d:
        """Create the same convolution with the same weight tensor.

        Args:
            conv: a convolution with a square kernel and without bias.
        """
        (kernel, _), (stride, _) = conv.kernel_size, conv.stride
        copy = cls(
            conv.in_channels,
            conv.out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            bias=False,
            device="meta",
        )
        copy.weight = conv.weight
        return copy

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        if x.is_cuda:
            return super().forward(x)
        stride, height, width = self.stride[0], *x.shape[2:]
        if self.kernel_size == (1, 1):
            pixels = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1)  # (N, H', W', C)
            return F.linear(pixels, self.weight.flatten(1)).permute(0, 3, 1, 2)
        if max(height, width) > 2:
            return super().forward(x)
        # output pixel (i, j) reads the whole map through the taps that are not over padding
        taps = self.weight.to(x.dtype).permute(0, 2, 3, 1)  # (O, 3, 3, C)
        rows = [slice(1 - i, 1 - i + height) for i in range(0, height, stride)]
        columns = [slice(1 - j, 1 - j + width) for j in range(0, width, stride)]
        # (H' W' O, H W C)
        dense = torch.cat([taps[:, i, j].flatten(1) for i in rows for j in columns])
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), dense)
        return y.view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)


class GrayResNet(nn.Module):
    """torchvision's ResNet on gray slices, which it takes as color slices of three equal channels.

    A convolution of three equal channels equals one with the kernel summed over its input channels. The sum is computed
    in the forward pass, so the parameters and their gradients remain those of the three-channel network. The weights
    are stored channels-last, and the convolutions of the bottlenecks are SmallMapConv2d.

    Args:
        name: torchvision's name, such as `resnet50`.
        classes: number of classes.
        seed: of the starting weights.
    """

    def __init__(self, name: str, *, classes: int, seed: int) -> None:
        super().__init__()
        import torchvision

        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(layer_generator(seed, name).initial_seed())
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
        logits: Tensor = net.fc(net.avgpool(x).flatten(1))  # (N, classes)
        return logits

    def load_imagenet(self, weights: dict[str, Tensor], source: str) -> None:
        """Load all layers but the head from ImageNet weights.

        Args:
            weights: a state dict of torchvision's network of this name, float32.
            source: where the weights are from, for error messages.

        Raises:
            RunError: a tensor is missing or has another shape.
        """
        current = self.resnet.state_dict()
        expected = {
            key
            for key in current
            if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
        }
        missing = sorted(expected - weights.keys())
        if missing:
            raise RunError(
                f"{source}: not the weights of {self.name}, without {missing[0]} and {len(missing) - 1} other tensors;"
                f" use another file"
            )
        for key in sorted(expected):
            if weights[key].shape != current[key].shape:
                shape, needed = tuple(weights[key].shape), tuple(current[key].shape)
                raise RunError(
                    f"{source}: {key} has shape {shape}, the network needs {needed}; use another file"
                )
        self.resnet.load_state_dict({key: weights[key] for key in expected}, strict=False)

    def for_export(self) -> nn.Module:
        """Return torchvision's network with these weights and the channel sum in a one-channel first convolution."""
        import torchvision

        classes = self.resnet.fc.out_features
        plain = torchvision.models.get_model(self.name, weights=None, num_classes=classes)
        plain.load_state_dict(self.resnet.state_dict())
        stem = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        stem.weight = nn.Parameter(plain.conv1.weight.detach().sum(1, keepdim=True))
        plain.conv1 = stem
        exported: nn.Module = plain
        return exported
