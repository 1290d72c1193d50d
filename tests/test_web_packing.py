"""The page's packing in JavaScript (export/web/page/packing.js) against the runtime's, in node."""

import base64
import json
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
from conftest import ROOT

from organ_infer._packing import pack
from organ_infer.bundle.manifest import RESAMPLE, Input
from tests.support.slice_arrays import KINDS, random_slice

NODE = shutil.which("node")
PACKING = ROOT / "export" / "web" / "page" / "packing.js"
PROGRAM = ROOT / "tests" / "support" / "pack_slices.mjs"
TOLERANCE = 1e-6
DTYPES = tuple(KINDS)
# Height and width: the network's size, larger, smaller, one axis each, prime, one pixel, long, the same as another size.
SHAPES = [
    (28, 28), (56, 56), (512, 512), (29, 27), (27, 29), (7, 300), (300, 7), (1, 1), (1, 40), (40, 1), (28, 31),
    (31, 28), (2, 2), (14, 14), (101, 103), (64, 17), (3, 1021), (224, 224),
]  # fmt: skip
SIZES = [28, 4, 17, 64, 224]
# whole bounds, odd bounds, bounds that are not integers, all of int16, beyond int16
WINDOWS = [(40, 400), (30, 351), (-0.3, 77.7), (-0.5, 65535), (0, 60000), (32767, 65535), (50, 1)]

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def packed_in_node(slices, inputs, folder):
    """Pack each slice with its input in one process. Returns float32 (size, size) arrays."""
    cases = [
        {
            "dtype": str(pixels.dtype),
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "pixels": base64.b64encode(pixels.tobytes()).decode(),
            "input": asdict(spec),
        }
        for pixels, spec in zip(slices, inputs, strict=True)
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [NODE, PROGRAM, PACKING, folder / "cases.json", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    values = np.fromfile(folder / "out", "<f4")
    ends = np.cumsum([spec.size**2 for spec in inputs])
    assert len(values) == ends[-1]
    return [
        part.reshape(spec.size, spec.size)
        for part, spec in zip(np.split(values, ends[:-1]), inputs, strict=True)
    ]


def largest_difference(slices, inputs, folder):
    """Return the largest difference from the runtime, and the share of values with equal bits."""
    worst, equal, count = 0.0, 0, 0
    for pixels, spec, found in zip(
        slices, inputs, packed_in_node(slices, inputs, folder), strict=True
    ):
        window = spec.window if pixels.dtype == np.int16 else None
        expected = pack(
            pixels, spec.size, mean=spec.mean, std=spec.std, window=window, resample=spec.resample
        )[0, 0]
        worst = max(worst, float(np.abs(found - expected).max()))
        equal += int((found == expected).sum())
        count += found.size
    return worst, equal / count


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_every_shape_are_packed_as_in_the_runtime(resample, dtype, tmp_path):
    random = np.random.default_rng(3)
    slices, inputs = [], []
    for i, shape in enumerate(SHAPES):
        for size in (SIZES[0], SIZES[1 + i % 4]):
            slices.append(random_slice(random, dtype, shape))
            window = WINDOWS[(i + size) % len(WINDOWS)]
            inputs.append(Input(size, 0.5, 0.5, resample, window, None))

    worst, equal = largest_difference(slices, inputs, tmp_path)

    assert worst <= TOLERANCE
    assert equal > 0.999


@pytest.mark.parametrize("window", [*WINDOWS, None])
def test_windows_are_applied_before_resampling(window, tmp_path):
    random = np.random.default_rng(4)
    shapes = [(28, 28), (61, 45), (13, 90)]
    slices = [
        random.integers(-32768, 32768, shape, np.int16) if wide else random.integers(-300, 300, shape, np.int16)
        for shape in shapes for wide in (False, True)
    ]  # fmt: skip
    inputs = [
        Input(28, 0.5, 0.5, RESAMPLE[i % len(RESAMPLE)], window, None) for i in range(len(slices))
    ]

    assert largest_difference(slices, inputs, tmp_path)[0] <= TOLERANCE


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0.4679, 0.2975), (1, 0.25), (0.1, 0.001), (0.5, 100)])
def test_mean_and_standard_deviation_are_those_of_the_manifest(mean, std, tmp_path):
    random = np.random.default_rng(5)
    slices = [random_slice(random, dtype, shape) for shape in SHAPES[:6] for dtype in DTYPES]
    inputs = [Input(28, mean, std, "area", (40, 400), None)] * len(slices)

    worst, _ = largest_difference(slices, inputs, tmp_path)

    # a float32 of 1 / std has this unit in the last place
    assert worst <= max(TOLERANCE, np.spacing(np.float32(1 / std)))


def test_cubic_overshoot_is_clamped(tmp_path):
    edge = np.zeros((9, 40), np.uint8)
    edge[:, 20:] = 255
    spec = Input(28, 0.5, 0.5, "cubic", None, None)

    (found,) = packed_in_node([edge], [spec], tmp_path)

    assert (found.min(), found.max()) == (-1, 1)
