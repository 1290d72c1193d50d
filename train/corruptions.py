"""MedMNIST-C's corruptions of the organ sets: 13, each in five severities, on uint8 slices.

Source: Di Salvo, Doerrich, Ledig, "MedMNIST-C: Comprehensive benchmark and improved classifier robustness by simulating
realistic image corruptions", 2024, and its package medmnistc 0.1.0, whose parameters these are. As there, a slice is
corrupted as a colour image of three equal channels and read as gray again: noise is drawn a channel, so that the luma's
is two thirds as strong.

The parameters were chosen at 224 pixels. Noise, brightness, contrast, gamma, JPEG quality and the factor of pixelate
have no unit of pixels and are applied at the slice's own size. The blur has one: its sigma, torchvision's default for
the kernel's length, is scaled by size / 224, and so is the length.
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

REFERENCE = 224  # pixels a side, where the parameters were chosen
SEVERITIES = (1, 2, 3, 4, 5)
BLOCK = 1 << 20  # pixels at a time, to bound the memory


@dataclass(frozen=True)
class Corruption:
    """`apply(images, strength, generator)` on uint8 (N, S, S), and its strength by severity, mildest first."""

    apply: Callable[[np.ndarray, float, Generator], np.ndarray]
    strengths: tuple[float, float, float, float, float]


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """A corrupted copy of uint8 (N, S, S); equal for equal images, name, severity (1 to 5) and seed.

    Raises ValueError for an unknown name or severity, and for images of another type or shape.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is 1 to {len(SEVERITIES)}, found {severity}")
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"expected uint8 (N, S, S), found {images.dtype} {images.shape}")
    row = CORRUPTIONS[name]
    generator = np.random.default_rng((seed, list(CORRUPTIONS).index(name), severity))
    made = np.empty_like(images)
    step = max(1, BLOCK // max(1, images.shape[1] ** 2))
    for start in range(0, len(images), step):
        block = slice(start, start + step)
        made[block] = row.apply(images[block], row.strengths[severity - 1], generator)
    return made


def pixelate(images: np.ndarray, factor: float, _: Generator) -> np.ndarray:
    """Made smaller by `factor` and as large as before again, both by Pillow's box filter."""
    size = images.shape[-1]
    small = int(size * factor)
    return _resized(_resized(images, _box(size, small)), _box(small, size))


def jpeg_compression(images: np.ndarray, quality: float, _: Generator) -> np.ndarray:
    """Through a JPEG file of that quality, by Pillow."""
    made = np.empty_like(images)
    for i, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        made[i] = np.asarray(Image.open(file))
    return made


def gaussian_noise(images: np.ndarray, scale: float, generator: Generator) -> np.ndarray:
    """Plus normal noise; scale: its standard deviation, of a range of 1."""
    colour = _colour(images)
    return _gray(colour + scale * generator.standard_normal(colour.shape, np.float32))


def speckle_noise(images: np.ndarray, scale: float, generator: Generator) -> np.ndarray:
    """Plus normal noise in proportion to the pixel."""
    colour = _colour(images)
    return _gray(colour + colour * scale * generator.standard_normal(colour.shape, np.float32))


def impulse_noise(images: np.ndarray, amount: float, generator: Generator) -> np.ndarray:
    """Salt and pepper, as many of each; amount: the share of the values that are replaced."""
    colour = _colour(images)
    drawn = generator.random(colour.shape)
    return _gray(np.where(drawn < amount, drawn < amount / 2, colour))


def shot_noise(images: np.ndarray, photons: float, generator: Generator) -> np.ndarray:
    """Poisson noise; photons: the mean count of a white pixel."""
    return _gray(generator.poisson(_colour(images) * photons) / photons)


def gaussian_blur(images: np.ndarray, length: float, _: Generator) -> np.ndarray:
    """Gaussian blur, mirrored at the edge; length: pixels of torchvision's kernel at 224 pixels a side.

    At 28 pixels sigma is 0.25 to 0.44, where a sampled Gaussian is almost a single pixel and changes nothing. Its discrete
    analogue (Lindeberg, PAMI 1990) has the variance it says at any sigma; at 224 pixels the two agree within two gray levels.
    """
    scale = images.shape[-1] / REFERENCE
    sigma = (0.15 * length + 0.35) * scale
    reach = math.ceil((length - 1) / 2 * scale)
    taps = ive(np.abs(np.arange(-reach, reach + 1)), sigma**2)
    blurred = images.astype(np.float32)
    for axis in (1, 2):
        blurred = correlate1d(blurred, taps / taps.sum(), axis, mode="mirror")
    return np.rint(blurred).astype(np.uint8)


def brightness(images: np.ndarray, factor: float, _: Generator) -> np.ndarray:
    """Pillow's ImageEnhance.Brightness: away from black, or towards it."""
    return _blended(images, np.float32(0), factor)


def contrast(images: np.ndarray, factor: float, _: Generator) -> np.ndarray:
    """Pillow's ImageEnhance.Contrast: away from the slice's mean, or towards it."""
    mean = np.floor(images.mean(axis=(1, 2), keepdims=True) + 0.5)
    return _blended(images, mean.astype(np.float32), factor)


def gamma_correction(images: np.ndarray, gamma: float, _: Generator) -> np.ndarray:
    """torchvision's adjust_gamma; above 1 darker."""
    return (255.999 * (np.arange(256) / 255) ** gamma).astype(np.uint8)[images]


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


def _colour(images: np.ndarray) -> np.ndarray:
    """uint8 (N, S, S) as three equal channels from 0 to 1, float32 (N, S, S, 3)."""
    return np.repeat(images[..., None].astype(np.float32) / 255, 3, axis=-1)


def _gray(colour: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 (N, S, S, 3), clipped, as bytes and their luma: uint8 (N, S, S), by Pillow's formula."""
    red, green, blue = np.moveaxis((np.clip(colour, 0, 1) * 255).astype(np.uint32), -1, 0)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def _blended(images: np.ndarray, base: np.ndarray, factor: float) -> np.ndarray:
    """From `base` through the images to `factor` times as far, as Pillow's Image.blend."""
    return np.clip(base + np.float32(factor) * (images - base), 0, 255).astype(np.uint8)


def _box(size: int, wanted: int) -> np.ndarray:
    """Pillow's box filter as a matrix (wanted, size): of the pixels whose centres lie under an output pixel the mean."""
    scale = size / wanted
    reach = max(scale, 1) / 2
    centres = (np.arange(wanted)[:, None] + 0.5) * scale
    places = np.arange(size) + 0.5 - centres
    inside = (places > -reach) & (places <= reach)
    return inside / inside.sum(1, keepdims=True)


def _resized(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Columns, then rows, rounded to bytes after each."""
    across = np.floor(images @ matrix.T + 0.5)
    return np.floor(matrix @ across + 0.5).astype(np.uint8)
