"""Seconds per slice of bundles through this runtime and through OpenVINO, as a table.

    pip install openvino
    python tests/benchmarks/openvino_table.py BUNDLE...

Both run the same ONNX files on packed slices, on the CPU, with as many threads as there are processors, and take turns.
OpenVINO computes float32 networks in float32. It runs the networks of an ensemble one after the other, each with all
threads, or all at once; the faster of the two counts. Both return probabilities averaged over the networks. Prints Markdown.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray
from turns import medians

from organ_infer.bundle.files import Bundle, open_bundle
from organ_infer.engine.cpu_count import usable_processors
from organ_infer.engine.ensemble import Ensemble, open_ensemble

BATCHES = {1: (200, 15), 64: (32, 15), 256: (8, 15)}  # calls per turn, turns


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


class OpenVino:
    """The networks of a bundle in OpenVINO."""

    def __init__(self, graphs: Sequence[bytes], temperature: float, *, at_once: bool) -> None:
        core = openvino.Core()
        threads = usable_processors()
        parallel = min(len(graphs), threads) if at_once else 1
        settings = {
            "INFERENCE_NUM_THREADS": max(1, threads // parallel),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._requests = [
            core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
            for graph in graphs
        ]
        self._temperature = temperature
        self._workers = ThreadPoolExecutor(parallel) if parallel > 1 else None

    def _one(
        self, request: openvino.InferRequest, packed: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        outputs = request.infer([packed], share_inputs=True, share_outputs=True)
        return probabilities(outputs[0], self._temperature)

    def run(self, packed: NDArray[np.float32]) -> NDArray[np.float64]:
        each = self._workers.map if self._workers else map
        answers = list(each(lambda request: self._one(request, packed), self._requests))
        return sum(answers[1:], start=answers[0]) / len(answers)


def ours(bundle: Bundle) -> Ensemble:
    """Open the networks of a bundle with onnxruntime, as `OrganClassifier` does on the CPU."""
    listed = replace(bundle.manifest, members=tuple(entry for entry, _ in bundle.graphs), fast=None)
    with tempfile.TemporaryDirectory() as folder:
        for name in listed.files():
            shutil.copy(bundle.directory / name, folder)
        (Path(folder) / "manifest.json").write_text(listed.to_json())
        return open_ensemble(folder, device="cpu", threads=usable_processors())


def rows(directory: Path) -> list[str]:
    """The table's rows of a bundle: its listed networks, and its float32 ones."""
    found = []
    # CUDA runs the float32 networks.
    for device in ("cpu", "cuda"):
        bundle = open_bundle(directory, device)
        ensemble, graphs = ours(bundle), [graph for _, graph in bundle.graphs]
        names = ", ".join(entry.stage for entry, _ in bundle.graphs)
        precision = "/".join(sorted({entry.precision for entry, _ in bundle.graphs}))
        theirs = [OpenVino(graphs, bundle.manifest.temperature, at_once=False)]
        if len(graphs) > 1:
            theirs.append(OpenVino(graphs, bundle.manifest.temperature, at_once=True))
        size = bundle.manifest.input.size
        for batch, (calls, turns) in BATCHES.items():
            packed = np.random.default_rng(0).normal(size=(batch, 1, size, size)).astype(np.float32)
            expected = ensemble.answer(packed).probabilities
            for their in theirs:
                difference = np.abs(their.run(packed) - expected).max()
                assert difference < (0.2 if "int8" in precision else 1e-3), difference
            runs: list[Callable[[], object]] = [
                partial(ensemble.answer, packed),
                *(partial(their.run, packed) for their in theirs),
            ]
            seconds = medians(runs, [calls] * len(runs), turns)
            ours_us, theirs_us = (1e6 * value / batch for value in (seconds[0], min(seconds[1:])))
            found.append(
                f"| {names} | {precision} | {batch} | {ours_us:.1f} | {theirs_us:.1f} | {ours_us / theirs_us:.2f} |"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    print("| networks | precision | batch | onnxruntime, us per slice | OpenVINO | ratio |")
    print("|---|---|---|---|---|---|")
    for directory in parser.parse_args().bundles:
        for row in rows(directory):
            print(row, flush=True)


if __name__ == "__main__":
    main()
