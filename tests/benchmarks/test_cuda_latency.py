"""CUDA graphs against plain runs on CUDA: `pytest tests/benchmarks/test_cuda_latency.py -s` prints the ratios.

The bundles of test_latency.py, at each batch size that the runtime pads to. A benchmark's `extra_info` also holds the
first call of that size, with its tuning, buffers and recording, and the largest difference of a probability from
float32 on the CPU. Skipped where CUDA is not granted, with the reason.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from organ_infer import OrganClassifier
from tests.benchmarks.bundles import random_ensemble  # noqa: F401
from tests.benchmarks.comparison import compare
from tests.benchmarks.test_latency import (
    BATCHES,
    CASES,
    LARGE,
    Case,
    bundle_of,
    cuda_refusal,
    images,  # noqa: F401
    record,
)

# Of a small network and of a large one.
ROUNDS = (101, 21)
# How far a probability may be from float32 on the CPU (docs/reference/check.md).
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 2e-2}


@dataclass
class Model:
    """A bundle on CUDA with and without CUDA graphs, and in float32 on the CPU."""

    case: Case
    classifiers: dict[str, OrganClassifier]
    reference: OrganClassifier
    rounds: int
    tolerance: float
    first_seconds: dict[tuple[str, int], float] = field(default_factory=dict)

    def call(self, name: str, slices: Any) -> Any:
        """The probabilities; the first call of each classifier with a batch size is timed."""
        begin = time.perf_counter()
        returned = self.classifiers[name].predict_proba(slices)
        self.first_seconds.setdefault((name, len(slices)), time.perf_counter() - begin)
        return returned


@pytest.fixture(scope="module")
def model(request):
    if refusal := cuda_refusal():
        pytest.skip(refusal)
    case = CASES[request.param]
    # float32 is the last of a bundle's precisions on the CPU, if it has it.
    exact = [
        other for other in CASES.values() if (other.device, other.bundle) == ("cpu", case.bundle)
    ][-1]
    bundle = bundle_of(case, request)
    with (
        OrganClassifier(
            bundle_of(exact, request), device="cpu", batch_size=BATCHES[-1]
        ) as reference,
        OrganClassifier(bundle, device="cuda", batch_size=BATCHES[-1], cuda_graphs=True) as graphs,
        OrganClassifier(bundle, device="cuda", batch_size=BATCHES[-1], cuda_graphs=False) as plain,
    ):
        entries = graphs.manifest.variants("cuda")
        yield Model(
            case,
            {"plain-run": plain, "cuda-graph": graphs},
            reference,
            ROUNDS[sum(entry.bytes for entry in entries) > LARGE],
            max(TOLERANCES[entry.precision] for entry in entries),
        )


@pytest.mark.parametrize("name", ["plain-run", "cuda-graph"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "model",
    [key for key, case in CASES.items() if case.device == "cuda"],
    indirect=True,
    scope="module",
)
def test_cuda(benchmark, model, images, batch, name):  # noqa: F811
    case, slices = model.case, images[:batch]
    returned = model.call(name, slices)
    difference = float(np.abs(returned - model.reference.predict_proba(slices)).max())
    benchmark.extra_info.update(
        first_call_seconds=model.first_seconds[name, batch], largest_difference_from_cpu=difference
    )
    assert difference <= model.tolerance
    options = {
        "group": f"cuda {case.bundle} {case.precision}, batch {batch}",
        "rounds": model.rounds,
        "warmup_rounds": 3,
    }
    other = "cuda-graph" if name == "plain-run" else "plain-run"
    compare(
        benchmark,
        lambda: model.call(name, slices),
        lambda: model.call(other, slices),
        against=other,
        **options,
    )
    record(benchmark, batch, "cuda", bundle=case.bundle, precision=case.precision)
