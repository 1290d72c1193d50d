"""How sessions on the CPU are best set: threads, spinning, batch sizes, several networks in one process.

    python tests/benchmarks/sessions.py [threads] [spinning] [batches] [bundle] [four] [memory]

Prints a Markdown table for each part (docs/deploy/sessions.md holds what was found): `bundle` and `four` race ways to keep memory and
threads, with the bundle's networks and with four of random weights. Contestants take turns in one process with a pause
between, in which threads that spin come to rest; medians of many turns. Run it on a machine that does nothing else.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from organ_infer import OrganClassifier
from organ_infer.bundle.files import open_bundle, packaged_bundle
from organ_infer.engine.cpu_count import usable_processors
from organ_infer.engine.session import import_onnxruntime

ort = import_onnxruntime()
CORES = usable_processors()
SPINNING = {  # name -> session options
    "off": {"session.intra_op.allow_spinning": "0"},
    "within a run": {"session.force_spinning_stop": "1"},
    "50 us": {"session.intra_op.spin_duration_us": "50"},
    "on": {},
}
RNG = np.random.default_rng(0)


def opened(
    graph: bytes,
    threads: int,
    spinning: str = "off",
    *,
    arena: bool = False,
    patterns: bool = False,
    shared_arena: bool = False,
    shared_pool: bool = False,
) -> Callable[[Any], Any]:
    """A session set as organ_infer sets its own but for what is asked; called with a batch."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = (
        (0, 0) if shared_pool else (threads, 1)
    )
    options.enable_cpu_mem_arena = arena or shared_arena
    options.enable_mem_pattern = patterns
    options.use_per_session_threads = not shared_pool
    for key, value in SPINNING[spinning].items():
        options.add_session_config_entry(key, value)
    if shared_arena:
        options.add_session_config_entry("session.use_env_allocators", "1")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"images": batch})


def batch_of(size: int) -> Any:
    return RNG.uniform(-1, 1, (size, 1, 28, 28)).astype(np.float32)


def network(seed: int, first: int, second: int, hidden: int) -> bytes:
    """Random weights in the shape of the ladder's `big` network."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(seed).normal
    weights = {
        "k1": draw(size=(first, 1, 5, 5)) * 0.2,
        "k2": draw(size=(second, first, 5, 5)) * 0.04,
        "w1": draw(size=(second * 49, hidden)) * 0.02,
        "w2": draw(size=(hidden, 11)) * 0.05,
    }
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["images", "k1"], ["a"], pads=[2] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], **pool),
        helper.make_node("Conv", ["c", "k2"], ["d"], pads=[2] * 4),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MaxPool", ["e"], ["f"], **pool),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("MatMul", ["i", "w2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 11])],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def four_networks() -> list[bytes]:
    sizes = ((6, 16, 120), (16, 32, 240), (24, 64, 480), (32, 96, 480))
    return [network(seed, *size) for seed, size in enumerate(sizes)]


def race(
    contestants: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, tuple[float, float]]:
    """Name -> median seconds a call, and processors kept busy meanwhile, the contestants in turn."""
    calls = {}
    for name, work in contestants.items():
        work()
        begin = time.perf_counter()
        work()
        calls[name] = max(1, int(0.01 / (time.perf_counter() - begin)))  # a turn is 10 ms at least
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[name]) < 5:
        for name, work in contestants.items():
            time.sleep(0.003)
            busy, begin = time.process_time(), time.perf_counter()
            for _ in range(calls[name]):
                work()
            taken = time.perf_counter() - begin
            times[name].append((taken / calls[name], (time.process_time() - busy) / taken))
    return {
        name: (statistics.median(t for t, _ in turns), statistics.median(b for _, b in turns))
        for name, turns in times.items()
    }


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    print()
    row(*cells)
    row(*["---"] * len(cells))


def threads(graph: bytes, seconds: float) -> None:
    """One session: where does a second thread begin to pay?"""
    counts = sorted({1, 2, CORES}) if CORES > 1 else [1]
    sessions = {count: opened(graph, count) for count in counts}
    head("batch", *(f"{count} threads, us" for count in counts), "ratio", "processors busy")
    for size in (1, 2, 4, 8, 16, 64, 256):
        batch = batch_of(size)
        found = race(
            {
                str(count): lambda run=run, batch=batch: run(batch)
                for count, run in sessions.items()
            },
            seconds / 7,
        )
        medians = [found[str(count)] for count in counts]
        row(
            size,
            *(f"{t * 1e6:.0f}" for t, _ in medians),
            f"{medians[0][0] / medians[-1][0]:.2f}",
            f"{medians[-1][1]:.2f}",
        )


def spinning(graph: bytes, seconds: float) -> None:
    """One session alone; one session with a pause after each call; two sessions in two threads."""
    kinds = list(SPINNING)
    sessions = {kind: opened(graph, CORES, kind) for kind in kinds}
    head("one session, batch", *(f"{kind}, us (processors busy)" for kind in kinds))
    for size in (1, 16, 64, 256):
        batch = batch_of(size)
        found = race(
            {kind: lambda run=run, batch=batch: run(batch) for kind, run in sessions.items()},
            seconds / 8,
        )
        row(size, *(f"{found[kind][0] * 1e6:.0f} ({found[kind][1]:.2f})" for kind in kinds))
    counts = sorted({1, CORES})
    head(
        "two sessions in two threads, batch",
        *(f"{kind}, {n}: slices/s" for kind in kinds for n in counts),
    )
    settings = list(itertools.product(kinds, counts))
    pairs = {key: [opened(graph, key[1], key[0]) for _ in range(2)] for key in settings}
    for size in (1, 64):
        batch = batch_of(size)
        rates: dict[tuple[str, int], list[float]] = {key: [] for key in settings}
        for _ in range(5):
            for key in settings:
                rates[key].append(together(pairs[key], batch, seconds / 80))
                time.sleep(0.003)
        row(size, *(f"{statistics.median(rates[key]):.0f}" for key in settings))


def together(sessions: list[Callable[[Any], Any]], batch: Any, seconds: float) -> float:
    """Slices a second of sessions that run at once, each in its own thread."""
    counts = [0] * len(sessions)
    barrier = threading.Barrier(len(sessions) + 1)
    until = [0.0]

    def body(i: int) -> None:
        barrier.wait()
        while time.perf_counter() < until[0]:
            sessions[i](batch)
            counts[i] += len(batch)

    workers = [threading.Thread(target=body, args=(i,)) for i in range(len(sessions))]
    for worker in workers:
        worker.start()
    begin = time.perf_counter()
    until[0] = begin + seconds
    barrier.wait()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begin)


def batches(bundle: Path, seconds: float) -> None:
    """1,024 slices at once: batches of which size?"""
    slices = RNG.integers(0, 256, (1024, 28, 28), np.uint8)
    sizes = (16, 32, 64, 128, 256, 512, 1024)
    classifiers = {size: OrganClassifier(bundle, device="cpu", batch_size=size) for size in sizes}
    runs: list[Callable[[Any], Any]] = [
        opened(graph, CORES) for _, graph in open_bundle(bundle).graphs
    ]
    packed = batch_of(1024)

    def networks(size: int) -> None:
        for start in range(0, 1024, size):
            for run in runs:
                run(packed[start : start + size])

    alone = race({str(size): lambda size=size: networks(size) for size in sizes}, seconds / 2)
    whole = race(
        {
            str(size): lambda c=classifier: c.predict_proba(slices)
            for size, classifier in classifiers.items()
        },
        seconds / 2,
    )
    head("batch", "network, slices/s", "predict_proba, slices/s")
    for size in sizes:
        row(size, f"{1024 / alone[str(size)][0]:.0f}", f"{1024 / whole[str(size)][0]:.0f}")


FORMS: dict[str, dict[str, Any]] = {  # of the networks of a process
    "as it is": {},
    "spinning within a run": {"spinning": "within a run"},
    "arena each": {"arena": True},
    "arena and patterns": {"arena": True, "patterns": True},
    "shared arena": {"shared_arena": True},
    "shared pool": {"shared_pool": True},
    "side by side": {},  # each on a thread of its own, at the same time
}
OF_ONE = ["as it is", "spinning within a run", "arena each", "arena and patterns"]
SIZES = (1, 4, 16, 64, 256)


def forms(graphs: str, bundle: Path, seconds: float) -> None:
    """The networks after each other on each batch but for the last form. Each form in a process of its own, three of
    each in turn: what sessions share is the process's, and a shared pool allows no other."""
    names = list(FORMS) if graphs == "four" else OF_ONE
    each = seconds / 3 / len(names) / len(SIZES)
    turns: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(3):
        for name in names:
            turns[name].append(in_process(name, graphs, bundle, "--seconds", each))
    head(f"{graphs}, batch", *(f"{name}, us" for name in names))
    for i, size in enumerate(SIZES):
        row(
            size,
            *(f"{statistics.median(turn[i] for turn in turns[name]) * 1e6:.0f}" for name in names),
        )


def memory(bundle: Path) -> None:
    """What a process of each form holds after many batches of varying size."""
    for graphs, names in (("bundle", OF_ONE), ("four", list(FORMS))):
        head(graphs, *names)
        for most in (64, 512):
            found = [
                in_process(name, graphs, bundle, "--seconds", 0, "--most", most) for name in names
            ]
            row(f"MiB after batches of 1 to {most}", *(f"{taken[0]:.0f}" for taken in found))
        row("threads", *(f"{taken[1]:.0f}" for taken in found))


def in_process(name: str, graphs: str, bundle: Path, *more: object) -> list[float]:
    command = [
        sys.executable,
        __file__,
        "--bundle",
        bundle,
        "--form",
        name,
        "--graphs",
        graphs,
        *more,
    ]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def in_child(form: str, graphs: list[bytes], seconds: float, most: int) -> list[float]:
    """Seconds a batch of each of SIZES; where `seconds` is 0, MiB resident after many batches of 1 to `most` slices,
    and threads."""
    how = FORMS[form]
    if how.get("shared_pool"):
        ort.set_global_thread_pool_sizes(CORES, 1)
    if how.get("shared_arena"):
        info = ort.OrtMemoryInfo(
            "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
        )
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, 1, -1, -1))
    at_once = form == "side by side"
    runs = [opened(graph, 1 if at_once else CORES, **how) for graph in graphs]
    pool = ThreadPoolExecutor(len(runs))

    def all_of(batch: Any) -> None:
        list(pool.map(lambda run: run(batch), runs) if at_once else (run(batch) for run in runs))

    if seconds:
        given = [batch_of(size) for size in SIZES]
        return [
            race({form: lambda batch=batch: all_of(batch)}, seconds)[form][0] for batch in given
        ]
    for size in RNG.integers(1, most + 1, 5000 // most + 15):
        all_of(batch_of(int(size)))
    resident = (
        int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )
    return [resident, len(os.listdir("/proc/self/task"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = ("threads", "spinning", "batches", "bundle", "four", "memory")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all")
    parser.add_argument("--bundle", type=Path, default=packaged_bundle())
    parser.add_argument("--seconds", type=float, default=12, help="a part, about")
    for child in ("--form", "--graphs", "--most"):
        parser.add_argument(child, help=argparse.SUPPRESS)
    options = parser.parse_args()
    graphs = [graph for _, graph in open_bundle(options.bundle).graphs]
    if options.form:
        networks = four_networks() if options.graphs == "four" else graphs
        print(json.dumps(in_child(options.form, networks, options.seconds, int(options.most or 0))))
        return 0
    for part in options.parts:
        if part not in parts:
            parser.error(f"{part!r} is no part: {', '.join(parts)}")
    print(f"onnxruntime {ort.__version__}, {CORES} processors, numpy {np.__version__}")
    for part in options.parts or parts:
        if part == "threads":
            threads(graphs[0], options.seconds)
        elif part == "spinning":
            spinning(graphs[0], options.seconds)
        elif part == "batches":
            batches(options.bundle, options.seconds)
        elif part == "memory":
            memory(options.bundle)
        else:
            forms(part, options.bundle, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
