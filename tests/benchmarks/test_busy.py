"""Latency with one of two cores kept busy by another process: `pytest tests/benchmarks/test_busy.py -s` prints and
asserts. The peer is a default onnxruntime session, whose idle threads spin."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from organ_infer import OrganClassifier


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
@pytest.mark.parametrize("batch", [1, 64])
def test_latency_with_one_core_kept_busy(batch):
    """Ours and a default session, on two cores, quiet and with another process on one of them."""
    import onnxruntime

    two = sorted(os.sched_getaffinity(0))[:2]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, two)
    try:
        with OrganClassifier(device="cpu", threads=2) as ours:
            entry = ours.manifest.forms("cpu")[0]
            file = Path(sys.modules["organ_infer"].__file__).parent / "default" / entry.file
            default = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            images = np.random.default_rng(0).integers(0, 256, (batch, 28, 28), np.uint8)
            x = np.zeros((batch, 1, 28, 28), np.float32)
            runs = {
                "ours": lambda: ours.predict_proba(images),
                "default session": lambda: default.run(None, {"images": x}),
            }

            def medians_now():
                taken = {name: [] for name in runs}
                for turn in range(120):
                    for name, run in runs.items():
                        time.sleep(0.02)  # the threads of the one before stop spinning
                        begun = time.perf_counter()
                        run()
                        if turn >= 20:
                            taken[name].append(time.perf_counter() - begun)
                return {name: median(values) for name, values in taken.items()}

            quiet = medians_now()
            busy = subprocess.Popen(
                [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, [{two[0]}])\nwhile True: pass"]
            )
            try:
                time.sleep(0.2)
                loaded = medians_now()
            finally:
                busy.kill()
                busy.wait()
    finally:
        os.sched_setaffinity(0, before)
    for name in runs:
        print(
            f"\nbatch {batch}, {name}: quiet {quiet[name] * 1e6:.0f} us, one core busy {loaded[name] * 1e6:.0f} us, {loaded[name] / quiet[name]:.1f}",
            end="",
        )
    assert loaded["ours"] / quiet["ours"] <= 2
