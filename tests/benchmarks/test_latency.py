"""Latency of each public call and of packing, at batches of 1 to 256 slices.

    pytest tests/benchmarks/test_latency.py

The packaged bundle, an ensemble of the real shapes with random weights, and the bundle that
ORGAN_INFER_BENCHMARK_BUNDLE names, each on the CPU and on CUDA in the precision that it chooses there and in float32.
The slices are the examples over and over. docs/results/performance.md shows how to compare two commits.
"""

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from organ_infer import DeviceError, OrganClassifier, Prediction
from organ_infer._packing import pack
from organ_infer.bundle.files import packaged_bundle, read_manifest
from tests.benchmarks.bundles import (
    ENSEMBLE_PRECISIONS,
    precisions,
    random_ensemble,  # noqa: F401
    with_precision,
)
from tests.conftest import DEFAULT, ROOT

BATCHES = (1, 4, 16, 64, 256)
NAMED = os.environ.get("ORGAN_INFER_BENCHMARK_BUNDLE")
EXAMPLES = sorted((ROOT / "examples").glob("*.png"))

# Rounds at each batch, of a small network and of a large one, which has over LARGE bytes.
ROUNDS = {1: (300, 15), 4: (300, 10), 16: (150, 7), 64: (60, 5), 256: (20, 3)}
LARGE = 8 << 20


@dataclass(frozen=True)
class Case:
    """A bundle on a device in a precision."""

    device: str
    bundle: str
    precision: str

    def __str__(self) -> str:
        return f"{self.device}-{self.bundle}-{self.precision}"


def cases(device: str) -> Iterator[Case]:
    """What is benchmarked on a device, known from the manifests alone."""
    packaged = (
        precisions(read_manifest(packaged_bundle()), device) if DEFAULT.exists() else ["fp32"]
    )
    yield from (Case(device, "packaged", precision) for precision in packaged)
    yield from (Case(device, "ensemble", precision) for precision in ENSEMBLE_PRECISIONS[device])
    if NAMED:
        manifest = read_manifest(NAMED)
        name = re.sub(r"[^\w.+-]+", "-", manifest.name)
        yield from (Case(device, name, precision) for precision in precisions(manifest, device))


CASES = {str(case): case for device in ("cpu", "cuda") for case in cases(device)}


@cache
def cuda_refusal() -> str | None:
    """Why organ_infer does not run on CUDA here, in its own words; None if it does."""
    try:
        OrganClassifier(device="cuda").close()
    except DeviceError as e:
        return str(e)
    return None


@cache
def device_name(device: str) -> str:
    """The model of the processor or of the GPU."""
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return "unknown GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def bundle_of(case: Case, request: pytest.FixtureRequest) -> Path:
    """The directory of a bundle that runs in the case's precision; skips the test if there is none."""
    if case.bundle == "packaged":
        if not DEFAULT.exists():
            pytest.skip("the packaged bundle is not built yet")
        bundle = packaged_bundle()
    elif case.bundle == "ensemble":
        bundle = request.getfixturevalue("random_ensemble").bundle
    else:
        bundle = Path(str(NAMED))
    directory = request.getfixturevalue("tmp_path_factory").mktemp("bundle") / str(case)
    return with_precision(bundle, case.precision, case.device, directory)


@dataclass(frozen=True)
class Model:
    """A case and its classifier."""

    case: Case
    classifier: OrganClassifier

    def rounds(self, batch: int) -> int:
        size = sum(entry.bytes for entry in self.classifier.manifest.variants(self.case.device))
        return ROUNDS[batch][size > LARGE]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    case = CASES[request.param]
    if case.device == "cuda" and (refusal := cuda_refusal()):
        pytest.skip(refusal)
    bundle = bundle_of(case, request)
    with OrganClassifier(bundle, device=case.device, batch_size=BATCHES[-1]) as classifier:
        yield Model(case, classifier)


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, Any]:
    """The examples over and over, uint8 (256, 28, 28)."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in EXAMPLES])
    return np.resize(pixels, (BATCHES[-1], *pixels.shape[1:]))


def record(benchmark: BenchmarkFixture, batch: int, device: str, **more: str) -> None:
    """Add what was measured to the benchmark's JSON, in plain Python types."""
    import onnxruntime

    benchmark.extra_info.update(
        batch=batch, device=device_name(device), onnxruntime=onnxruntime.__version__, **more
    )
    # Nothing is timed under --benchmark-disable.
    if benchmark.enabled:
        benchmark.extra_info.update(
            slices_per_second=batch / benchmark.stats.stats.median,
            p95=float(np.quantile(benchmark.stats.stats.data, 0.95)),
        )


def time_call(benchmark: BenchmarkFixture, model: Model, batch: int, call: Any, given: Any) -> Any:
    """What `call(given)` returns, after it was timed."""
    case = model.case
    benchmark.group = f"{case.device} {case.bundle} {case.precision}"
    returned = benchmark.pedantic(
        call, args=(given,), rounds=model.rounds(batch), warmup_rounds=2, iterations=1
    )
    record(benchmark, batch, case.device, bundle=case.bundle, precision=case.precision)
    return returned


# The last decorator comes first in a test's name: test_predict_proba[cpu-packaged-int8-64].
each_batch = pytest.mark.parametrize("batch", BATCHES)
each_case = pytest.mark.parametrize("model", CASES, indirect=True, scope="module")


@each_batch
@each_case
def test_predict_proba(benchmark, model, images, batch):
    returned = time_call(benchmark, model, batch, model.classifier.predict_proba, images[:batch])
    assert returned.shape == (batch, len(model.classifier.classes))


@each_batch
@each_case
def test_predict(benchmark, model, images, batch):
    returned = time_call(benchmark, model, batch, model.classifier.predict, images[:batch])
    assert len(returned) == batch


@each_batch
@each_case
def test_predict_paths(benchmark, model, batch):
    paths = [str(EXAMPLES[i % len(EXAMPLES)]) for i in range(batch)]

    def call(paths):
        return list(model.classifier.predict_paths(paths))

    returned = time_call(benchmark, model, batch, call, paths)
    assert [type(result) for result in returned] == [Prediction] * batch


@each_batch
def test_pack(benchmark, images, batch):
    """From bytes to the network's input, an average over enough calls for the clock's resolution."""
    benchmark.group = "cpu packing"
    out = np.empty((batch, 1, 28, 28), np.float32)
    benchmark.pedantic(
        pack,
        args=(images[:batch],),
        kwargs={"out": out},
        rounds=50,
        warmup_rounds=2,
        iterations=1024 // batch,
    )
    record(benchmark, batch, "cpu")
    assert (out == pack(images[:batch])).all()
