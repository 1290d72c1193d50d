"""Limits on threads: fewer are used, with one warning, and nothing waits forever."""

import _thread
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import DEFAULT, child_environment, make_graph, needs_default, write_bundle

from organ_infer import DeviceError, OrganClassifier
from organ_infer.engine import cuda_thread, ensemble, ort, threads
from organ_infer.engine.ensemble import CacheLookup, open_ensemble
from organ_infer.engine.threads import (
    affordable_threads,
    limit_libraries,
    map_in_threads,
    startable_threads,
)

REFUSAL = RuntimeError("can't start new thread")
START = _thread.start_new_thread
LINUX = sys.platform == "linux"


@pytest.fixture
def limit(monkeypatch):
    """Let a number of threads start. The next ones raise an error."""

    def set_limit(most, error=REFUSAL):
        started = []

        def start(*arguments):
            if len(started) >= most:
                raise error
            started.append(arguments)
            return START(*arguments)

        monkeypatch.setattr(_thread, "start_new_thread", start)
        return started

    return set_limit


@pytest.fixture
def no_threads(monkeypatch):
    """Let no `threading.Thread` start."""

    def set_error(error):
        def start(self):
            raise error

        monkeypatch.setattr(threading.Thread, "start", start)

    return set_error


def test_every_thread_is_started_before_one_ends_and_none_remains(limit, monkeypatch):
    started = limit(5)
    alive = []
    wait = threads._wait_for_end
    monkeypatch.setattr(
        threads, "_wait_for_end", lambda numbers: alive.append(len(set(numbers))) or wait(numbers)
    )
    before = set(os.listdir("/proc/self/task")) if LINUX else set()
    assert startable_threads(5) == 5
    # five numbers of the system that all differ: the five were there at the same time
    assert alive == [5] and len(started) == 5
    assert not LINUX or set(os.listdir("/proc/self/task")) <= before


@pytest.mark.parametrize("error", [REFUSAL, MemoryError()], ids=["limit", "memory"])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_threads_are_counted_up_to_the_limit(limit, most, error):
    limit(most, error)
    assert startable_threads(7) == most


def test_nothing_is_started_for_one_thread(limit):
    started = limit(0)
    assert affordable_threads(1) == 1
    assert started == []


@pytest.mark.parametrize(("most", "expected"), [(0, 1), (1, 2), (6, 7)])
def test_fewer_threads_are_used_under_a_limit_and_one_warning_says_so(
    limit, most, expected, caplog
):
    limit(most)
    assert affordable_threads(8) == expected
    assert affordable_threads(8) == 1
    (warning, *further) = caplog.messages
    assert warning.startswith(
        f"threads: a limit on processes or memory allows {expected} instead of 8; raise it"
    )
    # the second time none is left at all
    assert [line.split(";")[0] for line in further] == (
        [] if expected == 1 else ["threads: a limit on processes or memory allows 1 instead of 8"]
    )


def test_all_threads_are_used_if_all_can_be_started(limit, caplog):
    limit(7)
    assert affordable_threads(8) == 8
    assert caplog.messages == []


@pytest.mark.skipif(not LINUX, reason="limits as on Linux")
@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_limit_of_memory_counts_a_stack_and_an_arena_per_thread(monkeypatch, kind, memory):
    stack, processors = 8 << 20, 2
    pages = [int(n) for n in Path("/proc/self/statm").read_text().split()]
    used = pages[0 if kind == resource.RLIMIT_AS else 5] * resource.getpagesize()
    monkeypatch.setattr(os, "cpu_count", lambda: processors)

    def possible(free):
        limits = {kind: used + memory + free, resource.RLIMIT_STACK: stack}
        none = (resource.RLIM_INFINITY,) * 2
        monkeypatch.setattr(
            resource, "getrlimit", lambda k: (limits[k], -1) if k in limits else none
        )
        return threads._threads_in_memory(100, memory)

    reserve, thread, spare = 64 << 20, stack + (128 << 20), 32 << 20
    assert possible(0) == possible(reserve + thread - spare) == 0
    assert possible(reserve + thread + spare) == 1
    assert possible(reserve + 5 * thread + spare) == 5
    # at most eight arenas per processor
    arenas = 16 * (128 << 20)
    assert possible(reserve + 20 * stack + arenas + (4 << 20)) == 20
    assert possible(1 << 40) == 100


@pytest.mark.skipif(not LINUX, reason="limits as on Linux")
def test_without_a_limit_of_memory_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert threads._threads_in_memory(1000, 1 << 50) == 1000


# Networks.


@pytest.mark.parametrize(
    ("networks", "requested", "most", "share", "pieces"),
    [
        (1, 8, 3, 4, 4),
        (1, 8, 0, 1, 1),
        (3, 6, 5, 2, 6),
        (3, 6, 4, 1, 5),
        (3, 6, 2, 1, 3),
        (3, 6, 0, 1, 1),
    ],
)
@pytest.mark.parametrize("small", [False, True])
def test_networks_share_the_threads_that_can_be_started(
    networks, requested, most, share, pieces, small, limit, tmp_path, monkeypatch
):
    """One thread less than runs at once, and onnxruntime's own. Small networks run pieces of a batch at once."""
    asked = []
    real = ensemble.Session

    def recorded(*arguments, threads, **keywords):
        asked.append(threads)
        return real(*arguments, threads=1, **keywords)

    monkeypatch.setattr(ensemble, "Session", recorded)
    if not small:
        monkeypatch.setattr(ensemble, "SMALL", 0)
    graphs = {f"{name}.onnx": make_graph() for name in "abc"[:networks]}
    limit(most)
    opened = open_ensemble(write_bundle(tmp_path / "b", graphs), device="cpu", threads=requested)
    assert asked == [1 if small else share] * networks
    assert not small or opened._parallel == pieces
    opened.close()


def test_an_ensemble_gives_the_same_answer_when_its_threads_cannot_start(
    tmp_path, no_threads, caplog
):
    folder = write_bundle(
        tmp_path / "b", {f"{name}.onnx": make_graph(seed=i) for i, name in enumerate("abc")}
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    with OrganClassifier(folder, device="cpu", threads=1) as alone:
        expected = alone.predict_proba(images)
    with OrganClassifier(folder, device="cpu", threads=3) as classifier:
        no_threads(REFUSAL)
        np.testing.assert_array_equal(classifier.predict_proba(images), expected)
        np.testing.assert_array_equal(classifier.predict_proba(images), expected)
    (warning,) = caplog.messages
    assert warning.startswith(
        "running in one thread: no other can be started (can't start new thread); raise"
    )


AFTER_MAIN = """
import sys, threading
import numpy as np
from organ_infer import OrganClassifier

classifier = OrganClassifier(sys.argv[1], device="cpu", threads=2)
images = np.zeros((64, 28, 28), np.uint8)
expected = classifier.predict_proba(images)

def after_main():
    # The executor's threads end first.
    threading.main_thread().join()
    for thread in list(classifier._ensemble._workers._threads):
        thread.join()
    print(np.array_equal(classifier.predict_proba(images), expected))

threading.Thread(target=after_main).start()
"""


def test_a_thread_that_outlives_the_program_gets_answers_without_a_warning(bundle):
    """concurrent.futures ends its threads when the main thread ends. No limit is the cause."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_MAIN, bundle],
        capture_output=True,
        text=True,
        timeout=60,
        env=child_environment(),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


@needs_default
@pytest.mark.parametrize("error", [REFUSAL, MemoryError()])
def test_paths_are_read_without_the_reading_thread(examples, no_threads, error):
    with OrganClassifier(device="cpu", threads=1, batch_size=2) as classifier:
        expected = [result.label for result in classifier.predict_paths(examples[:5])]
        no_threads(error)
        assert [result.label for result in classifier.predict_paths(examples[:5])] == expected


@pytest.fixture
def examples():
    return sorted((DEFAULT.parents[3] / "examples").glob("*.png"))


@pytest.mark.parametrize("error", [REFUSAL, MemoryError()])
def test_the_cuda_thread_that_cannot_start_is_one_line(monkeypatch, no_threads, error):
    monkeypatch.setattr(cuda_thread, "_worker", None)
    no_threads(error)
    with pytest.raises(
        DeviceError,
        match=r"^device cuda: the thread for CUDA cannot be started \(.+\); raise .* --device cpu$",
    ):
        cuda_thread.call(lambda: 7)


# The cache of graphs.


@pytest.mark.parametrize("error", [REFUSAL, MemoryError()])
def test_work_that_was_meant_for_threads_is_done_without_them(no_threads, error):
    no_threads(error)
    assert map_in_threads(lambda n: n * n, range(5), 3) == [0, 1, 4, 9, 16]


def test_work_is_done_in_threads_and_its_errors_are_raised():
    def fail(n):
        raise RuntimeError(f"item {n}")

    idents = map_in_threads(lambda n: threading.get_ident(), range(3), 2)
    assert len(idents) == 3 and threading.get_ident() not in idents
    with pytest.raises(RuntimeError, match="item 0"):
        map_in_threads(fail, range(3), 2)


def test_cached_graphs_are_looked_up_without_a_thread(monkeypatch, no_threads, tmp_path):
    manifest = types.SimpleNamespace(
        variants=lambda device: [types.SimpleNamespace(bytes=ensemble.CACHE_THRESHOLD)]
    )
    bundle = types.SimpleNamespace(
        manifest=manifest, directory=tmp_path, sha256="0", only=None, files=lambda: []
    )
    monkeypatch.setattr(ensemble, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(ensemble, "installed_version", {"onnxruntime": "1.2"}.get)
    no_threads(REFUSAL)
    with CacheLookup(bundle, "cpu") as lookup:
        cache, graphs = lookup.result("1.2")
    assert cache is not None and graphs is None


# Libraries that do not fit.


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("x.so: failed to map segment from shared object", r"raise the limit of memory"),
        ("x.so: cannot allocate memory in static TLS block", r"raise the limit of memory"),
        ("x.so: undefined symbol: y", r"pip uninstall"),
    ],
)
def test_an_onnxruntime_that_does_not_fit_into_memory_is_not_called_damaged(
    monkeypatch, text, advice
):
    def refuse(name):
        raise ImportError(text)

    monkeypatch.setattr(ort.importlib, "import_module", refuse)
    with pytest.raises(DeviceError, match=rf"^onnxruntime cannot be loaded \({text}\); {advice}"):
        ort.import_onnxruntime()


@pytest.mark.skipif(not LINUX, reason="threads as Linux lists them")
@pytest.mark.parametrize("own", [None, "2"])
def test_the_command_loads_numpy_without_threads_of_openblas(own):
    """OpenBLAS interrupts the process if it cannot start them. The variable is then as it was."""
    code = (
        "import os; from organ_infer.cli.command import _import_numpy; _import_numpy(); import sys;"
        "assert 'numpy' in sys.modules;"
        "print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    environment = child_environment()
    environment.pop("OPENBLAS_NUM_THREADS", None)
    if own:
        environment["OPENBLAS_NUM_THREADS"] = own
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout == f"1 {own}\n", done.stderr


# Commands that use PyTorch.


@pytest.mark.parametrize(
    ("most", "blas", "openmp"), [(28, None, None), (27, "1", "8"), (4, "1", "3"), (0, "1", "1")]
)
def test_libraries_get_fewer_threads_before_they_are_loaded(limit, most, blas, openmp, monkeypatch):
    """Four pools of seven threads beside the calling one: two of OpenBLAS, OpenMP, and onnxruntime."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    started = limit(most)
    # each trial begins anew, as its threads have ended
    trial = threads.startable_threads
    monkeypatch.setattr(threads, "startable_threads", lambda count: started.clear() or trial(count))
    limit_libraries(8)
    assert os.environ.get("OPENBLAS_NUM_THREADS") == blas
    assert os.environ.get("OMP_NUM_THREADS") == openmp


def test_variables_of_the_user_stay(limit, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    limit(0)
    limit_libraries(8)
    assert (os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]) == ("3", "5")


@pytest.mark.parametrize(("allowed", "expected"), [(8, None), (3, 3), (1, 1)])
def test_pytorch_uses_only_threads_that_can_be_started(monkeypatch, allowed, expected):
    from train import parallel

    chosen = []
    monkeypatch.setattr(parallel.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(parallel.torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(parallel, "affordable_threads", lambda threads: min(threads, allowed))
    parallel.limit_threads()
    assert chosen == ([] if expected is None else [expected])


def test_sessions_of_the_export_use_only_threads_that_can_be_started(limit, monkeypatch, caplog):
    """Those of onnxruntime's quantization, too, which creates them itself."""
    import onnxruntime

    from export import member, quantize
    from organ_infer.engine import cpu_count

    created = []
    real = onnxruntime.SessionOptions

    class Recorded(real):
        def __init__(self):
            super().__init__()
            created.append(self)

    monkeypatch.setattr(cpu_count, "usable_processors", lambda: 6)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Recorded)
    monkeypatch.setattr(member, "_allowed", None)
    limit(1)
    member.open_session(make_graph())
    assert created[-1].intra_op_num_threads == 2
    with quantize._limited_threads(0):
        assert onnxruntime.SessionOptions().intra_op_num_threads == 1
    assert onnxruntime.SessionOptions is Recorded
    assert [line.split(";")[0] for line in caplog.messages] == [
        "threads: a limit on processes or memory allows 2 instead of 6",
        "threads: a limit on processes or memory allows 1 instead of 2",
    ]


# Real limits.

DROPPED = """
import os, resource, sys
from organ_infer import OrganClassifier
bundle = sys.argv[1]
files = sys.argv[2:]
# everything is imported while the interpreter's own files can be read
with OrganClassifier(bundle, device="cpu", threads=1) as classifier:
    list(classifier.predict_paths(files))
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (4, 4))
with OrganClassifier(bundle, device="cpu", threads=8) as classifier:
    print([result.label for result in classifier.predict_paths(files)])
"""


@needs_default
@pytest.mark.skipif(
    not LINUX or os.getuid() != 0, reason="a limit on processes needs another user, so root"
)
def test_a_limit_on_processes_leaves_fewer_threads_and_no_hang(examples):
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        shutil.copytree(DEFAULT.parent, folder / "bundle")
        files = [shutil.copy(path, folder) for path in examples[:3]]
        done = subprocess.run(
            [sys.executable, "-c", DROPPED, folder / "bundle", *files],
            capture_output=True,
            text=True,
            timeout=60,
            env=child_environment() | {"OPENBLAS_NUM_THREADS": "1"},
        )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == str([path.stem.rsplit("-", 1)[0] for path in examples[:3]]) + "\n"
    assert "threads: a limit on processes or memory allows 4 instead of 8; " in done.stderr


@needs_default
@pytest.mark.skipif(not LINUX, reason="limits as on Linux")
@pytest.mark.parametrize("mebibytes", [110, 220, 260, 400, 500, 1000])
def test_a_limit_of_memory_leaves_fewer_threads_or_one_line(examples, mebibytes):
    """Each of them once made onnxruntime wait forever, or end the process."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource, sys; from organ_infer.cli import main;"
            f"resource.setrlimit(resource.RLIMIT_AS, ({mebibytes} << 20,) * 2); sys.exit(main())",
            *("--threads", "40", examples[0]),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=child_environment(),
    )
    lines = [line for line in done.stderr.splitlines() if "packaged model" not in line]
    assert len(lines) == 1, done.stderr
    if mebibytes == 110:
        assert done.returncode == 2 and "ulimit -v" in lines[0]
    else:
        assert done.returncode == 0 and "threads: a limit on processes or memory" in lines[0]


@pytest.fixture(autouse=True)
def _warnings(caplog, monkeypatch):
    monkeypatch.setattr(threads, "_reported", sys.maxsize)
    caplog.set_level(logging.WARNING, logger="organ_infer")
