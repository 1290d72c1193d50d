"""Batched augmentation against torchvision's transforms: the same draws by hand, the same distributions."""

import pytest
import torch
from torchvision.transforms import RandomErasing, RandomPerspective
from torchvision.transforms.functional import InterpolationMode, _get_perspective_coeffs, perspective, rotate

from train.augment import _perspectives, _rectangles, augment, normalise


def disc(n=1, size=28):
    """A smooth off-centre blob on normalised black, so that every warp shows."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    blob = torch.exp(-((x - 17.0) ** 2 + (y - 10.0) ** 2) / 40) * 2 - 1
    return blob.expand(n, 1, size, size).contiguous()


def test_normalise_is_to_tensor_and_normalize_bit_for_bit():
    from torchvision.transforms import Compose, Normalize, ToTensor

    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    expected = Compose([ToTensor(), Normalize([0.5], [0.5])])(every[0].numpy())
    assert torch.equal(normalise(every)[0], expected)


def test_same_seed_same_batch_and_another_seed_another():
    x = disc(16)
    first, again, other = (augment(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_eighth_of_the_slices_stays_untouched():
    x = disc(8000)
    same = (augment(x, torch.Generator().manual_seed(0)) == x).flatten(1).all(1).float().mean()
    assert same == pytest.approx(0.125, abs=0.015)


def test_perspectives_are_torchvisions():
    draws = torch.rand(50, 8, generator=torch.Generator().manual_seed(3))
    homographies = _perspectives(draws, 28)
    for draw, h in zip((draws * 8).floor().int().tolist(), homographies, strict=True):
        start = [[0, 0], [27, 0], [27, 27], [0, 27]]
        end = [
            [draw[0], draw[1]],
            [27 - draw[2], draw[3]],
            [27 - draw[4], 27 - draw[5]],
            [draw[6], 27 - draw[7]],
        ]
        expected = torch.tensor(_get_perspective_coeffs(start, end))
        torch.testing.assert_close((h / h[2, 2]).flatten()[:8], expected, rtol=1e-3, atol=1e-4)


def test_perspective_corners_have_torchvisions_distribution():
    torch.manual_seed(0)
    theirs = torch.tensor([RandomPerspective.get_params(28, 28, 0.5)[1] for _ in range(4000)]).float()
    draws = (torch.rand(4000, 8) * 8).floor()
    ours = torch.stack(
        [draws[:, 0], draws[:, 1], 27 - draws[:, 2], draws[:, 3], 27 - draws[:, 4], 27 - draws[:, 5], draws[:, 6], 27 - draws[:, 7]], 1
    ).view(-1, 4, 2)  # fmt: skip
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0, atol=0.15)
    assert torch.equal(ours.amin(0), theirs.amin(0)) and torch.equal(ours.amax(0), theirs.amax(0))


def test_erasing_has_torchvisions_distribution():
    torch.manual_seed(0)
    blank = torch.ones(1, 28, 28)
    theirs = torch.tensor(
        [RandomErasing.get_params(blank, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(6000)],
        dtype=torch.float,
    )
    ours = torch.cat(_rectangles(torch.rand(6000, 40), 28), 1)  # top, left, height, width
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.4)
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0, atol=0.3)
    assert (
        (ours[:, 0] + ours[:, 2] <= 28).all() and (ours[:, 1] + ours[:, 3] <= 28).all() and (ours >= 0).all()
    )


def test_pixels_after_augmentation_have_torchvisions_moments():
    """The whole chain, pixel by pixel: mean and spread over many draws of the composed warp and of torchvision's."""
    from torchvision.transforms import Compose, RandomApply, RandomRotation

    torch.manual_seed(0)
    rotation = RandomApply([RandomRotation(30, interpolation=InterpolationMode.BILINEAR)], 0.5)
    chain = Compose(
        [rotation, RandomErasing(0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)), RandomPerspective(0.5, 0.5)]
    )
    theirs = torch.stack([chain(disc()[0]) for _ in range(3000)])
    ours = augment(disc(12000), torch.Generator().manual_seed(0))
    inner = (..., slice(2, -2), slice(2, -2))  # torchvision blends the frame twice, we once
    torch.testing.assert_close(ours.mean(0)[inner], theirs.mean(0)[inner], rtol=0, atol=0.06)
    torch.testing.assert_close(ours.std(0)[inner], theirs.std(0)[inner], rtol=0, atol=0.06)


def test_the_fill_is_normalised_zero():
    white = torch.ones(400, 1, 28, 28)
    out = augment(white, torch.Generator().manual_seed(0))
    assert out.min() >= -1e-5 and out.max() <= 1 + 1e-5
    assert (out == 0).any()


def test_a_rotation_alone_is_torchvisions_rotation(monkeypatch):
    x = disc()
    fixed = torch.zeros(1, 52)
    fixed[0, :4] = torch.tensor(
        [0.0, 0.9, 0.9, 5 / 6]
    )  # rotation chosen, no erasing, no perspective; 20 degrees
    monkeypatch.setattr(torch, "rand", lambda *a, **k: fixed)
    ours = augment(x, torch.Generator())
    options = {"interpolation": InterpolationMode.BILINEAR}
    differences = [(ours - rotate(x, angle, **options))[..., 5:-5, 5:-5].abs().max() for angle in (20, -20)]
    assert min(differences) < 1e-4  # the sign of a symmetric distribution does not matter


def test_a_perspective_alone_is_torchvisions_perspective(monkeypatch):
    x = disc()
    fixed = torch.zeros(1, 52)
    fixed[0, :3] = torch.tensor([0.9, 0.9, 0.0])
    fixed[0, 4:12] = torch.tensor([2, 3, 4, 1, 5, 2, 0, 6]) / 8 + 0.01
    monkeypatch.setattr(torch, "rand", lambda *a, **k: fixed)
    ours = augment(x, torch.Generator())
    start, end = [[0, 0], [27, 0], [27, 27], [0, 27]], [[2, 3], [23, 1], [22, 25], [0, 21]]
    theirs = perspective(x, start, end, interpolation=InterpolationMode.BILINEAR, fill=0)
    torch.testing.assert_close(ours[..., 6:-6, 6:-6], theirs[..., 6:-6, 6:-6], rtol=0, atol=1e-4)
