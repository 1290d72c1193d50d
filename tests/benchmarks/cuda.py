"""A bundle on CUDA: a plain run, IOBinding with kept buffers, and CUDA graphs, at each fixed batch size.

    python tests/benchmarks/cuda.py [--bundle DIR] [--turns 101] [--option KEY=VALUE]

Prints one table. A batch is NumPy in, NumPy out, all members after each other; forms take turns; medians. `first` is
the first call of that size, with its tuning, buffers and recording. Where CUDA is not granted it says why and ends in 2.
Not run on a GPU so far.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from organ_infer import DeviceError, OrganInferError
from organ_infer._packing import pack
from organ_infer.bundle import Manifest, Member, open_bundle, packaged_bundle
from organ_infer.cuda import _OPTIONS, BATCHES, BoundSession
from organ_infer.cuda_thread import call
from organ_infer.images import open_slices
from organ_infer.session import Session, choose_device, import_onnxruntime, thread_count

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
FORMS = ("plain run", "IOBinding", "+ CUDA graph")


class PlainRuns:
    """The session of a BoundSession without its buffers, on the CUDA thread."""

    def __init__(self, bound: BoundSession) -> None:
        self.bound = bound

    def run(self, outputs: list[str], feed: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        answers: list[NDArray[np.float32]] = call(lambda: self.bound._network._session.run(outputs, feed))
        return answers


class Network:
    """The members of a bundle in one precision, opened in one form; a call is slices to mean probabilities."""

    def __init__(
        self, graphs: list[tuple[Member, bytes]], manifest: Manifest, device: str, form: str
    ) -> None:
        self.temperature = manifest.temperature
        self.sessions = [
            Session(
                data,
                output=entry.output,
                classes=len(manifest.task.classes),
                where=entry.file,
                device=device,
                threads=thread_count(None),
                capture=form == FORMS[2],
            )
            for entry, data in graphs
        ]
        if device == "cuda" and form == FORMS[0]:
            for session in self.sessions:
                session._run = PlainRuns(session._run)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float64]:
        answers = [session.run(batch).astype(np.float64) for session in self.sessions]
        for i, session in enumerate(self.sessions):
            if session.output == "logits":
                e = np.exp((answers[i] - answers[i].max(axis=1, keepdims=True)) / self.temperature)
                answers[i] = e / e.sum(axis=1, keepdims=True)
        mean: NDArray[np.float64] = np.mean(answers, axis=0)
        return mean

    def recorded(self, size: int) -> bool:
        return all(size in session._run.captured for session in self.sessions)


def graphs_of(manifest: Manifest, directory: Path, precision: str) -> list[tuple[Member, bytes]]:
    """The graphs that are run, in `precision`; none where one has no such form. The bundle has been verified."""
    entries = (manifest.merged,) if manifest.merged else manifest.members
    chosen = []
    for entry in entries:
        forms = [form for form in (entry, *entry.alternatives) if form.precision == precision]
        if not forms:
            return []
        chosen.append((forms[0], (directory / forms[0].file).read_bytes()))
    return chosen


def slices(manifest: Manifest, count: int) -> NDArray[np.float32]:
    """float32 (count, 1, S, S): the examples over and over, noise where there are none."""
    how = manifest.input
    files = sorted(EXAMPLES.glob("*.png"))
    if not files:
        return np.random.default_rng(0).uniform(-1, 1, (count, 1, how.size, how.size)).astype(np.float32)
    packed = pack(
        [read().pixels for file in files for _, read in open_slices(str(file))],
        how.size,
        mean=how.mean,
        std=how.std,
    )
    return np.ascontiguousarray(np.resize(packed, (count, 1, how.size, how.size)))


def seconds(network: Network, batch: NDArray[np.float32]) -> float:
    begin = time.perf_counter()
    network(batch)
    return time.perf_counter() - begin


def gpu() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "a GPU that nvidia-smi does not name"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=packaged_bundle())
    parser.add_argument("--turns", type=int, default=101)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the provider")
    options = parser.parse_args(arguments)
    _OPTIONS.update(option.split("=", 1) for option in options.option)
    try:
        manifest = open_bundle(options.bundle).manifest
        ort = import_onnxruntime()
        choose_device(ort, "cuda")
        table(manifest, options.bundle, options.turns, f"onnxruntime {ort.__version__}")
    except DeviceError as e:
        print(f"no CUDA here: {e}", file=sys.stderr)
        return 2
    except OrganInferError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def table(manifest: Manifest, directory: Path, turns: int, version: str) -> None:
    reference = Network(graphs_of(manifest, directory, "fp32"), manifest, "cpu", FORMS[0])
    networks = {
        (precision, form): Network(graphs, manifest, "cuda", form)
        for precision in ("fp32", "fp16")
        if (graphs := graphs_of(manifest, directory, precision))
        for form in FORMS
    }
    print(f"{manifest.name} on {gpu()}, {version}, {turns} turns")
    print(
        f"{'':4} {'form':12} {'batch':>5} {'first ms':>9} {'us':>9} {'slices/s':>9} {'ratio':>6} {'max |dp|':>9}"
    )
    for size in BATCHES:
        batch = slices(manifest, size)
        expected = reference(batch)
        first = {key: seconds(network, batch) for key, network in networks.items()}
        far = {key: np.abs(network(batch) - expected).max() for key, network in networks.items()}
        times: dict[tuple[str, str], list[float]] = {key: [] for key in networks}
        for _ in range(turns):
            for key, network in networks.items():
                times[key].append(seconds(network, batch))
        medians = {key: statistics.median(taken) for key, taken in times.items()}
        for (precision, form), median in medians.items():
            refused = form == FORMS[2] and not networks[precision, form].recorded(size)
            print(
                f"{precision:4} {form:12} {size:5} {first[precision, form] * 1e3:9.1f} {median * 1e6:9.1f}"
                f" {size / median:9.0f} {medians[precision, FORMS[0]] / median:6.2f} {far[precision, form]:9.1e}"
                + (" (refused: IOBinding)" if refused else "")
            )


if __name__ == "__main__":
    sys.exit(main())
