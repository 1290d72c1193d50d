"""The mean over networks: against SciPy in float64, in any order, and what is refused. The networks are fakes."""

import os
import threading
import time
import types
from typing import ClassVar

import numpy as np
import pytest
from conftest import make_graph, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from organ_infer import DeviceError, OrganInferError
from organ_infer.engine import ensemble
from organ_infer.engine.ensemble import Ensemble, open_ensemble

IMAGES = np.zeros((3, 1, 28, 28), np.float32)


class FakeSession:
    """A network that gives `answer` whatever it is asked."""

    placement = None
    providers = ("CPUExecutionProvider",)

    def __init__(self, answer, output="logits", where="a.onnx", orientation=None):
        self.answer, self.output, self.where = np.asarray(answer, np.float32), output, where
        self.orientation = orientation
        self.runs = self.closings = 0

    def run(self, images):
        self.runs += 1
        return self.answer

    def run_all(self, images):
        self.runs += 1
        return [self.answer, self.orientation]

    def check_process(self):
        pass

    def close(self):
        self.closings += 1


def averaged(sessions, temperature=1.0, side_by_side=1, sizes=None):
    """The probabilities that an ensemble of fakes gives."""
    manifest = types.SimpleNamespace(temperature=temperature)
    forms = [types.SimpleNamespace(bytes=size) for size in sizes or [1] * len(sessions)]
    opened = Ensemble(manifest, forms, sessions, side_by_side)
    try:
        return opened.probabilities(IMAGES)
    finally:
        opened.close()


# Steps of 1/256: two different logits stay different when they are divided and raised to a power.
LOGITS = st.integers(-30 * 256, 30 * 256).map(lambda step: step / 256)
TEMPERATURES = st.floats(0.05, 20)


@st.composite
def logits_of_members(draw, members):
    """float32 (M, N, classes)"""
    shape = draw(st.tuples(members, st.integers(1, 4), st.integers(2, 6)))
    return draw(arrays(np.float32, shape, elements=LOGITS))


# The mean.


@settings(max_examples=60, deadline=None)
@given(logits_of_members(st.integers(1, 5)), TEMPERATURES, st.randoms())
def test_the_mean_of_the_softmaxes_does_not_depend_on_the_order_of_the_members(
    logits, temperature, random
):
    expected = softmax(logits.astype(np.float64) / temperature, axis=2).mean(axis=0)
    order = list(range(len(logits)))
    random.shuffle(order)

    for members in (logits, logits[order]):
        found = averaged([FakeSession(member) for member in members], temperature)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(logits_of_members(st.just(1)), TEMPERATURES)
def test_temperature_never_changes_the_label_of_a_single_network(logits, temperature):
    found = averaged([FakeSession(logits[0])], temperature)
    assert (found.argmax(axis=1) == logits[0].argmax(axis=1)).all()


@settings(max_examples=40, deadline=None)
@given(logits_of_members(st.just(1)), st.integers(-100, 100))
def test_a_number_added_to_all_logits_changes_nothing(logits, added):
    moved = averaged([FakeSession(logits[0] + added)], 2.0)
    np.testing.assert_allclose(moved, averaged([FakeSession(logits[0])], 2.0), rtol=1e-12)


def test_logits_of_any_size_give_finite_probabilities():
    found = averaged([FakeSession([[3e38, -3e38, 0], [-3e38, -3e38, -3e38], [1e4, 1e4, 0]])], 0.05)
    np.testing.assert_array_equal(found, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])


def test_probabilities_are_averaged_not_logits():
    """(0.5 + 0.9) / 2, where the mean logit would give 0.75."""
    found = averaged([FakeSession(np.zeros((1, 2))), FakeSession([[np.log(9), 0]])])
    np.testing.assert_allclose(found, [[0.7, 0.3]], atol=1e-7)


def test_temperature_leaves_a_network_that_gives_probabilities_as_it_is():
    stored = [[0.9, 0.1]]
    found = averaged(
        [FakeSession(stored, "probabilities"), FakeSession([[0, np.log(3)]])], temperature=2.0
    )
    expected = (np.array([[0.9, 0.1]]) + softmax([[0, np.log(3) / 2]], axis=1)) / 2
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
def test_members_side_by_side_give_the_mean_too(side_by_side):
    sessions = [FakeSession([[value, 0]]) for value in (0, 1, 2)]
    expected = softmax([[[value, 0]] for value in (0, 1, 2)], axis=2).mean(axis=0)
    np.testing.assert_allclose(averaged(sessions, side_by_side=side_by_side), expected, atol=1e-7)
    assert [session.runs for session in sessions] == [1, 1, 1]


class Recorded(FakeSession):
    """Answers what the slices say, and records the batches."""

    def __init__(self, record, where="a.onnx"):
        super().__init__([[0, 0]], where=where)
        self.record = record

    def run(self, images):
        self.record.append((self.where, len(images), threading.current_thread().name))
        return np.concatenate([images[:, 0, 0], -images[:, 0, 0]], axis=1)


def opened_in_pieces(sessions, parallel, sizes=None):
    manifest = types.SimpleNamespace(temperature=1.0)
    forms = [types.SimpleNamespace(bytes=size) for size in sizes or [1] * len(sessions)]
    return Ensemble(manifest, forms, sessions, parallel, in_pieces=True)


def test_the_largest_member_is_begun_first():
    begun = []
    sessions = [Recorded(begun, name) for name in ("small", "large", "middle")]
    opened = opened_in_pieces(sessions, 1, sizes=[1, 3, 2])
    opened.probabilities(np.zeros((32, 1, 1, 1), np.float32))
    assert [where for where, _, _ in begun] == ["large"] * 2 + ["middle"] * 2 + ["small"] * 2


@pytest.mark.parametrize(
    ("count", "threads", "pieces"),
    [
        (1, 2, [1]),
        (15, 2, [15]),
        (16, 1, [16]),
        (16, 2, [8, 8]),
        (17, 1, [9, 8]),
        (48, 2, [12] * 4),
        (64, 1, [16] * 4),
        (64, 3, [11, 11, 11, 11, 10, 10]),
        (64, 16, [8] * 8),
        (256, 2, [16] * 16),
    ],
)
def test_batches_run_in_pieces_that_keep_all_threads_busy(count, threads, pieces):
    begun = []
    opened = opened_in_pieces([Recorded(begun)], threads)
    packed = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
    found = opened.probabilities(packed)
    assert sorted((size for _, size, _ in begun), reverse=True) == pieces
    logits = np.stack([packed[:, 0, 0, 0], -packed[:, 0, 0, 0]], axis=1).astype(np.float64)
    np.testing.assert_allclose(found, softmax(logits, axis=1), rtol=1e-12)
    opened.close()


def test_pieces_run_in_as_many_threads_as_allowed():
    both, begun = threading.Barrier(2, timeout=30), []

    class Waiting(Recorded):
        def run(self, images):
            both.wait()
            return super().run(images)

    opened = opened_in_pieces([Waiting(begun)], 2)
    opened.probabilities(np.zeros((32, 1, 1, 1), np.float32))
    own = threading.current_thread().name
    assert sorted(name for _, _, name in begun) == sorted([own, "organ_infer_0"])
    opened.close()


def test_a_single_slice_needs_no_other_thread():
    begun = []
    opened = opened_in_pieces([Recorded(begun)], 8)
    opened.probabilities(np.zeros((1, 1, 1, 1), np.float32))
    assert begun == [("a.onnx", 1, threading.current_thread().name)]
    assert not opened._workers._threads
    opened.close()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_piece_that_fails_ends_the_batch(threads):
    class Failing(Recorded):
        def run(self, images):
            if images[0, 0, 0, 0] == 1:
                raise DeviceError("failed")
            return super().run(images)

    opened = opened_in_pieces([Failing([])], threads)
    packed = np.repeat(np.arange(8, dtype=np.float32), 16).reshape(-1, 1, 1, 1)
    for _ in range(5):
        with pytest.raises(DeviceError, match=r"^failed$"):
            opened.probabilities(packed)
    opened.close()


def test_a_piece_that_fails_in_a_worker_stops_the_caller():
    begun, failed = [], threading.Event()

    class Failing(Recorded):
        def run(self, images):
            if threading.current_thread().name.startswith("organ_infer"):
                failed.set()
                raise DeviceError("failed")
            failed.wait(30)
            time.sleep(0.002)
            return super().run(images)

    opened = opened_in_pieces([Failing(begun)], 2)
    with pytest.raises(DeviceError, match=r"^failed$"):
        opened.probabilities(np.zeros((256 * 16, 1, 1, 1), np.float32))
    assert len(begun) < 128
    opened.close()


def test_an_interrupt_while_workers_start_waits_for_them(monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    class Slow(Recorded):
        def run(self, images):
            begun.set()
            time.sleep(0.2)
            ended.set()
            return super().run(images)

    session = Slow([])
    opened = opened_in_pieces([session], 3)
    submit = opened._workers.submit

    def interrupted(*arguments):
        submit(*arguments)
        assert begun.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(opened._workers, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened.probabilities(np.zeros((64, 1, 1, 1), np.float32))
    assert ended.is_set() and len(session.record) == 1

    monkeypatch.undo()
    assert len(opened.probabilities(np.zeros((64, 1, 1, 1), np.float32))) == 64
    opened.close()
    assert session.closings == 1


def test_a_worker_may_take_a_piece_of_a_batch_for_which_no_thread_started(monkeypatch, caplog):
    """The executor queues what is submitted before it fails to start a thread."""
    first, second = 1.0, 2.0
    occupied, release, taken = (threading.Event() for _ in range(3))

    class Gated(Recorded):
        def run(self, images):
            in_worker = threading.current_thread().name.startswith("organ_infer")
            if images[0, 0, 0, 0] == first:
                (occupied.set if in_worker else occupied.wait)()
                release.wait(30)
            elif in_worker:
                taken.set()
                time.sleep(0.2)
            else:
                release.set()
                assert taken.wait(30)
            return super().run(images)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    opened = opened_in_pieces([Gated([])], 3)
    other = threading.Thread(
        target=lambda: opened.probabilities(np.full((16, 1, 1, 1), first, np.float32))
    )
    other.start()
    assert occupied.wait(30)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    found = opened.probabilities(np.full((16, 1, 1, 1), second, np.float32))
    np.testing.assert_allclose(found, softmax([[second, -second]] * 16, axis=1), rtol=1e-6)
    assert len(caplog.messages) == 1
    monkeypatch.undo()
    other.join(30)
    opened.close()


# What is refused.


@pytest.mark.parametrize("total", [0.5, 0.9, 0.998, 1.002, 1.5, 2.0, 0.0])
@pytest.mark.parametrize("row", [0, 2])
def test_one_row_that_does_not_sum_to_one_is_refused(total, row):
    answer = np.full((3, 4), 0.25)
    answer[row] *= total
    sound = FakeSession(np.full((3, 4), 0.25), "probabilities", "sound.onnx")
    with pytest.raises(
        DeviceError,
        match=r"^bad\.onnx: expected probabilities, .* does not sum to 1; export the bundle again$",
    ):
        averaged([sound, FakeSession(answer, "probabilities", "bad.onnx")])


@pytest.mark.parametrize("total", [0.9992, 1.0, 1.0008])
def test_rounding_of_a_networks_own_softmax_is_taken_out(total):
    """fp16 rounds each probability."""
    row = np.array([0.1, 0.2, 0.7])
    found = averaged([FakeSession([row * total], "probabilities")])
    np.testing.assert_allclose(found, [row], rtol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-15)


def test_a_negative_probability_is_refused_though_the_sum_is_one():
    answer = [[0.5, 0.5, 0.0], [0.6, 0.5, -0.1]]
    with pytest.raises(DeviceError, match="expected probabilities"):
        averaged([FakeSession(answer, "probabilities")])


def test_a_probability_of_zero_is_none_of_that():
    np.testing.assert_array_equal(averaged([FakeSession([[1, 0]], "probabilities")]), [[1, 0]])


# Its life.


@pytest.fixture
def fakes():
    sessions = [FakeSession(np.zeros((3, 2)), where=name) for name in ("a.onnx", "b.onnx")]
    forms = [types.SimpleNamespace(bytes=1)] * 2
    return Ensemble(types.SimpleNamespace(temperature=1.0), forms, sessions, 1), sessions


def test_closing_closes_every_member_and_says_so(fakes):
    opened, sessions = fakes
    opened.probabilities(IMAGES)
    assert not opened.closed and [session.closings for session in sessions] == [0, 0]
    opened.close()
    assert opened.closed and all(session.closings for session in sessions)
    with pytest.raises(OrganInferError, match="is closed"):
        opened.probabilities(IMAGES)
    assert [session.runs for session in sessions] == [1, 1]


def test_a_member_that_fails_does_not_keep_the_others_open(fakes):
    opened, sessions = fakes

    def fail(images):
        opened.close()  # as another thread would
        assert sessions[0].closings == 0  # it is in use
        raise DeviceError("failed")

    sessions[1].run = fail
    with pytest.raises(DeviceError, match="failed"):
        opened.probabilities(IMAGES)
    assert all(session.closings for session in sessions)


def test_closing_in_a_fork_frees_nothing(fakes, monkeypatch):
    opened, sessions = fakes
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    opened.close()
    assert opened.closed and [session.closings for session in sessions] == [0, 0]


def test_a_fork_is_refused_before_any_member_runs(fakes):
    opened, sessions = fakes

    def refuse():
        raise OrganInferError("opened in process 1")

    sessions[0].check_process = refuse
    for use in (lambda: opened.probabilities(IMAGES), opened.check_process):
        with pytest.raises(OrganInferError, match="opened in process 1"):
            use()
    assert [session.runs for session in sessions] == [0, 0]


@pytest.mark.parametrize("placement", [None, "on the GPU"])
def test_networks_on_cuda_run_on_its_thread_and_others_on_the_callers(placement):
    threads = []

    class Placed(FakeSession):
        def run(self, images):
            threads.append(threading.current_thread().name)
            return self.answer

    sessions = [Placed([[0, 1]]), Placed([[1, 0]])]
    for session in sessions:
        session.placement = placement
    np.testing.assert_allclose(averaged(sessions), [[0.5, 0.5]])
    own = threading.current_thread().name
    assert threads == [own if placement is None else "organ_infer_cuda"] * 2


def test_providers_and_placements_are_those_of_the_members(fakes):
    opened, sessions = fakes
    assert opened.providers == ("CPUExecutionProvider",) and opened.placements == []
    sessions[1].placement = "somewhere"
    assert opened.placements == [("b.onnx", "somewhere")]


# How it is opened.


@pytest.mark.parametrize(
    ("small", "threads", "share", "parallel"),
    [
        (False, 1, 1, 1),
        (False, 2, 1, 2),
        (False, 3, 1, 3),
        (False, 7, 2, 3),
        (False, 12, 4, 3),
        (True, 1, 1, 1),
        (True, 2, 1, 2),
        (True, 12, 1, 12),
    ],
)
def test_members_share_the_threads(tmp_path, monkeypatch, small, threads, share, parallel):
    asked = []

    class Asked(FakeSession):
        def __init__(self, graph, *, threads, classes, device, capture, arena, **_):
            super().__init__(np.zeros((3, classes)))
            asked.append((threads, device, capture, arena))

    monkeypatch.setattr(ensemble, "Session", Asked)
    folder = write_bundle(tmp_path / "b", {f"{name}.onnx": make_graph() for name in "abc"})
    if not small:
        monkeypatch.setattr(ensemble, "SMALL", (folder / "c.onnx").stat().st_size)

    opened = open_ensemble(folder, device="cpu", threads=threads)

    assert asked == [(share, "cpu", False, small)] * 3
    assert opened._parallel == parallel
    opened.close()


@pytest.mark.parametrize(
    ("size", "used"), [((1 << 24) - 1, False), (1 << 24, True), (1 << 30, True)]
)
def test_graphs_of_16_mib_and_more_are_looked_up_in_the_cache(monkeypatch, tmp_path, size, used):
    """docs/guides/embedding.md: graphs of 16 MiB and more are cached."""
    asked = []
    monkeypatch.setattr(ensemble, "cache_directory", lambda: asked.append(1))
    halves = [types.SimpleNamespace(bytes=size // 2), types.SimpleNamespace(bytes=size - size // 2)]
    unverified = types.SimpleNamespace(
        manifest=types.SimpleNamespace(variants=lambda device: halves)
    )
    with ensemble.CacheLookup(unverified, "cpu") as lookup:
        assert lookup.result("1.0") == (None, None)
    assert bool(asked) == used


@pytest.fixture
def lookup_with(monkeypatch, tmp_path):
    """A lookup on a machine with these distributions, in a fake cache that records it."""

    def make(device, root=tmp_path, **versions):
        monkeypatch.setattr(ensemble, "cache_directory", lambda: root)
        monkeypatch.setattr(
            ensemble, "installed_version", lambda name: versions.get(name.replace("-", "_"))
        )
        monkeypatch.setattr(ensemble, "Cache", FakeCache)
        forms = [types.SimpleNamespace(bytes=1 << 24)]
        manifest = types.SimpleNamespace(variants=lambda device: forms)
        unverified = types.SimpleNamespace(
            manifest=manifest,
            directory=tmp_path,
            sha256="0",
            files=lambda: {"a": 1},
            only=None,
        )
        FakeCache.versions.clear()
        return ensemble.CacheLookup(unverified, device)

    return make


class FakeCache:
    """Finds a graph of its version."""

    versions: ClassVar[list[str]] = []

    def __init__(self, root, directory, sha256, version, only):
        self.version = version

    def find(self, files):
        assert files == {"a": 1}
        self.versions.append(self.version)
        return {"a": self.version}


@pytest.mark.parametrize(
    ("device", "versions", "beside"),
    [
        ("cpu", {"onnxruntime": "1.27"}, True),
        ("auto", {"onnxruntime": "1.27"}, True),
        ("cuda", {"onnxruntime": "1.27"}, False),
        ("cuda:1", {"onnxruntime": "1.27"}, False),
        ("auto", {"onnxruntime": "1.27", "onnxruntime_gpu": "1.27"}, False),
        ("cpu", {}, False),
    ],
)
def test_optimized_graphs_are_looked_up_while_onnxruntime_loads(
    lookup_with, device, versions, beside
):
    """Except where they may not be needed, or for which version is not known."""
    with lookup_with(device, **versions) as lookup:
        assert (lookup._workers is not None) == beside
        cache, found = lookup.result("1.27")
        assert (cache.version, found) == ("1.27", {"a": "1.27"})
    assert FakeCache.versions == ["1.27"]
    if beside:
        with pytest.raises(RuntimeError, match="after shutdown"):
            lookup._workers.submit(int)


def test_nothing_waits_for_graphs_that_are_not_needed(lookup_with, monkeypatch):
    """As on CUDA: what looks for them ends by itself."""
    opened, ended = threading.Event(), threading.Event()

    def find(self, files):
        opened.wait(2)
        ended.set()

    monkeypatch.setattr(FakeCache, "find", find)
    with lookup_with("auto", onnxruntime="1.27"):
        pass
    assert not ended.is_set()
    opened.set()
    assert ended.wait(30)


def test_graphs_of_another_version_than_the_installed_one_are_looked_up_again(lookup_with):
    with lookup_with("cpu", onnxruntime="1.27") as lookup:
        assert lookup.result("1.26")[1] == {"a": "1.26"}
    assert sorted(FakeCache.versions) == ["1.26", "1.27"]


def test_without_a_cache_nothing_is_looked_up(lookup_with):
    with lookup_with("cpu", root=None, onnxruntime="1.27") as lookup:
        assert lookup._workers is None and lookup.result("1.27") == (None, None)
    assert FakeCache.versions == []


def test_cuda_that_fails_is_an_error_if_it_was_asked_for_and_a_warning_for_auto(
    tmp_path, monkeypatch, caplog
):
    folder = write_bundle(tmp_path / "b", {f"{name}.onnx": make_graph() for name in "abc"})
    asked = []

    class OnCpuAlone(FakeSession):
        def __init__(self, graph, *, device, threads, capture, **_):
            asked.append((device, threads, capture))
            if device != "cpu":
                raise DeviceError("no GPU")
            super().__init__(np.zeros((3, 11)))

    monkeypatch.setattr(ensemble, "Session", OnCpuAlone)
    monkeypatch.setattr(
        ensemble, "choose_device", lambda ort, device: "cuda" if device == "auto" else device
    )
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="no GPU"):
            open_ensemble(folder, device=device, threads=4)
    assert asked == [("cuda", 4, None), ("cuda:1", 4, None)] and not caplog.records
    asked.clear()
    open_ensemble(folder, device="auto", threads=4, cuda_graphs=False).close()
    assert asked == [("cuda", 4, False), *[("cpu", 1, False)] * 3]
    assert [record.getMessage() for record in caplog.records] == ["running on the CPU: no GPU"]


def test_a_cached_graph_that_does_not_open_is_replaced_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    folder = write_bundle(tmp_path / "b", {"a.onnx": make_graph()})
    opened = []

    class FromBytesAlone(FakeSession):
        def __init__(self, graph, **_):
            opened.append(type(graph))
            if not isinstance(graph, bytes):
                raise DeviceError("damaged")
            super().__init__(np.zeros((3, 11)))

    monkeypatch.setattr(ensemble, "Session", FromBytesAlone)
    monkeypatch.setattr(
        ensemble.CacheLookup,
        "result",
        lambda self, version: (None, {"a.onnx": tmp_path / "cached"}),
    )
    open_ensemble(folder, device="cpu", threads=1).close()
    assert opened == [type(tmp_path), bytes]
    (record,) = caplog.records
    assert (
        record.levelname == "WARNING"
        and record.getMessage() == "rebuilding the cached graph: damaged"
    )


# The second output.


def answer_of(sessions, side_by_side=1, plausibility="given"):
    manifest = types.SimpleNamespace(temperature=2.0, plausibility=plausibility)
    forms = [types.SimpleNamespace(bytes=1) for _ in sessions]
    opened = Ensemble(manifest, forms, sessions, side_by_side)
    try:
        return opened.answer(IMAGES)
    finally:
        opened.close()


def oriented(seed):
    random = np.random.default_rng(seed)
    orientation = random.dirichlet(np.ones(9), 3).astype(np.float32)
    return FakeSession(random.normal(size=(3, 2)), orientation=orientation)


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_the_orientation_is_the_mean_over_the_networks(side_by_side):
    sessions = [oriented(seed) for seed in range(3)]
    probabilities, orientation = answer_of(sessions, side_by_side)
    expected = np.mean([session.orientation for session in sessions], axis=0)
    assert orientation.dtype == np.float32
    np.testing.assert_allclose(orientation, expected, atol=1e-6)
    np.testing.assert_array_equal(probabilities, averaged(sessions, 2.0))
    assert [session.runs for session in sessions] == [2, 2, 2]


def test_the_orientation_of_one_network_is_not_copied():
    session = oriented(0)
    assert answer_of([session]).orientation is session.orientation


@pytest.mark.parametrize("change", [lambda o: o * 1.01, lambda o: o - 0.2, lambda o: o * np.nan])
@pytest.mark.parametrize("place", [0, 1])
def test_an_orientation_that_is_no_probabilities_is_refused(change, place):
    sessions = [oriented(0), oriented(1)]
    sessions[place].orientation, sessions[place].where = change(oriented(5).orientation), "bad.onnx"
    with pytest.raises(DeviceError, match=r"bad\.onnx: expected probabilities, but the output"):
        answer_of(sessions)


def test_networks_without_the_output_are_run_for_their_classes_alone():
    session = oriented(0)
    session.run_all = None
    assert answer_of([session], plausibility=None).orientation is None
