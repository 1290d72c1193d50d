"""What onnxruntime on CUDA must prove. Each check also has a small form on the CPU, or says why it has none."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proof import bundles, slices
from proof.harness import Context, Settings, Skip
from proof.machine import ROOT, gpu_memory, missing, resident_memory
from proof.runtime_access import (
    BATCHES,
    CUDA,
    left_on_cpu,
    needs_runtime,
    opened,
    placed_nodes,
    recorded_sizes,
)

PRECISIONS = ("fp32", "fp16")
# The largest difference of a probability from the CPU's float32, and the share of slices that may get another label.
# In float32 another label is only allowed if the two best classes were as close as that.
DIFFERENCE = {"fp32": 1e-3, "fp16": 0.05}
OTHER_LABELS = {"fp32": 0.0, "fp16": 0.001}
GRAPH_DIFFERENCE = {"fp32": 1e-4, "fp16": 5e-3}
LEAST_EXAMPLES = 42  # of 44
THREADS, CLASSIFIERS, WARM = 64, 50, 10
GROWTH = 48  # MiB that memory may grow by
Array = NDArray[Any]


def cuda_equals_cpu(ctx: Context) -> None:
    """Labels and probabilities on the examples and on test, against float32 on the CPU."""
    needs_runtime(ctx.settings)
    files = sorted(str(path) for path in (ROOT / "examples").glob("*.png"))
    data = slices.load(ctx.settings.data_dir)
    test = data.images["test"][: 256 if ctx.settings.quick else None]
    ctx.figures |= {"slices": len(test), "data": data.source}
    reference = bundles.packaged("fp32", ctx.settings.scratch)
    with opened(reference, "cpu", batch_size=64) as cpu:
        expected = cpu.predict_proba(test)
        expected_labels = [answer.label for answer in cpu.predict_paths(files)]
    if data.source == slices.FILE:
        right = float((expected.argmax(1) == data.labels["test"][: len(test)]).mean())
        ctx.figures["accuracy_cpu"] = right
    parts = []
    for precision in PRECISIONS:
        try:
            bundle = bundles.packaged(precision, ctx.settings.scratch)
        except Skip as e:
            ctx.figures[precision] = f"not run: {e}"
            continue
        with opened(bundle, ctx.settings.device) as classifier:
            if ctx.settings.cuda:
                ctx.expect(
                    classifier.providers[0] == CUDA,
                    f"{precision} runs on {classifier.providers[0]}",
                )
            found = classifier.predict_proba(test)
            labels = [answer.label for answer in classifier.predict_paths(files)]
        compared = compare(expected, found, DIFFERENCE[precision])
        compared["example_labels_differ"] = sum(
            a != b for a, b in zip(expected_labels, labels, strict=True)
        )
        compared["examples_right"] = sum(
            label == Path(file).stem.rpartition("-")[0]
            for label, file in zip(labels, files, strict=True)
        )
        ctx.figures[precision] = compared
        judge(ctx, precision, compared, len(test), len(files))
        parts.append(
            f"{precision}: {compared['labels_differ']} labels differ, dp {compared['largest_difference']:.1e}"
        )
    ctx.summary = f"{len(test):,} slices; " + "; ".join(parts)


def compare(expected: Array, found: Array, close: float) -> dict[str, Any]:
    """Two arrays of probabilities (N, classes); `clearly` counts labels that differ where no tie explains it."""
    other = expected.argmax(1) != found.argmax(1)
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > 2 * close
    return {
        "labels_differ": int(other.sum()),
        "labels_differ_clearly": int((other & clear).sum()),
        "largest_difference": float(np.abs(expected - found).max()),
    }


def judge(
    ctx: Context, precision: str, compared: dict[str, Any], count: int, examples: int
) -> None:
    """The verdict on a comparison with the CPU."""
    far, other = compared["largest_difference"], compared["labels_differ"]
    ctx.expect(
        far <= DIFFERENCE[precision],
        f"{precision}: a probability differs by {far:.1e} from the CPU's",
    )
    most = OTHER_LABELS[precision] * count
    wrong = compared["labels_differ_clearly"] if precision == "fp32" else other
    ctx.expect(wrong <= most, f"{precision}: {wrong} of {count} labels differ from the CPU's")
    ctx.expect(
        compared["examples_right"] >= min(LEAST_EXAMPLES, examples),
        f"{precision}: {compared['examples_right']} of {examples} examples right",
    )


def node_placement(ctx: Context) -> None:
    """Which provider runs which operators."""
    ctx.needs_cuda("the CPU has one provider, which runs every node")
    needs_runtime(ctx.settings)
    on_cuda, elsewhere = 0, set()
    for name, bundle in _bundles(ctx, ENSEMBLE_QUICK if ctx.settings.quick else bundles.ENSEMBLE):
        with opened(bundle, ctx.settings.device) as classifier:
            placed = placed_nodes(classifier)
        if not placed or not all(placed):
            raise Skip("this onnxruntime does not tell where nodes run: install a later one")
        ctx.figures[name] = [
            {provider: _counted(kinds) for provider, kinds in one.items()} for one in placed
        ]
        for one in placed:
            on_cuda += len(one.get(CUDA, []))
            ctx.expect(bool(one.get(CUDA)), f"{name}: no node runs on CUDA")
            elsewhere |= {
                kind for provider, kinds in one.items() if provider != CUDA for kind in kinds
            }
            if stranded := left_on_cpu(one):
                ctx.problems.append(f"{name}: on the CPU remain {', '.join(stranded)}")
    ctx.summary = f"{on_cuda} nodes on CUDA; elsewhere: {', '.join(sorted(elsewhere)) or 'none'}"


def cuda_graphs(ctx: Context) -> None:
    """Answers with graphs equal those without; which batch sizes were recorded."""
    ctx.needs_cuda("CUDA graphs are recorded on a GPU")
    needs_runtime(ctx.settings)
    test = slices.load(ctx.settings.data_dir).images["test"]
    parts = []
    for name, bundle in _bundles(ctx, ()):
        precision = name.rpartition(" ")[2]
        with opened(bundle, ctx.settings.device, cuda_graphs=False) as plain:
            expected = {
                size: [plain.predict_proba(x) for x in _turns(test, size)] for size in BATCHES
            }
        with opened(bundle, ctx.settings.device, cuda_graphs=True) as recorded:
            found = {
                size: [recorded.predict_proba(x) for x in _turns(test, size)] for size in BATCHES
            }
            sizes = recorded_sizes(recorded)
        far = {
            size: max(
                float(np.abs(a - b).max()) for a, b in zip(expected[size], found[size], strict=True)
            )
            for size in BATCHES
        }
        ctx.figures[name] = {"recorded": sizes, "largest_difference": far}
        ctx.expect(all(sizes), f"{name}: no batch size was recorded as a CUDA graph")
        for size, value in far.items():
            ctx.expect(
                value <= GRAPH_DIFFERENCE[precision],
                f"{name}: batches of {size} differ by {value:.1e} between graphs and none",
            )
        parts.append(f"{name}: {list(sizes[0])}, dp {max(far.values()):.1e}")
    ctx.summary = "recorded " + "; ".join(parts)


def _turns(test: Array, size: int) -> list[Array]:
    """Four batches of one size with different slices: a graph that ignored its input would be found."""
    return [test[turn * size : (turn + 1) * size] for turn in range(4)]


def latency_packaged(ctx: Context) -> None:
    """Latency and throughput of the packaged network by batch size and precision."""
    needs_runtime(ctx.settings)
    _latency(ctx, _bundles(ctx, ()), turns=20 if ctx.settings.quick else 100)


ENSEMBLE_QUICK = ("batch_norm", "resnet50")


def latency_ensemble(ctx: Context) -> None:
    """Latency and throughput of batch_norm and three ResNets together, with random weights."""
    needs_runtime(ctx.settings)
    networks = ENSEMBLE_QUICK if ctx.settings.quick else bundles.ENSEMBLE
    named = []
    for precision in PRECISIONS if ctx.settings.cuda else ("fp32",):
        bundle = bundles.random_ensemble(networks, precision, ctx.settings.scratch)
        named.append((f"ensemble {precision}", bundle))
    ctx.figures["networks"] = list(networks)
    _latency(ctx, named, turns=5 if ctx.settings.quick else 40)


def _latency(ctx: Context, named: Sequence[tuple[str, Path]], turns: int) -> None:
    test = slices.load(ctx.settings.data_dir).images["test"]
    parts = []
    for name, bundle in named:
        begun = time.perf_counter()
        with opened(bundle, ctx.settings.device) as classifier:
            rows: dict[int, dict[str, float]] = {}
            ctx.figures[name] = {"opened_seconds": time.perf_counter() - begun, "batches": rows}
            for size in BATCHES:
                first = _seconds(classifier, test[:size])
                times = [_seconds(classifier, test[:size]) for _ in range(turns)]
                median = statistics.median(times)
                rows[size] = {
                    "first_ms": first * 1e3,
                    "median_us": median * 1e6,
                    "p95_us": float(np.percentile(times, 95)) * 1e6,
                    "slices_per_second": size / median,
                }
            if ctx.settings.cuda:
                ctx.figures[name]["recorded"] = recorded_sizes(classifier)
        if ctx.settings.cuda:
            ctx.expect(
                rows[256]["slices_per_second"] > rows[1]["slices_per_second"],
                f"{name}: 256 slices at once are no faster per slice than one",
            )
        parts.append(
            f"{name}: {rows[1]['median_us']:.0f} us, {rows[256]['slices_per_second']:,.0f}/s"
        )
    ctx.summary = "; ".join(parts)


def _seconds(classifier: Any, batch: Array) -> float:
    begun = time.perf_counter()
    classifier.predict_proba(batch)
    return time.perf_counter() - begun


def lifetimes(ctx: Context) -> None:
    """Threads that each ask once, and classifiers that are opened and closed: memory stays flat."""
    needs_runtime(ctx.settings)
    test = slices.load(ctx.settings.data_dir).images["test"]
    bundle = bundles.packaged("fp32", ctx.settings.scratch)
    with opened(bundle, ctx.settings.device) as classifier:
        expected = classifier.predict_proba(test[:1])
        _ask_in_threads(classifier, test[:1], WARM)
        before = _memory(ctx)
        answers, times = _ask_in_threads(classifier, test[:1], THREADS)
        grown = _growth(before, _memory(ctx))
        ctx.figures["threads"] = {
            "count": THREADS,
            "median_us": statistics.median(times) * 1e6,
            "growth_mib": grown,
        }
    ctx.expect(len(answers) == THREADS, f"{THREADS - len(answers)} of {THREADS} threads failed")
    far = max((float(np.abs(answer - expected).max()) for answer in answers), default=0.0)
    ctx.expect(far <= GRAPH_DIFFERENCE["fp32"], f"answers in other threads differ by {far:.1e}")
    _expect_flat(ctx, f"{THREADS} threads", grown)

    begun = time.perf_counter()
    for turn in range(CLASSIFIERS):
        if turn == WARM:
            before = _memory(ctx)
        with opened(bundle, ctx.settings.device) as classifier:
            classifier.predict_proba(test[:64])
    grown = _growth(before, _memory(ctx))
    seconds = (time.perf_counter() - begun) / CLASSIFIERS
    ctx.figures["classifiers"] = {
        "count": CLASSIFIERS,
        "seconds_each": seconds,
        "growth_mib": grown,
    }
    _expect_flat(ctx, f"{CLASSIFIERS} classifiers", grown)
    ctx.summary = (
        f"growth in MiB: {THREADS} threads {ctx.figures['threads']['growth_mib']}, "
        f"{CLASSIFIERS} classifiers {grown}"
    )


def _ask_in_threads(classifier: Any, batch: Array, count: int) -> tuple[list[Array], list[float]]:
    """One thread after another; the answers of those that did not fail, and their seconds."""
    answers: list[Array] = []
    times: list[float] = []

    def ask() -> None:
        begun = time.perf_counter()
        answer = classifier.predict_proba(batch)
        times.append(time.perf_counter() - begun)
        answers.append(answer)

    for _ in range(count):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    return answers, times


def _memory(ctx: Context) -> dict[str, int]:
    """MiB in use: resident in this process, and on the GPU."""
    found = {"host": resident_memory()}
    if ctx.settings.cuda and (used := gpu_memory(ctx.settings.device)) is not None:
        found["gpu"] = used
    return found


def _growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {where: after[where] - before[where] for where in before if where in after}


def _expect_flat(ctx: Context, what: str, grown: dict[str, int]) -> None:
    for where, mib in grown.items():
        ctx.expect(mib <= GROWTH, f"{what}: {where} memory grew by {mib} MiB")
    ctx.expect("gpu" in grown or not ctx.settings.cuda, "nvidia-smi does not tell the GPU's memory")


def beside_torch(ctx: Context) -> None:
    """PyTorch allocates in another thread: neither fails; with cuda_graphs=True the answers stay right."""
    needs_runtime(ctx.settings)
    if absent := missing(["torch"]):
        raise Skip(f"needs {absent[0]} in the same process")
    import torch

    if ctx.settings.cuda and not torch.cuda.is_available():
        raise Skip("needs a PyTorch that sees the GPU in the same process")
    test = slices.load(ctx.settings.data_dir).images["test"]
    bundle = bundles.packaged("fp32", ctx.settings.scratch)
    with opened(bundle, "cpu") as cpu:
        expected = cpu.predict_proba(test[:256])
    parts = []
    for name, graphs in (("default", None), ("recorded", True)):
        if graphs and not ctx.settings.cuda:
            continue
        with _allocating(torch, ctx.settings) as beside:
            far, sizes = _asked_in_turn(ctx, bundle, test, expected, graphs)
        ctx.figures[name] = {
            "torch_turns": beside.turns,
            "torch_errors": len(beside.errors),
            "torch_error": beside.errors[:1],
            "recorded": sizes,
            "largest_difference": far,
        }
        ctx.expect(far <= DIFFERENCE["fp32"], f"{name}: answers differ by {far:.1e} from the CPU's")
        ctx.expect(beside.turns > 0, f"{name}: PyTorch allocated nothing meanwhile")
        if not graphs:  # a recording makes PyTorch's calls fail, as the documentation says
            ctx.expect(
                not beside.errors,
                f"PyTorch failed {len(beside.errors)} times: {', '.join(sorted(set(beside.errors))[:2])}",
            )
            ctx.expect(not any(sizes), "a CUDA graph was recorded while PyTorch uses CUDA")
        parts.append(
            f"{name}: dp {far:.1e}, torch {beside.turns} turns, {len(beside.errors)} errors,"
            f" {sum(map(len, sizes))} graphs"
        )
    ctx.summary = "; ".join(parts)


def _asked_in_turn(
    ctx: Context, bundle: Path, test: Array, expected: Array, graphs: bool | None
) -> tuple[float, list[tuple[int, ...]]]:
    """The largest difference from `expected`, and the batch sizes that each classifier recorded."""
    far, sizes = 0.0, []
    for _ in range(2 if ctx.settings.quick else 5):
        with opened(bundle, ctx.settings.device, cuda_graphs=graphs) as classifier:
            for size in BATCHES:
                found = [classifier.predict_proba(test[:size]) for _ in range(3)]
                far = max(far, *(float(np.abs(a - expected[:size]).max()) for a in found))
            if ctx.settings.cuda:
                sizes += recorded_sizes(classifier)
    return far, sizes


class _allocating:
    """PyTorch allocates and frees in a thread within the block."""

    def __init__(self, torch: Any, settings: Settings) -> None:
        self._torch, self._settings = torch, settings
        self._stop, self._begun = threading.Event(), threading.Event()
        self.turns, self.errors = 0, []  # type: ignore[var-annotated]
        self._thread = threading.Thread(target=self._allocate)

    def _allocate(self) -> None:
        torch, device = self._torch, self._settings.device
        while not self._stop.is_set():
            try:
                if self._settings.cuda:
                    torch.cuda.empty_cache()
                x = torch.ones(16 << 20, device=device)
                if float(x[-1]) != 1:
                    self.errors.append("a tensor of ones was overwritten")
                del x
                self.turns += 1
            except RuntimeError as e:
                self.errors.append(" ".join(str(e).split())[:120])
            self._begun.set()

    def __enter__(self) -> _allocating:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _bundles(ctx: Context, ensemble: Sequence[str]) -> list[tuple[str, Path]]:
    """The packaged network in each precision, and an ensemble in fp16; what cannot be made is noted."""
    named = []
    makers: list[tuple[str, Any]] = [
        (
            f"packaged {precision}",
            lambda precision=precision: bundles.packaged(precision, ctx.settings.scratch),
        )
        for precision in PRECISIONS
    ]
    if ensemble:
        makers.append(
            (
                "ensemble fp16",
                lambda: bundles.random_ensemble(ensemble, "fp16", ctx.settings.scratch),
            )
        )
    for name, make in makers:
        try:
            named.append((name, make()))
        except Skip as e:
            ctx.figures[name] = f"not run: {e}"
    return named


def _counted(kinds: Sequence[str]) -> dict[str, int]:
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
