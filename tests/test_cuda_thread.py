"""The one thread that does all CUDA work: shared, interrupted, forked, failing, ended. No GPU is needed."""

import gc
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import CLASSES, child_environment, make_graph, write_bundle
from support import fake_onnxruntime

from organ_infer import DeviceError, OrganClassifier, OrganInferError
from organ_infer.engine import cuda_thread
from organ_infer.engine.session import Session

IMAGES = np.random.default_rng(0).normal(size=(8, 1, 28, 28)).astype(np.float32)
SLICES = np.zeros((3, 28, 28), np.uint8)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_alarm = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")


def opened(where="g.onnx"):
    return Session(
        make_graph(), output="logits", classes=len(CLASSES), where=where, device="cuda", threads=1
    )


@pytest.fixture
def three_members(tmp_path):
    graphs = {f"{name}.onnx": make_graph(seed=seed) for seed, name in enumerate("abc")}
    return write_bundle(tmp_path / "three", graphs)


@pytest.fixture
def interrupted(monkeypatch):
    """Calls a function whose wait for the CUDA thread is interrupted by KeyboardInterrupt: by a signal a moment after
    the wait has begun, and after `begun` is set, so that no speed of the machine matters."""
    waited, alarms = cuda_thread.Future.result, []

    def interrupt(*_):
        raise KeyboardInterrupt

    def result(self, timeout=None):
        if alarms:
            assert alarms.pop().wait(30)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        return waited(self, timeout)

    before = signal.signal(signal.SIGALRM, interrupt)
    monkeypatch.setattr(cuda_thread.Future, "result", result)

    def run(function, begun):
        alarms.append(begun)
        with pytest.raises(KeyboardInterrupt):
            function()
        assert not alarms

    yield run
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Blocked:
    """A task that holds the CUDA thread until `release`."""

    def __init__(self):
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.goes_on.wait(30)

    def start(self):
        self.caller = threading.Thread(target=cuda_thread.call, args=(self,))
        self.caller.start()
        assert self.begun.wait(30)

    def release(self):
        self.goes_on.set()
        self.caller.join()


def in_child(code):
    """Run a program against the fake onnxruntime, `ort`, and return the finished process."""
    head = """
import atexit, gc, os, sys, threading, time
from support import fake_onnxruntime
ort = fake_onnxruntime.fake()
sys.modules["onnxruntime"] = ort
import numpy as np
from conftest import make_graph
from organ_infer import OrganInferError
from organ_infer.engine import cuda_thread
from organ_infer.engine.session import Session
IMAGES = np.zeros((3, 1, 28, 28), np.float32)

def opened():
    return Session(make_graph(), output="logits", classes=11, where="g", device="cuda", threads=1)
"""
    environment = child_environment()
    environment["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )


# Tasks.


def test_every_task_runs_on_the_same_thread():
    threads = {cuda_thread.call(threading.current_thread) for _ in range(3)}
    callers = [
        threading.Thread(target=lambda: threads.add(cuda_thread.call(threading.current_thread)))
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    (thread,) = threads
    assert (
        thread.name == "organ_infer_cuda"
        and thread.daemon
        and thread is not threading.current_thread()
    )


def test_a_task_may_call_from_the_thread_itself():
    assert cuda_thread.call(lambda: cuda_thread.call(lambda: cuda_thread.call(lambda: 7))) == 7


@pytest.mark.parametrize(
    "error", [ValueError("text"), MemoryError(), SystemExit(3), KeyboardInterrupt()]
)
def test_what_a_task_raises_is_raised_in_the_caller_and_the_thread_goes_on(error):
    def task():
        raise error

    with pytest.raises(type(error)) as caught:
        cuda_thread.call(task)
    assert caught.value is error
    assert cuda_thread.call(lambda: 7) == 7


def test_a_thread_that_cannot_start_is_an_error_of_ours(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(cuda_thread, "_worker", None)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(
        DeviceError, match=r"the thread for CUDA cannot be started \(can't start new thread\)"
    ):
        cuda_thread.call(lambda: 7)


# Classifiers.


def test_a_thread_per_request_records_each_graph_once(install_fake):
    ort = install_fake()
    session = opened()
    errors = []

    def request():
        try:
            np.testing.assert_array_equal(
                session.run(IMAGES[:4]), fake_onnxruntime.means(IMAGES[:4])
            )
        except BaseException as e:
            errors.append(e)

    for _ in range(20):
        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
    assert not errors and ort.runs.count("capture") == 1 and ort.runs[2:] == ["replay"] * 20
    assert len(ort.threads) == 1


def test_several_classifiers_share_the_thread(install_fake, bundle):
    ort = install_fake()
    before = threading.active_count()
    classifiers = [OrganClassifier(bundle, device="cuda") for _ in range(3)]
    for classifier in classifiers:
        classifier.predict(SLICES)
        assert threading.active_count() <= before + 1
        classifier.close()
    assert ort.openings == 3


def test_a_call_of_an_ensemble_is_one_task(install_fake, three_members, monkeypatch):
    ort = install_fake()
    with OrganClassifier(three_members, device="cuda") as classifier:
        submitted = []
        submit = cuda_thread._Worker.submit
        monkeypatch.setattr(
            cuda_thread._Worker,
            "submit",
            lambda self, task: submitted.append(task) or submit(self, task),
        )
        classifier.predict_proba(SLICES)
    assert ort.openings == 3 and len(submitted) == 1 + 3  # the call, and the release of each member


def test_the_cpu_starts_no_thread_and_imports_none_of_it(bundle):
    code = f"""
import sys
sys.modules.pop("onnxruntime")
from organ_infer import OrganClassifier
for name in [name for name in sys.modules if name.startswith(("organ_infer.engine.cuda_thread", "concurrent"))]:
    del sys.modules[name]
with OrganClassifier({str(bundle)!r}, device="cpu") as classifier:
    classifier.predict(np.zeros((3, 28, 28), np.uint8))
assert not [name for name in sys.modules if name.startswith(("organ_infer.engine.cuda_thread", "concurrent"))]
assert threading.active_count() == 1
"""
    done = in_child(code)
    assert done.returncode == 0, done.stderr


# Freed, and where.


def test_a_classifier_that_is_dropped_is_freed_on_the_thread(install_fake, bundle):
    ort = install_fake(pinned=True)
    classifier = OrganClassifier(bundle, device="cuda")
    classifier.predict(SLICES)
    del classifier
    gc.collect()
    cuda_thread.call(lambda: None)
    assert len(ort.values) == 3 and all(kept.value() is None for kept in ort.values)
    assert "release after open" in ort.calls and ort.strays == []


def test_what_a_failed_task_had_allocated_is_freed_on_the_thread(install_fake, monkeypatch):
    """The second buffer finds no memory: the first is a local variable in the traceback."""
    ort = install_fake()
    allocate = ort.OrtValue.ortvalue_from_shape_and_type.__func__

    def refuse(cls, shape, *rest, **how):
        if len(ort.values) == 1:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=x")
        return allocate(cls, shape, *rest, **how)

    session = opened()
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", classmethod(refuse))
    with pytest.raises(
        DeviceError, match=r"CUDA failure 2: out of memory\): the GPU is out of memory"
    ) as e:
        session.run(IMAGES)
    assert ort.values[0].value() is None and e.value.__cause__ is not None
    assert "release after allocation (cuda)" in ort.calls and ort.strays == []


def test_members_that_were_opened_before_one_failed_are_freed_at_once(install_fake, three_members):
    """A GPU that is too small for all of them."""
    ort = install_fake(
        fails=lambda number, openings: "CUDA failure 2: out of memory" if openings >= 3 else None
    )
    with pytest.raises(DeviceError, match="out of memory") as caught:
        OrganClassifier(three_members, device="cuda")
    assert caught.value.__traceback__ is not None  # nothing is freed because the error is forgotten
    assert ort.calls.count("open") == 4 and ort.calls.count("release after open") == 4


def test_the_session_that_refused_graphs_is_freed_before_the_next_is_opened(install_fake):
    ort = install_fake(refuses="capture")
    session = opened()
    session.run(IMAGES[:4])
    opens = [call for call in ort.calls if "open" in call]
    assert opens == ["open", "release after open", "open"]


def test_a_session_that_cannot_be_opened_again_is_tried_again(install_fake):
    """It refused graphs, and the GPU had no memory to open it without."""
    full = [True]
    ort = install_fake(
        refuses="capture",
        fails=lambda number, openings: (
            "CUDA failure 2: out of memory" if openings > 1 and full[0] else None
        ),
    )
    session = opened()
    for _ in range(2):
        with pytest.raises(
            DeviceError, match=r"device cuda: CUDA failed \(CUDA failure 2: out of memory\):"
        ):
            session.run(IMAGES[:4])
    full[0] = False
    np.testing.assert_array_equal(session.run(IMAGES[:4]), fake_onnxruntime.means(IMAGES[:4]))
    assert ort.runs == ["plain", "capture", "plain"]


def test_a_closed_session_stays_closed(install_fake):
    ort = install_fake()
    session = opened()
    bound = session._run
    session.close()
    with pytest.raises(OrganInferError, match="closed"):
        bound.run(["logits"], {"images": IMAGES})  # as a thread that had begun before
    assert ort.openings == 1


# Interrupted.


@needs_alarm
def test_a_task_that_has_not_begun_when_its_caller_is_interrupted_never_runs(interrupted):
    ran, blocked = [], Blocked()
    blocked.start()
    interrupted(lambda: cuda_thread.call(lambda: ran.append(1)), blocked.begun)
    blocked.release()
    assert cuda_thread.call(lambda: 7) == 7 and ran == []


@needs_alarm
def test_an_interrupted_prediction_leaves_the_classifier_usable(install_fake, bundle, interrupted):
    begun, goes_on = threading.Event(), threading.Event()
    slow = [True]

    def answer(count):
        begun.set()
        assert not slow[0] or goes_on.wait(30)
        return np.ones((count, 11), np.float32)

    ort = install_fake(answer=answer)
    with OrganClassifier(bundle, device="cuda") as classifier:
        interrupted(lambda: classifier.predict_proba(SLICES), begun)
        slow[0] = False
        goes_on.set()
        assert classifier.predict_proba(SLICES).shape == (3, 11)
        assert ort.running == 0 and classifier._ensemble._running == 0
    assert all(kept.value() is None for kept in ort.values)


@needs_alarm
def test_a_network_whose_opening_was_interrupted_is_freed(install_fake, interrupted):
    begun, goes_on = threading.Event(), threading.Event()

    def fails(number, openings):
        begun.set()
        return None if goes_on.wait(30) else "not waited"

    ort = install_fake(fails=fails)
    interrupted(opened, begun)
    goes_on.set()
    sys.last_value = sys.last_traceback = None
    gc.collect()
    cuda_thread.call(lambda: None)
    assert ort.calls.count("open") == ort.calls.count("release after open") == 1


# Forked, and ended.


@needs_fork
@pytest.mark.parametrize("end", ["sys.exit(5)", "os._exit(5)"])
def test_a_forked_child_is_told_opens_its_own_and_ends(end):
    done = in_child(f"""
session = opened()
session.run(IMAGES)
child = os.fork()
if not child:
    try:
        session.run(IMAGES)
    except OrganInferError as e:
        assert "does not work in its fork" in str(e)
    else:
        os._exit(6)
    session.close()
    del session
    gc.collect()
    if any(kept.value() is None for kept in ort.values):
        os._exit(7)  # the parent's memory
    own = opened()
    own.run(IMAGES)
    {end}
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
session.run(IMAGES)
assert ort.strays == [], ort.strays
""")
    assert (done.returncode, done.stderr) == (0, "")


@needs_fork
def test_what_was_queued_at_a_fork_is_not_destroyed_in_the_child():
    """A release waits behind a run: the session's threads are not there in the child."""
    done = in_child("""
session = opened()
session.run(IMAGES)
begun, goes_on = threading.Event(), threading.Event()
busy = threading.Thread(target=cuda_thread.call, args=(lambda: (begun.set(), goes_on.wait()),))
busy.start()
begun.wait()
del session
child = os.fork()
if not child:
    gc.collect()
    opened().run(IMAGES)
    os._exit(5 if all(kept.value() is not None for kept in ort.values[:2]) else 6)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
goes_on.set()
busy.join()
cuda_thread.call(lambda: None)
assert all(kept.value() is None for kept in ort.values)
""")
    assert (done.returncode, done.stderr) == (0, "")


@needs_fork
def test_a_child_destroys_nothing_of_its_parents():
    """Also of a network that no Session watches over."""
    done = in_child("""
from organ_infer.engine.cuda import BoundSession
def made(capture):
    provider = ("CUDAExecutionProvider", {"device_id": "0"})
    return ort.InferenceSession(make_graph(), ort.SessionOptions(), [provider], 0)
bound = BoundSession(ort, made, outputs={"logits": 11}, capture=False)
bound.run(["logits"], {"images": IMAGES})
child = os.fork()
if not child:
    del bound
    gc.collect()
    sys.exit(5 if all(kept.value() is not None for kept in ort.values) else 6)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_of_the_interpreter_frees_everything_on_the_thread():
    done = in_child("""
@atexit.register  # before the thread's own, so that it runs after it
def last():
    print(ort.calls.count("release after open"), [kept.value() for kept in ort.values], ort.strays)
session, other = opened(), opened()
session.run(IMAGES)
""")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "2 [None, None] []\n")


def test_a_handler_at_the_end_of_the_interpreter_can_still_predict():
    done = in_child("""
session = opened()
@atexit.register
def last():
    print(session.run(IMAGES).shape)
""")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "(3, 11)\n")


def test_a_run_that_never_ends_does_not_hang_the_end_of_the_interpreter():
    """It waits for EXIT_SECONDS and no longer."""
    done = in_child("""
@atexit.register  # before the thread's own, so that it runs after it
def last():
    print(time.monotonic() - ends)
cuda_thread.EXIT_SECONDS = 0.5
session = opened()
begun = threading.Event()
threading.Thread(target=cuda_thread.call, args=(lambda: (begun.set(), time.sleep(1000)),), daemon=True).start()
begun.wait()
ends = time.monotonic()
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) >= 0.5


def test_nothing_is_released_if_there_is_no_thread(monkeypatch):
    released = []
    monkeypatch.setattr(cuda_thread, "_worker", None)
    assert cuda_thread._submit(os.getpid(), lambda: released.append(1)) is None and released == []
