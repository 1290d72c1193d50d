"""The packaged model from arrays: `pytest tests/benchmarks/test_edge.py -s` prints slices per second and asserts.

The baseline is the same networks in PyTorch eager with random weights, the slices normalized by torch, both with as many
threads as there are processors.
"""

import numpy as np
import pytest

from organ_infer import OrganClassifier
from organ_infer.engine.cpu_count import usable_processors
from tests.benchmarks.comparison import compare, measure
from tests.conftest import needs_default

COUNT, BATCH, ROUNDS = 8192, 64, 9
GROUP = f"{COUNT:,} slices from arrays, batches of {BATCH}"

pytestmark = needs_default


@pytest.fixture(scope="module")
def slices():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["all", "fast"])
def classifier(request):
    with OrganClassifier(device="cpu", batch_size=BATCH, fast=request.param) as opened:
        yield opened


@pytest.fixture
def eager(slices, classifier):
    torch = pytest.importorskip("torch", reason="the baseline is PyTorch")
    from train.networks import make_network
    from train.stages import STAGES

    torch.set_num_threads(usable_processors())
    networks = [
        make_network(STAGES[member.stage].network, classes=11, size=28, seed=1)
        .eval()
        .to(memory_format=torch.channels_last)
        for member in classifier.manifest.members
    ]

    @torch.inference_mode()
    def run():
        for start in range(0, COUNT, BATCH):
            x = torch.from_numpy(slices[start : start + BATCH])[:, None].float().div_(127.5).sub_(1)
            torch.stack([network(x).softmax(1) for network in networks]).mean(0)

    return run


def record(benchmark, count):
    """Add the slices per second to the benchmark's JSON, and print them."""
    if benchmark.enabled:
        rate = count / benchmark.stats.stats.median
        benchmark.extra_info.update(slices_per_second=rate)
        print(
            f"\n{benchmark.name}: {rate:,.0f} slices per second, {usable_processors()} threads",
            end="",
        )


def test_pytorch_eager(benchmark, classifier, slices, eager):
    compare(
        benchmark,
        eager,
        lambda: classifier.predict_proba(slices),
        group=GROUP,
        against="ours",
        rounds=ROUNDS,
        rest=0.1,
    )
    record(benchmark, COUNT)


def test_twice_as_fast_as_pytorch_eager(benchmark, classifier, slices, eager):
    medians = compare(
        benchmark,
        lambda: classifier.predict_proba(slices),
        eager,
        group=GROUP,
        against="PyTorch eager",
        rounds=ROUNDS,
        rest=0.1,
    )
    record(benchmark, COUNT)
    size = sum(entry.bytes for entry in classifier.manifest.members)
    print(f"\n{classifier.manifest.name}, {size / 2**20:.2f} MiB", end="")
    assert medians.speedup >= 2


def test_one_slice(benchmark, classifier, slices):
    measure(
        benchmark,
        lambda: classifier.predict_proba(slices[0]),
        group="one slice from an array",
        rounds=ROUNDS,
        calls=200,
        rest=0.1,
    )
    record(benchmark, 1)
