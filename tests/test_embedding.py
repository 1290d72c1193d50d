"""A classifier inside somebody else's program: threads, processes, and nothing of the program changed."""

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import child_environment
from support.heap import heap_bytes, needs_heap

from organ_infer import ImageFailure, InputError, OrganClassifier, OrganInferError
from organ_infer.engine.session import Session

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts in /proc")


# What is the program's.

STATE = """
import atexit, builtins, decimal, faulthandler, gc, io, locale, logging, os, random, resource, signal, socket, sys
import threading, time, warnings
import numpy as np
import PIL.Image, PIL.ImageFile, PIL.PngImagePlugin

def state():
    loggers = {
        name: (log.level, log.propagate, log.disabled, list(log.handlers), list(log.filters))
        for name, log in logging.Logger.manager.loggerDict.items()
        if isinstance(log, logging.Logger) and name.startswith(("organ_infer", "PIL", "onnxruntime"))
    }
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "warnings": (list(warnings.filters), warnings.showwarning, warnings.formatwarning),
        "loggers": {name: value for name, value in loggers.items() if value != (0, True, False, [], [])},
        "root logger": (logging.root.level, list(logging.root.handlers), logging.raiseExceptions, logging.lastResort,
                        logging.root.manager.disable, logging.getLoggerClass()),
        "locale": (locale.setlocale(locale.LC_ALL), time.tzname),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "floating point": (np.geterr(), np.geterrcall(), np.get_printoptions()),
        "random numbers": (repr(np.random.get_state()), random.getstate()),
        "pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, PIL.ImageFile.MAXBLOCK,
                   PIL.PngImagePlugin.MAX_TEXT_CHUNK, PIL.PngImagePlugin.MAX_TEXT_MEMORY, getattr(PIL.Image, "WARN_POSSIBLE_FORMATS", None)),
        "search path": (list(sys.path), list(sys.path_hooks), list(sys.meta_path)),
        "threads": [thread.name for thread in threading.enumerate()],
        "tasks": len(os.listdir("/proc/self/task")),
        "descriptors": {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                        if os.path.exists(f"/proc/self/fd/{name}")},
        "umask": umask,
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook, sys.gettrace(),
                  sys.getprofile(), builtins.open, builtins.print, builtins.__import__),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.stdout.line_buffering),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), sys.flags, sys.dont_write_bytecode,
                        sys.int_info, sys.get_int_max_str_digits(), faulthandler.is_enabled()),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), list(gc.callbacks)),
        "limits": [resource.getrlimit(limit) for limit in range(16)],
        "processor": (os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)),
        "sockets": socket.getdefaulttimeout(),
        "decimals": repr(decimal.getcontext()),
        "files": sorted(os.listdir(".")),
    }

def same(before, after, when):
    for name in before:
        assert before[name] == after[name], f"{when}: {name}: {before[name]} became {after[name]}"

def ours():
    "The handler and filters of a program that has its own ways."
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    warnings.simplefilter("error", DeprecationWarning)
    warnings.filterwarnings("ignore", "nothing in particular")
    logging.basicConfig(level=logging.DEBUG, handlers=[logging.StreamHandler(io.StringIO())])
    np.seterr(all="raise")
    np.random.seed(3)
    random.seed(4)
    os.umask(0o27)
    os.environ["OMP_NUM_THREADS"] = "1"
    PIL.Image.MAX_IMAGE_PIXELS = 12345
    socket.setdefaulttimeout(7)
    sys.setrecursionlimit(987)
"""


@linux
@pytest.mark.parametrize("program", ["", "ours()"], ids=["plain", "with its own ways"])
def test_nothing_of_the_program_is_changed(ensemble, pictures, tmp_path, program):
    """By importing, opening, predicting, failing and closing; float errors raise, deprecations raise, in the second."""
    (tmp_path / "bad.png").write_bytes((pictures / "s00.png").read_bytes()[:100])
    from PIL import Image

    Image.open(pictures / "s01.png").save(tmp_path / "other.bmp")
    Image.open(pictures / "s01.png").convert("RGBA").save(tmp_path / "color.png")
    code = f"""{STATE}
{program}
before = state()
import organ_infer
dir(organ_infer), [getattr(organ_infer, name) for name in organ_infer.__all__]
same(before, state(), "import")
paths = [{str(pictures)!r} + f"/s{{i:02}}.png" for i in range(40)] + ["bad.png", "other.bmp", "color.png", "none"]
with organ_infer.OrganClassifier({str(ensemble)!r}, device="cpu", threads=2, batch_size=8, orientation="PL") as c:
    found = list(c.predict_paths(paths))
    assert [type(p).__name__ for p in found] == ["Prediction"] * 40 + ["ImageFailure", "Prediction", "Prediction", "ImageFailure"]
    c.predict(np.zeros((3, 40, 50), np.int16))
    for wrong in (np.zeros(3), "x", []):
        try:
            c.predict(wrong)
        except organ_infer.InputError:
            pass
    inside = state()
    for name in ("threads", "tasks", "descriptors"):
        inside[name] = before[name]
    same(before, inside, "open")
try:
    organ_infer.OrganClassifier("none")
except organ_infer.BundleError:
    pass
for _ in range(100):
    if len(os.listdir("/proc/self/task")) == before["tasks"]:
        break
    time.sleep(0.02)  # the workers of a closed ensemble end by themselves
same(before, state(), "closed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=child_environment(),
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Threads.


def in_threads(count, work):
    """What `work(i)` returned or raised in each of `count` threads, all started before any goes on."""
    gate, found = threading.Barrier(count), [None] * count

    def run(i):
        gate.wait(20)
        try:
            found[i] = work(i)
        except Exception as e:
            found[i] = e

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_from_its_first_use_on_give_the_serial_results(
    ensemble, slices, pictures, threads
):
    """Arrays, Pillow images and paths at once, of differing counts; each kind's answers bit for bit."""
    from PIL import Image

    paths = sorted(pictures.iterdir())
    uses = [
        lambda c: c.predict_proba(slices).tolist(),
        lambda c: c.predict_proba(slices[:7]).tolist(),
        lambda c: c.predict([Image.fromarray(piece) for piece in slices[:9]]),
        lambda c: list(c.predict_paths(paths)),
        lambda c: list(c.predict_paths(iter(paths[:11]))),
        lambda c: c.predict(slices[3].astype(np.uint16) * 257),
    ]
    with OrganClassifier(ensemble, device="cpu", threads=threads, batch_size=8) as serial:
        expected = [use(serial) for use in uses]
    with OrganClassifier(ensemble, device="cpu", threads=threads, batch_size=8) as shared:
        found = in_threads(
            8, lambda i: [uses[(i + k) % len(uses)](shared) for k in range(len(uses))]
        )
    for i, answers in enumerate(found):
        assert answers == [expected[(i + k) % len(uses)] for k in range(len(uses))]


def test_what_fails_in_one_thread_fails_there_alone(
    ensemble, slices, pictures, tmp_path, monkeypatch
):
    """Wrong input, bad files, and onnxruntime itself failing: the others get what they would have got."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = sorted(pictures.iterdir())[:4]
    poison = np.full((28, 28), 13, np.uint8)
    real = Session.run

    def run(self, images):
        if len(images) == 1 and np.ptp(images) == 0:
            raise OrganInferError("poisoned")
        return real(self, images)

    monkeypatch.setattr(Session, "run", run)

    def work(i):
        found = []
        for _ in range(10):
            if i % 4 == 0:
                with pytest.raises(InputError):
                    shared.predict(np.zeros((28, 28)))
            elif i % 4 == 1:
                results = list(shared.predict_paths([tmp_path / "bad.png", *good, tmp_path]))
                assert [isinstance(p, ImageFailure) for p in results] == [True, *[False] * 4, True]
                found.append([p.probabilities for p in results[1:5]])
            elif i % 4 == 2:
                with pytest.raises(OrganInferError, match="poisoned"):
                    shared.predict(poison)
            else:
                found.append([tuple(row) for row in shared.predict_proba(slices[:4]).tolist()])
        return found

    with OrganClassifier(ensemble, device="cpu", threads=2) as shared:
        expected = [tuple(row) for row in shared.predict_proba(slices[:4]).tolist()]
        found = in_threads(8, work)
        assert shared.predict_proba(slices[:4]).tolist() == [list(row) for row in expected]
    assert found == [[], [expected] * 10, [], [expected] * 10] * 2


def test_closing_in_one_thread_is_a_clear_error_in_the_others(bundle, slices):
    opened = OrganClassifier(bundle, device="cpu")
    expected = opened.predict_proba(slices).tolist()
    begun = threading.Event()

    def work(i):
        if i == 0:
            begun.wait(20)
            opened.close()
            return "closed"
        try:
            while True:
                assert opened.predict_proba(slices).tolist() == expected
                begun.set()
        except OrganInferError as e:
            return str(e)

    assert in_threads(4, work) == [
        "closed",
        *["this classifier is closed; open another OrganClassifier"] * 3,
    ]
    with pytest.raises(OrganInferError, match="is closed"), opened:
        opened.predict(slices[0])


def test_the_context_manager_closes_whatever_happens_and_hides_no_error(bundle, slices):
    with pytest.raises(ZeroDivisionError), OrganClassifier(bundle, device="cpu") as opened:
        opened.predict(slices[0])
        1 / 0  # noqa: B018
    assert "closed" in repr(opened)


# Processes.

opened_before_the_fork = None


def ask(rows):
    """In a worker: with its own classifier, made by `make`."""
    return own.predict_proba(np.array(rows, np.uint8)).tolist()


def ask_the_parents(rows):
    try:
        opened_before_the_fork.predict_proba(np.array(rows, np.uint8))
    except OrganInferError as e:
        return str(e)
    return None


def make(given):
    global own
    own = pickle.loads(given)


@pytest.mark.filterwarnings(
    "ignore:This process:DeprecationWarning"
)  # of forking beside threads, from 3.12 on
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_opens_its_own_and_answers_alike(ensemble, slices, method, monkeypatch):
    """Pickled to each worker. A forked one that takes the parent's instead is told."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    global opened_before_the_fork
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])
    with OrganClassifier(ensemble, device="cpu", threads=2) as opened_before_the_fork:
        expected = opened_before_the_fork.predict_proba(slices[:8])
        given = pickle.dumps(opened_before_the_fork)
        with multiprocessing.get_context(method).Pool(2, make, (given,)) as pool:
            found = pool.map_async(
                ask, [piece.tolist() for piece in np.array_split(slices[:8], 4)]
            ).get(60)
            told = (
                pool.apply_async(ask_the_parents, (slices[:1].tolist(),)).get(60)
                if method == "fork"
                else None
            )
        assert np.concatenate(found).tolist() == expected.tolist()
        assert told is None if method == "spawn" else "open an OrganClassifier in the child" in told
        assert (opened_before_the_fork.predict_proba(slices[:8]) == expected).all()
    opened_before_the_fork = None


def test_what_is_pickled_keeps_its_options_and_its_kind(bundle, slices):
    with OrganClassifier(
        bundle, device="cpu", threads=1, batch_size=3, orientation="PL", tta=True
    ) as opened:
        data = pickle.dumps(opened)
        expected = opened.predict_proba(slices[:5])
        assert len(data) < 1000  # where it is, not what is in it
    with pickle.loads(data) as again:  # and a closed one opens too
        assert (again.predict_proba(slices[:5]) == expected).all() and again._batch_size == 3
    with Mine(bundle, device="cpu") as mine, pickle.loads(pickle.dumps(mine)) as again:
        assert type(again) is Mine


class Mine(OrganClassifier):
    """Somebody's own."""


def test_a_bundle_that_has_gone_is_told_when_unpickling(bundle_copy):
    from organ_infer import BundleError

    with OrganClassifier(bundle_copy, device="cpu") as opened:
        data = pickle.dumps(opened)
    (bundle_copy / "small.onnx").unlink()
    with pytest.raises(BundleError, match=r"'small\.onnx' is listed in manifest\.json but missing"):
        pickle.loads(data)


# Many of them.


def held():
    """Threads and descriptors of this process."""
    gc.collect()
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def settled(expected=None):
    """What is held once the workers of closed classifiers have ended, which they do by themselves: `expected`, or what
    does not change any more."""
    until = time.monotonic() + 60
    before, same = held(), 0
    while (same < 10 if expected is None else before != expected) and time.monotonic() < until:
        time.sleep(0.02)
        now = held()
        before, same = now, same + 1 if now == before else 0
    return before


@linux
@needs_heap
@pytest.mark.parametrize(
    "end", ["closed", *(pytest.param(end, marks=pytest.mark.slow) for end in ("dropped", "failed"))]
)
def test_many_leave_threads_descriptors_and_memory_flat(
    ensemble, slices, pictures, bundle_copy, end
):
    """30 of them leave less than one holds. tests/endurance/many_classifiers.py opens thousands."""
    (bundle_copy / "small.onnx").write_bytes(b"\0" * (bundle_copy / "small.onnx").stat().st_size)

    def used():
        opened = OrganClassifier(ensemble, device="cpu", threads=2, batch_size=16)
        opened.predict(slices[:20])
        next(opened.predict_paths(sorted(pictures.iterdir())))  # abandoned with a batch being read
        return opened

    def once():
        if end == "failed":
            with pytest.raises(OrganInferError):
                OrganClassifier(bundle_copy, device="cpu", threads=2)
            return
        opened = used()
        if end == "closed":
            opened.close()

    for _ in range(10):
        once()
    before, bytes_before = settled(), heap_bytes()
    for _ in range(30):
        once()
    assert settled(before) == before
    left = heap_bytes() - bytes_before
    with used():
        one = heap_bytes() - bytes_before - left
    assert one > 100_000  # three networks are seen
    assert left < one / 2
