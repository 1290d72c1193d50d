"""Races of organ_infer._packing: `pytest tests/benchmarks/test_packing.py` prints the tables and asserts.

Contestants of a race run in turn in one process; a ratio is that of their medians. A race runs at every
dispatch level of this processor; ORGAN_INFER_SIMD has no part in it.
"""

import numpy as np
import pytest
from PIL import Image

from organ_infer import _packing
from organ_infer._packing import pack
from tests.benchmarks.race import medians

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
    transforms = pytest.importorskip("torchvision", reason="the peer is torchvision").transforms
    torch = pytest.importorskip("torch", reason="the peer is torchvision")
    torch.set_num_threads(1)
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    images = [Image.fromarray(image) for image in BATCH]
    return lambda: torch.stack([steps(image) for image in images])


def report(name, level, ours, peer, ratio, bound):
    print(f"\n{name} [{level}]: {ours * 1e6:.2f} us, peer {peer * 1e6:.2f} us, {ratio:.2f} ({bound})", end="")


# Races in which we may take at most `limits[level]` times what the other takes. A level without a limit is
# not raced: its loop is no peer worth having. The limit is the same processor level's loop over memory.
FLOORS = {
    # 256 slices of 28x28: each byte read, four bytes stored.
    "28x28x256 to the store limit": (
        lambda: pack(BATCH, out=BATCH_OUT),
        lambda: _packing._store_limit(BATCH, BATCH_OUT),
        {"avx512": 1.3, "avx2": 2.2},
        (10, 101),
    ),
    "28x28x256, new array, to the store limit": (
        lambda: pack(BATCH),
        lambda: _packing._store_limit(BATCH, BATCH_OUT),
        {"avx512": 1.3, "avx2": 2.2},
        (10, 101),
    ),
    # 64 slices of 512x512 from memory, each read once.
    "512x512x64 to the read limit": (
        lambda: pack(VOLUME, out=VOLUME_OUT),
        lambda: _packing._read_limit(VOLUME),
        {"avx512": 2.0, "avx2": 2.0},
        (1, 51),
    ),
    # One slice over and over, in the level 2 cache, where reading is nearly free. AVX2 misses the 2.0 that
    # the others hold: its sixteen registers take a slice in four strips, and its sums three operations a
    # vector where the limit has two.
    "512x512 uint8 in cache to the read limit": (
        lambda: pack(SLICE, out=ONE_OUT),
        lambda: _packing._read_limit(SLICE),
        {"avx512": 2.0, "avx2": 2.6},
        (50, 101),
    ),
    "512x512 uint16 in cache to the read limit": (
        lambda: pack(WORDS, out=ONE_OUT),
        lambda: _packing._read_limit(BYTES_OF_WORDS),
        {"avx512": 2.5, "avx2": 3.3},  # the aim is 2; out of the level 2 cache memory is the limit, above
        (50, 101),
    ),
    "512x512 int16 in cache to the read limit": (
        lambda: pack(HOUNSFIELD, out=ONE_OUT),
        lambda: _packing._read_limit(BYTES_OF_WORDS),
        {"avx512": 2.5, "avx2": 3.0},
        (50, 101),
    ),
}

# Races that we must win by `factor`.
PEERS = {
    "28x28x256 against numpy in place": (lambda: pack(BATCH, out=BATCH_OUT), numpy_in_place, 4, (10, 51)),
    "28x28 against numpy in place": (lambda: pack(ONE, out=ONE_OUT), numpy_one, 5, (1000, 51)),
    "512x512 against Pillow bilinear and numpy": (lambda: pack(SLICE), pillow_bilinear, 12, (5, 51)),
}
PORTABLE_FACTORS = {
    "28x28x256 against numpy in place": 1.5,
    "28x28 against numpy in place": 3,
    "512x512 against Pillow bilinear and numpy": 3,
}


@pytest.fixture(autouse=True)
def restored():
    before = _packing.level()
    yield
    _packing.set_level(before)


def race(benchmark, name, level, ours, peer, calls, rounds, peer_calls=None):
    """Medians of both; ours also goes to pytest-benchmark's table, the peer and the ratio beside it."""
    _packing.set_level(level)
    turns = (calls, peer_calls or calls)
    medians([ours, peer], turns, 3)
    mine, theirs = medians([ours, peer], turns, rounds)
    benchmark.group = name
    benchmark.name = level
    benchmark.extra_info.update(peer_seconds=theirs, ratio=mine / theirs)
    benchmark.pedantic(ours, iterations=calls, rounds=5)
    return mine, theirs


@pytest.mark.parametrize(
    ("name", "level"), [(name, level) for name, row in FLOORS.items() for level in LEVELS if level in row[2]]
)
def test_near_the_floor(benchmark, name, level):
    ours, floor, limits, (calls, rounds) = FLOORS[name]
    mine, theirs = race(benchmark, name, level, ours, floor, calls, rounds)
    report(name, level, mine, theirs, mine / theirs, f"at most {limits[level]}")
    assert mine <= limits[level] * theirs


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in PEERS for level in LEVELS])
def test_faster_than(benchmark, name, level):
    ours, peer, factor, (calls, rounds) = PEERS[name]
    if level == "portable":
        factor = PORTABLE_FACTORS[name]
    mine, theirs = race(benchmark, name, level, ours, peer, calls, rounds)
    report(name, level, mine, theirs, theirs / mine, f"at least {factor}")
    assert theirs >= factor * mine


@pytest.mark.parametrize("level", LEVELS)
def test_torchvision_image_by_image(benchmark, level):
    name, factor = "28x28x256 against torchvision", 100 if level == "portable" else 500
    ours, peer = lambda: pack(BATCH, out=BATCH_OUT), torchvision_each()
    mine, theirs = race(benchmark, name, level, ours, peer, 50, 31, peer_calls=1)
    report(name, level, mine, theirs, theirs / mine, f"at least {factor}")
    assert theirs >= factor * mine


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "portable"])
@pytest.mark.parametrize("given", [True, False], ids=["out given", "out new"])
def test_one_slice_over_an_empty_call(benchmark, level, given):
    """NumPy's C API takes the array's buffer: PyObject_GetBuffer alone would cost 0.19 us."""
    options = {"out": ONE_OUT} if given else {}
    name = f"28x28 over an empty call, out {'given' if given else 'new'}"
    mine, empty = race(
        benchmark,
        name,
        level,
        lambda: pack(ONE, **options),
        lambda: _packing._nothing(ONE, **options),
        1000,
        51,
    )
    # A new array costs 0.06 to 0.1 us of its own, which no packing can save.
    limit = 0.2e-6 if given else 0.3e-6
    report(name, level, mine, empty, (mine - empty) * 1e6, f"us over it, at most {limit * 1e6:.1f}")
    assert mine - empty <= limit
