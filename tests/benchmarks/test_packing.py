"""organ_infer._packing against lower bounds and baselines: `pytest tests/benchmarks/test_packing.py` prints the tables
and asserts.

Each comparison runs at every dispatch level of this processor, whatever ORGAN_INFER_SIMD says.
"""

import re
import types
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from organ_infer import _packing
from organ_infer._packing import pack
from tests.benchmarks.comparison import compare

cv2: types.ModuleType | None
try:
    import cv2
except ImportError:
    cv2 = None
else:
    cv2.setNumThreads(1)

LEVELS = _packing.levels()
RNG = np.random.default_rng(0)
BATCH = RNG.integers(0, 256, (256, 28, 28), dtype=np.uint8)
BATCH_OUT = np.empty((256, 1, 28, 28), np.float32)
ONE, ONE_OUT = BATCH[0].copy(), BATCH_OUT[:1].copy()
SLICE = RNG.integers(0, 256, (512, 512), dtype=np.uint8)
WORDS = RNG.integers(0, 65536, (512, 512), dtype=np.uint16)
HOUNSFIELD = RNG.integers(-1000, 1000, (512, 512)).astype(np.int16)
BYTES_OF_WORDS = WORDS.view(np.uint8)
VOLUME = RNG.integers(0, 256, (64, 512, 512), dtype=np.uint8)  # 16 MiB: in no level 2 cache
VOLUME_OUT = np.empty((64, 1, 28, 28), np.float32)


def numpy_in_place():
    np.divide(BATCH[:, None], np.float32(255), out=BATCH_OUT)
    np.subtract(BATCH_OUT, np.float32(0.5), out=BATCH_OUT)
    np.divide(BATCH_OUT, np.float32(0.5), out=BATCH_OUT)


def numpy_one():
    np.divide(ONE, np.float32(255), out=ONE_OUT[0, 0])
    np.subtract(ONE_OUT, np.float32(0.5), out=ONE_OUT)
    np.divide(ONE_OUT, np.float32(0.5), out=ONE_OUT)


def pillow_bilinear():
    small = Image.fromarray(SLICE).resize((28, 28), Image.Resampling.BILINEAR)
    return ((np.asarray(small, np.float32) / 255 - 0.5) / 0.5)[None, None]


def torchvision_each():
    transforms = pytest.importorskip("torchvision", reason="the baseline is torchvision").transforms
    torch = pytest.importorskip("torch", reason="the baseline is torchvision")
    torch.set_num_threads(1)
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    images = [Image.fromarray(image) for image in BATCH]
    return lambda: torch.stack([steps(image) for image in images])


@dataclass(frozen=True)
class Comparison:
    """A way to call `pack`, its baseline, and what is asserted of the two at each dispatch level.

    limits: at most how many times as long as the baseline packing may take, or at least how many times as fast it must
    be. A level without a limit is not compared: its loop is no lower bound worth having.
    """

    target: Callable[[], object]
    baseline: Callable[[], object]
    limits: dict[str, float]
    calls: int
    rounds: int

    def levels(self):
        return [level for level in LEVELS if level in self.limits]


# The lower bound is a loop over memory at the same level.
LOWER_BOUNDS = {
    # 256 slices of 28x28: each byte read, four bytes stored.
    "28x28x256 to the store limit": Comparison(
        lambda: pack(BATCH, out=BATCH_OUT),
        lambda: _packing._store_limit(BATCH, BATCH_OUT),
        {"avx512": 1.3, "avx2": 2.2},
        10,
        101,
    ),
    "28x28x256, new array, to the store limit": Comparison(
        lambda: pack(BATCH),
        lambda: _packing._store_limit(BATCH, BATCH_OUT),
        {"avx512": 1.3, "avx2": 2.2},
        10,
        101,
    ),
    # 64 slices of 512x512 from memory, each read once.
    "512x512x64 to the read limit": Comparison(
        lambda: pack(VOLUME, out=VOLUME_OUT),
        lambda: _packing._read_limit(VOLUME),
        {"avx512": 2.0, "avx2": 2.0},
        1,
        51,
    ),
    # One slice over and over, in the level 2 cache, where reading is nearly free. AVX2 misses the 2.0 that
    # the others hold: its sixteen registers take a slice in four strips, and its sums three operations a
    # vector where the limit has two.
    "512x512 uint8 in cache to the read limit": Comparison(
        lambda: pack(SLICE, out=ONE_OUT),
        lambda: _packing._read_limit(SLICE),
        {"avx512": 2.0, "avx2": 2.6},
        50,
        101,
    ),
    # The aim is 2; out of the level 2 cache memory is the limit, above.
    "512x512 uint16 in cache to the read limit": Comparison(
        lambda: pack(WORDS, out=ONE_OUT),
        lambda: _packing._read_limit(BYTES_OF_WORDS),
        {"avx512": 2.5, "avx2": 3.3},
        50,
        101,
    ),
    "512x512 int16 in cache to the read limit": Comparison(
        lambda: pack(HOUNSFIELD, out=ONE_OUT),
        lambda: _packing._read_limit(BYTES_OF_WORDS),
        {"avx512": 2.5, "avx2": 3.0},
        50,
        101,
    ),
}


def factors(vector, portable):
    return {level: portable if level == "portable" else vector for level in LEVELS}


BASELINES = {
    "28x28x256 against numpy in place": Comparison(
        lambda: pack(BATCH, out=BATCH_OUT), numpy_in_place, factors(4, 1.5), 10, 51
    ),
    "28x28 against numpy in place": Comparison(
        lambda: pack(ONE, out=ONE_OUT), numpy_one, factors(5, 3), 1000, 51
    ),
    "512x512 against Pillow bilinear and numpy": Comparison(
        lambda: pack(SLICE), pillow_bilinear, factors(12, 3), 5, 51
    ),
}


def sampled(length, size, taps):
    """The first pixels of the cache lines that point sampling reads along an axis, uint32."""
    positions = np.floor((np.arange(size) + 0.5) * length / size - 0.5).astype(int)
    return np.clip(positions - (taps // 2 - 1), 0, length - 1).astype(np.uint32)


def rows_sampled(length, size, taps):
    """The rows that point sampling reads, uint32."""
    first = sampled(length, size, taps)
    return np.unique(first[:, None] + np.arange(taps, dtype=np.uint32)).clip(0, length - 1)


def touch(images, taps):
    """A loop that reads one byte per output pixel and input row: no less has to be read."""
    rows, columns = rows_sampled(images.shape[1], 28, taps), sampled(images.shape[2], 28, taps)
    return lambda: _packing._touch_limit(images, rows, columns)


def resize(image, mode):
    """OpenCV, one thread. It resamples only: window, fractions and normalization are left out."""
    interpolation = f"INTER_{mode.upper()}"
    return lambda: cv2.resize(image, (28, 28), interpolation=getattr(cv2, interpolation))


# The bound of `area` is above: it reads every byte. Limits of both tables are provisional.
TOUCHED = {
    f"{name} {mode} to the bytes touched": Comparison(
        lambda images=images, mode=mode, out=out: pack(images, resample=mode, out=out),
        touch(images, taps),
        {level: limit + (level == "portable") for level in LEVELS},
        calls,
        rounds,
    )
    for name, images, out, calls, rounds in (
        ("512x512x64", VOLUME, VOLUME_OUT, 1, 51),
        ("512x512 in cache", SLICE[None], ONE_OUT, 50, 101),
    )
    for mode, taps, limit in (("linear", 2, 3.0), ("cubic", 4, 3.5))
}
CROP = SLICE[100:160, 200:261]
RESIZED = {
    f"{name} {image.dtype} {mode} against OpenCV": Comparison(
        lambda image=image, mode=mode: pack(image, resample=mode, out=ONE_OUT),
        resize(image, mode),
        factors(limit, limit / 2),
        50,
        51,
    )
    for mode, limit in (("area", 1.5), ("linear", 0.7), ("cubic", 0.5))
    for name, image in (
        ("512x512", SLICE),
        ("512x512", WORDS),
        ("512x512", HOUNSFIELD),
        ("60x61", CROP),
        ("60x61", CROP.astype(np.int16)),
    )
}


@pytest.fixture(autouse=True)
def restored():
    before = _packing.level()
    yield
    _packing.set_level(before)


def contestants(comparisons):
    """Parameters of a test: the two contestants of each comparison at each level, one after the other."""
    return pytest.mark.parametrize(
        ("name", "level", "contestant"),
        [
            pytest.param(
                name, level, contestant, id=f"{re.sub(r'[ ,]+', '_', name)}-{level}-{contestant}"
            )
            for name, comparison in comparisons.items()
            for level in comparison.levels()
            for contestant in ("baseline", "pack")
        ],
    )


def run(benchmark, comparison, name, level, contestant):
    """The medians of the contestant and of the other one."""
    _packing.set_level(level)
    options = {
        "group": f"{name} [{level}]",
        "rounds": comparison.rounds,
        "calls": comparison.calls,
        "warmup_rounds": 3,
    }
    if contestant == "baseline":
        return compare(benchmark, comparison.baseline, comparison.target, against="pack", **options)
    return compare(benchmark, comparison.target, comparison.baseline, against="baseline", **options)


@contestants(LOWER_BOUNDS)
def test_near_the_lower_bound(benchmark, name, level, contestant):
    comparison = LOWER_BOUNDS[name]
    medians = run(benchmark, comparison, name, level, contestant)
    assert contestant == "baseline" or medians.ratio <= comparison.limits[level]


@contestants(BASELINES)
def test_faster_than(benchmark, name, level, contestant):
    comparison = BASELINES[name]
    medians = run(benchmark, comparison, name, level, contestant)
    assert contestant == "baseline" or medians.speedup >= comparison.limits[level]


@contestants(TOUCHED)
def test_near_the_bytes_touched(benchmark, name, level, contestant):
    comparison = TOUCHED[name]
    medians = run(benchmark, comparison, name, level, contestant)
    assert contestant == "baseline" or medians.ratio <= comparison.limits[level]


@pytest.mark.skipif(
    cv2 is None, reason="the baseline is OpenCV: pip install opencv-python-headless"
)
@contestants(RESIZED)
def test_against_opencv(benchmark, name, level, contestant):
    comparison = RESIZED[name]
    medians = run(benchmark, comparison, name, level, contestant)
    assert contestant == "baseline" or medians.speedup >= comparison.limits[level]


TORCHVISION = "28x28x256 against torchvision"


def test_torchvision_slice_by_slice(benchmark):
    compare(
        benchmark,
        torchvision_each(),
        lambda: pack(BATCH, out=BATCH_OUT),
        group=TORCHVISION,
        against="pack",
        rounds=31,
        baseline_calls=50,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_faster_than_torchvision_slice_by_slice(benchmark, level):
    _packing.set_level(level)
    medians = compare(
        benchmark,
        lambda: pack(BATCH, out=BATCH_OUT),
        torchvision_each(),
        group=TORCHVISION,
        against="torchvision",
        rounds=31,
        calls=50,
        baseline_calls=1,
    )
    assert medians.speedup >= (100 if level == "portable" else 500)


@pytest.mark.parametrize("contestant", ["baseline", "pack"])
@pytest.mark.parametrize("level", [level for level in LEVELS if level != "portable"])
@pytest.mark.parametrize("given", [True, False], ids=["out_given", "out_new"])
def test_one_slice_over_an_empty_call(benchmark, given, level, contestant):
    """NumPy's C API takes the array's buffer: PyObject_GetBuffer alone would cost 0.19 us."""
    out = {"out": ONE_OUT} if given else {}
    # A new array costs 0.06 to 0.1 us of its own, which no packing can save.
    limit = 0.2e-6 if given else 0.3e-6
    comparison = Comparison(
        lambda: pack(ONE, **out), lambda: _packing._nothing(ONE, **out), {level: limit}, 1000, 51
    )
    name = f"28x28 over an empty call, out {'given' if given else 'new'}"
    medians = run(benchmark, comparison, name, level, contestant)
    assert contestant == "baseline" or medians.target - medians.baseline <= limit
