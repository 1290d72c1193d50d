"""organ_infer._packing against torchvision, NumPy and exact fractions (docs/reference/bundle_format.md, "Preprocessing")."""

import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organ_infer import _packing
from organ_infer._packing import pack
from tests.support.slice_arrays import KINDS, fractions, random_slice, strided


@pytest.fixture(params=_packing.levels(), autouse=True)
def level(request):
    """Every test runs at every dispatch level of this processor."""
    before = _packing.level()
    _packing.set_level(request.param)
    yield request.param
    _packing.set_level(before)


def weights(length, size):
    """The matrix (size, length), float64, that resamples one axis: area or linear, written from the docs."""
    matrix = np.zeros((size, length))
    for o in range(size):
        if length > size:
            begin, end = Fraction(o * length, size), Fraction((o + 1) * length, size)
            for i in range(int(begin), min(length, int(end) + 1)):
                matrix[o, i] = max(Fraction(0), min(end, i + 1) - max(begin, i)) / (end - begin)
        else:
            at = min(
                max(Fraction(2 * o + 1, 2) * Fraction(length, size) - Fraction(1, 2), 0), length - 1
            )
            matrix[o, int(at)] += 1 - (at - int(at))
            if at != int(at):
                matrix[o, int(at) + 1] += at - int(at)
    return matrix


def expected(image, size=28, window=(40, 400)):
    """One slice as (size, size), float64, before mean and std."""
    return (
        weights(image.shape[0], size) @ fractions(image, window) @ weights(image.shape[1], size).T
    )


def assert_close(found, image, size=28, window=(40, 400), mean=0.5, std=0.5):
    """Equal to the float64 computation but for the roundings to float32 that the docs allow."""
    exact = expected(image, size, window)
    wanted = (exact.astype(np.float32) - np.float32(mean)) / np.float32(std)
    # One ulp of the fraction, for its rounding may fall to the other side, and one of the result. Through a
    # window that is no whole numbers each pixel is rounded too, by half an ulp of at most 1.
    fractional = (window[0] - window[1] / 2) % 1 or window[1] % 1
    pixel = 2.0**-25 if image.dtype == np.int16 and fractional else 0
    allowed = (np.spacing(exact.astype(np.float32)) + pixel) / std + np.spacing(np.abs(wanted))
    assert found.shape == (1, 1, size, size) and found.dtype == np.float32
    difference = np.abs(found[0, 0].astype(float) - wanted)
    assert (difference <= allowed).all(), (image.shape, size, difference.max(), found[0, 0], wanted)


EVERY_BYTE = np.resize(np.arange(256, dtype=np.uint8), (28, 28))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.4914, 0.2023), (0.0, 1.0), (0.1, 3.0)])
def test_every_byte_is_torchvision_bit_for_bit(mean, std):
    pytest.importorskip("torch", reason="the reference is torchvision's ToTensor and Normalize")
    transforms = pytest.importorskip(
        "torchvision", reason="the reference is torchvision"
    ).transforms
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize([mean], [std])])
    assert len(np.unique(EVERY_BYTE)) == 256
    wanted = reference(EVERY_BYTE[:, :, None]).numpy()
    found = pack(EVERY_BYTE, mean=mean, std=std)[0]
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.5), (0.485, 0.229), (0.25, 4.0), (7e-9, 1e-6), (0.3, 2.0**127)]
)
def test_every_pixel_value_is_the_float32_formula(mean, std):
    for dtype, depth in (("uint8", 255), ("uint16", 65535)):
        images = np.resize(np.arange(depth + 1).astype(dtype), (84, 28, 28))
        fraction = images.astype(np.float32) / np.float32(depth)
        wanted = (fraction - np.float32(mean)) / np.float32(std)
        np.testing.assert_array_equal(pack(images, mean=mean, std=std)[:, 0], wanted)


@pytest.mark.parametrize(
    "window",
    [
        None,
        (40, 400),
        (40, 401),
        (-600, 1500),
        (0.25, 0.5),
        (0, 1),
        (0, 65535),
        (-40000, 20),
        (1e6, 1e3),
    ],
)
def test_every_hounsfield_unit_through_a_window(window):
    images = np.resize(np.arange(-32768, 32768).astype(np.int16), (84, 28, 28))
    fraction = fractions(images, window or (40, 400)).astype(np.float32)
    wanted = (fraction - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_array_equal(pack(images, window=window)[:, 0], wanted)


def test_a_golden_window():
    image = np.array([[-1000, -160, -159, 40, 239, 240, 3000]] * 7, np.int16)
    wanted = [-1, -1, -0.995, 0, 0.995, 1, 1]
    np.testing.assert_allclose(pack(image, 7)[0, 0], [wanted] * 7, atol=1e-7)


def test_golden_area_and_linear():
    # Three pixels into two: (2 a + b) / 3 and (b + 2 c) / 3. Two into four: 0, 1/4, 3/4, 1 of the way.
    area = pack(np.array([[0, 90, 255]] * 2, np.uint8), 2, mean=0, std=1)[0, 0]
    np.testing.assert_allclose(area[0] * 255, [30, 200], rtol=1e-6)
    linear = pack(np.array([[0, 100]] * 4, np.uint8), 4, mean=0, std=1)[0, 0]
    np.testing.assert_allclose(linear[0] * 255, [0, 25, 75, 100], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_resampling_is_the_float64_computation(data):
    lengths = st.one_of(st.integers(1, 70), st.sampled_from([28, 56, 100, 257, 300, 512]))
    height, width = data.draw(lengths), data.draw(lengths)
    size = data.draw(st.sampled_from([1, 2, 7, 16, 28, 31, 33, 64]))
    dtype = data.draw(st.sampled_from(sorted(KINDS)))
    window = data.draw(st.sampled_from([(40, 400), (30, 351), (-0.3, 77.7), (0, 60000)]))
    mean, std = data.draw(st.sampled_from([(0.5, 0.5), (0.3, 0.7)]))
    image = random_slice(
        np.random.default_rng(data.draw(st.integers(0, 99))), dtype, (height, width)
    )
    options = {"window": window} if dtype == "int16" else {}
    assert_close(pack(image, size, mean=mean, std=std, **options), image, size, window, mean, std)


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize(
    "shape",
    [(512, 512), (1024, 510), (2000, 1), (1, 3000), (28, 900), (900, 28), (28, 300), (513, 515)],
)
def test_large_slices_are_the_float64_computation(dtype, shape):
    image = random_slice(np.random.default_rng(7), dtype, shape)
    assert_close(pack(image), image)


@pytest.mark.parametrize(
    "shape", [(1, 1), (28, 28), (5, 90), (90, 5), (512, 512), (513, 1023), (300, 28)]
)
def test_a_flat_slice_stays_flat(shape):
    values = [("uint8", v) for v in range(0, 256, 5)] + [
        ("uint16", v) for v in (0, 1, 257, 12345, 65535)
    ]
    values += [("int16", v) for v in (-1000, -159, 0, 77, 239, 240, 3000)]
    for dtype, value in values:
        flat = np.full(shape, value, dtype)
        for window in [None] if dtype != "int16" else [None, (40, 401), (0.1, 1000.3), (0, 65535)]:
            want = pack(np.full((28, 28), value, dtype), window=window)[0, 0, 0, 0]
            found = pack(flat, window=window)
            assert (found == want).all(), (dtype, value, window, found[found != want], want)


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("shape", [(28, 28), (40, 33), (512, 512), (20, 64)])
def test_the_extremes_do_not_overflow(dtype, shape):
    info = np.iinfo(dtype)
    for value, wanted in ((info.min, -1.0), (info.max, 1.0)):
        assert (pack(np.full(shape, value, dtype)) == wanted).all()


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("shape", [(28, 28), (64, 40), (130, 130)])
def test_a_batch_is_its_slices(dtype, shape):
    images = random_slice(np.random.default_rng(1), dtype, (9, *shape))
    whole = pack(images)
    assert whole.shape == (9, 1, 28, 28) and whole.flags.c_contiguous
    np.testing.assert_array_equal(whole, np.concatenate([pack(image) for image in images]))
    np.testing.assert_array_equal(whole, pack(list(images)))


def test_a_sequence_of_differing_shapes():
    rng = np.random.default_rng(2)
    images = [
        random_slice(rng, "uint8", shape)
        for shape in [(28, 28), (512, 300), (1, 1), (28, 28), (40, 700)]
    ]
    whole = pack(tuple(images))
    np.testing.assert_array_equal(whole, np.concatenate([pack(image) for image in images]))


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("shape", [(28, 28), (28, 70), (200, 200), (13, 11)])
def test_any_strides(dtype, shape):
    image = random_slice(np.random.default_rng(3), dtype, shape)
    wanted = pack(image)
    for name, array in strided(image).items():
        np.testing.assert_array_equal(array, image, err_msg=name)
        np.testing.assert_array_equal(pack(array), wanted, err_msg=name)
        np.testing.assert_array_equal(
            pack([array, image]), np.concatenate([wanted] * 2), err_msg=name
        )


@pytest.mark.parametrize("shape", [(28, 28), (150, 150)])
def test_batches_in_any_order_and_broadcast(shape):
    images = random_slice(np.random.default_rng(4), "int16", (6, *shape))
    wanted = pack(images)
    np.testing.assert_array_equal(pack(images[::-1]), wanted[::-1])
    np.testing.assert_array_equal(pack(images[::2]), wanted[::2])
    stacked = np.ascontiguousarray(np.moveaxis(images, 0, -1))  # (H, W, N), as a volume often lies
    np.testing.assert_array_equal(pack(np.moveaxis(stacked, -1, 0)), wanted)
    np.testing.assert_array_equal(
        pack(np.broadcast_to(images[0], (3, *shape))), np.repeat(wanted[:1], 3, axis=0)
    )
    row = np.broadcast_to(images[0, :1], shape)
    np.testing.assert_array_equal(pack(row), pack(row.copy()))


@pytest.mark.parametrize("dtype", sorted(KINDS))
def test_levels_agree_bit_for_bit(dtype, level):
    rng = np.random.default_rng(5)
    for _ in range(25):
        height, width = (
            int(n) for n in rng.choice([3, 17, 28, 31, 64, 100, 129, 257, 512, 700], 2)
        )
        size = int(rng.choice([1, 9, 28, 40]))
        image = random_slice(rng, dtype, (height, width))
        for mean, std in ((0.5, 0.5), (0.31, 0.27)):
            found = pack(image, size, mean=mean, std=std)
            _packing.set_level("portable")
            wanted = pack(image, size, mean=mean, std=std)
            _packing.set_level(level)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{height}x{width} to {size}")


@pytest.mark.parametrize("dtype", sorted(KINDS))
def test_threads_agree_bit_for_bit(dtype):
    rng = np.random.default_rng(6)
    batch = random_slice(rng, dtype, (40, 300, 301))
    mixed = [random_slice(rng, dtype, (int(h), int(w))) for h, w in rng.integers(1, 900, (25, 2))]
    small = random_slice(rng, dtype, (3000, 28, 28))
    for images in (batch, mixed, small):
        wanted = pack(images)
        for threads in (2, 3, 7, 1000):
            np.testing.assert_array_equal(pack(images, threads=threads), wanted)


def test_out_is_filled_and_returned():
    images = random_slice(np.random.default_rng(8), "uint8", (5, 60, 60))
    out = np.full((5, 1, 28, 28), np.nan, np.float32)
    assert pack(images, out=out) is out
    np.testing.assert_array_equal(out, pack(images))
    slices = np.full((9, 1, 28, 28), np.nan, np.float32)
    pack(images, out=slices[2:7])
    np.testing.assert_array_equal(slices[2:7], out)
    assert np.isnan(slices[:2]).all() and np.isnan(slices[7:]).all(), "wrote beyond out"


@pytest.mark.parametrize("shape", [(28, 28), (29, 31), (200, 90), (3, 500)])
@pytest.mark.parametrize("size", [1, 3, 17, 28])
def test_nothing_beyond_out_or_in_the_input(shape, size):
    for dtype in sorted(KINDS):
        image = random_slice(np.random.default_rng(9), dtype, shape)
        before = image.copy()
        around = np.full(3 * size * size, 7.0, np.float32)
        pack(image, size, out=around[size * size : 2 * size * size].reshape(1, 1, size, size))
        assert (around[: size * size] == 7).all() and (around[2 * size * size :] == 7).all()
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "none", [[], (), np.empty((0, 28, 28), np.uint8), np.empty((0, 512, 300), np.int16)]
)
def test_no_slices(none):
    assert pack(none).shape == (0, 1, 28, 28)
    assert pack(none, 64, out=np.empty((0, 1, 64, 64), np.float32)).shape == (0, 1, 64, 64)


def test_one_pixel():
    assert (pack(np.array([[255]], np.uint8)) == 1).all()
    assert pack(np.array([[0]], np.uint8), 1).tolist() == [[[[-1.0]]]]


def test_the_longest_axes():
    image = np.zeros((65535, 2), np.uint8)
    image[:32768] = 255
    assert_close(pack(image, 3), image, 3)
    assert_close(pack(np.ascontiguousarray(image.T), 3), image.T, 3)
    assert pack(np.full((2, 2), 255, np.uint8), 4096).min() == 1.0


SLICE = np.zeros((30, 30), np.uint8)
TYPES = {
    "float": (SLICE.astype(np.float32), "found dtype float32"),
    "bool": (SLICE.astype(bool), "found dtype bool"),
    "int8": (SLICE.astype(np.int8), "found dtype int8"),
    "int32": (SLICE.astype(np.int32), "found dtype int32"),
    "object": (SLICE.astype(object), "found dtype object"),
    "complex": (SLICE.astype(complex), "found dtype complex128"),
    "structured": (np.zeros((3, 3), [("a", "u1")]), "found dtype"),
    "swapped": (SLICE.astype(np.dtype(np.uint16).newbyteorder()), "byte order"),
    "list of lists": ([[1, 2], [3, 4]], "found list"),
    "none": (None, "found NoneType"),
    "number": (3, "found int"),
    "text": ("slice.png", "found str"),
    "bytes": (b"abc", "found bytes"),
    "dictionary": ({0: SLICE}, "found dict"),
    "generator": ((SLICE for _ in range(2)), "found generator"),
    "element": ([SLICE, None], "found NoneType"),
    "mixed": ([SLICE, SLICE.astype(np.uint16)], "one dtype, found uint16"),
}


@pytest.mark.parametrize("name", TYPES)
def test_wrong_types(name):
    images, words = TYPES[name]
    with pytest.raises(TypeError, match=words) as error:
        pack(images)
    assert "expected" in str(error.value) and "\n" not in str(error.value)


SHAPES = {
    "one axis": np.zeros(9, np.uint8),
    "no axis": np.array(3, np.uint8),
    "four axes": np.zeros((1, 1, 28, 28), np.uint8),
    "no rows": np.zeros((0, 28), np.uint8),
    "no columns": np.zeros((2, 28, 0), np.uint8),
    "no rows, no slices": np.zeros((0, 0, 28), np.uint8),
    "volume in a sequence": [np.zeros((2, 28, 28), np.uint8)],
    "empty in a sequence": [SLICE, np.zeros((3, 0), np.uint8)],
    "a row too long": np.broadcast_to(np.uint8(0), (1, 65536)),
    "huge": np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_shapes(name):
    with pytest.raises(ValueError, match=r"expected .*, found shape") as error:
        pack(SHAPES[name])
    assert "\n" not in str(error.value)


HOUNSFIELD = np.zeros((30, 30), np.int16)
READ_ONLY = np.zeros((1, 1, 28, 28), np.float32)
READ_ONLY.flags.writeable = False
MISALIGNED = np.zeros(28 * 28 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(1, 1, 28, 28)
VALUES = {
    "size 0": (SLICE, {"size": 0}, ValueError, "size from 1 to 4096, found 0"),
    "size negative": (SLICE, {"size": -28}, ValueError, "size from 1"),
    "size large": (SLICE, {"size": 4097}, ValueError, "found 4097"),
    "size huge": (SLICE, {"size": 10**30}, ValueError, "size from 1"),
    "size float": (SLICE, {"size": 28.0}, TypeError, "size to be a whole number, found float"),
    "size bool": (SLICE, {"size": True}, TypeError, "found bool"),
    "size text": (SLICE, {"size": "28"}, TypeError, "found str"),
    "threads 0": (SLICE, {"threads": 0}, ValueError, "threads from 1"),
    "threads huge": (SLICE, {"threads": 2**31}, ValueError, "threads from 1 to 2147483647"),
    "threads none": (SLICE, {"threads": None}, TypeError, "threads"),
    "mean nan": (SLICE, {"mean": float("nan")}, ValueError, "mean"),
    "mean large": (SLICE, {"mean": 1e39}, ValueError, "finite in float32"),
    "mean text": (SLICE, {"mean": "0.5"}, TypeError, "mean to be a number, found str"),
    "mean list": (SLICE, {"mean": [0.5]}, TypeError, "mean to be a number, found list"),
    "std 0": (SLICE, {"std": 0}, ValueError, "std"),
    "std negative": (SLICE, {"std": -0.5}, ValueError, "above 0"),
    "std nan": (SLICE, {"std": float("nan")}, ValueError, "std"),
    "std infinite": (SLICE, {"std": float("inf")}, ValueError, "std"),
    "std small": (SLICE, {"std": 1e-60}, ValueError, "float32"),
    "std whole, huge": (SLICE, {"std": 10**400}, ValueError, "std, found a whole number too large"),
    "window, uint8": (
        SLICE,
        {"window": (40, 400)},
        ValueError,
        "window only with int16 slices, found uint8",
    ),
    "window, uint16": (SLICE.astype("u2"), {"window": (40, 400)}, ValueError, "found uint16"),
    "window width 0": (HOUNSFIELD, {"window": (40, 0)}, ValueError, "width above 0, found 0"),
    "window width nan": (HOUNSFIELD, {"window": (40, float("nan"))}, ValueError, "width above 0"),
    "window width infinite": (
        HOUNSFIELD,
        {"window": (40, float("inf"))},
        ValueError,
        "width above 0",
    ),
    "window level nan": (
        HOUNSFIELD,
        {"window": (float("nan"), 400)},
        ValueError,
        "finite window level",
    ),
    "window of three": (HOUNSFIELD, {"window": (1, 2, 3)}, ValueError, "found 3 values"),
    "window number": (HOUNSFIELD, {"window": 400}, TypeError, "found int"),
    "window text": (
        HOUNSFIELD,
        {"window": "40"},
        TypeError,
        r"window as \(level, width\) in HU, found str",
    ),
    "window of text": (
        HOUNSFIELD,
        {"window": ("a", "b")},
        TypeError,
        "level to be a number, found str",
    ),
    "window, none at all": ([], {"window": (40, 0)}, ValueError, "width above 0"),
    "out list": (SLICE, {"out": [0.0]}, TypeError, "out to be a float32 array, found list"),
    "out double": (SLICE, {"out": np.zeros((1, 1, 28, 28))}, TypeError, "out to be float32"),
    "out swapped": (
        SLICE,
        {"out": np.zeros((1, 1, 28, 28), ">f4")},
        TypeError,
        "out to be float32",
    ),
    "out shape": (
        SLICE,
        {"out": np.zeros((1, 28, 28), "f4")},
        ValueError,
        r"\(1, 1, 28, 28\), found \(1, 28, 28\)",
    ),
    "out count": (
        SLICE,
        {"out": np.zeros((2, 1, 28, 28), "f4")},
        ValueError,
        "found .2, 1, 28, 28",
    ),
    "out strided": (
        SLICE,
        {"out": np.zeros((1, 1, 28, 56), "f4")[..., ::2]},
        ValueError,
        "C-contiguous",
    ),
    "out read-only": (SLICE, {"out": READ_ONLY}, ValueError, "writeable"),
    "out misaligned": (SLICE, {"out": MISALIGNED}, ValueError, "aligned"),
}


@pytest.mark.parametrize("name", VALUES)
def test_wrong_values(name):
    images, options, kind, words = VALUES[name]
    with pytest.raises(kind, match=words) as error:
        pack(images, **options)
    assert "\n" not in str(error.value)


def test_more_slices_than_addresses():
    endless = np.broadcast_to(np.uint8(0), (1 << 60, 1, 1))
    with pytest.raises(ValueError, match="expected fewer slices"):
        pack(endless)
    with pytest.raises(MemoryError):
        pack(endless[: 1 << 50])


def test_out_over_the_slices_is_refused():
    memory = np.zeros(4 * 28 * 28 * 2, np.uint8)
    out = memory[: 4 * 28 * 28].view(np.float32).reshape(1, 1, 28, 28)
    for start in (0, 1, 4 * 28 * 28 - 1):
        image = memory[start : start + 28 * 28].reshape(28, 28)
        for array in (image, image[::-1, ::-1], image.T):
            with pytest.raises(ValueError, match="overlaps"):
                pack(array, out=out)
    two = np.zeros((2, 1, 28, 28), np.float32)
    with pytest.raises(ValueError, match="overlaps"):
        pack([SLICE, two.view(np.uint8)[1, 0]], out=two)
    beside = memory[4 * 28 * 28 :][: 28 * 28].reshape(28, 28)
    pack(beside, out=out)


def test_nothing_is_written_when_refused():
    out = np.full((2, 1, 28, 28), 5.0, np.float32)
    with pytest.raises(TypeError):
        pack([SLICE, SLICE.astype(float)], out=out)
    assert (out == 5).all()


def another_thread_runs_during(call, calls):
    """Whether another thread gets to run while `call` is repeated, until it does or `calls` are over.

    Python is told never to take the lock from a thread that holds it, so that the other runs only if the call itself
    gives the lock up. How soon the machine then wakes it changes the number of calls, not the answer.
    """
    gate, ran = threading.Lock(), []

    def wait():
        with gate:
            ran.append(True)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    gate.acquire()
    try:
        other = threading.Thread(target=wait)
        other.start()  # returns when the other thread waits for the gate
        gate.release()
        for _ in range(calls):
            call()
            if ran:
                return True
        return False
    finally:
        sys.setswitchinterval(before)
        other.join()


def test_the_lock_is_released():
    images = np.zeros((100, 512, 28), np.int16)
    out = np.empty((100, 1, 28, 28), np.float32)
    assert another_thread_runs_during(lambda: pack(images, window=(40, 401), out=out), calls=2000)
    # what holds the lock is noticed
    assert not another_thread_runs_during(lambda: sum(range(1000)), calls=2000)


def test_levels(level):
    assert _packing.levels()[0] == "portable"
    assert _packing.level() == level
    with pytest.raises(ValueError, match=r"portable.*found 'avx1024'"):
        _packing.set_level("avx1024")
