"""Augmentation for crops of CT slices, one batch at a time on its device. Each slice draws its own parameters.

The crops are aligned to the organ's bounding box. They are sharp, because a spline resampled them, and interpolation
would smooth them, which costs accuracy (docs/results/edge.md). Therefore shifts are whole pixels, and rotation and scale
are off by default. Slices are never flipped left to right.

All functions take normalized slices x, float32 (N, 1, S, S) in -1 to 1, and a generator on x's device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(x: Tensor, max_pixels: int, generator: torch.Generator) -> Tensor:
    """Shift slices by up to `max_pixels` whole pixels along each axis. Edge pixels are repeated."""
    n, size = len(x), x.shape[-1]
    padded = F.pad(x, (max_pixels,) * 4, mode="replicate")
    offset = torch.randint(0, 2 * max_pixels + 1, (2, n, 1), generator=generator, device=x.device)
    rows, columns = offset + torch.arange(size, device=x.device)  # (N, S) each
    index = torch.arange(n, device=x.device)[:, None, None]
    return padded[index, 0, rows[:, :, None], columns[:, None, :]][:, None]


def flip_front_back(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Flip stored axial slices front to back. A fifth of the stored training slices are flipped already."""
    flipped = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < probability
    return torch.where(flipped, x.flip(3), x)


def affine(x: Tensor, degrees: float, scale: float, generator: torch.Generator) -> Tensor:
    """Rotate half of the slices by up to `degrees` and scale each axis by up to exp(`scale`)."""
    n = len(x)
    draws = torch.rand(n, 4, generator=generator, device=x.device) * 2 - 1
    transformed = draws[:, 0] < 0
    angle = draws[:, 1] * math.radians(degrees)
    across, down = (draws[:, 2:] * scale).exp().unbind(1)
    zero = torch.zeros_like(angle)
    matrix = torch.stack(
        [
            torch.stack([angle.cos() * across, -angle.sin() * down, zero], -1),
            torch.stack([angle.sin() * across, angle.cos() * down, zero], -1),
        ],
        1,
    )  # (N, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    resampled = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where(transformed[:, None, None, None], resampled, x)


def intensity(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change window and gamma.

    Args:
        x: slices.
        strength: width and gamma change by factors of up to exp(`strength`), the level by up to a third of `strength`.
        generator: see the module.
    """
    draws = torch.rand(len(x), 3, 1, 1, 1, generator=generator, device=x.device) * 2 - 1
    gray = ((x + 1) / 2).pow((draws[:, 0] * strength).exp())
    gray = (gray - 0.5) * (draws[:, 1] * strength).exp() + 0.5 + draws[:, 2] * strength / 3
    return gray.clamp(0, 1) * 2 - 1


def noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to half of the slices, with a standard deviation of up to `deviation` of the gray range."""
    strength = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) * 2 - 1
    normal = torch.randn(x.shape, generator=generator, device=x.device)
    return (x + normal * strength.clamp(min=0) * 2 * deviation).clamp(-1, 1)


def erase(x: Tensor, probability: float, max_area: float, generator: torch.Generator) -> Tensor:
    """Set a rectangle to middle gray: 2 % to `max_area` of the slice, with an aspect ratio of 1:3 to 3:1."""
    n, size = len(x), x.shape[-1]
    draws = torch.rand(n, 5, 1, generator=generator, device=x.device).unbind(1)
    area = (0.02 + (max_area - 0.02) * draws[0]) * size * size
    ratio = ((draws[1] * 2 - 1) * math.log(3)).exp()
    height, width = (area * ratio).sqrt().clamp(max=size), (area / ratio).sqrt().clamp(max=size)
    top, left = draws[2] * (size - height), draws[3] * (size - width)
    centers = torch.arange(size, device=x.device) + 0.5
    rows = (centers > top) & (centers < top + height)  # (N, S)
    columns = (centers > left) & (centers < left + width)
    inside = (
        rows[:, None, :, None] & columns[:, None, None, :] & (draws[4] < probability)[:, None, None]
    )
    return x.masked_fill(inside, 0)


def cutmix(
    x: Tensor, targets: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): paste a square of another slice into each, and share the target by area.

    Args:
        x: slices.
        targets: class shares, float32 (N, classes).
        probability: of a change, per slice. The area of the square is uniformly distributed.
        generator: see the module.

    Returns:
        The slices and their targets, in the shapes of the arguments.
    """
    n, size = len(x), x.shape[-1]
    draws = torch.rand(n, 4, generator=generator, device=x.device)
    other = torch.randperm(n, generator=generator, device=x.device)
    side = (draws[:, 0].sqrt() * size).floor() * (draws[:, 3] < probability)
    top, left = ((draws[:, 1:3] * (size - side + 1)[:, None]).floor()).unbind(1)
    pixels = torch.arange(size, device=x.device)
    rows = (pixels >= top[:, None]) & (pixels < (top + side)[:, None])  # (N, S)
    columns = (pixels >= left[:, None]) & (pixels < (left + side)[:, None])
    pasted = torch.where(rows[:, None, :, None] & columns[:, None, None, :], x[other], x)
    share = (side / size).square()[:, None]
    return pasted, targets * (1 - share) + targets[other] * share


def mixup(
    x: Tensor, targets: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """mixup (Zhang et al. 2018): blend another slice into each, by a uniformly drawn share of up to a half.

    Args:
        x: slices.
        targets: class shares, float32 (N, classes).
        probability: of a change, per slice.
        generator: see the module.

    Returns:
        The slices and their targets, in the shapes of the arguments.
    """
    draws = torch.rand(len(x), 2, generator=generator, device=x.device)
    other = torch.randperm(len(x), generator=generator, device=x.device)
    share = draws[:, :1] / 2 * (draws[:, 1:] < probability)
    return x.lerp(x[other], share[:, :, None, None]), targets.lerp(targets[other], share)
