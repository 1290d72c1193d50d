"""CUDA sessions in a fake onnxruntime: reused buffers, padded batches, verified CUDA graphs, and doing without them.

No GPU is needed, and none was used.
"""

import logging
import os
import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES, child_environment, make_graph
from support import fake_onnxruntime
from support.fake_onnxruntime import CPU, CUDA
from support.orientation_graphs import orientation_graph

from organ_infer import DeviceError, InputError, OrganClassifier, OrganInferError
from organ_infer.engine.cuda import BATCHES, HARMLESS_OPERATORS
from organ_infer.engine.session import Session

GRAPH = make_graph()
IMAGES = np.random.default_rng(0).normal(size=(300, 1, 28, 28)).astype(np.float32)


def opened(device="cuda"):
    return Session(
        GRAPH, output="logits", classes=len(CLASSES), where="g.onnx", device=device, threads=1
    )


@pytest.fixture(scope="module")
def expected():
    """float32 (300, 11): the network's answers on the CPU."""
    return opened("cpu").run(IMAGES)


# Whether CUDA is active; test_session.py has more of it.


def test_a_network_that_stays_on_the_cpu_is_not_cuda(install_fake, bundle, caplog):
    """CUDA heads the list of providers, and runs nothing."""
    install_fake(placed={CPU: ["QLinearConv", "QGemm"]})
    with pytest.raises(
        DeviceError,
        match=r"runs all of g\.onnx on the CPU \(QGemm, QLinearConv\); export .*, or use --device cpu",
    ):
        opened()
    with OrganClassifier(bundle, device="auto") as classifier:
        assert classifier.providers == (CPU,)
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_harmless_nodes_that_remain_on_the_cpu_are_named(install_fake, caplog):
    install_fake(placed={CUDA: ["Conv", "Gemm"], CPU: ["Shape", "Softmax", *HARMLESS_OPERATORS]})
    with caplog.at_level(logging.INFO, "organ_infer"):
        session = opened()
    (record,) = caplog.records
    assert (
        record.levelname == "INFO"
        and "g.onnx: harmless nodes remain on the CPU (Cast, Concat, " in record.getMessage()
    )
    assert session.placement.harmful == []


def test_one_node_on_cuda_is_not_enough(install_fake, caplog):
    """Nodes that carry the work stay on the CPU: a warning that counts and names them."""
    install_fake(
        placed={
            CUDA: ["Relu"],
            CPU: ["Gemm", "Shape", "QLinearConv", "Gemm"],
            "OtherProvider": ["Conv"],
        }
    )
    with caplog.at_level(logging.INFO, "organ_infer"):
        session = opened()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "g.onnx: 4 of 6 nodes run on the CPU and slow CUDA down (Conv, Gemm, QLinearConv);"
        " export the bundle again in float32"
    )
    assert (
        str(session.placement) == "1 of 6 nodes on CUDA; on the CPU: Conv, Gemm, QLinearConv, Shape"
    )


def test_an_onnxruntime_that_does_not_say_where_nodes_run_is_believed(install_fake, caplog):
    install_fake()
    with caplog.at_level(logging.INFO, "organ_infer"):
        session = opened()
    assert (
        not caplog.records
        and str(session.placement) == "onnxruntime does not report where its nodes run"
    )


def test_a_network_that_is_refused_is_freed_at_once(install_fake):
    ort = install_fake(placed={CPU: ["Gemm"]})
    with pytest.raises(DeviceError) as caught:
        opened()
    assert caught.value.__traceback__ is not None
    assert ort.calls.count("open") == ort.calls.count("release after open") == 1


# Which GPU.


@pytest.mark.parametrize("refuses", [None, "open", "capture"])
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_the_gpus_number_reaches_the_provider_and_every_buffer(
    install_fake, bundle, device, number, pinned, refuses
):
    ort = install_fake(gpus=3, pinned=pinned, refuses=refuses)
    with OrganClassifier(bundle, device=device) as classifier:
        assert classifier.providers == (CUDA, CPU)
        classifier.predict(np.zeros((3, 28, 28), np.uint8))
    assert {providers[0][1]["device_id"] for _, providers in ort.opened} == {str(number)}
    numbers = [value.number for value in ort.values if value.number is not None]
    assert set(numbers) == {number} and len(ort.values) - len(numbers) == len(numbers) // 2 * pinned


def test_auto_takes_the_first_gpu(install_fake, bundle):
    ort = install_fake(gpus=2)
    OrganClassifier(bundle).close()
    assert ort.opened[0][1][0][1]["device_id"] == "0"


def test_pinned_memory_is_that_of_the_gpu(install_fake):
    ort = install_fake(gpus=2, pinned=True)
    for device in ort.get_ep_devices()[1:]:
        device.memory_info = lambda kind, device=device: asked.append(
            device.ep_options["device_id"]
        )
    devices = ort.get_ep_devices()
    ort.get_ep_devices = lambda: devices
    asked = []
    opened("cuda:1").run(IMAGES[:1])
    assert asked == ["1"]
    for device in devices[1:]:
        device.ep_options = {}  # not numbered: the first one is 0, and no other is known
    del asked[:]
    for device in devices[1:]:
        device.memory_info = lambda kind, device=device: asked.append(devices.index(device))
    opened("cuda:1").run(IMAGES[:1])
    assert asked == []


def test_a_gpu_that_is_not_there_is_named(install_fake, bundle):
    install_fake(gpus=1)
    with pytest.raises(
        DeviceError,
        match=r"failed \(Invalid device ID: 1, must be between 0 \(inclusive\) and 1 \(exclusive\)\): no GPU has this"
        r" number; cuda:N counts from 0 the GPUs that CUDA_VISIBLE_DEVICES leaves visible$",
    ):
        OrganClassifier(bundle, device="cuda:1")


@pytest.mark.parametrize(
    "device",
    [
        *(
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:01",
            "cuda: 1",
            "cuda:1 ",
            "cuda:1\n",
            "cuda:1000",
        ),
        *("cuda:\u0661", "cpu:0", "auto:0", "", "cuda:0,1", 0, None, b"cuda"),
    ],
)
def test_other_devices_are_refused(bundle, device):
    with pytest.raises(InputError) as caught:
        OrganClassifier(bundle, device=device)
    assert str(caught.value) == f"device: expected auto, cpu, cuda or cuda:N, found {device!r}"


# Batches and buffers.


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("refuses", [None, "open", "capture", "replay", "answer"])
def test_answers_are_the_cpus_for_any_number_of_slices(install_fake, expected, refuses, pinned):
    ort = install_fake(compute="network", refuses=refuses, pinned=pinned)
    session = opened()
    for count in [*range(1, 18), 63, 64, 65, 255, 256, 257, 300]:
        answer = session.run(IMAGES[-count:])
        assert answer.shape == (count, 11) and answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected[-count:], atol=1e-5)
    assert {shape[0] for shape in ort.shapes} == set(BATCHES)


def test_every_count_up_to_300_keeps_its_order(install_fake):
    install_fake()
    session = opened()
    means = fake_onnxruntime.means(IMAGES)
    for count in range(1, 301):
        np.testing.assert_array_equal(session.run(IMAGES[:count]), means[:count])


def test_large_batches_run_in_the_largest_fixed_size(install_fake):
    ort = install_fake(refuses="open")
    opened().run(np.concatenate([IMAGES, IMAGES, IMAGES]))  # 900
    assert [shape[0] for shape in ort.shapes] == [256, 256, 256, 256]


def test_a_classifiers_batch_size_is_padded_to_a_fixed_one_and_changes_nothing(
    install_fake, bundle
):
    ort = install_fake()
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
    with OrganClassifier(bundle, device="cuda", batch_size=300) as classifier:
        whole = classifier.predict_proba(images)
        for count in (1, 2, 3, 5, 17, 100, 257):
            np.testing.assert_array_equal(classifier.predict_proba(images[:count]), whole[:count])
    assert {shape[0] for shape in ort.shapes} == set(BATCHES)


@pytest.mark.parametrize("refuses", [None, "open", "capture", "replay", "answer"])
def test_both_outputs_of_a_network_are_the_cpus(install_fake, refuses):
    def opened_both(device):
        return Session(
            orientation_graph(),
            output="logits",
            classes=len(CLASSES),
            where="g.onnx",
            device=device,
            threads=1,
            extra={"orientation": 9},
        )

    images = IMAGES * 0.1
    logits, orientation = opened_both("cpu").run_all(images)
    assert orientation.shape == (300, 9) and np.ptp(orientation[:, 0]) > 0.05
    install_fake(compute="network", refuses=refuses)
    session = opened_both("cuda")
    for count in (1, 3, 16, 17, 256, 300):
        found = session.run_all(images[-count:])
        np.testing.assert_allclose(found[0], logits[-count:], atol=1e-5)
        np.testing.assert_allclose(found[1], orientation[-count:], atol=1e-5)
        np.testing.assert_array_equal(session.run(images[-count:]), found[0])


@pytest.mark.parametrize("stale", ["logits", "orientation"])
def test_a_graph_that_does_not_repeat_every_output_is_not_used(install_fake, stale, caplog):
    ort = install_fake(compute="network", refuses="answer", only=stale)
    session = Session(
        orientation_graph(),
        output="logits",
        classes=len(CLASSES),
        where="g.onnx",
        device="cuda",
        threads=1,
        extra={"orientation": 9},
    )
    with caplog.at_level(logging.INFO, "organ_infer"):
        session.run_all(IMAGES[:4])
    assert session._run.captured == () and "without CUDA graphs: its answer differed" in caplog.text
    assert ort.runs[-1] == "plain"


@pytest.mark.parametrize(("pinned", "values"), [(False, 2), (True, 3)])
def test_buffers_are_made_once_for_a_batch_size(install_fake, pinned, values):
    ort = install_fake(pinned=pinned)
    session = opened()
    assert ort.values == []  # none before the first use
    for count in (3, 4, 2, 4, 3):
        session.run(IMAGES[:count])
    assert len(ort.values) == values and {len(value.array) for value in ort.values} == {4}
    buffers = session._run._network.buffers[4]
    session.run(IMAGES[:5])
    session.run(IMAGES[:3])
    assert session._run._network.buffers[4] is buffers and len(ort.values) == 2 * values
    assert (buffers.pinned is not None) == pinned


def test_an_answer_does_not_change_with_the_next(install_fake):
    install_fake()
    session = opened()
    first = session.run(IMAGES[:4])
    before = first.copy()
    session.run(IMAGES[4:8])
    np.testing.assert_array_equal(first, before)


def test_what_lay_in_a_buffer_before_is_not_seen_by_the_network(install_fake):
    ort = install_fake(refuses="open")
    session = opened()
    session.run(IMAGES[:4])
    session.run(IMAGES[:2])
    value = ort.values[0].array
    np.testing.assert_array_equal(value[:2], IMAGES[:2])
    assert not value[2:].any()


def test_pinned_memory_that_cannot_be_copied_from_is_left_alone(
    install_fake, expected, monkeypatch
):
    ort = install_fake(compute="network", pinned=True)
    plain = ort.OrtValue.update_inplace

    def update_inplace(self, data):
        if isinstance(data, ort.OrtValue):
            raise RuntimeError("no data transfer registered")
        plain(self, data)

    monkeypatch.setattr(ort.OrtValue, "update_inplace", update_inplace)
    session = opened()
    np.testing.assert_allclose(session.run(IMAGES[:5]), expected[:5], atol=1e-5)
    assert session._run._network.buffers[16].pinned is None


# CUDA graphs.


def test_a_graph_is_recorded_for_each_batch_size_after_a_plain_run(install_fake):
    ort = install_fake()
    session = opened()
    assert ort.opened[0][1][0][1]["enable_cuda_graph"] == "1"
    for _ in range(3):
        session.run(IMAGES[:4])
    assert ort.runs == ["plain", "capture", "replay", "replay", "replay"]
    session.run(IMAGES[:60])
    assert session._run.captured == (4, 64) and len(ort.opened) == 1


@pytest.mark.parametrize("refuses", ["open", "capture", "capture, stale", "replay", "answer"])
def test_a_graph_that_is_refused_is_done_without(install_fake, refuses, caplog):
    ort = install_fake(refuses=refuses)
    with caplog.at_level(logging.INFO, "organ_infer"):
        session = opened()
        for _ in range(2):
            np.testing.assert_array_equal(
                session.run(IMAGES[:4]), fake_onnxruntime.means(IMAGES[:4])
            )
    assert session._run.captured == () and ort.runs[-1] == "plain"
    assert "enable_cuda_graph" not in ort.opened[-1][1][0][1]  # the session that runs now
    said = [r.getMessage() for r in caplog.records if "CUDA graph" in r.getMessage()]
    assert len(said) == 1 and "\n" not in said[0]


def test_graphs_are_not_tried_if_they_are_switched_off(install_fake, bundle, caplog):
    ort = install_fake()
    options = {"device": "cuda", "cuda_graphs": False}
    with (
        caplog.at_level(logging.DEBUG, "organ_infer"),
        OrganClassifier(bundle, **options) as classifier,
    ):
        for _ in range(3):
            classifier.predict(np.zeros((3, 28, 28), np.uint8))
    assert ort.runs == ["plain"] * 3 and "CUDA graph" not in caplog.text
    assert [providers[0][1].get("enable_cuda_graph") for _, providers in ort.opened] == [None]


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_pickled_classifier_keeps_its_graphs_and_its_gpu(install_fake, bundle, cuda_graphs):
    ort = install_fake(gpus=2)
    with (
        OrganClassifier(bundle, device="cuda:1", cuda_graphs=cuda_graphs) as classifier,
        pickle.loads(pickle.dumps(classifier)),
    ):
        pass
    found = [
        (options.get("enable_cuda_graph"), options["device_id"])
        for _, ((_, options), _) in ort.opened
    ]
    assert found == [("1" if cuda_graphs else None, "1")] * 2


@pytest.mark.parametrize("value", [0, 1, "no"])
def test_the_switch_for_graphs_is_a_bool(bundle, value):
    with pytest.raises(InputError, match=f"cuda_graphs: expected True or False, found {value!r}"):
        OrganClassifier(bundle, cuda_graphs=value)


@pytest.fixture
def other_user(monkeypatch):
    """Makes a library appear in this process that uses CUDA, or PyTorch that does not use it yet."""

    def appear(name):
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.setitem(
            sys.modules,
            "torch",
            SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: name == "PyTorch")),
        )
        if name == "CuPy":
            monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())

    return appear


@pytest.mark.parametrize("name", ["PyTorch", "CuPy"])
def test_no_graph_is_recorded_while_another_library_uses_cuda(
    install_fake, bundle, other_user, name, caplog
):
    ort = install_fake()
    slices = np.zeros((3, 28, 28), np.uint8)
    other_user(name)
    with (
        caplog.at_level(logging.INFO, "organ_infer"),
        OrganClassifier(bundle, device="cuda") as classifier,
    ):
        for _ in range(3):
            classifier.predict(slices)
        assert ort.runs == ["plain"] * 3
        assert caplog.text.count(f"recording no CUDA graphs, because {name} uses CUDA") == 1
        # It is imported, and has not used CUDA.
        other_user(None)
        for _ in range(2):
            classifier.predict(slices)
        assert ort.runs[3:] == ["plain", "capture", "replay", "replay"]
        # What is recorded is used: only a recording makes calls of other threads fail.
        other_user(name)
        classifier.predict(slices)
        assert ort.runs[-1] == "replay"


def test_graphs_that_are_asked_for_are_recorded_beside_another_library(
    install_fake, bundle, other_user, caplog
):
    ort = install_fake()
    other_user("PyTorch")
    with (
        caplog.at_level(logging.INFO, "organ_infer"),
        OrganClassifier(bundle, device="cuda", cuda_graphs=True) as classifier,
    ):
        classifier.predict(np.zeros((3, 28, 28), np.uint8))
    assert ort.runs == ["plain", "capture", "replay"] and "PyTorch" not in caplog.text


def test_an_error_of_the_network_itself_is_not_taken_for_a_refusal(install_fake):
    def answer(count):
        raise RuntimeError("out of memory\non the device")

    install_fake(answer=answer)
    session = opened()
    with pytest.raises(
        DeviceError, match=r"g\.onnx: onnxruntime failed \(out of memory on the device\)"
    ):
        session.run(IMAGES[:1])
    assert session._run._network.capture


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_as_on_the_cpu(install_fake, value):
    install_fake(answer=lambda count: np.full((count, 11), value, np.float32))
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


def test_threads_may_share_a_session(install_fake):
    ort = install_fake()  # which fails where two runs meet on the device
    session = opened()

    def work():
        for start in range(0, 290, 7):
            part = IMAGES[start : start + 1 + start % 20]
            np.testing.assert_array_equal(session.run(part), fake_onnxruntime.means(part))

    threads = [in_thread(work) for _ in range(4)]
    for thread, errors in threads:
        thread.join()
        assert not errors
    assert "plain" in ort.runs


def test_threads_share_the_graphs_whichever_recorded_them(install_fake):
    ort = install_fake()
    session = opened()
    session.run(IMAGES[:4])
    for _ in range(3):
        thread, errors = in_thread(lambda: session.run(IMAGES[:4]))
        thread.join()
        assert not errors
    session.run(IMAGES[:4])
    assert ort.runs == ["plain", "capture", "replay"] + ["replay"] * 4


def test_close_frees_the_buffers(install_fake):
    ort = install_fake(pinned=True)
    session = opened()
    session.run(IMAGES[:4])
    assert len(ort.values) == 3 and all(value.value() is not None for value in ort.values)
    session.close()
    assert all(value.value() is None for value in ort.values)
    session.close()
    with pytest.raises(OrganInferError, match="closed"):
        session.run(IMAGES[:4])


def test_a_forked_child_is_told(install_fake, monkeypatch):
    install_fake()
    session = opened()
    session.run(IMAGES[:1])
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(OrganInferError, match=f"opened in process {pid} .* fork {pid + 1}"):
        session.run(IMAGES[:1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_in_the_middle_of_a_run_opens_its_own():
    code = """
import os, sys, threading
from support import fake_onnxruntime
ort = fake_onnxruntime.fake()
sys.modules["onnxruntime"] = ort
import numpy as np
from conftest import make_graph
from organ_infer.engine import cuda_thread
from organ_infer.engine.session import Session

def opened():
    return Session(make_graph(), output="logits", classes=11, where="g", device="cuda", threads=1)

session = opened()
entered, goes_on = threading.Event(), threading.Event()
task = threading.Thread(target=cuda_thread.call, args=(lambda: (entered.set(), goes_on.wait()),))
task.start()
entered.wait()
child = os.fork()
if not child:
    opened().run(np.zeros((1, 1, 28, 28), np.float32))
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
goes_on.set()
task.join()
session.run(np.zeros((1, 1, 28, 28), np.float32))
assert ort.strays == [], ort.strays
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


# What the log says at DEBUG.


@pytest.mark.parametrize(("pinned", "kind"), [(True, "pinned"), (False, "pageable")])
def test_the_log_names_the_memory_of_the_buffers(install_fake, caplog, pinned, kind):
    install_fake(pinned=pinned)
    with caplog.at_level(logging.DEBUG, "organ_infer"):
        opened().run(IMAGES[:4])
    assert f"cuda: buffers for batches of 4, {kind}" in caplog.text


@pytest.mark.parametrize("text", ["libcudart is missing", ""])
def test_what_preloading_prints_goes_to_the_log(monkeypatch, caplog, text):
    from organ_infer.engine import cuda

    monkeypatch.setattr(cuda, "_preloaded", None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(cuda=None)))
    called = []
    # Neither says for which CUDA it was built, so libraries are loaded.
    ort = SimpleNamespace(preload_dlls=lambda: called.append(print(text)))
    with caplog.at_level(logging.DEBUG, "organ_infer"):
        cuda.preload(ort)
    assert called == [None]
    assert ("preload_dlls: libcudart is missing" in caplog.text) == bool(text)
    assert ("preload_dlls" in caplog.text) == bool(text)
