"""Augmentation of the reference study: each slice of a batch draws its own rotation, erasing and perspective.

The distributions are those of torchvision's RandomRotation(30), RandomErasing(scale=(0.02, 0.33), ratio=(0.3, 3.3))
and RandomPerspective(0.5), each with probability 0.5 and in this order. The three are composed into one warp with one
bilinear look-up, while torchvision samples twice. Pixels from outside the slice are filled with normalized 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PROBABILITY = 0.5
DEGREES = 30.0
ERASE_AREA = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10
DISTORTION = 0.5


def normalize(images: Tensor) -> Tensor:
    """Normalize slices as torchvision's ToTensor and Normalize([0.5], [0.5]) do.

    Args:
        images: uint8 (N, S, S), or float32 (N, S, S) that is normalized already.

    Returns:
        float32 (N, 1, S, S) in -1 to 1.
    """
    if images.dtype == torch.float32:
        return images.unsqueeze(1)
    return images.unsqueeze(1).float().div_(255).sub_(0.5).div_(0.5)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Augment normalized slices.

    Args:
        x: float32 (N, 1, S, S) in -1 to 1.
        generator: on x's device.

    Returns:
        float32 (N, 1, S, S).
    """
    n, size = len(x), x.shape[-1]
    draws = torch.rand(n, 12 + 4 * ERASE_TRIES, generator=generator, device=x.device)
    # rotation, erasing, perspective
    chosen = draws[:, :3] < PROBABILITY
    angle = (draws[:, 3] * 2 - 1) * math.radians(DEGREES) * chosen[:, 0]
    # (N, 3, 3), from an output pixel to an input pixel
    homography = _perspectives(draws[:, 4:12], size)
    identity = torch.eye(3, device=x.device)
    homography = torch.where(chosen[:, 2, None, None], homography, identity)
    top, left, height, width = _rectangles(draws[:, 12:], size)

    centers = torch.arange(size, device=x.device, dtype=torch.float32) + 0.5
    v, u = torch.meshgrid(centers, centers, indexing="ij")
    # homogeneous coordinates, x first
    output = torch.stack([u, v, torch.ones_like(u)]).flatten(1)  # (3, S*S)
    source = homography @ output  # (N, 3, S*S)
    depth = source[:, 2]
    source_x, source_y = source[:, 0] / depth, source[:, 1] / depth

    # erasing comes before the perspective: a look-up inside the rectangle or outside the slice gives the fill
    column, row = source_x.floor(), source_y.floor()
    erased = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    outside_x, outside_y = (source_x < 0) | (source_x >= size), (source_y < 0) | (source_y >= size)
    outside = outside_x | outside_y | (depth <= 0)
    filled = (erased & chosen[:, 1, None]) | outside

    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    dx, dy = source_x - size / 2, source_y - size / 2
    rotated = torch.stack([cos * dx - sin * dy, sin * dx + cos * dy], dim=-1)  # (N, S*S, 2)
    grid = rotated * (2 / size)
    warped = F.grid_sample(x, grid.view(n, size, size, 2), align_corners=False)
    warped = warped.masked_fill(filled.view(n, 1, size, size), 0)
    unchanged = ~chosen.any(1)
    return torch.where(unchanged[:, None, None, None], x, warped)


def _perspectives(draws: Tensor, size: int) -> Tensor:
    """Homographies (N, 3, 3) from output to input pixels, for corners moved inwards by whole pixels.

    The map of the unit square to a quadrilateral has a closed form, and its inverse is the adjugate (Heckbert 1989).
    """
    reach = int(DISTORTION * (size // 2)) + 1
    step = (draws * reach).floor()  # 0 to reach - 1, eight per slice
    last = size - 1
    x0, y0 = step[:, 0], step[:, 1]  # top left
    x1, y1 = last - step[:, 2], step[:, 3]  # top right
    x2, y2 = last - step[:, 4], last - step[:, 5]  # bottom right
    x3, y3 = step[:, 6], last - step[:, 7]  # bottom left
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g = (dx3 * dy2 - dx2 * dy3) / area
    h = (dx1 * dy3 - dx3 * dy1) / area
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    one = torch.ones_like(a)
    adjugate = torch.stack(
        [
            torch.stack([e * one - f * h, c * h - b * one, b * f - c * e], -1),
            torch.stack([f * g - d * one, a * one - c * g, c * d - a * f], -1),
            torch.stack([d * h - e * g, b * g - a * h, a * e - b * d], -1),
        ],
        -2,
    )
    # the unit square's side is the distance of the first and the last pixel; the depth is positive in the frame
    scaled = torch.cat([adjugate[:, :2] * last, adjugate[:, 2:]], dim=1)
    return scaled * (a * e - b * d).sign()[:, None, None]


def _rectangles(draws: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rectangles to erase (top, left, height, width), each (N, 1) in pixels: the first of ten tries that fits."""
    area, ratio, row_share, column_share = draws.view(-1, 4, ERASE_TRIES).unbind(1)
    low, high = ERASE_AREA
    area = (low + (high - low) * area) * size * size
    low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
    ratio = (low + (high - low) * ratio).exp()
    height, width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (height < size) & (width < size)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # (N, 1)
    height, width = (height * fits).gather(1, first), (width * fits).gather(1, first)
    top = (row_share.gather(1, first) * (size - height + 1)).floor()
    left = (column_share.gather(1, first) * (size - width + 1)).floor()
    return top, left, height, width
