"""The page's packing in JavaScript (export/web/page/packing.js) against the runtime's, in node."""

from dataclasses import asdict

import numpy as np
import pytest

from organ_infer._packing import pack
from organ_infer.bundle.manifest import RESAMPLE, Input
from tests.support.page_modules import call_page, decoded, encoded, find_node
from tests.support.slice_arrays import KINDS, random_slice

TOLERANCE = 1e-6
# Height and width: the network's size, larger, smaller, one axis each, prime, one pixel, long, the same as another size.
SHAPES = [
    (28, 28), (56, 56), (512, 512), (29, 27), (27, 29), (7, 300), (300, 7), (1, 1), (1, 40), (40, 1), (28, 31),
    (31, 28), (2, 2), (14, 14), (101, 103), (64, 17), (3, 1021), (224, 224),
]  # fmt: skip
SIZES = [4, 17, 64, 224]
# Whole bounds, odd bounds, bounds that are not integers, all of int16, beyond int16, one step.
WINDOWS = [
    (40, 400),
    (30, 351),
    (-0.3, 77.7),
    (-0.5, 65535),
    (1000, 65534),
    (32767, 65535),
    (50, 1),
]

pytestmark = pytest.mark.skipif(find_node() is None, reason="node 18 is not installed")


def differences(slices, inputs):
    """Return the largest difference from the runtime, and the share of values with equal bits."""
    cases = [
        {"call": "pack", "slice": encoded(pixels), "input": asdict(spec)}
        for pixels, spec in zip(slices, inputs, strict=True)
    ]
    worst, equal, count = 0.0, 0, 0
    for pixels, spec, answer in zip(slices, inputs, call_page(cases), strict=True):
        found = decoded(answer["result"])
        window = spec.window if pixels.dtype == np.int16 else None
        expected = pack(
            pixels, spec.size, mean=spec.mean, std=spec.std, window=window, resample=spec.resample
        )[0, 0]
        worst = max(worst, float(np.abs(found - expected).max()))
        equal += int((found == expected).sum())
        count += found.size
    return worst, equal / count


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("dtype", KINDS)
def test_slices_of_every_shape_are_packed_as_in_the_runtime(resample, dtype):
    random = np.random.default_rng(3)
    slices, inputs = [], []
    for i, shape in enumerate(SHAPES):
        for size in (28, SIZES[i % 4]):
            slices.append(random_slice(random, dtype, shape))
            window = WINDOWS[(i + size) % len(WINDOWS)]
            inputs.append(Input(size, 0.5, 0.5, resample, window, None))

    worst, equal = differences(slices, inputs)

    assert worst <= TOLERANCE
    assert equal > 0.999


@pytest.mark.parametrize("window", [*WINDOWS, None])
def test_windows_are_applied_before_resampling(window):
    random = np.random.default_rng(4)
    bounds = [(-32768, 32768), (-300, 300)]
    slices = [
        random.integers(*values, shape).astype(np.int16)
        for shape in [(28, 28), (61, 45), (13, 90)]
        for values in bounds
    ]
    inputs = [Input(28, 0.5, 0.5, RESAMPLE[i % 3], window, None) for i in range(len(slices))]

    assert differences(slices, inputs)[0] <= TOLERANCE


@pytest.mark.parametrize(
    ("mean", "std"), [(0, 1), (0.4679, 0.2975), (1, 0.25), (0.1, 0.001), (0.5, 100)]
)
def test_mean_and_standard_deviation_are_those_of_the_manifest(mean, std):
    random = np.random.default_rng(5)
    slices = [random_slice(random, dtype, shape) for shape in SHAPES[:6] for dtype in KINDS]
    inputs = [Input(28, mean, std, "area", (40, 400), None)] * len(slices)

    worst, _ = differences(slices, inputs)

    # a float32 of 1 / std has this unit in the last place
    assert worst <= max(TOLERANCE, np.spacing(np.float32(1 / std)))


def test_cubic_overshoot_is_clamped():
    edge = np.zeros((9, 40), np.uint8)
    edge[:, 20:] = 255
    spec = Input(28, 0.5, 0.5, "cubic", None, None)

    (answer,) = call_page([{"call": "pack", "slice": encoded(edge), "input": asdict(spec)}])

    found = decoded(answer["result"])
    assert (found.min(), found.max()) == (-1, 1)


def test_an_unknown_resampling_is_refused():
    spec = asdict(Input(28, 0.5, 0.5)) | {"resample": "nearest"}

    (answer,) = call_page(
        [{"call": "pack", "slice": encoded(np.zeros((9, 9), np.uint8)), "input": spec}]
    )

    assert answer["error"] == "resample: expected area, linear or cubic, found nearest"
