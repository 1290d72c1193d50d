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
    slices = made_slices(size=224 if name == "gaussian_blur" else 28)
    # the blur's kernel is another at small sizes; JPEG of three channels rounds them on their own
    most = {"gaussian_blur": 2, "jpeg_compression": 1}.get(name, 0)
    found = corrupt(slices, name, severity)
    for image, made in zip(slices, found, strict=True):
        expected = np.asarray(
            PILLOW[name](Image.fromarray(image).convert("RGB"), strength).convert("L")
        )
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


NOISE = {
    "gaussian_noise": gaussian,
    "speckle_noise": speckle,
    "impulse_noise": impulse,
    "shot_noise": shot,
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", NOISE)
def test_noise_is_drawn_a_channel_and_read_as_gray(name, severity):
    row, strength = CORRUPTIONS[name], CORRUPTIONS[name].strengths[severity - 1]
    found = row.apply(SLICES, strength, np.random.default_rng(4))
    generator = np.random.default_rng(4)
    for image, made in zip(SLICES, found, strict=True):
        color = np.asarray(Image.fromarray(image).convert("RGB")) / 255
        noisy = (np.clip(NOISE[name](color, strength, generator), 0, 1) * 255).astype(np.uint8)
        expected = np.asarray(Image.fromarray(noisy).convert("L"))
        # float32 beside float64: now and then one gray level
        difference = np.abs(made.astype(int) - expected)
        assert difference.max() <= 1 and difference.mean() < 0.01


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
    assert (np.isin(corrupt(gray, "impulse_noise", 5), 128)).mean() == pytest.approx(
        0.92**3, abs=0.01
    )


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_small_slice_is_blurred_as_much_as_the_large_one_it_may_be_made_from(severity):
    """Blurred at 224 pixels and then averaged to 28, as MedMNIST reduces its slices."""
    coarse = np.random.default_rng(2).uniform(40, 215, (6, 12, 12))
    large = [
        Image.fromarray(a.astype(np.uint8)).resize((224, 224), Image.Resampling.BICUBIC)
        for a in coarse
    ]
    large = np.stack([np.asarray(image) for image in large])
    length = CORRUPTIONS["gaussian_blur"].strengths[severity - 1]
    blurred = functional.gaussian_blur(torch.from_numpy(large.astype(np.float32))[:, None], length)

    def reduced(a):
        return a.reshape(-1, 28, 8, 28, 8).mean((2, 4))

    small = reduced(large.astype(float))
    expected = reduced(blurred.numpy()) - small
    found = corrupt(np.rint(small).astype(np.uint8), "gaussian_blur", severity) - small
    assert found.std() == pytest.approx(expected.std(), rel=0.2)
    assert (
        np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
    )  # the small slice is rounded to bytes


def test_at_224_pixels_the_blur_reaches_as_far_as_torchvisions_kernel():
    """At the mildest severity 11 pixels: a bright column is spread over so many."""
    column = np.zeros((1, 224, 224), np.uint8)
    column[0, :, 112] = 255
    found = np.flatnonzero(corrupt(column, "gaussian_blur", 1)[0, 100])
    assert found.tolist() == list(range(107, 118))


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


# Di Salvo, Doerrich, Ledig, "MedMNIST-C", 2024; organamnist, organcmnist and organsmnist alike in CORRUPTIONS_DS of
# https://github.com/francescodisalvo05/medmnistc-api/blob/b6dee0e78fc39ba5f57944f796d93b9728f7fe55/medmnistc/corruptions/registry.py
PUBLISHED = {
    "pixelate": (0.7, 0.6, 0.5, 0.40, 0.35),
    "jpeg_compression": (50, 30, 15, 10, 7),
    "gaussian_noise": (0.04, 0.08, 0.12, 0.16, 0.20),
    "speckle_noise": (0.05, 0.10, 0.20, 0.30, 0.40),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.08),
    "shot_noise": (200, 100, 50, 25, 15),
    "gaussian_blur": (11, 13, 15, 17, 21),
    "brightness_up": (1.2, 1.3, 1.4, 1.5, 1.6),
    "brightness_down": (0.8, 0.75, 0.7, 0.65, 0.60),
    "contrast_up": (1.3, 1.4, 1.6, 1.7, 1.8),
    "contrast_down": (0.8, 0.7, 0.6, 0.55, 0.5),
    "gamma_corr_up": (1.3, 1.4, 1.6, 1.8, 2.0),
    "gamma_corr_down": (0.9, 0.8, 0.7, 0.6, 0.4),
}


def test_the_65_strengths_are_those_published():
    """In the published order too: the noise of a corruption is seeded with its place."""
    assert list(CORRUPTIONS) == list(PUBLISHED)
    assert {name: row.strengths for name, row in CORRUPTIONS.items()} == PUBLISHED
    assert SEVERITIES == (1, 2, 3, 4, 5)
    assert corruptions.REFERENCE == 224  # MedMNIST-C is of 224 pixels a side


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_each_severity_applies_its_own_strength(name, severity, monkeypatch):
    applied = []

    def keep(images, strength, generator):
        applied.append(strength)
        return images

    row = corruptions.Corruption(keep, CORRUPTIONS[name].strengths)
    monkeypatch.setitem(CORRUPTIONS, name, row)
    corrupt(SLICES, name, severity)
    assert applied == [PUBLISHED[name][severity - 1]]


# what each name does, by the published class: its direction on a slice of 60 and 180
DIRECTIONS = {
    "brightness_up": lambda dark, bright: dark > 60 and bright > 180,
    "brightness_down": lambda dark, bright: dark < 60 and bright < 180,
    "contrast_up": lambda dark, bright: dark < 60 and bright > 180,
    "contrast_down": lambda dark, bright: dark > 60 and bright < 180,
    "gamma_corr_up": lambda dark, bright: dark < 60 and bright < 180,
    "gamma_corr_down": lambda dark, bright: dark > 60 and bright > 180,
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_up_and_down_go_the_way_they_say(name):
    halves = np.repeat(np.array([60, 180], np.uint8), 14 * 28).reshape(1, 28, 28)
    made = corrupt(halves, name, 1)
    assert DIRECTIONS[name](int(made[0, 0, 0]), int(made[0, -1, -1]))


def noise_of(name, severity, seed=0):
    """The noise itself: how far each pixel of gray slices moves."""
    gray = np.full((20, 28, 28), 128, np.uint8)
    return corrupt(gray, name, severity, seed).astype(float).ravel() - 128


@pytest.mark.parametrize("name", NOISE)
def test_each_severity_seed_and_corruption_draws_its_own_noise(name):
    others = [noise_of(name, severity) for severity in (1, 2, 4, 5)] + [noise_of(name, 3, seed=1)]
    others += [noise_of(other, 3) for other in NOISE if other != name]
    for other in others:
        # of 15,680 pixels; noise drawn again from the same state correlates by 0.4 and more
        assert abs(np.corrcoef(noise_of(name, 3), other)[0, 1]) < 0.05


@pytest.mark.parametrize("name", NOISE)
def test_each_slice_of_a_batch_gets_its_own_noise(name, monkeypatch):
    monkeypatch.setattr(corruptions, "BLOCK", 7 * 28 * 28)
    slices = noise_of(name, 3).reshape(20, -1)
    between = np.corrcoef(slices) - np.eye(20)
    assert np.abs(between).max() < 0.25


def test_no_more_than_a_mebipixel_is_corrupted_at_a_time(monkeypatch):
    """As float32 of three channels that takes 12 MiB, whatever the split's length."""
    blocks = []

    def keep(images, strength, generator):
        blocks.append(len(images))
        return images

    monkeypatch.setitem(CORRUPTIONS, "pixelate", corruptions.Corruption(keep, (1, 1, 1, 1, 1)))
    corrupt(np.zeros((3000, 28, 28), np.uint8), "pixelate", 1)
    assert blocks == [1337, 1337, 326]  # 1337 * 784 <= 2**20
    blocks.clear()
    corrupt(np.zeros((2, 1100, 1100), np.uint8), "pixelate", 1)
    assert blocks == [1, 1]
    blocks.clear()
    corrupt(np.zeros((3, 0, 0), np.uint8), "pixelate", 1)
    assert blocks == [3]


def test_what_it_cannot_corrupt_is_refused():
    with pytest.raises(ValueError, match="unknown corruption 'fog'; choose from pixelate, "):
        corrupt(SLICES, "fog", 1)
    with pytest.raises(ValueError, match="severity must be 1 to 5, found 0"):
        corrupt(SLICES, "pixelate", 0)
    with pytest.raises(
        ValueError, match=r"expected uint8 \(N, S, S\), found float32 \(5, 28, 28\)"
    ):
        corrupt(SLICES.astype(np.float32), "pixelate", 1)
    with pytest.raises(ValueError, match=r"found uint8 \(28, 28\)"):
        corrupt(SLICES[0], "pixelate", 1)
