"""Batched augmentation against torchvision's transforms: the same draws by hand, the same distributions."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torchvision.transforms import RandomErasing, RandomPerspective, RandomRotation
from torchvision.transforms.functional import (
    InterpolationMode,
    _get_perspective_coeffs,
    perspective,
    rotate,
)

from train.augment import _perspectives, _rectangles, augment, normalize

UNLIKELY = 1e-4  # a test of two distributions refuses equal ones this often; the draws are seeded


def disc(n=1, size=28):
    """A smooth off-centre blob on normalised black, so that every warp shows."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    blob = torch.exp(-((x - 17.0) ** 2 + (y - 10.0) ** 2) / 40) * 2 - 1
    return blob.expand(n, 1, size, size).contiguous()


def test_normalise_is_to_tensor_and_normalize_bit_for_bit():
    from torchvision.transforms import Compose, Normalize, ToTensor

    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    expected = Compose([ToTensor(), Normalize([0.5], [0.5])])(every[0].numpy())
    assert torch.equal(normalize(every)[0], expected)


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


@pytest.mark.parametrize("size", [28, 33])
def test_perspective_corners_have_torchvisions_distribution(size):
    """Where each homography puts the corners of the frame, against RandomPerspective's own draws."""
    far, n = size - 1, 6000
    torch.manual_seed(0)
    theirs = np.array([RandomPerspective.get_params(size, size, 0.5)[1] for _ in range(n)])
    look_up = _perspectives(
        torch.rand(n, 8, generator=torch.Generator().manual_seed(0)), size
    ).double()
    corners = torch.tensor(
        [[0, 0, 1], [far, 0, 1], [far, far, 1], [0, far, 1]], dtype=torch.float64
    )
    moved = torch.linalg.inv(look_up) @ corners.T  # (N, 3, 4)
    ours = (moved[:, :2] / moved[:, 2:]).transpose(1, 2).numpy()
    np.testing.assert_allclose(ours, ours.round(), atol=1e-2)
    for corner in range(4):
        for axis in range(2):
            values, counts = np.unique(ours[:, corner, axis].round(), return_counts=True)
            expected, theirs_counts = np.unique(theirs[:, corner, axis], return_counts=True)
            np.testing.assert_array_equal(values, expected)
            assert stats.chi2_contingency([counts, theirs_counts]).pvalue > UNLIKELY
    together = np.corrcoef(ours.round().reshape(n, 8).T)
    assert np.abs(together - np.eye(8)).max() < 0.06


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
        (ours[:, 0] + ours[:, 2] <= 28).all()
        and (ours[:, 1] + ours[:, 3] <= 28).all()
        and (ours >= 0).all()
    )


def test_pixels_after_augmentation_have_torchvisions_moments():
    """The whole chain, pixel by pixel: mean and spread over many draws of the composed warp and of torchvision's."""
    from torchvision.transforms import Compose, RandomApply, RandomRotation

    torch.manual_seed(0)
    rotation = RandomApply([RandomRotation(30, interpolation=InterpolationMode.BILINEAR)], 0.5)
    chain = Compose(
        [
            rotation,
            RandomErasing(0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)),
            RandomPerspective(0.5, 0.5),
        ]
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
    differences = [
        (ours - rotate(x, angle, **options))[..., 5:-5, 5:-5].abs().max() for angle in (20, -20)
    ]
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


def looked_up(n, size=28, seed=0):
    """Where each pixel of n augmented slices was looked up, in pixels from the center: (N, 2, S, S), x before y; NaN
    where it was filled."""
    centers = (torch.arange(size) + 0.5 - size / 2) / size
    ramps = torch.stack(torch.meshgrid(centers, centers, indexing="ij")[::-1])
    # the ramp stays clear of the fill, and 0
    shown = [
        augment((ramp + 2).expand(n, 1, size, size), torch.Generator().manual_seed(seed))[:, 0]
        for ramp in ramps
    ]
    found = torch.stack(shown, 1).double()
    found[(found == 0).any(1, keepdim=True).expand_as(found)] = float("nan")
    return ((found - 2) * size).numpy()


@pytest.fixture(scope="module")
def warps():
    """What 4,000 slices underwent: (rotation in degrees or NaN with a perspective, the fill's place), from ramps."""
    looked = looked_up(4000)
    at = np.arange(28) + 0.5 - 14
    x, y = np.meshgrid(at, at)
    angles = np.full(len(looked), np.nan)
    for i, (u, v) in enumerate(looked):
        # near the center no bilinear look-up blends with what lies outside
        inside = ~np.isnan(u) & (np.hypot(x, y) < 9)
        if inside.sum() < 20:
            continue
        known = np.stack([x[inside], y[inside], np.ones(inside.sum())], 1)
        matrix, *_ = np.linalg.lstsq(known, np.stack([u[inside], v[inside]], 1), rcond=None)
        error = np.abs(known @ matrix - np.stack([u[inside], v[inside]], 1)).max()
        (a, b), (c, d), shift = matrix
        turned = max(abs(a - d), abs(b + c), abs(a * a + b * b - 1), *np.abs(shift)) < 1e-3
        if error < 1e-3 and turned:
            angles[i] = np.degrees(np.arctan2(b, a))
    return angles, np.isnan(looked[:, 0])


def test_half_of_the_slices_have_a_perspective_and_half_a_rotation_each_on_its_own(warps):
    angles, _ = warps
    plain = ~np.isnan(angles)
    turned = np.abs(angles[plain]) > 0.01
    assert plain.mean() == pytest.approx(0.5, abs=0.035)  # 4 standard deviations
    assert turned.mean() == pytest.approx(0.5, abs=0.045)


def test_angles_have_random_rotations_distribution(warps):
    """RandomRotation(30): uniform from -30 to 30 degrees."""
    angles = warps[0][np.abs(warps[0]) > 0.01]
    torch.manual_seed(1)
    theirs = [RandomRotation.get_params([-30.0, 30.0]) for _ in range(4000)]
    assert stats.ks_2samp(angles, theirs).pvalue > UNLIKELY
    assert 29.5 < angles.max() <= 30.01 and -30.01 <= angles.min() < -29.5


def test_what_is_erased_has_random_erasings_distribution(warps):
    """RandomErasing(0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)), pixel by pixel, in slices that are not warped."""
    angles, blank = warps
    holes = blank[np.abs(angles) < 0.01]
    erased = holes[holes.any((1, 2))]
    assert len(erased) / len(holes) == pytest.approx(0.5, abs=0.065)
    ours = np.array(
        [[h.any(1).argmax(), h.any(0).argmax(), h.any(1).sum(), h.any(0).sum()] for h in erased]
    )
    assert (ours[:, 2] * ours[:, 3] == erased.sum((1, 2))).all()  # rectangles
    torch.manual_seed(2)
    frame = torch.ones(1, 28, 28)
    theirs = np.array(
        [RandomErasing.get_params(frame, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(3000)]
    )
    for values in (
        lambda r: r[:, 2] * r[:, 3],
        lambda r: r[:, 2] / r[:, 3],
        lambda r: r[:, 0],
        lambda r: r[:, 1],
    ):
        assert stats.ks_2samp(values(ours), values(theirs)).pvalue > UNLIKELY


def by_hand(image, draws):
    """One slice float64 (S, S) rotated, erased and seen in perspective in one look-up, as the draws say; NaN where
    rounding decides."""
    size, at = len(image), iter(draws.double().tolist())
    turned, erased, distorted = (next(at) < 0.5 for _ in range(3))
    angle = np.radians(30) * (2 * next(at) - 1) * turned
    steps = [np.floor(next(at) * (int(0.5 * (size // 2)) + 1)) for _ in range(8)]
    tries = np.array(list(at)).reshape(4, 10)
    far = size - 1
    start = [[0, 0], [far, 0], [far, far], [0, far]]
    end = [[steps[0], steps[1]], [far - steps[2], steps[3]], [far - steps[4], far - steps[5]], [steps[6], far - steps[7]]]  # fmt: skip
    y, x = np.mgrid[:size, :size] + 0.5
    depth = np.ones_like(x)
    if distorted:
        a, b, c, d, e, f, g, h = _get_perspective_coeffs(start, end)
        depth = g * x + h * y + 1
        x, y = (a * x + b * y + c) / depth, (d * x + e * y + f) / depth
    hole = (0.0, 0.0, 0.0, 0.0)
    for area, ratio, row, column in tries.T * erased:
        area = (0.02 + 0.31 * area) * size**2
        ratio = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * ratio)
        height, width = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
        if erased and height < size and width < size:
            hole = (
                np.floor(row * (size - height + 1)),
                np.floor(column * (size - width + 1)),
                height,
                width,
            )
            break

    def filled(x, y):
        outside = (x < 0) | (x >= size) | (y < 0) | (y >= size) | (depth <= 0)
        top, left, height, width = hole
        return outside | (y >= top) & (y < top + height) & (x >= left) & (x < left + width)

    near = [filled(x + dx, y + dy) for dx in (-1e-3, 1e-3) for dy in (-1e-3, 1e-3)]
    blank = np.all(near, axis=0)
    u, v = x - size / 2, y - size / 2
    across = np.cos(angle) * u - np.sin(angle) * v + size / 2 - 0.5
    down = np.sin(angle) * u + np.cos(angle) * v + size / 2 - 0.5
    seen = ndimage.map_coordinates(image, [down, across], order=1, mode="grid-constant", cval=0.0)
    # at a border of the fill float32 may fall to either side
    return np.where(np.any(near, axis=0) & ~blank, np.nan, np.where(blank, 0.0, seen))


@pytest.mark.parametrize("size", [28, 33])
def test_every_slice_is_what_its_draws_say(size):
    """Rotation, erasing and perspective together, slice by slice, in float64 NumPy and SciPy."""
    n = 96
    images = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(5)) + 1
    ours = augment(images, torch.Generator().manual_seed(6))[:, 0].double().numpy()
    draws = torch.rand(n, 52, generator=torch.Generator().manual_seed(6))
    for image, seen, drawn in zip(images[:, 0].double().numpy(), ours, draws, strict=True):
        expected = by_hand(image, drawn)
        known = ~np.isnan(expected)
        np.testing.assert_allclose(seen[known], expected[known], rtol=0, atol=1e-3)
        assert known.mean() > 0.98


def tries(heights, widths, size=28):
    """Draws of ten tries for rectangles of these sides, put at the middle of where they fit: (1, 40)."""
    heights, widths = (
        torch.tensor(heights, dtype=torch.float64),
        torch.tensor(widths, dtype=torch.float64),
    )
    area = (heights * widths / size**2 - 0.02) / 0.31
    ratio = ((heights / widths).log() - np.log(0.3)) / np.log(3.3 / 0.3)
    return torch.cat([area, ratio, torch.full((20,), 0.5, dtype=torch.float64)]).float()[None]


def test_the_first_rectangle_that_leaves_a_margin_is_erased():
    """As high or as wide as the slice is too large, as torchvision says; after ten tries nothing is erased."""
    high, wide, fits = (28.0, 9.0), (9.0, 28.0), (27.0, 9.0)
    for number in range(10):
        heights, widths = zip(
            *[high] * (number // 2),
            *[wide] * (number - number // 2),
            *[fits] * (10 - number),
            strict=True,
        )
        assert torch.cat(_rectangles(tries(heights, widths), 28), 1).tolist() == [[1, 9 + 1, 27, 9]]
    for none in (high, wide):
        heights, widths = zip(*[none] * 10, strict=True)
        _, _, height, width = _rectangles(tries(heights, widths), 28)
        assert (height * width).item() == 0
