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

# lines per slice at most, see `streaks`
STREAKS = 4


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


def zoom(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scale each axis of half of the slices about the center, as another margin or aspect of the box does.

    Args:
        x: slices.
        strength: axes are scaled by factors of exp(-`strength`) to exp(`strength`). Beyond the edge, pixels are repeated.
        generator: see the module.
    """
    n = len(x)
    draws = torch.rand(n, 3, generator=generator, device=x.device)
    factors = ((draws[:, 1:] * 2 - 1) * strength).exp()
    matrix = torch.zeros(n, 2, 3, device=x.device)
    matrix[:, 0, 0], matrix[:, 1, 1] = factors.unbind(1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    scaled = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where(draws[:, 0, None, None, None] < 0.5, scaled, x)


def blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the slices, by any share of a 3x3 binomial filter, as averaging instead of sampling does."""
    weights = 2 - (torch.arange(3.0, device=x.device) - 1).abs()  # 1, 2, 1
    kernel = (weights[:, None] * weights / 16)[None, None]  # (1, 1, 3, 3)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)
    share = _draw(x, generator, -1, 1).clamp(min=0)
    return x.lerp(blurred, share)


def squeeze_contrast(x: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """Squeeze the contrast of soft tissue in half of the slices, as in scans without contrast medium.

    Gray values between those of water and bone move toward that of water.

    Args:
        x: slices.
        least: the smallest factor of the contrast, 0 to 1.
        generator: see the module.
    """
    low, high = -0.1, 0.7
    factor = 1 - _draw(x, generator, -1, 1).clamp(min=0) * (1 - least)
    top = low + (high - low) * factor
    soft = low + (x - low) * factor
    bone = top + (x - high) * (1 - top) / (1 - high)
    return torch.where(x < low, x, torch.where(x < high, soft, bone))


def thick_slices(
    x: Tensor, neighbors: Tensor, probability: float, generator: torch.Generator
) -> Tensor:
    """Average slices with the slices before and after them, as in scans of thick slices.

    Args:
        x: slices.
        neighbors: normalized, float32 (N, 2, S, S): the slices before and after each; see `train.chains.neighbors`.
        probability: of a change, per slice. Each neighbor then has a share of up to a third, the same for both.
        generator: see the module.
    """
    draws = torch.rand(len(x), 2, 1, 1, generator=generator, device=x.device)
    share = (draws[:, :1] / 3) * (draws[:, 1:] < probability)  # (N, 1, 1, 1)
    return x + share * (neighbors.sum(1, keepdim=True) - 2 * x)


def streaks(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Draw bright and dark lines through or near a bright spot, as metal and the edge of a table cause them.

    A slice gets one to STREAKS lines of random angle, 1 to 3 pixels wide, that change the gray values by 0.1 to 0.6. The
    lines of a slice meet within 2 pixels of one of its brightest pixels.

    Args:
        x: slices.
        probability: of a change, per slice.
        generator: see the module.
    """
    n, size = len(x), x.shape[-1]
    # noise chooses among the bright pixels
    noisy = x + 0.3 * torch.rand(x.shape, generator=generator, device=x.device)
    spot = noisy.flatten(1).argmax(1)
    draws = torch.rand(n, STREAKS, 5, 1, 1, generator=generator, device=x.device).unbind(2)
    offset = torch.rand(2, n, 1, 1, 1, generator=generator, device=x.device) * 4 - 2
    drawn = torch.rand(n, 1, 1, 1, generator=generator, device=x.device) < probability
    pixels = torch.arange(size, device=x.device)
    down = pixels[:, None] - (spot // size)[:, None, None, None] - offset[0]  # (N, 1, S, 1)
    across = pixels[None, :] - (spot % size)[:, None, None, None] - offset[1]  # (N, 1, 1, S)
    angle = draws[0] * math.pi  # (N, STREAKS, 1, 1)
    distance = (down * angle.cos() - across * angle.sin()).abs()  # (N, STREAKS, S, S)
    width = 1 + 2 * draws[1]
    # the share of a pixel that the line covers
    inside = ((width + 1) / 2 - distance).clamp(0, 1)
    amplitude = (0.1 + 0.5 * draws[2]) * torch.where(draws[3] < 0.5, -1.0, 1.0)
    # the first line is always drawn, each other one in half of the slices
    first = (torch.arange(STREAKS, device=x.device) == 0)[:, None, None]
    lines = (inside * amplitude * ((draws[4] < 0.5) | first)).sum(1, keepdim=True)
    return torch.where(drawn, (x + lines).clamp(-1, 1), x)


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


def reorient(
    x: Tensor, targets: Tensor, share: float, flipped: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Reorient some slices, and add columns to the targets that tell how.

    Orientation k of a slice x (rows, columns) is made so: if k & 1, the rows are reversed; if k & 2, the columns; if k & 4,
    rows and columns are exchanged. Orientation 8 is that of images of no organ. Slices keep their classes as target in
    orientation 0 and, if `flipped` is not 0, in orientation 2, a flip front to back. In the others they have no class as
    target.

    Args:
        x: slices.
        targets: class shares, float32 (N, classes).
        share: of the slices that get one of the orientations without a class, 0 to 1.
        flipped: of the other slices, the share that is flipped front to back, 0 to 1.
        generator: see the module.

    Returns:
        The slices and their targets, float32 (N, classes + 9).
    """
    n = len(x)
    draws = torch.rand(2, n, generator=generator, device=x.device)
    if flipped:
        other = torch.randint(0, 6, (n,), generator=generator, device=x.device)
        other = other + 1 + (other > 0)  # 1, 3, 4, 5, 6 or 7
    else:
        other = torch.randint(1, 8, (n,), generator=generator, device=x.device)
    number = torch.where(draws[1] < flipped, 2, 0)
    number = torch.where(draws[0] < share, other, number)
    bits = number[:, None, None, None]  # (N, 1, 1, 1)
    x = torch.where(bits & 1 > 0, x.flip(2), x)
    x = torch.where(bits & 2 > 0, x.flip(3), x)
    x = torch.where(bits & 4 > 0, x.transpose(2, 3), x)
    kept = (number == 0) | ((number == 2) & (flipped > 0))
    return x, torch.cat([targets * kept[:, None], F.one_hot(number, 9).float()], 1)


def negatives(
    x: Tensor, targets: Tensor, classes: int, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Outlier exposure (Hendrycks et al. 2019): replace slices by images of no organ, with every class alike as target.

    The images are constant, noise of any coarseness, shapes, inverted, of a wrong window, turned by 90 degrees, parts of
    slices, and bodies in air.

    Args:
        x: slices.
        targets: class shares, float32 (N, classes), or with orientations (N, classes + 9), see `reorient`. Then the
            slices are not turned by 90 degrees.
        classes: number of classes.
        share: of the slices, 0 to 1, rounded so that every kind has as many.
        generator: see the module.

    Returns:
        The slices and their targets, in the shapes of the arguments.
    """
    changes = _NEGATIVES if targets.shape[1] > classes else (*_NEGATIVES, _turned)
    x, targets = x.clone(), targets.clone()
    if not share:
        return x, targets
    # Batches are in random order, so which rows are replaced need not be drawn, and the host waits for no draw.
    step = max(len(changes), round(len(changes) / share))
    for first, change in enumerate(changes[: len(x)]):
        rows = slice(first, None, step)
        x[rows] = change(x[rows], generator).clamp(-1, 1)
        targets[rows].zero_()
        targets[rows, :classes].fill_(1 / classes)
        if targets.shape[1] > classes:
            targets[rows, -1].fill_(1)
    return x, targets


def _draw(x: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    draws = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
    return low + (high - low) * draws


def _constant(x: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(x.shape, generator=generator, device=x.device)
    return _draw(x, generator, -1.1, 1.1) + normal * _draw(x, generator, -0.1, 0.15).clamp(min=0)


def _textures(x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of several coarsenesses at once, as in photographs."""
    size, total = x.shape[-1], torch.zeros_like(x)
    for side in (2, 4, 7, 14, size):
        normal = torch.randn(len(x), 1, side, side, generator=generator, device=x.device)
        weight = _draw(x, generator, -0.5, 1.0).clamp(min=0)
        total += weight * F.interpolate(normal, (size, size), mode="bilinear")
    return total * _draw(x, generator, 0.2, 1.5) + _draw(x, generator, -0.5, 0.5)


def _shapes(x: Tensor, generator: torch.Generator) -> Tensor:
    """Overlapping ellipses and half planes, each of one gray or a ramp, with texture: edges as in photographs."""
    n, size = len(x), x.shape[-1]
    at = (torch.arange(size, device=x.device) + 0.5) / size * 2 - 1
    rows, columns = at[None, :, None], at[None, None, :]
    picture = _draw(x, generator, -1, 1)[:, 0].expand(n, size, size)
    for _ in range(10):
        draws = torch.rand(n, 8, 1, 1, generator=generator, device=x.device) * 2 - 1
        angle = draws[:, 0] * math.pi
        y, x_ = rows - draws[:, 1], columns - draws[:, 2]
        along, across = y * angle.cos() + x_ * angle.sin(), x_ * angle.cos() - y * angle.sin()
        ellipse = (along / (0.6 + 0.5 * draws[:, 3])) ** 2 + (
            across / (0.4 + 0.35 * draws[:, 4])
        ) ** 2 < 1
        inside = torch.where(draws[:, 7] < 0.6, ellipse, along > 0.6)
        picture = torch.where(inside, draws[:, 5] + 0.5 * draws[:, 6] * along, picture)
    texture = torch.randn(x.shape, generator=generator, device=x.device)
    return picture[:, None] + texture * _draw(x, generator, -0.1, 0.2).clamp(min=0)


def _inverted(x: Tensor, _: torch.Generator) -> Tensor:
    return -x


def _wrong_window(x: Tensor, generator: torch.Generator) -> Tensor:
    """Nearly one gray, or black and white."""
    narrow = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    width = torch.where(narrow, _draw(x, generator, 5, 20), _draw(x, generator, 0.05, 0.3))
    level = torch.where(narrow, _draw(x, generator, -0.5, 0.5), _draw(x, generator, -0.9, 0.9))
    return torch.where(narrow, (x - level) * width, x * width + level)


def _turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """By 90 degrees either way, which no slice of the data set is, with or without a flip front to back."""
    clockwise = _draw(x, generator, 0, 1) < 0.5
    return torch.where(clockwise, x.rot90(1, (2, 3)), x.rot90(-1, (2, 3)))


def _parts(x: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter of the side and more, enlarged."""
    n = len(x)
    draws = torch.rand(n, 3, generator=generator, device=x.device)
    scale = 0.2 + 0.25 * draws[:, 0]
    offset = (draws[:, 1:] * 2 - 1) * (1 - scale)[:, None]
    matrix = torch.zeros(n, 2, 3, device=x.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale
    matrix[:, :, 2] = offset
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _bodies(x: Tensor, generator: torch.Generator) -> Tensor:
    """An ellipse of several small slices in air, as a whole slice is."""
    n, size = len(x), x.shape[-1]
    at = (torch.arange(size, device=x.device) + 0.5) / size * 2 - 1
    draws = torch.rand(n, 4, 1, 1, generator=generator, device=x.device)
    inside = (at[None, :, None] / (0.6 + 0.4 * draws[:, 0])) ** 2 + (
        at[None, None, :] / (0.6 + 0.4 * draws[:, 1])
    ) ** 2 <= 1
    tiles = []
    for _ in range(9):
        other = x[torch.randperm(n, generator=generator, device=x.device)]
        tiles.append(F.adaptive_avg_pool2d(other, size // 3 + 1))
    rows = [torch.cat(tiles[i : i + 3], 3) for i in (0, 3, 6)]
    organs = torch.cat(rows, 2)[:, :, :size, :size]
    organs = organs * (0.5 + draws[:, 2:3]) + (draws[:, 3:] - 0.5) * 0.4
    return torch.where(inside[:, None], organs, -1.0)


_NEGATIVES = (_constant, _textures, _shapes, _inverted, _wrong_window, _parts, _bodies)
