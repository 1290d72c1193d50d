"""MedMNIST-C's corruptions against plain code for one image: Pillow, and NumPy with the same draws."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import functional

from train import corruptions
from train.corruptions import CORRUPTIONS, SEVERITIES, corrupt


def made_slices(count=5, size=28):
    """Noise, ramps, a disc, all black, all white: uint8 (N, size, size)."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / (size - 1)
    disc = 200.0 * (np.hypot(x - 0.4, y - 0.5) < 0.3) + 30
    kinds = [generator.uniform(0, 255, (size, size)), 255 * x, disc, 0 * x, 0 * x + 255]
    return np.stack([kinds[i % 5] for i in range(count)]).astype(np.uint8)


SLICES = made_slices()
SLICES.setflags(write=False)


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def pixelate(image, factor):
    small = [int(side * factor) for side in image.size]
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


# what medmnistc 0.1.0 does to an image of three channels
PILLOW = {
    "pixelate": pixelate,
    "jpeg_compression": jpeg,
    "gaussian_blur": lambda image, length: functional.gaussian_blur(image, length),
    "brightness_up": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "brightness_down": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast_up": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "contrast_down": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "gamma_corr_up": functional.adjust_gamma,
    "gamma_corr_down": functional.adjust_gamma,
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", PILLOW)
def test_a_corruption_is_medmnistcs(name, severity):
    strength = CORRUPTIONS[name].strengths[severity - 1]
    slices, most = (made_slices(size=224), 2) if name == "gaussian_blur" else (SLICES, 1)
    found = corrupt(slices, name, severity)
    for image, made in zip(slices, found, strict=True):
        expected = np.asarray(PILLOW[name](Image.fromarray(image).convert("RGB"), strength).convert("L"))
        assert np.abs(made.astype(int) - expected).max() <= most


def gaussian(x, strength, generator):
    return x + generator.standard_normal(x.shape, np.float32) * strength


def speckle(x, strength, generator):
    return x + x * generator.standard_normal(x.shape, np.float32) * strength


def impulse(x, strength, generator):
    drawn = generator.random(x.shape)
    x = x.copy()
    x[drawn < strength] = 0
    x[drawn < strength / 2] = 1
    return x


def shot(x, strength, generator):
    return generator.poisson(x.astype(np.float32) * strength) / strength


NOISE = {"gaussian_noise": gaussian, "speckle_noise": speckle, "impulse_noise": impulse, "shot_noise": shot}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NOISE)
def test_noise_is_drawn_a_channel_and_read_as_gray(name, severity):
    row, strength = CORRUPTIONS[name], CORRUPTIONS[name].strengths[severity - 1]
    found = row.apply(SLICES, strength, np.random.default_rng(4))
    generator = np.random.default_rng(4)
    for image, made in zip(SLICES, found, strict=True):
        colour = np.asarray(Image.fromarray(image).convert("RGB")) / 255
        noisy = (np.clip(NOISE[name](colour, strength, generator), 0, 1) * 255).astype(np.uint8)
        expected = np.asarray(Image.fromarray(noisy).convert("L"))
        assert np.abs(made.astype(int) - expected).max() <= 1


def test_noise_is_as_strong_as_it_says():
    gray = np.full((50, 28, 28), 128, np.uint8)
    luma = np.sqrt(0.299**2 + 0.587**2 + 0.114**2)  # of three channels of equal noise
    x = 128 / 255
    spreads = {
        "gaussian_noise": 0.12,
        "speckle_noise": 0.2 * x,
        "impulse_noise": np.sqrt(0.03 * (((1 - x) ** 2 + x**2) / 2)),
        "shot_noise": np.sqrt(x / 50),
    }
    for name, spread in spreads.items():
        found = corrupt(gray, name, 3)
        assert found.std() / 255 == pytest.approx(spread * luma, rel=0.05), name
        assert found.mean() == pytest.approx(128, abs=1), name
    assert (np.isin(corrupt(gray, "impulse_noise", 5), 128)).mean() == pytest.approx(0.92**3, abs=0.01)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_small_slice_is_blurred_as_much_as_the_large_one_it_may_be_made_from(severity):
    """Blurred at 224 pixels and then averaged to 28, as MedMNIST reduces its slices."""
    coarse = np.random.default_rng(2).uniform(40, 215, (6, 12, 12))
    large = [Image.fromarray(a.astype(np.uint8)).resize((224, 224), Image.Resampling.BICUBIC) for a in coarse]
    large = np.stack([np.asarray(image) for image in large])
    length = CORRUPTIONS["gaussian_blur"].strengths[severity - 1]
    blurred = functional.gaussian_blur(torch.from_numpy(large.astype(np.float32))[:, None], length)

    def reduced(a):
        return a.reshape(-1, 28, 8, 28, 8).mean((2, 4))

    small = reduced(large.astype(float))
    expected = reduced(blurred.numpy()) - small
    found = corrupt(np.rint(small).astype(np.uint8), "gaussian_blur", severity) - small
    assert found.std() == pytest.approx(expected.std(), rel=0.2)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9  # the small slice is rounded to bytes


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_grows_and_leaves_its_input_alone(name):
    slices = np.random.default_rng(1).integers(0, 256, (20, 28, 28), np.uint8)
    before, changes = slices.copy(), []
    for severity in SEVERITIES:
        made = corrupt(slices, name, severity)
        assert (made.dtype, made.shape) == (np.uint8, slices.shape)
        changes.append(np.abs(made.astype(int) - slices).mean())
    assert (slices == before).all()
    assert 0 < changes[0] < changes[-1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_equal_seeds_give_equal_copies(name, monkeypatch):
    first = corrupt(SLICES, name, 3, seed=7)
    monkeypatch.setattr(corruptions, "BLOCK", 2 * 28 * 28)  # in three blocks for one
    assert (corrupt(SLICES, name, 3, seed=7) == first).all()
    other = corrupt(SLICES, name, 3, seed=8)
    assert (other != first).any() == (name in NOISE)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_slices_give_none_and_strided_ones_the_same(name):
    assert corrupt(SLICES[:0], name, 1).shape == (0, 28, 28)
    turned = SLICES.swapaxes(1, 2)
    assert (corrupt(turned, name, 2) == corrupt(np.ascontiguousarray(turned), name, 2)).all()


def test_there_are_13_of_five_severities():
    assert len(CORRUPTIONS) == 13
    assert all(len(row.strengths) == 5 for row in CORRUPTIONS.values())


def test_what_it_cannot_corrupt_is_refused():
    with pytest.raises(ValueError, match="unknown corruption 'fog'; choose from pixelate, "):
        corrupt(SLICES, "fog", 1)
    with pytest.raises(ValueError, match="severity is 1 to 5, found 0"):
        corrupt(SLICES, "pixelate", 0)
    with pytest.raises(ValueError, match=r"expected uint8 \(N, S, S\), found float32 \(5, 28, 28\)"):
        corrupt(SLICES.astype(np.float32), "pixelate", 1)
    with pytest.raises(ValueError, match=r"found uint8 \(28, 28\)"):
        corrupt(SLICES[0], "pixelate", 1)
