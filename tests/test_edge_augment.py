"""The edge recipe's augmentation: what each slice underwent, measured from it, against the published distributions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from train.recipes import EdgeRecipe
from train.recipes import edge_augment as augment

UNLIKELY = 1e-4  # a test of a distribution refuses the right one this often; the draws are seeded
MANY = 4000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def is_uniform(values, low, high):
    values = np.asarray(values, float)
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > UNLIKELY


def happens(flags, probability):
    """Whether the share of true values is within 4 standard deviations of a probability."""
    flags = np.asarray(flags, bool)
    return abs(flags.mean() - probability) < 4 * math.sqrt(
        probability * (1 - probability) / flags.size
    )


def unrelated(*columns):
    return np.abs(
        np.corrcoef(np.array(columns, float)) - np.eye(len(columns))
    ).max() < 4 / math.sqrt(len(columns[0]))


def ramps(n, size=28):
    """Two batches float64 (N, 1, S, S) whose gray is the column and the row, in pixels from the center."""
    at = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    down, across = torch.meshgrid(at, at, indexing="ij")
    return across.expand(n, 1, size, size), down.expand(n, 1, size, size)


def test_shifts_are_uniform_over_whole_pixels_on_each_axis():
    across, down = (augment.shift(x, 2, generator())[:, 0, 14, 14] - 0.5 for x in ramps(MANY))
    for by in (across, down):
        values, counts = np.unique(by, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2] and stats.chisquare(counts).pvalue > UNLIKELY
    assert unrelated(across, down)


@pytest.mark.parametrize(("degrees", "scale"), [(10, 0.1), (25, 0.0), (0, 0.3)])
def test_half_of_the_slices_are_turned_by_degrees_and_stretched_by_exponents(degrees, scale):
    """The matrix of each slice, from where its middle was looked up."""
    inner = slice(8, 20)
    seen = [
        augment.affine(x, degrees, scale, generator())[:, 0, inner, inner]
        .flatten(1)
        .double()
        .numpy()
        for x in ramps(MANY)
    ]
    x, y = (ramp[0, 0, inner, inner].flatten().double().numpy() for ramp in ramps(1))
    places = np.linalg.pinv(np.stack([x, y, np.ones_like(x)], 1))
    (a, b, shift_x), (c, d, shift_y) = (places @ values.T for values in seen)
    np.testing.assert_allclose([shift_x, shift_y], 0, atol=1e-4)
    angle, other = np.degrees(np.arctan2(c, a)), np.degrees(np.arctan2(-b, d))
    np.testing.assert_allclose(angle, other, atol=1e-2)  # no shear
    stretch = np.log(np.hypot(a, c)), np.log(np.hypot(b, d))
    changed = (np.abs(angle) > 1e-3) | (np.abs(stretch[0]) > 1e-5)
    assert happens(changed, 0.5)
    if degrees:
        assert is_uniform(angle[changed], -degrees, degrees)
    if scale:
        assert all(is_uniform(s[changed], -scale, scale) for s in stretch)
        assert unrelated(*(s[changed] for s in stretch))
    if degrees and scale:
        assert unrelated(angle[changed], stretch[0][changed])


def test_what_an_affine_map_looks_up_outside_is_the_edge_pixel():
    x = torch.full((200, 1, 28, 28), 0.7)
    torch.testing.assert_close(augment.affine(x, 45, 0.5, generator()), x)


@pytest.mark.parametrize("strength", [0.3, 0.15])
def test_another_window_has_the_published_width_level_and_gamma(strength):
    """docs/results/edge.md: width and gamma by up to exp(strength), level by up to a third of strength, of the gray range.

    Three grays give the three unknowns of y = (gray ** gamma - 0.5) * width + 0.5 + level.
    """
    grays = np.array([0.4, 0.5, 0.6])
    x = torch.from_numpy(grays * 2 - 1).expand(MANY, 1, 1, 3)
    y = (augment.intensity(x, strength, generator()).numpy()[:, 0, 0] + 1) / 2
    wanted = (y[:, 2] - y[:, 1]) / (y[:, 1] - y[:, 0])
    low, high = np.full(MANY, 0.2), np.full(MANY, 5.0)
    for _ in range(60):  # the ratio grows with gamma
        gamma = (low + high) / 2
        powers = grays ** gamma[:, None]
        below = (powers[:, 2] - powers[:, 1]) / (powers[:, 1] - powers[:, 0]) < wanted
        low, high = np.where(below, gamma, low), np.where(below, high, gamma)
    width = (y[:, 2] - y[:, 0]) / (powers[:, 2] - powers[:, 0])
    level = y[:, 1] - 0.5 - (powers[:, 1] - 0.5) * width
    assert is_uniform(np.log(gamma), -strength, strength)
    assert is_uniform(np.log(width), -strength, strength)
    assert is_uniform(level, -strength / 3, strength / 3)
    assert unrelated(np.log(gamma), np.log(width), level)


def test_a_window_stays_within_black_and_white():
    x = torch.tensor([-1.0, 1.0]).expand(500, 1, 1, 2)
    black, white = augment.intensity(x, 1.0, generator()).flatten(1).unbind(1)
    assert black.min() == -1 and white.max() == 1 and (black > -1).any() and (white < 1).any()


def test_half_of_the_slices_get_noise_of_up_to_the_deviation():
    """Of the gray range, which is 2 wide in normalized slices."""
    x = torch.zeros(MANY, 1, 28, 28)
    added = augment.noise(x, 0.05, generator()).double().flatten(1).numpy()
    deviation = added.std(1)
    noisy = deviation > 0
    assert happens(noisy, 0.5)
    assert is_uniform(deviation[noisy], 0, 0.1)
    assert abs((added[noisy].mean(1) / deviation[noisy] * 28).mean()) < 0.1
    some = (added[noisy] / deviation[noisy, None])[:40].ravel()
    assert stats.kstest(some, "norm").pvalue > UNLIKELY
    loud = augment.noise(torch.ones(100, 1, 28, 28), 0.5, generator())
    assert loud.max() == 1 and loud.min() == -1


def rectangle(holes):
    """Top, left, height and width of the true pixels of each slice, bool (N, S, S)."""
    rows, columns = holes.any(2), holes.any(1)
    return rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)


def sampled_erasing(n, size, most, seed=1):
    """Plain NumPy sampling of the published distribution, pixels whose centers lie inside."""
    random = np.random.default_rng(seed)
    area = random.uniform(0.02, most, n) * size**2
    ratio = np.exp(random.uniform(-math.log(3), math.log(3), n))
    height, width = np.minimum(np.sqrt(area * ratio), size), np.minimum(np.sqrt(area / ratio), size)
    top, left = random.uniform(0, size - height), random.uniform(0, size - width)
    at = np.arange(size) + 0.5
    rows = (at > top[:, None]) & (at < (top + height)[:, None])
    columns = (at > left[:, None]) & (at < (left + width)[:, None])
    return rows[:, :, None] & columns[:, None, :]


@pytest.mark.parametrize(("probability", "most"), [(0.5, 0.25), (0.9, 0.6)])
def test_erased_rectangles_have_the_published_areas_and_aspect_ratios(probability, most):
    x = torch.full((MANY, 1, 28, 28), 0.3)
    seen = augment.erase(x, probability, most, generator())[:, 0]
    holes = (seen == 0).numpy()
    assert ((seen == 0) | (seen == x[:, 0])).all()  # normalized 0: middle gray
    erased = holes.any((1, 2))
    assert happens(erased, probability)
    ours, theirs = rectangle(holes[erased]), rectangle(sampled_erasing(MANY, 28, most))
    for mine, other in zip(ours, theirs, strict=True):
        assert stats.ks_2samp(mine, other).pvalue > UNLIKELY
    for combine in (np.multiply, np.divide):
        assert stats.ks_2samp(combine(*ours[2:]), combine(*theirs[2:])).pvalue > UNLIKELY
    assert unrelated(*ours[:2])


def cut_slices(probability, n=MANY, seed=0):
    """Slices whose gray is their number, after `cut`: the pasted pixels, from which slice, and the targets."""
    x = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 1, 28, 28)
    classes = torch.arange(n) % 7
    seen, targets = augment.cutmix(
        x, torch.nn.functional.one_hot(classes, 7).float(), probability, generator(seed)
    )
    pasted = (seen != x)[:, 0].numpy()
    source = seen[:, 0].flatten(1).numpy()
    return pasted, source, classes.numpy(), targets.numpy()


def test_squares_are_uniform_in_area_and_place():
    pasted, *_ = cut_slices(1.0)
    top, left, height, width = rectangle(pasted)
    np.testing.assert_array_equal(height, width)
    # the side is floor(sqrt(u) * 28): P(side <= k) = ((k + 1) / 28) ** 2
    side = np.bincount(height, minlength=29)[:28]
    expected = MANY * np.diff((np.arange(29) / 28) ** 2)
    pool = np.array([side[:5].sum(), *side[5:]]), np.array([expected[:5].sum(), *expected[5:]])
    assert stats.chisquare(*pool).pvalue > UNLIKELY
    for place in (top, left):
        # uniform over the places where the square fits
        free = 28 - height[height > 0] + 1
        spread = (place[height > 0] + np.random.default_rng(0).random(len(free))) / free
        assert is_uniform(spread, 0, 1)


def test_targets_are_shared_by_area_with_the_slice_that_was_pasted():
    pasted, source, classes, targets = cut_slices(0.5)
    cutmix = pasted.any((1, 2))
    # one side in 28 squared is none
    assert happens(cutmix, 0.5 * (1 - 1 / 28**2))
    expected = np.zeros_like(targets)
    for i, (mask, pixels) in enumerate(zip(pasted, source, strict=True)):
        share = mask.mean()
        expected[i, classes[i]] += 1 - share
        if share:
            other = np.unique(pixels[mask.ravel()])
            assert len(other) == 1
            expected[i, classes[int(other[0])]] += share
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)


def test_mixing_takes_up_to_a_half_of_another_slice():
    n = MANY
    x = torch.rand(n, 1, 2, 2, generator=generator(3))
    seen, shares = augment.mixup(x, torch.eye(n), 0.5, generator())
    other = 1 - shares.diagonal().numpy()
    mixed = other > 0
    assert happens(mixed, 0.5) and is_uniform(other[mixed], 0, 0.5)
    torch.testing.assert_close(seen.flatten(1), shares @ x.flatten(1))
    assert ((shares > 0).sum(1) <= 2).all()


# docs/results/edge.md, "Recipe"
PUBLISHED = {
    "peak": 3e-3,
    "decay": 0.05,
    "smoothing": 0.1,
    "shift": 2,
    "mirror": 0.25,
    "erase": 0.5,
    "cut": 0.5,
    "mix": 0.0,
    "affine": 0.0,
    "intensity": 0.3,
    "noise": 0.0,
    "averaged": 0.998,
}


def test_the_recipe_is_the_published_one():
    assert EdgeRecipe().stored_settings() == PUBLISHED
    assert EdgeRecipe(ema_decay=None).stored_settings() == {
        k: v for k, v in PUBLISHED.items() if k != "averaged"
    }
    assert EdgeRecipe(negatives=0.15).stored_settings() == PUBLISHED | {"negatives": 0.15}


def test_a_batch_is_prepared_by_the_ingredients_in_their_order():
    recipe = EdgeRecipe(
        flip_front_back=0.3,
        shift=3,
        affine=0.5,
        cutmix=0.4,
        mixup=0.6,
        intensity=0.2,
        noise=0.1,
        erase=0.7,
    )
    x, labels = torch.rand(64, 1, 28, 28, generator=generator(2)) * 2 - 1, torch.arange(64) % 5
    found, found_targets = recipe.prepare(x, labels, 5, generator(4))
    g = generator(4)
    x = augment.shift(augment.flip_front_back(x, 0.3, g), 3, g)
    x = augment.affine(x, 5.0, 0.05, g)  # 10 degrees and a tenth at strength 1
    x, targets = augment.cutmix(x, torch.eye(5)[labels], 0.4, g)
    x, targets = augment.mixup(x, targets, 0.6, g)
    x = augment.erase(augment.noise(augment.intensity(x, 0.2, g), 0.1, g), 0.7, 0.25, g)
    torch.testing.assert_close(found, x, rtol=0, atol=0)
    torch.testing.assert_close(found_targets, targets, rtol=0, atol=0)


INGREDIENTS = (
    "flip_front_back",
    "shift",
    "affine",
    "cutmix",
    "mixup",
    "intensity",
    "noise",
    "erase",
)


@pytest.mark.parametrize("left_in", INGREDIENTS)
def test_an_ingredient_of_strength_zero_is_not_drawn(left_in, monkeypatch):
    called = []
    for name in INGREDIENTS:
        real = getattr(augment, name)
        monkeypatch.setattr(
            augment, name, lambda *a, name=name, real=real: called.append(name) or real(*a)
        )
    strengths = dict.fromkeys(INGREDIENTS, 0) | {left_in: 1}
    x, labels = torch.zeros(4, 1, 28, 28), torch.tensor([0, 1, 2, 1])
    _, targets = EdgeRecipe(**strengths).prepare(x, labels, 3, generator())
    assert called == [left_in]
    if left_in not in ("cutmix", "mixup"):
        assert torch.equal(targets, torch.eye(3)[labels])


def test_the_loss_is_smoothed_cross_entropy_summed_over_slices():
    """Szegedy et al. 2016: each target keeps 1 - 0.1 of its share and all classes divide 0.1 equally."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.0, 0.75]])
    log = [[v - math.log(sum(math.exp(w) for w in row)) for v in row] for row in logits.tolist()]
    expected = 0.0
    for row, target in zip(log, targets.tolist(), strict=True):
        expected -= sum((0.9 * t + 0.1 / 3) * p for t, p in zip(target, row, strict=True))
    assert float(EdgeRecipe().loss(logits, targets)) == pytest.approx(expected, rel=1e-6)
    plain = -log[0][0] - 0.25 * log[1][0] - 0.75 * log[1][2]
    assert float(EdgeRecipe(smoothing=0.0).loss(logits, targets)) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize(
    ("done", "rate"),
    [
        (0.0, 3e-6),
        (0.05, 7.5e-4),
        (0.1, 1.5e-3),
        (0.2, 3e-3),
        # (1 + cos(pi / 4)) / 2, pi / 2 and 3 pi / 4 of the way down
        (0.4, 3e-3 * 0.8535533905932737),
        (0.6, 1.5e-3),
        (0.8, 3e-3 * 0.14644660940672627),
        (1.0, 3e-6),
    ],
)
def test_the_learning_rate_at_points_computed_by_hand(done, rate):
    assert EdgeRecipe().learning_rate(done) == pytest.approx(rate, rel=1e-9)


def test_weights_decay_and_biases_and_normalization_do_not():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 3)
            self.norm = torch.nn.BatchNorm2d(2)
            self.head = torch.nn.Linear(2, 3)

    network = Network()
    optimizer = EdgeRecipe(decay=0.07, peak=0.02).optimizer(network)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["betas"] == (0.9, 0.999)
    decayed, kept = (
        {name for name, p in network.named_parameters() if any(p is q for q in group["params"])}
        for group in optimizer.param_groups
    )
    assert decayed == {"conv.weight", "head.weight"}
    assert kept == {"conv.bias", "norm.weight", "norm.bias", "head.bias"}
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.02, 0.07),
        (0.02, 0.0),
    ]


def smooth_slices(n, size=28, seed=7):
    """Slices of which none is an image of no organ: smooth, with a bright side."""
    side = torch.linspace(-0.6, 0.6, size)
    noise = torch.rand(n, 1, size, size, generator=generator(seed)) * 0.3
    return side[None, None, None, :] + noise


def test_a_share_of_the_slices_becomes_images_of_no_organ_with_every_class_alike():
    x, targets = smooth_slices(MANY), torch.eye(11)[torch.arange(MANY) % 11]
    changed, shares = augment.negatives(x, targets, 11, 0.2, generator())
    is_negative = (shares - 1 / 11).abs().amax(1) < 1e-6
    assert happens(is_negative, 0.2)
    assert (shares[~is_negative] == targets[~is_negative]).all()
    assert (changed[~is_negative] == x[~is_negative]).all()
    assert (changed[is_negative] != x[is_negative]).flatten(1).any(1).all()
    assert changed.min() >= -1 and changed.max() <= 1 and changed.isfinite().all()
    assert (x == smooth_slices(MANY)).all() and (targets.sum(1) == 1).all()


def test_no_share_changes_nothing():
    x, targets = smooth_slices(50), torch.eye(11)[torch.arange(50) % 11]
    changed, shares = augment.negatives(x, targets, 11, 0.0, generator())
    assert (changed == x).all() and (shares == targets).all()


@pytest.mark.parametrize(
    "kind", (*augment._NEGATIVES, augment._turned), ids=lambda kind: kind.__name__
)
def test_each_kind_of_negative_is_what_it_is_called(kind):
    x = smooth_slices(400)
    made = kind(x, generator()).clamp(-1, 1)
    spans = (made.amax((1, 2, 3)) - made.amin((1, 2, 3))).numpy()
    match kind.__name__:
        case "_constant":
            assert np.quantile(spans, 0.3) < 1e-5 and spans.max() < 1.5
        case "_textures":
            assert np.median(spans) > 0.5
        case "_shapes":
            steps = (made[..., 1:] - made[..., :-1]).abs().flatten(1)
            # edges beside areas without any
            assert (steps.amax(1) > 0.3).float().mean() > 0.9
            assert (
                (steps.median(1).values < 0.1) & torch.from_numpy(spans > 0.3)
            ).float().mean() > 0.5
        case "_inverted":
            assert (made == -x).all()
        case "_wrong_window":
            share = (made.abs() == 1).float().mean((1, 2, 3)).numpy()
            assert ((share > 0.6) | (spans < 0.6)).mean() > 0.9
        case "_turned":
            assert all(
                any((made[i] == x[i].rot90(k, (1, 2))).all() for k in (1, -1)) for i in range(400)
            )
        case "_parts":
            # a part is smoother than the whole
            rough = [(a[..., 1:] - a[..., :-1]).abs().mean((1, 2, 3)) for a in (made, x)]
            assert (rough[0] < rough[1]).float().mean() > 0.95
        case "_bodies":
            corners = made[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
            assert (corners == -1).all() and (made[:, 0, 14, 14] > -1).all()
        case _:
            raise AssertionError("a kind without a test")


def reoriented(x, number):
    """Orientation `number` of a slice (S, S), as docs/reference/bundle_format.md defines it."""
    x = np.asarray(x)
    if number & 1:
        x = x[::-1]
    if number & 2:
        x = x[:, ::-1]
    return x.T if number & 4 else x


def test_slices_are_reoriented_as_their_targets_say():
    x, targets = smooth_slices(MANY), torch.eye(3)[torch.arange(MANY) % 3]
    changed, both = augment.reorient(x, targets, 0.3, 0.25, generator())
    assert both.shape == (MANY, 3 + 9) and (both[:, 3:].sum(1) == 1).all()
    number = both[:, 3:].argmax(1).numpy()
    for i in range(400):
        assert np.array_equal(changed[i, 0], reoriented(x[i, 0], number[i]))
    upright = np.isin(number, (0, 2))
    assert happens(~upright, 0.3) and happens(number[upright] == 2, 0.25)
    assert set(number) == set(range(8))
    assert stats.chisquare(np.unique(number[~upright], return_counts=True)[1]).pvalue > UNLIKELY
    assert (both[upright, :3] == targets[upright]).all() and (both[~upright, :3] == 0).all()


def test_without_flips_all_seven_other_orientations_have_no_class():
    x, targets = smooth_slices(MANY), torch.eye(3)[torch.arange(MANY) % 3]
    _, both = augment.reorient(x, targets, 0.3, 0.0, generator())
    number = both[:, 3:].argmax(1).numpy()
    assert happens(number != 0, 0.3) and (both[number != 0, :3] == 0).all()
    counts = np.unique(number[number != 0], return_counts=True)[1]
    assert len(counts) == 7 and stats.chisquare(counts).pvalue > UNLIKELY


def test_negatives_have_an_orientation_of_their_own_and_are_not_turned(monkeypatch):
    monkeypatch.setattr(augment, "_turned", None)
    x, targets = augment.reorient(
        smooth_slices(MANY), torch.eye(3)[torch.arange(MANY) % 3], 0.3, 0.25, generator()
    )
    changed, both = augment.negatives(x, targets, 3, 0.2, generator(1))
    is_negative = both[:, -1] == 1
    assert happens(is_negative, 0.2)
    assert ((both[is_negative, :3] - 1 / 3).abs() < 1e-6).all() and (
        both[is_negative, 3:-1] == 0
    ).all()
    assert (both[~is_negative] == targets[~is_negative]).all()
    assert (changed[~is_negative] == x[~is_negative]).all()


def test_half_of_the_slices_are_zoomed_by_exponents_on_each_axis_on_its_own():
    inner = slice(10, 18)
    across, down = (augment.zoom(x, 0.2, generator())[:, 0, inner, inner] for x in ramps(MANY))
    by = [
        np.log(((ramp[:, -1, -1] - ramp[:, 0, 0]) / 7).double().numpy()) for ramp in (across, down)
    ]
    zoomed = np.abs(by[0]) > 1e-5
    assert happens(zoomed, 0.5) and (np.abs(by[1][~zoomed]) < 1e-5).all()
    assert all(is_uniform(values[zoomed], -0.2, 0.2) for values in by)
    assert unrelated(by[0][zoomed], by[1][zoomed])


def test_half_of_the_slices_are_blurred_by_any_share_of_a_binomial_filter():
    x = torch.full((MANY, 1, 28, 28), -1.0)
    x[:, :, 14, 14] = 1
    changed = augment.blur(x, generator()).double()
    share = ((1 - changed[:, 0, 14, 14]) / (2 * 12 / 16)).numpy()
    blurred = share > 1e-6
    assert happens(blurred, 0.5) and is_uniform(share[blurred], 0, 1)
    around = (changed[:, 0, 13:16, 13:16] + 1) / 2
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for i in range(50):
        expected = share[i] * weights + (1 - share[i]) * np.pad([[1]], 1)
        np.testing.assert_allclose(around[i], expected, atol=1e-6)


def test_half_of_the_slices_lose_contrast_between_water_and_bone_only():
    """-0.1 in -1 to 1 is 20 HU through the abdominal window, 0.7 is 180 HU."""
    gray = torch.linspace(-1, 1, 28 * 28).reshape(1, 1, 28, 28)
    changed = augment.squeeze_contrast(gray.expand(MANY, 1, 28, 28), 0.3, generator()).flatten(1)
    gray = gray.flatten()
    fat, soft = gray < -0.1, (gray >= -0.1) & (gray < 0.7)
    assert (changed[:, fat] == gray[fat]).all() and ((changed[:, -1] - 1).abs() < 1e-6).all()
    factor = ((changed[:, soft] + 0.1) / (gray[soft] + 0.1))[:, 5:].double()
    assert (factor.std(1) < 1e-5).all()
    squeezed = (factor[:, 0] < 1 - 1e-6).numpy()
    assert happens(squeezed, 0.5) and is_uniform(factor[squeezed, 0], 0.3, 1)
    # gray values stay in their order, without a step
    steps = (changed[:, 1:] - changed[:, :-1]).double()
    assert (steps > 0).all() and (steps < 6 * 2 / 783).all()


def test_the_loss_of_two_outputs_counts_each_slice_once_and_those_without_a_class_not_at_all():
    recipe = EdgeRecipe(reoriented=0.2, orientation_weight=0.5)
    logits = torch.randn(3, 3 + 9, generator=generator())
    targets = torch.zeros(3, 12)
    targets[0, 1] = targets[0, 3] = 1
    targets[1, 3 + 5] = 1
    targets[2, :3], targets[2, -1] = 1 / 3, 1
    log, log_orientation = logits[:, :3].log_softmax(1), logits[:, 3:].log_softmax(1)
    classes = -(0.9 * log[0, 1] + 0.1 * log[0].mean()) - log[2].mean()
    orientations = -(log_orientation[0, 0] + log_orientation[1, 5] + log_orientation[2, 8])
    torch.testing.assert_close(recipe.loss(logits, targets), classes + 0.5 * orientations)
    whole = EdgeRecipe(reoriented=0.2).loss(logits, targets)
    torch.testing.assert_close(whole, classes + orientations)


def test_reorienting_replaces_flips_and_the_later_ingredients_have_their_order():
    recipe = EdgeRecipe(
        shift=1, zoom=0.2, contrast=0.3, blur=1, noise=0.1, negatives=0.3, reoriented=0.3
    )
    x, labels = smooth_slices(64), torch.arange(64) % 5
    found, found_targets = recipe.prepare(x, labels, 5, generator(4))
    g = generator(4)
    x = augment.zoom(augment.shift(x, 1, g), 0.2, g)
    x, targets = augment.cutmix(x, torch.eye(5)[labels], 0.5, g)
    x, targets = augment.reorient(x, targets, 0.3, 0.25, g)
    x = augment.intensity(augment.squeeze_contrast(x, 0.3, g), 0.3, g)
    x = augment.erase(augment.noise(augment.blur(x, g), 0.1, g), 0.5, 0.25, g)
    x, targets = augment.negatives(x, targets, 5, 0.3, g)
    torch.testing.assert_close(found, x, rtol=0, atol=0)
    torch.testing.assert_close(found_targets, targets, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "zoom",
        "contrast",
        "blur",
        "streaks",
        "thick_slices",
        "negatives",
        "reoriented",
        "orientation_weight",
    ],
)
def test_an_ingredient_that_came_later_is_stored_only_if_it_is_used(name):
    assert EdgeRecipe(**{name: 0.5}).stored_settings() == PUBLISHED | {name: 0.5}


def test_thick_slices_are_averages_with_equal_shares_of_up_to_a_third():
    x = torch.zeros(MANY, 1, 4, 4)
    around = torch.ones(MANY, 2, 4, 4) * torch.tensor([0.6, 0.3])[:, None, None]
    changed = augment.thick_slices(x, around, 0.4, generator()).flatten(1).double()
    assert (changed.std(1) < 1e-7).all()
    share = (changed[:, 0] / 0.9).numpy()
    assert happens(share > 0, 0.4) and is_uniform(share[share > 0], 0, 1 / 3)
    alone = augment.thick_slices(around[:, :1], around[:, :1].expand(-1, 2, -1, -1), 1, generator())
    torch.testing.assert_close(alone, around[:, :1])


def bright_spots(n, at=(9, 17)):
    """Dark slices with one bright pixel."""
    x = torch.full((n, 1, 28, 28), -0.3)
    x[:, :, at[0], at[1]] = 0.3
    return x


def test_streaks_change_a_share_of_the_slices_by_bright_and_dark_lines():
    x = bright_spots(MANY)
    changed = augment.streaks(x, 0.3, generator())
    by = (changed - x)[:, 0]
    streaked = (by != 0).flatten(1).any(1).numpy()
    assert happens(streaked, 0.3)
    assert changed.min() >= -1 and changed.max() <= 1 and changed.isfinite().all()
    strongest = by.flatten(1)[streaked].abs().amax(1)
    # up to four lines of 0.1 to 0.6 may cross, and gray values end at -1
    assert strongest.min() >= 0.1 - 1e-6 and 0.6 < strongest.max() <= 1.3
    brighter, darker = (by > 0.05).flatten(1).any(1), (by < -0.05).flatten(1).any(1)
    assert brighter[streaked].float().mean() > 0.5 and darker[streaked].float().mean() > 0.5


def test_streaks_are_straight_lines_near_the_brightest_pixel(monkeypatch):
    """With one line per slice: its angle, amplitude and width are uniform, and it passes within 2 pixels per axis."""
    monkeypatch.setattr(augment, "STREAKS", 1)
    x = torch.zeros(MANY, 1, 28, 28)
    x[:, :, 13, 14] = 0.35
    by = (augment.streaks(x, 1.0, generator()) - x)[:, 0].double()
    amplitude = by.flatten(1).gather(1, by.flatten(1).abs().argmax(1, keepdim=True))[:, 0].numpy()
    assert happens(amplitude > 0, 0.5) and is_uniform(np.abs(amplitude), 0.1, 0.6)
    covered = (by.abs() / by.abs().amax((1, 2), keepdim=True)).numpy()
    down, across = np.mgrid[:28, :28] - np.array([13, 14])[:, None, None]
    angles, widths = [], []
    for line in covered[:1000]:
        # moments of the covered pixels within a circle about the spot
        weight = line * (np.hypot(down, across) < 12)
        y, z = (weight * down).sum() / weight.sum(), (weight * across).sum() / weight.sum()
        syy, szz = (weight * (down - y) ** 2).sum(), (weight * (across - z) ** 2).sum()
        syz = (weight * (down - y) * (across - z)).sum()
        angle = 0.5 * np.arctan2(2 * syz, szz - syy)
        normal = abs(-y * np.cos(angle) + z * np.sin(angle))
        assert normal < 2 * math.sqrt(2) + 0.1
        width = weight.sum() / (2 * math.sqrt(12**2 - normal**2))
        angles.append(angle)
        widths.append(width)
    assert is_uniform(np.mod(angles, math.pi), 0, math.pi)
    assert min(widths) > 0.85 and max(widths) < 3.2 and np.quantile(widths, 0.9) > 2.5


@pytest.mark.parametrize("change", ["streaks", "thick_slices"])
def test_a_later_ingredient_is_the_same_for_the_same_seed_and_leaves_its_input(change):
    x = smooth_slices(50)
    before, function = x.clone(), getattr(augment, change)
    arguments = (x, smooth_slices(100, seed=8).view(50, 2, 28, 28)) if change != "streaks" else (x,)
    first, again, other = (function(*arguments, 0.5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(x, before) and not torch.equal(first, x)
    assert torch.equal(function(*arguments, 0.0, generator()), x)


def test_streaks_come_before_the_window_and_are_not_drawn_without_the_field():
    x, labels = smooth_slices(64), torch.arange(64) % 5
    off = {"shift": 0, "flip_front_back": 0, "cutmix": 0, "erase": 0}
    found, _ = EdgeRecipe(streaks=0.5, contrast=0.3, **off).prepare(x, labels, 5, generator(4))
    g = generator(4)
    expected = augment.streaks(augment.squeeze_contrast(x, 0.3, g), 0.5, g)
    assert torch.equal(found, augment.intensity(expected, 0.3, g))
    without, _ = EdgeRecipe(contrast=0.3, **off).prepare(x, labels, 5, generator(4))
    g = generator(4)
    assert torch.equal(without, augment.intensity(augment.squeeze_contrast(x, 0.3, g), 0.3, g))


def test_a_second_output_is_not_trained_without_orientations():
    logits, targets = torch.randn(4, 3 + 9, generator=generator()), torch.eye(3)[[0, 1, 2, 1]]
    logits.requires_grad_()
    loss = EdgeRecipe().loss(logits, targets)
    loss.backward()
    assert torch.equal(loss, EdgeRecipe().loss(logits[:, :3], targets))
    assert (logits.grad[:, 3:] == 0).all() and (logits.grad[:, :3] != 0).all()
