"""Races of the command, start to exit: `pytest tests/benchmarks/test_command.py -s` prints the tables and asserts."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from organ_infer import OrganClassifier
from tests.at_hand import DATA, needs_organamnist
from tests.conftest import child_environment

HERE = Path(__file__).parent
SLICES = 8_827  # as many as OrganSMNIST's test split
THREADS = 2
EXAMPLE = next(iter(sorted((HERE.parents[1] / "examples").glob("*.png"))))


def seconds(*command):
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *map(str, command)], check=True, capture_output=True, env=child_environment()
    )
    return time.perf_counter() - begun


def in_turn(rounds, **commands):
    """Median seconds of each command, taken in turn; the first turn does not count."""
    taken = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            spent = seconds(*command)
            if turn:
                taken[name].append(spent)
    return {name: median(values) for name, values in taken.items()}


@pytest.fixture(scope="module")
def pngs(tmp_path_factory):
    images = np.load(DATA / "organamnist.npz")["train_images"][:SLICES]
    folder = tmp_path_factory.mktemp("pngs")
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05}.png")
    return folder


@needs_organamnist
def test_many_pngs_against_a_plain_script(pngs):
    found = in_turn(
        3,
        ours=("-m", "organ_infer", "--device", "cpu", "--threads", THREADS, pngs),
        theirs=(HERE / "plain_script.py", pngs, THREADS),
    )
    ratio = found["theirs"] / found["ours"]
    print(
        f"\n{SLICES} PNGs: organ-infer {found['ours']:.2f} s, a plain script {found['theirs']:.2f} s, {ratio:.1f}",
        end="",
    )
    assert ratio >= 3


def test_one_image_in_a_cold_process():
    found = in_turn(
        15,
        ours=("-m", "organ_infer", "--device", "cpu", EXAMPLE),
        theirs=("-c", "import onnxruntime"),
    )
    ratio = found["ours"] / found["theirs"]
    print(
        f"\none image: organ-infer {found['ours'] * 1e3:.0f} ms, import onnxruntime {found['theirs'] * 1e3:.0f} ms, {ratio:.2f}",
        end="",
    )
    assert ratio <= 1.4


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
                for turn in range(220):
                    for name, run in runs.items():
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
