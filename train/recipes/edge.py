"""The recipe of the edge network. Each ingredient is a field, so that an ablation can switch it off."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.networks.edge import ORIENTATIONS
from train.recipes import edge_augment as augment

# Views whose stored slices are known to have columns that run from front to back.
FLIPPED_VIEWS = ("axial",)
# Names of fields in checkpoints, scores and manifests. They must not change, because earlier runs have stored them.
STORED_NAMES = {
    "flip_front_back": "mirror",
    "cutmix": "cut",
    "mixup": "mix",
    "ema_decay": "averaged",
}


@dataclass(frozen=True)
class EdgeRecipe:
    """AdamW over one cycle, label smoothing, an average of the weights, and augmentation.

    The augmentation is shifts, front-back flips, CutMix, intensity changes and erasing. A value of 0 switches an
    ingredient off; rotation and scale, mixup and noise are off by default.
    """

    # highest learning rate
    peak: float = 3e-3
    # weight decay; biases and normalization have none
    decay: float = 0.05
    # label smoothing
    smoothing: float = 0.1
    # pixels
    shift: int = 2
    # probabilities
    flip_front_back: float = 0.25
    erase: float = 0.5
    cutmix: float = 0.5
    mixup: float = 0.0
    # strength of rotation and scale; 1 is up to 10 degrees and a tenth
    affine: float = 0.0
    # strength of changes of window and gamma, see edge_augment.intensity
    intensity: float = 0.3
    # standard deviation, as a share of the gray range
    noise: float = 0.0
    # The fields that may be None were added later. None switches an ingredient off, and is not stored, so that checkpoints
    # of earlier recipes resume.
    # strength of scaling each axis, see edge_augment.zoom
    zoom: float | None = None
    # smallest factor of the contrast of soft tissue, see edge_augment.squeeze_contrast
    contrast: float | None = None
    # whether half of the slices are blurred; 1 or None
    blur: float | None = None
    # probability of bright and dark lines, see edge_augment.streaks
    streaks: float | None = None
    # probability of an average with the neighbors of the same scan, see edge_augment.thick_slices
    thick_slices: float | None = None
    # share of slices that are replaced by images of no organ, whose target is every class alike
    negatives: float | None = None
    # share of slices that are reoriented, for networks with a second output, see edge_augment.reorient
    reoriented: float | None = None
    # weight of that output's loss
    orientation_weight: float | None = None
    ema_decay: float | None = 0.998

    @property
    def augmentation(self) -> str:
        """How slices are augmented, as the report shows it."""
        return "by a recipe of its own"

    def for_view(self, view: str) -> EdgeRecipe:
        """Return this recipe, without front-back flips for views whose stored orientation is not known."""
        return self if view in FLIPPED_VIEWS else replace(self, flip_front_back=0.0)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Create AdamW, with weight decay only for weights of two or more dimensions."""
        weights = [p for p in network.parameters() if p.ndim > 1]
        rest = [p for p in network.parameters() if p.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": self.decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.peak, fused=True)

    def learning_rate(self, progress: float) -> float:
        """Warm up linearly over a fifth of the steps, then decay as half a cosine."""
        warmup = 0.2
        if progress < warmup:
            share = progress / warmup
        else:
            share = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
        return self.peak * max(share, 1e-3)

    def prepare(
        self, x: Tensor, labels: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Flip, shift, combine, change the intensities and erase; see `Recipe.prepare`."""
        if self.flip_front_back and not self.reoriented:
            x = augment.flip_front_back(x, self.flip_front_back, generator)
        if self.shift:
            x = augment.shift(x, self.shift, generator)
        if self.affine:
            x = augment.affine(x, 10 * self.affine, 0.1 * self.affine, generator)
        if self.zoom:
            x = augment.zoom(x, self.zoom, generator)
        targets = F.one_hot(labels, classes).float()  # (N, classes)
        if self.cutmix:
            x, targets = augment.cutmix(x, targets, self.cutmix, generator)
        if self.mixup:
            x, targets = augment.mixup(x, targets, self.mixup, generator)
        if self.reoriented:
            x, targets = augment.reorient(
                x, targets, self.reoriented, self.flip_front_back, generator
            )  # targets (N, classes + 9)
        if self.contrast:
            x = augment.squeeze_contrast(x, self.contrast, generator)
        if self.streaks:
            x = augment.streaks(x, self.streaks, generator)
        if self.intensity:
            x = augment.intensity(x, self.intensity, generator)
        if self.blur:
            x = augment.blur(x, generator)
        if self.noise:
            x = augment.noise(x, self.noise, generator)
        if self.erase:
            x = augment.erase(x, self.erase, 0.25, generator)
        if self.negatives:
            x, targets = augment.negatives(x, targets, classes, self.negatives, generator)
        return x, targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the summed cross-entropy with label smoothing, and that of the orientations if there are any."""
        loss = self.class_loss(logits, targets)
        return loss + self.orientation_loss(logits, targets) if self.reoriented else loss

    def class_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the summed cross-entropy of the classes, with label smoothing; see `Recipe.loss`."""
        if not self.reoriented:
            # a second output is not trained
            logits = logits[:, : targets.shape[1]]
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="sum")
        classes = logits.shape[1] - ORIENTATIONS
        # slices without a class as target do not count
        total = targets[:, :classes].sum(1, keepdim=True)
        smoothed = (1 - self.smoothing) * targets[:, :classes] + self.smoothing * total / classes
        return -(smoothed * logits[:, :classes].log_softmax(1)).sum()

    def orientation_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the weighted, summed cross-entropy of the orientations: 0 if slices are not reoriented."""
        if not self.reoriented:
            return logits.new_zeros(())
        classes = logits.shape[1] - ORIENTATIONS
        orientation = F.cross_entropy(logits[:, classes:], targets[:, classes:], reduction="sum")
        return (self.orientation_weight or 1) * orientation

    def stored_settings(self) -> dict[str, float | str]:
        """Return the settings as checkpoints store them."""
        settings = {STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}
        return {name: value for name, value in settings.items() if value is not None}


# of the edge network, with its second output
EDGE_RECIPE = EdgeRecipe(contrast=0.4, negatives=0.15, reoriented=0.2, orientation_weight=0.4)
