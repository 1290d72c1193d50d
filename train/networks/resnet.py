"""torchvision's ResNets for one gray channel, and their convolution for small maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.errors import RunError
from train.networks.init import draw_layer, layer_generator


class SmallMapConv2d(nn.Conv2d):
    """A convolution as one matrix product: a 1x1 kernel anywhere, a padded 3x3 kernel on a map of 1x1 or 2x2 pixels.

    At 28 px the maps of a ResNet shrink to 2x2 pixels and one. There most taps of a 3x3 kernel only meet padding, and
    a library's convolution spends its time on zeros. In channels-last memory neither product copies its input. The
    products for 2x2 maps take 60 % more operations, so a GPU runs the convolution itself.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> SmallMapConv2d:
        """The same convolution, sharing the weight of `conv`, which has a square kernel and no bias."""
        (kernel, _), (stride, _) = conv.kernel_size, conv.stride
        own = cls(
            conv.in_channels,
            conv.out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
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
        # output pixel (i, j) reads the whole map through the taps that are not over padding
        taps = self.weight.to(x.dtype).permute(0, 2, 3, 1)  # (O, 3, 3, C)
        rows = [slice(1 - i, 1 - i + height) for i in range(0, height, stride)]
        columns = [slice(1 - j, 1 - j + width) for j in range(0, width, stride)]
        dense = torch.cat(
            [taps[:, i, j].flatten(1) for i in rows for j in columns]
        )  # (H' W' O, H W C)
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), dense)
        return y.view(len(x), len(rows), len(columns), -1).permute(0, 3, 1, 2)


class GrayResNet(nn.Module):
    """torchvision's ResNet on gray slices: the gray channel stands for all three, with a head for `classes` classes.

    Repeating the input three times and convolving equals convolving once with the kernel summed over its input
    channels; the sum is taken in the forward pass, so the parameters and their gradients stay those of the
    three-channel network. The weights are stored channels-last, and the bottlenecks' convolutions are SmallMapConv2d.
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
        own = self.resnet.state_dict()
        expected = {
            key
            for key in own
            if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
        }
        missing = sorted(expected - weights.keys())
        if missing:
            raise RunError(
                f"{source} lacks {missing[0]} and {len(missing) - 1} other tensors: not these weights"
            )
        for key in sorted(expected):
            if weights[key].shape != own[key].shape:
                shape, needed = tuple(weights[key].shape), tuple(own[key].shape)
                raise RunError(f"{source}: {key} has shape {shape}, the network needs {needed}")
        self.resnet.load_state_dict({key: weights[key] for key in expected}, strict=False)

    def for_export(self) -> nn.Module:
        """torchvision's network with these weights, the channel sum folded into a one-channel stem."""
        import torchvision

        classes = self.resnet.fc.out_features
        plain = torchvision.models.get_model(self.name, weights=None, num_classes=classes)
        plain.load_state_dict(self.resnet.state_dict())
        stem = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        stem.weight = nn.Parameter(plain.conv1.weight.detach().sum(1, keepdim=True))
        plain.conv1 = stem
        exported: nn.Module = plain
        return exported
