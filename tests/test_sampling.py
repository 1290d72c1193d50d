"""Point sampling, `pack(resample="linear")` and `"cubic"`, against exact weights, PyTorch and OpenCV.

The definition is in docs/reference/bundle_format.md, "Preprocessing".
"""

import os
from fractions import Fraction
from functools import cache
from math import floor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organ_infer import _packing
from organ_infer._packing import pack
from tests.support.slice_arrays import KINDS, fractions, random_slice, strided

MODES = ("linear", "cubic")
A = Fraction(-3, 4)
# whole bounds, odd bounds, bounds that are not integers, all of int16
WINDOWS = [(40, 400), (30, 351), (-0.3, 77.7), (0, 60000)]


@pytest.fixture(autouse=True)
def restored():
    before = _packing.level()
    yield
    _packing.set_level(before)


def kernel(mode, distance):
    """The weight of a pixel at a distance from the position, an exact fraction."""
    x = abs(distance)
    if mode == "linear":
        return max(1 - x, Fraction(0))
    if x <= 1:
        return (A + 2) * x**3 - (A + 3) * x**2 + 1
    return A * x**3 - 5 * A * x**2 + 8 * A * x - 4 * A if x < 2 else Fraction(0)


@cache
def weights(mode, length, size):
    """The matrix (size, length), float64, that samples one axis, written from the docs."""
    matrix = [[Fraction(0)] * length for _ in range(size)]
    for o in range(size):
        position = Fraction((2 * o + 1) * length, 2 * size) - Fraction(1, 2)
        for i in range(floor(position) - 1, floor(position) + 3):
            matrix[o][min(max(i, 0), length - 1)] += kernel(mode, position - i)
    return np.array(matrix, dtype=np.float64)


def expected(image, mode, size, window=(40, 400)):
    """One slice as (size, size), float64, before mean and std: the window, then the weights."""
    gray = fractions(image, window)
    if image.dtype == np.int16 and ((window[0] - window[1] / 2) % 1 or window[1] % 1):
        gray = gray.astype(np.float32).astype(np.float64)
    return np.clip(
        weights(mode, image.shape[0], size) @ gray @ weights(mode, image.shape[1], size).T, 0, 1
    )


def at_every_level(*arguments, **options):
    """The result of `pack`, after comparing its bits at every dispatch level of this processor."""
    results = []
    for name in _packing.levels():
        _packing.set_level(name)
        results.append(pack(*arguments, **options))
    for other in results[1:]:
        np.testing.assert_array_equal(other.view(np.uint32), results[0].view(np.uint32))
    return results[0]


def assert_is_the_float64_computation(
    image, mode, size=28, window=(40, 400), mean=0.0, std=1.0, layout=None
):
    options = {"window": window} if image.dtype == np.int16 else {}
    given = image if layout is None else strided(image)[layout]
    found = at_every_level(given, size, mean=mean, std=std, resample=mode, **options)
    exact = expected(image, mode, size, window)
    wanted = (exact.astype(np.float32) - np.float32(mean)) / np.float32(std)
    # One ulp of the fraction, because its rounding may fall to the other side, and one of the result. The matrix product
    # rounds too: 2^-48 is a hundred times its error.
    allowed = (np.spacing(exact.astype(np.float32)) + 2.0**-48) / std + np.spacing(np.abs(wanted))
    assert found.shape == (1, 1, size, size) and found.dtype == np.float32
    difference = np.abs(found[0, 0].astype(float) - wanted)
    assert (difference <= allowed).all(), (image.shape, size, mode, difference.max())


def test_golden_linear():
    # Three pixels into two: positions 1/4 and 7/4. Two into four: 0, 1/4, 3/4, 1 of the way.
    row = np.array([[0, 90, 255]] * 2, np.uint8)
    found = at_every_level(row, 2, mean=0, std=1, resample="linear")[0, 0, 0] * 255
    np.testing.assert_allclose(found, [22.5, 213.75], rtol=1e-6)
    found = at_every_level(np.array([[0, 100]], np.uint8), 4, mean=0, std=1, resample="linear")
    np.testing.assert_allclose(found[0, 0, 2] * 255, [0, 25, 75, 100], rtol=1e-6)


def test_golden_cubic():
    # Eight pixels into four: each halfway between two pixels, weights -3/32, 19/32, 19/32, -3/32.
    row = np.array([[10, 20, 60, 200, 90, 30, 40, 50]], np.uint8)
    found = at_every_level(row, 4, mean=0, std=1, resample="cubic")[0, 0, 1] * 255
    wanted = [
        (16 * 10 + 19 * 20 - 3 * 60) / 32,
        (-3 * 20 + 19 * 60 + 19 * 200 - 3 * 90) / 32,
        (-3 * 200 + 19 * 90 + 19 * 30 - 3 * 40) / 32,
        (-3 * 30 + 19 * 40 + 16 * 50) / 32,
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_sampling_is_the_float64_computation(data):
    image = random_slice(
        np.random.default_rng(data.draw(st.integers(0, 99))),
        data.draw(st.sampled_from(sorted(KINDS))),
        (data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))),
    )
    assert_is_the_float64_computation(
        image,
        data.draw(st.sampled_from(MODES)),
        data.draw(st.sampled_from([1, 2, 7, 16, 28, 31, 33, 64])),
        data.draw(st.sampled_from(WINDOWS)),
        *data.draw(st.sampled_from([(0.0, 1.0), (0.5, 0.5), (0.3, 0.7)])),
        layout=data.draw(st.sampled_from([None, *strided(image)])),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", sorted(KINDS))
def test_every_length_from_1_to_70_up_and_down(mode, dtype):
    rng = np.random.default_rng(1)
    for length in range(1, 71):
        image = random_slice(rng, dtype, (length, 71 - length))
        assert_is_the_float64_computation(image, mode, 28)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("shape", [(512, 512), (1, 3000), (2000, 2), (3, 513)])
def test_large_slices_are_the_float64_computation(mode, dtype, shape):
    assert_is_the_float64_computation(
        random_slice(np.random.default_rng(7), dtype, shape), mode, 28
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_longest_axes_and_the_largest_weights(mode):
    tall = np.zeros((65535, 2), np.uint16)
    tall[32768:] = 65535
    for image in (tall, np.ascontiguousarray(tall.T)):
        assert_is_the_float64_computation(image, mode, 3)
    # 4,093 and 1,021 are primes, so the weights have no common divisor
    for value, size, packed in (
        (40001, 4093, pack),
        (1, 1021, at_every_level),
        (65534, 509, at_every_level),
    ):
        flat = packed(np.full((5, 7), value, np.uint16), size, mean=0, std=1, resample=mode)
        assert (flat == np.float32(value) / np.float32(65535)).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (90, 5), (512, 512), (513, 1023), (300, 28)])
@pytest.mark.parametrize("mode", MODES)
def test_a_flat_slice_stays_flat(mode, shape):
    values = [("uint8", v) for v in range(0, 256, 17)]
    values += [("uint16", v) for v in (0, 1, 257, 12345, 65534, 65535)]
    values += [("int16", v) for v in (-1000, -159, 0, 77, 240, 3000)]
    for dtype, value in values:
        for window in [None] if dtype != "int16" else [None, (40, 401), (0.1, 1000.3), (0, 65535)]:
            want = pack(np.full((28, 28), value, dtype), window=window)[0, 0, 0, 0]
            found = at_every_level(np.full(shape, value, dtype), window=window, resample=mode)
            assert (found == want).all(), (dtype, value, window)


@pytest.mark.parametrize("mode", MODES)
def test_slices_of_the_networks_size_are_unchanged(mode):
    for dtype in sorted(KINDS):
        image = random_slice(np.random.default_rng(2), dtype, (28, 28))
        np.testing.assert_array_equal(at_every_level(image, resample=mode), pack(image))
        # one axis alone
        wide = random_slice(np.random.default_rng(2), dtype, (28, 50))
        assert_is_the_float64_computation(wide, mode, 28)


def test_enlarged_slices_have_the_same_bits_as_linear_and_as_area():
    rng = np.random.default_rng(3)
    for dtype in sorted(KINDS):
        for shape in [(1, 1), (13, 28), (28, 13), (27, 2), (20, 20)]:
            image = random_slice(rng, dtype, shape)
            np.testing.assert_array_equal(
                at_every_level(image, resample="linear"), at_every_level(image, resample="area")
            )


def test_area_is_the_default_and_averages():
    image = random_slice(np.random.default_rng(4), "uint8", (60, 60))
    area = pack(image)
    np.testing.assert_array_equal(area, pack(image, resample="area"))
    others = [pack(image, resample=mode) for mode in MODES]
    assert np.std(area) < 0.7 * min(map(np.std, others))
    assert np.abs(others[0] - others[1]).max() > 0.1


@pytest.mark.parametrize("window", [(40, 400), (40.25, 400)])
@pytest.mark.parametrize("mode", MODES)
def test_the_window_comes_before_the_sampling(mode, window):
    # Air beside bone: in Hounsfield units the mean of the two would be black.
    image = np.array([[-1000, 1000]] * 2, np.int16)
    found = at_every_level(image, 3, mean=0, std=1, window=window, resample=mode)[0, 0]
    np.testing.assert_allclose(found, [[0, 0.5, 1]] * 3, atol=1e-7)
    # Gray as MedMNIST makes it, then sampled: the same values up to the rounding to 255 grays.
    crop = random_slice(np.random.default_rng(5), "int16", (61, 47))
    gray = np.round(fractions(crop, window) * 255).astype(np.uint8)
    sampled = [pack(x, mean=0, std=1, resample=mode) for x in (gray, crop)]
    if window == (40, 400):
        np.testing.assert_allclose(*sampled, atol=1.0 / 255)


def test_cubic_is_clamped_where_it_overshoots():
    row = random_slice(np.random.default_rng(14), "uint8", (1, 61)) // 128 * 255
    edge = np.repeat(row, 61, axis=0)
    unclamped = weights("cubic", 61, 28) @ (row[0] / 255)
    assert unclamped.min() < -0.05 and unclamped.max() > 1.05
    found = at_every_level(edge, mean=0, std=1, resample="cubic")
    assert found.min() == 0 and found.max() == 1
    np.testing.assert_allclose(found[0, 0, 5], np.clip(unclamped, 0, 1), atol=1e-7)
    for dtype, low, high in (("uint16", 0, 65535), ("int16", -3000, 3000)):
        scaled = np.where(edge > 0, high, low).astype(dtype)
        np.testing.assert_array_equal(
            at_every_level(scaled, mean=0, std=1, resample="cubic"), found
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("shape", [(28, 70), (70, 28), (200, 200), (13, 11), (3, 2)])
def test_any_strides(mode, dtype, shape):
    image = random_slice(np.random.default_rng(6), dtype, shape)
    wanted = at_every_level(image, resample=mode)
    for name, array in strided(image).items():
        found = at_every_level([array, image], resample=mode)
        np.testing.assert_array_equal(found, np.concatenate([wanted] * 2), err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_volumes_in_any_order_and_broadcast(mode):
    images = random_slice(np.random.default_rng(8), "int16", (6, 90, 50))
    wanted = pack(images, resample=mode)
    np.testing.assert_array_equal(
        wanted, np.concatenate([pack(image, resample=mode) for image in images])
    )
    np.testing.assert_array_equal(pack(images[::-2], resample=mode), wanted[::-2])
    stacked = np.ascontiguousarray(np.moveaxis(images, 0, -1))
    np.testing.assert_array_equal(pack(np.moveaxis(stacked, -1, 0), resample=mode), wanted)
    row = np.broadcast_to(images[0, :1], (90, 50))
    np.testing.assert_array_equal(pack(row, resample=mode), pack(row.copy(), resample=mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", sorted(KINDS))
def test_threads_agree_bit_for_bit(mode, dtype):
    rng = np.random.default_rng(9)
    batch = np.broadcast_to(random_slice(rng, dtype, (70, 61)), (400, 70, 61))
    sides = rng.integers(1, 300, (60, 2))
    mixed = [random_slice(rng, dtype, (int(h), int(w))) for h, w in sides]
    mixed += [random_slice(rng, dtype, (28, 28))[:, ::-1]]
    for images in (batch, mixed):
        wanted = pack(images, resample=mode)
        for threads in (2, 3, 1000):
            np.testing.assert_array_equal(pack(images, threads=threads, resample=mode), wanted)


@pytest.mark.parametrize(("mode", "taps"), [("linear", 2), ("cubic", 4)])
def test_only_pixels_around_a_position_matter(mode, taps):
    image = random_slice(np.random.default_rng(10), "uint8", (512, 301))
    used = np.outer(weights(mode, 512, 28).any(axis=0), weights(mode, 301, 28).any(axis=0))
    assert used.sum() == (28 * taps) ** 2
    np.testing.assert_array_equal(
        pack(np.where(used, image, 255 - image), resample=mode), pack(image, resample=mode)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 3, 17, 28])
def test_nothing_beyond_out_is_written(mode, size):
    for shape in [(29, 31), (3, 500), (1, 1), (200, 90)]:
        for dtype in sorted(KINDS):
            image = random_slice(np.random.default_rng(11), dtype, shape)
            around = np.full(3 * size * size, 7.0, np.float32)
            out = around[size * size : 2 * size * size].reshape(1, 1, size, size)
            assert pack(image, size, out=out, resample=mode) is out
            assert (around[: size * size] == 7).all() and (around[2 * size * size :] == 7).all()
            np.testing.assert_array_equal(out, pack(image, size, resample=mode))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("bilinear", ValueError, "found 'bilinear'"),
        ("AREA", ValueError, "found 'AREA'"),
        ("", ValueError, "found ''"),
        (None, TypeError, "found NoneType"),
        (b"area", TypeError, "found bytes"),
        (1, TypeError, "found int"),
    ],
)
def test_other_names_are_refused_before_anything_is_written(name, error, words):
    out = np.full((1, 1, 28, 28), 5.0, np.float32)
    with pytest.raises(error, match=f"^expected resample to be area, linear or cubic, {words}$"):
        pack(np.zeros((30, 30), np.uint8), resample=name, out=out)
    assert (out == 5).all()


# Other implementations.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_values_are_those_of_pytorch(mode, dtype):
    functional = pytest.importorskip("torch.nn.functional", reason="the reference is PyTorch")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(12)
    for shape in [(60, 41), (20, 300), (512, 512), (9, 9), (1, 2)]:
        image = random_slice(rng, dtype, shape)
        reference = functional.interpolate(
            torch.from_numpy(fractions(image))[None, None],
            size=(28, 28),
            mode={"linear": "bilinear", "cubic": "bicubic"}[mode],
            align_corners=False,
            antialias=False,
        )
        found = at_every_level(image, mean=0, std=1, resample=mode)
        np.testing.assert_allclose(found, reference.clamp(0, 1), rtol=0, atol=2.0**-24)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_values_are_those_of_opencv(mode, dtype):
    # Its import changes LD_LIBRARY_PATH.
    with mock.patch.dict(os.environ):
        cv2 = pytest.importorskip("cv2", reason="the reference is OpenCV")
    interpolation = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}[mode]
    rng = np.random.default_rng(13)
    for shape in [(60, 41), (20, 300), (512, 512), (56, 56), (9, 9), (1, 2)]:
        image = random_slice(rng, dtype, shape)
        found = at_every_level(image, mean=0, std=1, resample=mode)[0, 0]
        # OpenCV's positions are float32: 2^-24 of up to 512 pixels.
        reference = cv2.resize(fractions(image), (28, 28), interpolation=interpolation)
        np.testing.assert_allclose(found, np.clip(reference, 0, 1), rtol=0, atol=1e-4)
        # On integers it also rounds its weights to 11 bits (uint8) and the result to an integer.
        whole = cv2.resize(image, (28, 28), interpolation=interpolation) / KINDS[dtype]
        np.testing.assert_allclose(
            found, whole, rtol=0, atol=2.5 / 255 if dtype == "uint8" else 1e-3
        )
