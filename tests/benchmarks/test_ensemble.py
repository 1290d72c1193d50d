"""Races of the ensemble (four members with random weights of the real shapes), two threads:
`pytest tests/benchmarks/test_ensemble.py -s` prints the tables and asserts.

The peers: PyTorch eager, four onnxruntime sessions with their default options after each other, and the four exported
members merged into one graph in one default session.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import bundle
from export.bundle import Slices, Trained, write_bundle
from export.member import to_onnx
from export.merge import merge
from export.rewrite import rewrite
from organ_infer import OrganClassifier
from organ_infer._packing import pack
from tests.benchmarks.race import medians
from tests.test_export import CLASSES
from train.networks import make_network
from train.stages import STAGES

THREADS = 2
RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (256, 28, 28), dtype=np.uint8)
ROUNDS = {1: 31, 64: 7}


def drawn(name):
    """A network with running statistics as after training."""
    network = make_network(name, classes=11, size=28, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(layer.weight, 0.3, 1, generator=generator)
    return network


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The networks, their exported members, and bundles of them with and without int8."""
    folder = tmp_path_factory.mktemp("four")
    networks = {stage: drawn(STAGES[stage].network) for stage in STAGES["ensemble"].members}
    models = {stage: to_onnx(network, 28) for stage, network in networks.items()}
    for stage, model in models.items():
        onnx.save(model, folder / f"{stage}.onnx")
    bundles = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "fit_temperature", lambda *_: 1.0)  # PyTorch knows of none
        for name, precisions in (("fp32", ("fp32",)), ("int8", ("fp32", "int8"))):
            bundles[name] = write_bundle(
                folder / name,
                dataset="organamnist",
                view="axial",
                classes=CLASSES,
                size=28,
                members=[Trained(stage, folder / f"{stage}.onnx") for stage in models],
                slices=Slices(
                    IMAGES, IMAGES[:8], np.zeros(8, np.int64), 28
                ),  # random weights answer alike: all is accepted
                metrics={"val": {"accuracy": 0.5}},
                training={"seed": 1, "data_md5": "0" * 32, "weights": "none"},
                name=f"random-{name}",
                precisions=precisions,
            )
    return networks, models, bundles


@pytest.fixture(scope="module")
def contestants(four):
    """name -> packed slices -> probabilities."""
    networks, models, bundles = four
    torch.set_num_threads(THREADS)

    def session(model):
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    sessions = [session(model) for model in models.values()]
    merged, rewritten = session(merge(models)), session(merge({s: rewrite(m) for s, m in models.items()}))
    ours = {name: OrganClassifier(bundle, device="cpu", threads=THREADS) for name, bundle in bundles.items()}
    assert [m.precision for m in ours["int8"].manifest.forms("cpu")] == ["int8"] * 4

    def eager(x):
        with torch.inference_mode():
            x = torch.from_numpy(x)
            return torch.stack([network(x).softmax(1) for network in networks.values()]).mean(0).numpy()

    yield {
        "PyTorch eager": eager,
        "four default sessions": lambda x: np.mean(
            [softmax(s.run(None, {"images": x})[0]) for s in sessions], axis=0
        ),
        "merged, default session": lambda x: merged.run(None, {"images": x})[0],
        "merged and rewritten": lambda x: rewritten.run(None, {"images": x})[0],
        "ours, fp32": ours["fp32"]._ensemble.probabilities,
        "ours, int8": ours["int8"]._ensemble.probabilities,
    }
    for classifier in ours.values():
        classifier.close()


@pytest.fixture(scope="module")
def milliseconds(contestants):
    """batch -> name -> milliseconds a slice."""
    found = {}
    for batch, rounds in ROUNDS.items():
        x = pack(IMAGES[:batch], 28)
        calls = [lambda run=run, x=x: run(x) for run in contestants.values()]
        medians(calls, [1] * len(calls), 2)
        taken = medians(calls, [1] * len(calls), rounds, rest=0.1)
        found[batch] = {name: seconds / batch * 1e3 for name, seconds in zip(contestants, taken, strict=True)}
    print(f"\n{'ms a slice, ' + str(THREADS) + ' threads':<28}" + "".join(f"batch {b:<6}" for b in ROUNDS))
    for name in contestants:
        print(f"{name:<28}" + "".join(f"{found[batch][name]:<12.2f}" for batch in ROUNDS))
    return found


# batch, ours, peer, at least so many times as fast, and what the aim was. At batch 1 float32 is bound by memory: its
# 544 MB take 18 ms at the 30 GB/s that two cores read here, and default sessions vary from 36 to 63 ms.
RACES = [
    (1, "ours, fp32", "four default sessions", 1.3, 3.0),
    (64, "ours, fp32", "merged, default session", 1.2, 1.35),
    (1, "ours, int8", "four default sessions", 3.0, 6.0),
    (64, "ours, int8", "ours, fp32", 3.0, 3.0),
]


@pytest.mark.parametrize("batch, name, peer, least, aim", RACES)
def test_race(milliseconds, batch, name, peer, least, aim):
    ratio = milliseconds[batch][peer] / milliseconds[batch][name]
    print(f"\nbatch {batch}: {name} is {ratio:.2f} times as fast as {peer} (aim: {aim})", end="")
    assert ratio >= least


def test_all_forms_give_one_answer(contestants):
    x = pack(IMAGES[:64], 28)
    expected = contestants["PyTorch eager"](x)
    for name, run in contestants.items():
        difference = np.abs(run(x) - expected).max()
        print(f"\n{name}: probabilities within {difference:.1e} of PyTorch's", end="")
        if "int8" not in name:
            assert difference <= 1e-5


def test_a_process_opens_the_cached_ensemble_three_times_as_fast(four, tmp_path):
    _, _, bundles = four
    picture = next((Path(__file__).parents[2] / "examples").glob("*.png"))

    def start(cache):
        command = [
            sys.executable,
            "-m",
            "organ_infer",
            "--bundle",
            bundles["fp32"],
            "--device",
            "cpu",
            picture,
        ]
        environment = os.environ | {"ORGAN_INFER_CACHE": cache}
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return time.perf_counter() - begun

    start(str(tmp_path))  # makes the entry
    plain, cached = [], []
    for _ in range(5):
        plain.append(start(""))
        cached.append(start(str(tmp_path)))
    plain, cached = np.median(plain), np.median(cached)
    print(
        f"\nstart to exit, one image: optimised at load {plain:.2f} s, cached {cached:.2f} s, {plain / cached:.1f}",
        end="",
    )
    assert plain / cached >= 2.5  # the aim was 3
