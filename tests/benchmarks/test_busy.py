"""Latency with one of two cores kept busy by another process: `pytest tests/benchmarks/test_busy.py -s` prints and
asserts.

The baseline of each contestant is itself while the other process is stopped. Beside ours runs an onnxruntime session
with default options, whose idle threads spin.
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
from organ_infer.bundle import packaged_bundle
from tests.benchmarks.comparison import compare, measure
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


@contextlib.contextmanager
def running(process):
    process.send_signal(signal.SIGCONT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGSTOP)


@contextlib.contextmanager
def stopped(process):
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", ["default-session", "ours"])
@pytest.mark.parametrize("batch", BATCHES)
def test_both_cores_free(benchmark, contestants, batch, name):
    measure(
        benchmark,
        lambda: contestants[name](batch),
        group=f"one core kept busy, batch {batch}",
        rounds=ROUNDS,
        warmup_rounds=WARMUP,
        rest=REST,
    )


@pytest.mark.parametrize("name", ["default-session", "ours"])
@pytest.mark.parametrize("batch", BATCHES)
def test_one_core_kept_busy(benchmark, contestants, busy_process, batch, name):
    run = contestants[name]
    with running(busy_process):
        time.sleep(0.2)
        medians = compare(
            benchmark,
            lambda: run(batch),
            lambda: run(batch),
            group=f"one core kept busy, batch {batch}",
            against="both cores free",
            rounds=ROUNDS,
            warmup_rounds=WARMUP,
            rest=REST,
            around=lambda: stopped(busy_process),
        )
    if name == "ours":
        assert medians.ratio <= 2
