"""Augmentation that fits crops of CT slices, a batch at a time on its device; each slice draws its own.

The crops are aligned to the organ's bounding box and were made by a spline that leaves them sharp, so shifts are whole
pixels, and what moves or smooths pixels otherwise is off unless asked for: it costs accuracy (docs/results/edge.md). The
flip that swaps the patient's sides is never drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Slices (N, 1, S, S) moved by up to `most` whole pixels a side; the edge pixels are repeated."""
    n, size = len(x), x.shape[-1]
    wide = F.pad(x, (most,) * 4, mode="replicate")
    at = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator, device=x.device)
    rows, columns = at + torch.arange(size, device=x.device)  # (N, S) each
    each = torch.arange(n, device=x.device)[:, None, None]
    return wide[each, 0, rows[:, :, None], columns[:, None, :]][:, None]


def mirror(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Axial slices as stored flipped front to back, as a fifth of the training slices are."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < probability
    return torch.where(chosen, x.flip(3), x)


def affine(x: Tensor, degrees: float, scale: float, generator: torch.Generator) -> Tensor:
    """Half of the slices rotated by up to `degrees` and stretched by up to exp(`scale`), each axis on its own."""
    n = len(x)
    draws = torch.rand(n, 4, generator=generator, device=x.device) * 2 - 1
    chosen = draws[:, 0] < 0
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
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where(chosen[:, None, None, None], moved, x)


def intensity(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Another window and another gamma: width by up to exp(`strength`), level by a third of that, gamma likewise."""
    draws = torch.rand(len(x), 3, 1, 1, 1, generator=generator, device=x.device) * 2 - 1
    gray = ((x + 1) / 2).pow((draws[:, 0] * strength).exp())
    gray = (gray - 0.5) * (draws[:, 1] * strength).exp() + 0.5 + draws[:, 2] * strength / 3
    return gray.clamp(0, 1) * 2 - 1


def noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Half of the slices with Gaussian noise of up to `deviation` of the gray range."""
    draws = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) * 2 - 1
    drawn = torch.randn(x.shape, generator=generator, device=x.device)
    return (x + drawn * draws.clamp(min=0) * 2 * deviation).clamp(-1, 1)


def erase(x: Tensor, probability: float, most: float, generator: torch.Generator) -> Tensor:
    """A rectangle of 2 % to `most` of the area, sides 1:3 to 3:1, set to middle gray."""
    n, size = len(x), x.shape[-1]
    draws = torch.rand(n, 5, 1, generator=generator, device=x.device).unbind(1)
    area = (0.02 + (most - 0.02) * draws[0]) * size * size
    ratio = ((draws[1] * 2 - 1) * math.log(3)).exp()
    height, width = (area * ratio).sqrt().clamp(max=size), (area / ratio).sqrt().clamp(max=size)
    top, left = draws[2] * (size - height), draws[3] * (size - width)
    centres = torch.arange(size, device=x.device) + 0.5
    rows = (centres > top) & (centres < top + height)  # (N, S)
    columns = (centres > left) & (centres < left + width)
    inside = rows[:, None, :, None] & columns[:, None, None, :] & (draws[4] < probability)[:, None, None]
    return x.masked_fill(inside, 0)


def cut(x: Tensor, targets: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): a square of another slice pasted into each, its target shared by area.

    x: (N, 1, S, S); targets: (N, C). Each slice draws whether, from which slice, and a square whose area is uniform.
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


def mix(x: Tensor, targets: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """mixup (Zhang et al. 2018): another slice shines through each, by a uniform share of up to a half."""
    draws = torch.rand(len(x), 2, generator=generator, device=x.device)
    other = torch.randperm(len(x), generator=generator, device=x.device)
    share = draws[:, :1] / 2 * (draws[:, 1:] < probability)
    return x.lerp(x[other], share[:, :, None, None]), targets.lerp(targets[other], share)
