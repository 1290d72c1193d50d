"""MedMNIST-C's corruptions of the organ sets: 13, each in five severities, on uint8 slices.

Source: Di Salvo, Doerrich, Ledig, "MedMNIST-C: Comprehensive benchmark and improved classifier robustness by simulating
realistic image corruptions", 2024, and its package medmnistc 0.1.0, whose parameters these are. As there, a slice is
corrupted as a color image of three equal channels and converted back to gray. Noise is drawn per channel, so the noise
of the resulting luma is two thirds as strong.

The parameters were chosen at 224 pixels. Only those of the blur are lengths in pixels: the kernel's length and its sigma
(torchvision's default for that length) are scaled by size / 224. All other parameters apply at the slice's own size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import correlate1d
from scipy.special import ive

# pixels per side at which the parameters were chosen
REFERENCE = 224
SEVERITIES = (1, 2, 3, 4, 5)
# pixels at a time, to bound the memory
BLOCK = 1 << 20


@dataclass(frozen=True)
class Corruption:
    """One row of CORRUPTIONS.

    Args:
        apply: called with images uint8 (N, S, S), a strength and a generator; returns uint8 (N, S, S).
        strengths: by severity, mildest first.
    """

    apply: Callable[[np.ndarray, float, Generator], np.ndarray]
    strengths: tuple[float, float, float, float, float]


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupt a copy of the slices; equal arguments give equal copies.

    Args:
        images: uint8 (N, S, S).
        name: a key of CORRUPTIONS.
        severity: 1 (mildest) to 5.
        seed: of the noise.

    Returns:
        uint8 (N, S, S).

    Raises:
        ValueError: an unknown name or severity, or images of another type or shape.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to {len(SEVERITIES)}, found {severity}")
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"expected uint8 (N, S, S), found {images.dtype} {images.shape}")
    row = CORRUPTIONS[name]
    generator = np.random.default_rng((seed, list(CORRUPTIONS).index(name), severity))
    corrupted = np.empty_like(images)
    step = max(1, BLOCK // max(1, images.shape[1] ** 2))
    for start in range(0, len(images), step):
        block = slice(start, start + step)
        corrupted[block] = row.apply(images[block], row.strengths[severity - 1], generator)
    return corrupted


def pixelate(images: np.ndarray, factor: float, _: Generator) -> np.ndarray:
    """Shrink by `factor` and enlarge to the original size, both with Pillow's box filter."""
    size = images.shape[-1]
    small = int(size * factor)
    return _resized(_resized(images, _box(size, small)), _box(small, size))


def jpeg_compression(images: np.ndarray, quality: float, _: Generator) -> np.ndarray:
    """Encode and decode each slice as a JPEG of this quality, with Pillow."""
    decoded = np.empty_like(images)
    for i, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        decoded[i] = np.asarray(Image.open(file))
    return decoded


def gaussian_noise(images: np.ndarray, scale: float, generator: Generator) -> np.ndarray:
    """Add normal noise whose standard deviation is `scale`, as a share of the gray range."""
    color = _color(images)
    return _gray(color + scale * generator.standard_normal(color.shape, np.float32))


def speckle_noise(images: np.ndarray, scale: float, generator: Generator) -> np.ndarray:
    """Add normal noise in proportion to the value; `scale` is its relative standard deviation."""
    color = _color(images)
    return _gray(color + color * scale * generator.standard_normal(color.shape, np.float32))


def impulse_noise(images: np.ndarray, amount: float, generator: Generator) -> np.ndarray:
    """Replace a share `amount` of the values by salt and pepper, equally often."""
    color = _color(images)
    drawn = generator.random(color.shape)
    return _gray(np.where(drawn < amount, drawn < amount / 2, color))


def shot_noise(images: np.ndarray, photons: float, generator: Generator) -> np.ndarray:
    """Draw Poisson noise; `photons` is the mean count of a white pixel."""
    return _gray(generator.poisson(_color(images) * photons) / photons)


def gaussian_blur(images: np.ndarray, length: float, _: Generator) -> np.ndarray:
    """Blur with a Gaussian, mirrored at the edge; `length` is that of torchvision's kernel at 224 pixels per side.

    At 28 pixels sigma is 0.25 to 0.44. A Gaussian sampled there is almost a single pixel and changes nothing. Its
    discrete analog (Lindeberg, PAMI 1990) has the right variance at any sigma; at 224 pixels the two agree within two
    gray levels.
    """
    scale = images.shape[-1] / REFERENCE
    sigma = (0.15 * length + 0.35) * scale
    reach = math.ceil((length - 1) / 2 * scale)
    taps = ive(np.abs(np.arange(-reach, reach + 1)), sigma**2)
    blurred: np.ndarray = images.astype(np.float32)
    for axis in (1, 2):
        blurred = correlate1d(blurred, taps / taps.sum(), axis, mode="mirror")
    rounded: np.ndarray = np.rint(blurred)
    return rounded.astype(np.uint8)


def brightness(images: np.ndarray, factor: float, _: Generator) -> np.ndarray:
    """Move values away from black (factor above 1) or toward it, as Pillow's ImageEnhance.Brightness."""
    return _blended(images, np.zeros((1, 1, 1), np.float32), factor)


def contrast(images: np.ndarray, factor: float, _: Generator) -> np.ndarray:
    """Move values away from the slice's mean (factor above 1) or toward it, as Pillow's ImageEnhance.Contrast."""
    mean = np.floor(images.mean(axis=(1, 2), keepdims=True) + 0.5)
    return _blended(images, mean.astype(np.float32), factor)


def gamma_correction(images: np.ndarray, gamma: float, _: Generator) -> np.ndarray:
    """Apply torchvision's adjust_gamma; a gamma above 1 darkens."""
    curve: np.ndarray = (255.999 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    adjusted: np.ndarray = curve[images]
    return adjusted


# One row per corruption. A row's place seeds its noise, so new rows go to the end.
CORRUPTIONS = {
    "pixelate": Corruption(pixelate, (0.7, 0.6, 0.5, 0.4, 0.35)),
    "jpeg_compression": Corruption(jpeg_compression, (50, 30, 15, 10, 7)),
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.08, 0.12, 0.16, 0.2)),
    "speckle_noise": Corruption(speckle_noise, (0.05, 0.1, 0.2, 0.3, 0.4)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.08)),
    "shot_noise": Corruption(shot_noise, (200, 100, 50, 25, 15)),
    "gaussian_blur": Corruption(gaussian_blur, (11, 13, 15, 17, 21)),
    "brightness_up": Corruption(brightness, (1.2, 1.3, 1.4, 1.5, 1.6)),
    "brightness_down": Corruption(brightness, (0.8, 0.75, 0.7, 0.65, 0.6)),
    "contrast_up": Corruption(contrast, (1.3, 1.4, 1.6, 1.7, 1.8)),
    "contrast_down": Corruption(contrast, (0.8, 0.7, 0.6, 0.55, 0.5)),
    "gamma_corr_up": Corruption(gamma_correction, (1.3, 1.4, 1.6, 1.8, 2.0)),
    "gamma_corr_down": Corruption(gamma_correction, (0.9, 0.8, 0.7, 0.6, 0.4)),
}


def _color(images: np.ndarray) -> np.ndarray:
    """Convert uint8 (N, S, S) to three equal channels of 0 to 1, float32 (N, S, S, 3)."""
    return np.repeat(images[..., None].astype(np.float32) / 255, 3, axis=-1)


def _gray(color: np.ndarray) -> np.ndarray:
    """Convert values of 0 to 1, (N, S, S, 3), to bytes and then to gray by Pillow's formula, uint8 (N, S, S)."""
    red, green, blue = np.moveaxis((np.clip(color, 0, 1) * 255).astype(np.uint32), -1, 0)
    luma: np.ndarray = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(np.uint8)


def _blended(images: np.ndarray, base: np.ndarray, factor: float) -> np.ndarray:
    """Extrapolate from `base` to `factor` times the distance of the images, as Pillow's Image.blend."""
    blended: np.ndarray = np.clip(base + np.float32(factor) * (images - base), 0, 255)
    return blended.astype(np.uint8)


def _box(size: int, new_size: int) -> np.ndarray:
    """Pillow's box filter as a matrix (new_size, size): the mean of the pixels whose centers an output pixel covers."""
    scale = size / new_size
    reach = max(scale, 1) / 2
    centers = (np.arange(new_size)[:, None] + 0.5) * scale
    distances = np.arange(size) + 0.5 - centers
    inside = (distances > -reach) & (distances <= reach)
    weights: np.ndarray = inside / inside.sum(1, keepdims=True)
    return weights


def _resized(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Resize columns, then rows, rounding to bytes after each."""
    across = np.floor(images @ matrix.T + 0.5)
    resized: np.ndarray = np.floor(matrix @ across + 0.5)
    return resized.astype(np.uint8)
