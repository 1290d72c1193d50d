"""Latency with one of two cores kept busy by another process: `pytest tests/benchmarks/test_busy.py -s` prints and
asserts.

Ours takes turns with an onnxruntime session with default options, whose idle threads spin, first with both cores free,
then beside the busy process. That process runs or stops for a whole test: the scheduler needs longer than a turn to
place the threads.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from organ_infer import OrganClassifier
from organ_infer.bundle.files import packaged_bundle
from tests.benchmarks.comparison import compare
from tests.conftest import needs_default

BATCHES = [1, 64]
ROUNDS, WARMUP = 100, 20
# Seconds in which the threads of a run before stop spinning, and the other process stops or goes on.
REST = 0.02

pytestmark = [
    needs_default,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here"),
]


@pytest.fixture(scope="module")
def two_cores():
    """The two cores on which this process runs meanwhile."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:2]
    os.sched_setaffinity(0, cores)
    yield cores
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def busy_process(two_cores):
    """Another process that keeps the first of the two cores busy, stopped until it is told to go on."""
    code = f"import os\nos.sched_setaffinity(0, [{two_cores[0]}])\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def contestants(two_cores):
    """name -> batch -> predictions."""
    import onnxruntime

    with OrganClassifier(device="cpu", threads=2) as ours:
        file = packaged_bundle() / ours.manifest.forms("cpu")[0].file
        default = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).integers(0, 256, (64, 28, 28), np.uint8)
        x = np.zeros((64, 1, 28, 28), np.float32)
        yield {
            "ours": lambda batch: ours.predict_proba(images[:batch]),
            "default-session": lambda batch: default.run(None, {"images": x[:batch]}),
        }


@pytest.fixture(scope="module")
def seconds():
    """(batch, condition, name) -> the median of the tests that have run."""
    return {}


@contextlib.contextmanager
def running(process):
    process.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    try:
        yield
    finally:
        process.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("name", ["default-session", "ours"])
@pytest.mark.parametrize("condition", ["both-cores-free", "one-core-busy"])
@pytest.mark.parametrize("batch", BATCHES)
def test_latency(benchmark, contestants, busy_process, seconds, batch, condition, name):
    [other] = contestants.keys() - {name}
    with running(busy_process) if condition == "one-core-busy" else contextlib.nullcontext():
        medians = compare(
            benchmark,
            lambda: contestants[name](batch),
            lambda: contestants[other](batch),
            group=f"batch {batch}, {condition}",
            against=other,
            rounds=ROUNDS,
            warmup_rounds=WARMUP,
            rest=REST,
        )
    seconds[batch, condition, name] = medians.target
    if condition == "both-cores-free":
        return
    free = seconds.get((batch, "both-cores-free", name))
    if free is None:
        pytest.skip("the latency with both cores free was not measured in this run")
    ratio = medians.target / free
    benchmark.extra_info.update(both_cores_free_seconds=free, ratio_to_both_cores_free=ratio)
    print(f"\nbatch {batch}, {name}: {ratio:.2f} times as long as with both cores free", end="")
    assert name != "ours" or ratio <= 2
