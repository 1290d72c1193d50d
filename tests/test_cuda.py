"""CUDA sessions against a stand-in for onnxruntime: buffers kept, batches padded, graphs verified, all of it undone
where it is refused. No GPU is needed, and none was used."""

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import stand_in
from conftest import CLASSES, child_environment, make_graph
from stand_in import CPU, CUDA

from organ_infer import DeviceError, OrganClassifier, OrganInferError
from organ_infer.cuda import BATCHES
from organ_infer.session import Session

GRAPH = make_graph()
IMAGES = np.random.default_rng(0).normal(size=(300, 1, 28, 28)).astype(np.float32)


def opened(device="cuda"):
    return Session(GRAPH, output="logits", classes=len(CLASSES), where="g.onnx", device=device, threads=1)


@pytest.fixture(scope="module")
def expected():
    """float32 (300, 11): the network's answers on the CPU."""
    return opened("cpu").run(IMAGES)


# Granted or not; test_session.py has more of it.


def test_a_network_that_stays_on_the_cpu_is_not_cuda(install, bundle, caplog):
    """CUDA heads the list of providers, and runs nothing."""
    install(placed={CPU: ["QLinearConv", "QGemm"]})
    with pytest.raises(
        DeviceError,
        match=r"runs all of g\.onnx on the CPU \(QGemm, QLinearConv\): export .* or use --device cpu",
    ):
        opened()
    with OrganClassifier(bundle, device="auto") as classifier:
        assert classifier.providers == (CPU,)
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_nodes_that_remain_on_the_cpu_are_named(install, caplog):
    install(placed={CUDA: ["Conv", "Gemm"], CPU: ["Shape"]})
    with caplog.at_level(logging.INFO, "organ_infer"):
        opened()
    assert "on the CPU remain Shape" in caplog.text


# Batches and buffers.


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("refuses", [None, "open", "capture", "replay", "answer"])
def test_answers_are_the_cpus_for_any_number_of_slices(install, expected, refuses, pinned):
    ort = install(compute="network", refuses=refuses, pinned=pinned)
    session = opened()
    for count in [*range(1, 18), 63, 64, 65, 255, 256, 257, 300]:
        answer = session.run(IMAGES[-count:])
        assert answer.shape == (count, 11) and answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected[-count:], atol=1e-5)
    assert {shape[0] for shape in ort.shapes} == set(BATCHES)


def test_every_count_up_to_300_keeps_its_order(install):
    install()
    session = opened()
    means = stand_in.means(IMAGES)
    for count in range(1, 301):
        np.testing.assert_array_equal(session.run(IMAGES[:count]), means[:count])


def test_large_batches_run_in_the_largest_fixed_size(install):
    ort = install(refuses="open")
    opened().run(np.concatenate([IMAGES, IMAGES, IMAGES]))  # 900
    assert [shape[0] for shape in ort.shapes] == [256, 256, 256, 256]


def test_a_classifiers_batch_size_is_padded_to_a_fixed_one_and_changes_nothing(install, bundle):
    ort = install()
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
    with OrganClassifier(bundle, device="cuda", batch_size=300) as classifier:
        whole = classifier.predict_proba(images)
        for count in (1, 2, 3, 5, 17, 100, 257):
            np.testing.assert_array_equal(classifier.predict_proba(images[:count]), whole[:count])
    assert {shape[0] for shape in ort.shapes} == set(BATCHES)


@pytest.mark.parametrize(("pinned", "values"), [(False, 2), (True, 3)])
def test_buffers_are_made_once_for_a_batch_size(install, pinned, values):
    ort = install(pinned=pinned)
    session = opened()
    assert ort.values == []  # none before the first use
    for count in (3, 4, 2, 4, 3):
        session.run(IMAGES[:count])
    assert len(ort.values) == values and {len(value.array) for value in ort.values} == {4}
    kept = session._run._kept[4]
    session.run(IMAGES[:5])
    session.run(IMAGES[:3])
    assert session._run._kept[4] is kept and len(ort.values) == 2 * values
    assert (kept.pinned is not None) == pinned


def test_an_answer_does_not_change_with_the_next(install):
    install()
    session = opened()
    first = session.run(IMAGES[:4])
    before = first.copy()
    session.run(IMAGES[4:8])
    np.testing.assert_array_equal(first, before)


def test_what_lay_in_a_buffer_before_is_not_seen_by_the_network(install):
    ort = install(refuses="open")
    session = opened()
    session.run(IMAGES[:4])
    session.run(IMAGES[:2])
    value = ort.values[0].array
    np.testing.assert_array_equal(value[:2], IMAGES[:2])
    assert not value[2:].any()


def test_pinned_memory_that_cannot_be_copied_from_is_left_alone(install, expected, monkeypatch):
    ort = install(compute="network", pinned=True)
    plain = ort.OrtValue.update_inplace

    def update_inplace(self, data):
        if isinstance(data, ort.OrtValue):
            raise RuntimeError("no data transfer registered")
        plain(self, data)

    monkeypatch.setattr(ort.OrtValue, "update_inplace", update_inplace)
    session = opened()
    np.testing.assert_allclose(session.run(IMAGES[:5]), expected[:5], atol=1e-5)
    assert session._run._kept[16].pinned is None


# CUDA graphs.


def test_a_graph_is_recorded_for_each_batch_size_after_a_plain_run(install):
    ort = install()
    session = opened()
    assert ort.opened[0][1][0][1]["enable_cuda_graph"] == "1"
    for _ in range(3):
        session.run(IMAGES[:4])
    assert ort.runs == ["plain", "capture", "replay", "replay", "replay"]
    session.run(IMAGES[:60])
    assert session._run.captured == (4, 64) and len(ort.opened) == 1


@pytest.mark.parametrize("refuses", ["open", "capture", "replay", "answer"])
def test_a_graph_that_is_refused_is_done_without(install, refuses, caplog):
    ort = install(refuses=refuses)
    with caplog.at_level(logging.DEBUG, "organ_infer"):
        session = opened()
        for _ in range(2):
            np.testing.assert_array_equal(session.run(IMAGES[:4]), stand_in.means(IMAGES[:4]))
    assert session._run.captured == () and ort.runs[-1] == "plain"
    assert "enable_cuda_graph" not in ort.opened[-1][1][0][1]  # the session that runs now
    said = [r.getMessage() for r in caplog.records if "CUDA graph" in r.getMessage()]
    assert len(said) == 1 and "\n" not in said[0]


def test_an_error_of_the_network_itself_is_not_taken_for_a_refusal(install):
    def answer(count):
        raise RuntimeError("out of memory\non the device")

    install(answer=answer)
    session = opened()
    with pytest.raises(DeviceError, match=r"g\.onnx: onnxruntime failed \(out of memory on the device\)"):
        session.run(IMAGES[:1])
    assert session._run._capture


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_as_on_the_cpu(install, value):
    install(answer=lambda count: np.full((count, 11), value, np.float32))
    session = opened()
    for _ in range(2):
        with pytest.raises(DeviceError, match="not finite"):
            session.run(IMAGES[:2])


# Threads, processes, the end.


def in_thread(work):
    errors = []

    def body():
        try:
            work()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, errors


def test_threads_may_share_a_session(install):
    ort = install()  # which fails where two runs meet on the device
    session = opened()

    def work():
        for start in range(0, 290, 7):
            part = IMAGES[start : start + 1 + start % 20]
            np.testing.assert_array_equal(session.run(part), stand_in.means(part))

    threads = [in_thread(work) for _ in range(4)]
    for thread, errors in threads:
        thread.join()
        assert not errors
    assert "plain" in ort.runs


def test_graphs_belong_to_one_thread_at_a_time(install):
    ort = install()
    session = opened()
    session.run(IMAGES[:4])
    thread, errors = in_thread(lambda: session.run(IMAGES[:4]))
    thread.join()
    assert not errors and ort.runs == ["plain", "capture", "replay", "plain"]

    other = opened()
    for _ in range(2):  # a thread that has ended leaves them to the next
        del ort.runs[:]
        thread, errors = in_thread(lambda: (other.run(IMAGES[:4]), other.run(IMAGES[:4])))
        thread.join()
        assert not errors and ort.runs == ["plain", "capture", "replay", "replay"]


def test_close_frees_the_buffers(install):
    ort = install(pinned=True)
    session = opened()
    session.run(IMAGES[:4])
    values = [weakref.ref(value) for value in ort.values]
    del ort.values[:]
    session.close()
    gc.collect()
    assert len(values) == 3 and all(value() is None for value in values)
    with pytest.raises(OrganInferError, match="closed"):
        session.run(IMAGES[:4])


def test_a_forked_child_is_told(install, monkeypatch):
    install()
    session = opened()
    session.run(IMAGES[:1])
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(OrganInferError, match=f"opened in process {pid} .* fork {pid + 1}"):
        session.run(IMAGES[:1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_in_the_middle_of_a_run_opens_its_own():
    code = """
import os, sys, types
import stand_in
ort = stand_in.stand_in()
sys.modules["onnxruntime"] = ort
import numpy as np
from conftest import make_graph
from organ_infer import cuda
from organ_infer.session import Session

def opened():
    return Session(make_graph(), output="logits", classes=11, where="g", device="cuda", threads=1)

session = opened()
cuda._device.acquire()  # as a thread that runs on the device
child = os.fork()
if not child:
    opened().run(np.zeros((1, 1, 28, 28), np.float32))
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
cuda._device.release()
session.run(np.zeros((1, 1, 28, 28), np.float32))
"""
    environment = child_environment()
    environment["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
