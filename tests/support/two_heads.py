"""A network that knows when not to answer: logits, and probabilities of the eight orientations and of no organ crop."""

import numpy as np
import torch
from torch import nn

CLASSES = [
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver"),
    *("lung-left", "lung-right", "pancreas", "spleen"),
]
SIDE = 28


class TwoHeads(nn.Module):
    """A convolution and two linear heads. As in training, `forward` returns the logits alone."""

    def __init__(self, *, seed=0, has_orientation=True):
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(8 * 49, len(CLASSES))
        self.orientation_head = nn.Linear(8 * 49, 9)
        self.has_orientation = has_orientation

    def forward(self, x):
        return self.head(self.features(x))

    def for_export(self):
        return Exported(self) if self.has_orientation else self


class Exported(nn.Module):
    """What is exported. `wrong` changes the orientation."""

    def __init__(self, network, wrong=lambda orientation: orientation):
        super().__init__()
        self.network, self.wrong = network, wrong

    def forward(self, x):
        features = self.network.features(x)
        orientation = torch.softmax(self.network.orientation_head(features), 1)
        return self.network.head(features), self.wrong(orientation)


def random_slices(count, seed=0):
    """uint8 (N, 28, 28): smooth noise, whose plausibilities differ."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 7, 7)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)
