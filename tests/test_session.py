"""Sessions: the active execution provider, threads, checked answers. A fake onnxruntime stands for the one with CUDA."""

import logging
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import CLASSES, child_environment, make_graph, needs_default
from support.fake_onnxruntime import CPU, CUDA
from support.heap import needs_heap

from organ_infer import DeviceError, InputError, OrganClassifier, OrganInferError
from organ_infer.engine import ensemble
from organ_infer.engine import ort as ort_module
from organ_infer.engine.cpu_count import usable_processors
from organ_infer.engine.session import Session

IMAGE = np.zeros((28, 28), np.uint8)


def both_wheels(monkeypatch, *names):
    monkeypatch.setattr(
        ort_module, "installed_version", lambda name: "1.0" if name in names else None
    )


# The device.


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_cuda_is_used_if_it_is_active(install_fake, bundle, device, capsys):
    ort = install_fake()
    with OrganClassifier(bundle, device=device) as opened:
        assert opened.providers == (CUDA, CPU)
        opened.predict(IMAGE)
    _, providers = ort.opened[0]
    assert providers[0][0] == CUDA and providers[0][1]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert providers[0][1]["use_tf32"] == "0" and providers[1] == CPU
    assert (
        ort.preloaded == 1 and capsys.readouterr().out == ""
    )  # what it prints stays off standard output


@pytest.mark.parametrize(
    ("torch", "onnxruntime", "preloaded"),
    [
        ("12.4", "12.8", 0),
        ("13.0", "13.0", 0),
        ("12.4", "13.0", 1),
        ("1.2", "12.8", 1),
        (None, "12.8", 1),  # a torch for the CPU alone
        ("", "12.8", 1),
        ("missing", "12.8", 1),  # a torch that is being imported
        ("12.4", None, 1),
        ("12.4", "", 1),
        ("12.4", "missing", 1),
        (None, None, 1),
        ("", "", 1),
        ("missing", "missing", 1),
    ],
)
def test_cuda_libraries_are_left_to_a_torch_of_the_same_cuda_alone(
    install_fake, bundle, monkeypatch, torch, onnxruntime, preloaded
):
    ort = install_fake(cuda_version=onnxruntime)
    module = types.ModuleType("torch")
    if torch != "missing":
        module.version = types.SimpleNamespace(cuda=torch)
    if onnxruntime == "missing":
        del ort.cuda_version
    monkeypatch.setitem(sys.modules, "torch", module)
    OrganClassifier(bundle, device="cuda").close()
    assert ort.preloaded == preloaded


def test_cuda_libraries_are_loaded_once_and_never_by_importing_torch(install_fake, bundle):
    ort = install_fake(refuses="open")  # each classifier opens twice
    for _ in range(2):
        OrganClassifier(bundle, device="cuda").close()
    assert ort.preloaded == 1 and "torch" not in sys.modules


def test_libraries_that_cannot_be_loaded_beforehand_are_no_error(
    install_fake, bundle, monkeypatch, caplog
):
    ort = install_fake()

    def preload_dlls():
        raise RuntimeError("Invalid parameter\nof directory")

    monkeypatch.setattr(ort, "preload_dlls", preload_dlls)
    with caplog.at_level(logging.DEBUG, "organ_infer"):
        OrganClassifier(bundle, device="cuda").close()
    assert "preload_dlls: Invalid parameter of directory" in caplog.text


def test_cuda_that_onnxruntime_does_not_offer_fails_and_auto_says_why(
    install_fake, bundle, caplog, monkeypatch
):
    install_fake(available=(CPU,))
    both_wheels(monkeypatch)
    with pytest.raises(
        DeviceError,
        match=r"device cuda: CUDA is not available, this onnxruntime offers only .*pip install 'organ-infer\[gpu\]'",
    ):
        OrganClassifier(bundle, device="cuda")
    with (
        caplog.at_level(logging.INFO, "organ_infer"),
        OrganClassifier(bundle, device="auto") as opened,
    ):
        assert opened.providers == (CPU,)
    assert [r.levelname for r in caplog.records] == ["INFO"] and "running on the CPU" in caplog.text


def test_cuda_that_is_available_but_not_active_fails_and_auto_warns(install_fake, bundle, caplog):
    """https://github.com/microsoft/onnxruntime/issues/17801: CUDA is requested, and the session opens on the CPU."""
    install_fake(granted=(CPU,))
    with pytest.raises(
        DeviceError, match="device cuda: onnxruntime activated CPUExecutionProvider; check"
    ):
        OrganClassifier(bundle, device="cuda")
    with OrganClassifier(bundle, device="auto") as opened:
        assert opened.providers == (CPU,)
        assert len(opened.predict(IMAGE)) == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_cuda_that_fails_to_open_fails_and_auto_warns(install_fake, bundle, caplog):
    ort = install_fake(fails="CUDA driver version is\ninsufficient")
    with pytest.raises(DeviceError, match="CUDA driver version is insufficient") as caught:
        OrganClassifier(bundle, device="cuda")
    assert "\n" not in str(caught.value)
    with OrganClassifier(bundle, device="auto") as opened:
        assert opened.providers == (CPU,)
    assert "insufficient" in caplog.text and [p for _, p in ort.opened] == [[CPU]]


def test_both_wheels_installed_is_explained(install_fake, bundle, monkeypatch, caplog):
    install_fake(available=(CPU,))
    both_wheels(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    words = "onnxruntime and onnxruntime-gpu are both installed.*pip uninstall -y onnxruntime onnxruntime-gpu"
    with pytest.raises(DeviceError, match=words):
        OrganClassifier(bundle, device="cuda")
    OrganClassifier(bundle, device="auto").close()
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "both installed" in caplog.text
    install_fake(granted=(CPU,))
    with pytest.raises(DeviceError, match=words):
        OrganClassifier(bundle, device="cuda")


def test_cpu_asks_for_nothing_else(install_fake, bundle, monkeypatch, caplog):
    ort = install_fake()
    both_wheels(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    OrganClassifier(bundle, device="cpu").close()
    assert [p for _, p in ort.opened] == [[CPU]] and not caplog.records and ort.preloaded == 0


def test_onnxruntime_missing_or_half_removed_names_the_command(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"not installed; pip install 'organ-infer\[cpu\]'"):
        OrganClassifier(bundle)
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(DeviceError, match="installed incompletely; pip uninstall"):
        OrganClassifier(bundle)


# Batches.


def test_the_cpu_is_given_just_the_slices(install_fake, bundle):
    ort = install_fake(available=(CPU,))
    with OrganClassifier(bundle, device="cpu", batch_size=5) as opened:
        opened.predict_proba(np.zeros((12, 28, 28), np.uint8))
    assert [shape[0] for shape in ort.shapes] == [5, 5, 2]


# Answers.


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n: np.full((n, 11), np.nan, np.float32), "not finite"),
        (lambda n: np.full((n, 11), np.inf, np.float32), "not finite"),
        (
            lambda n: np.zeros((n, 10), np.float32),
            r"expected float32 \(1, 11\) from the network, found float32 \(1, 10\); export",
        ),
        (lambda n: np.zeros((n + 1, 11), np.float32), "from the network, found float32"),
        (lambda n: np.zeros((n, 11), np.float64), "from the network, found float64"),
    ],
)
def test_an_answer_of_the_wrong_form_is_refused(install_fake, bundle, answer, words):
    install_fake(available=(CPU,), answer=answer)
    with OrganClassifier(bundle) as opened, pytest.raises(DeviceError, match=words):
        opened.predict(IMAGE)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 5), (4, 10)])
def test_one_value_that_is_not_finite_among_many_is_refused(
    install_fake, bundle, device, value, place
):
    def answer(count):
        found = np.ones((count, 11), np.float32)
        if count > place[0]:
            found[place] = value
        return found

    install_fake(answer=answer)
    with (
        OrganClassifier(bundle, device=device) as opened,
        pytest.raises(
            DeviceError, match="returned a value that is not finite; export the bundle again"
        ),
    ):
        opened.predict(np.zeros((5, 28, 28), np.uint8))


@pytest.mark.parametrize("value", [0.2, -1.0])
def test_probabilities_that_are_none_are_refused(install_fake, probabilities_bundle, value):
    install_fake(available=(CPU,), answer=lambda n: np.full((n, 11), value, np.float32))
    with (
        OrganClassifier(probabilities_bundle) as opened,
        pytest.raises(DeviceError, match="does not sum to 1"),
    ):
        opened.predict(IMAGE)


def test_an_error_of_onnxruntime_is_one_line(install_fake, bundle):
    def answer(count):
        raise RuntimeError("Non-zero status code\nreturned")

    install_fake(available=(CPU,), answer=answer)
    with (
        OrganClassifier(bundle) as opened,
        pytest.raises(DeviceError, match=r"onnxruntime failed \(Non-zero status code returned\)"),
    ):
        opened.predict(IMAGE)


def test_a_network_that_onnxruntime_refuses_is_an_error_of_ours(tmp_path):
    from conftest import write_bundle

    def change(model):
        model.graph.node[0].op_type = "NoSuchOperator"

    with pytest.raises(DeviceError, match=r"g\.onnx: onnxruntime cannot open this network"):
        OrganClassifier(
            write_bundle(tmp_path / "b", {"g.onnx": make_graph(change=change)}), device="cpu"
        )


# Threads and processes.


@pytest.fixture
def no_small_networks(monkeypatch):
    monkeypatch.setattr(ensemble, "SMALL", 0)


def test_thread_counts_are_always_set_and_nothing_spins(install_fake, bundle, no_small_networks):
    ort = install_fake(available=(CPU,))
    OrganClassifier(bundle).close()
    OrganClassifier(bundle, threads=3).close()
    (first, _), (second, _) = ort.opened
    assert (
        first.intra_op_num_threads == usable_processors() >= 1 and second.intra_op_num_threads == 3
    )
    assert first.inter_op_num_threads == second.inter_op_num_threads == 1
    assert first.entries == {
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
        "session.load_model_format": "ONNX",
    }


def test_small_networks_have_one_thread_and_an_arena(install_fake, bundle):
    ort = install_fake(available=(CPU,))
    OrganClassifier(bundle, threads=3).close()
    ((options, _),) = ort.opened
    assert options.intra_op_num_threads == 1
    assert options.enable_cpu_mem_arena is True and options.enable_mem_pattern is False


def test_memory_patterns_arena_and_log_are_off(install_fake, bundle, no_small_networks):
    """They would keep memory for each shape, and print what is raised."""
    ort = install_fake(available=(CPU, CUDA))
    for device in ("cpu", "cuda"):
        OrganClassifier(bundle, device=device).close()
    (on_cpu, _), (on_cuda, _) = ort.opened
    assert (
        on_cpu.enable_cpu_mem_arena
        is on_cpu.enable_mem_pattern
        is on_cuda.enable_mem_pattern
        is False
    )
    assert on_cpu.log_severity_level == on_cuda.log_severity_level == 4
    assert on_cuda.entries["session.record_ep_graph_assignment_info"] == "1"
    assert "session.record_ep_graph_assignment_info" not in on_cpu.entries


def test_an_optimized_graph_is_opened_as_it_is_and_saved_where_it_is_told(
    install_fake, tmp_path, monkeypatch
):
    ort = install_fake(available=(CPU,))
    ort.GraphOptimizationLevel = types.SimpleNamespace(ORT_DISABLE_ALL="none")
    opened = []

    def session(graph, sess_options, providers, enable_fallback):
        opened.append((graph, sess_options))
        return types.SimpleNamespace(get_providers=lambda: [CPU])

    ort.InferenceSession = session
    how = {"output": "logits", "classes": 11, "where": "g", "device": "cpu", "threads": 1}
    Session(tmp_path / "kept.onnx", **how)
    Session(b"graph", **how, save=(tmp_path / "new.onnx", "new.weights"))
    (kept, options), (graph, saving) = opened
    assert kept == str(tmp_path / "kept.onnx") and options.graph_optimization_level == "none"
    assert not hasattr(options, "optimized_model_filepath")
    assert graph == b"graph" and not hasattr(saving, "graph_optimization_level")
    assert saving.optimized_model_filepath == str(tmp_path / "new.onnx")
    prefix = "session.optimized_model_external_initializers_"
    assert saving.entries[prefix + "file_name"] == "new.weights"
    assert saving.entries[prefix + "min_size_in_bytes"] == "1024"


@pytest.mark.parametrize("threads", [0, 1, 1024, 1025])
def test_1_to_1024_threads_are_taken(install_fake, bundle, no_small_networks, threads):
    ort = install_fake(available=(CPU,))
    if 1 <= threads <= 1024:
        OrganClassifier(bundle, threads=threads).close()
        assert ort.opened[0][0].intra_op_num_threads == threads
    else:
        with pytest.raises(
            InputError, match=f"threads: expected a whole number from 1 to 1,024, found {threads}"
        ):
            OrganClassifier(bundle, threads=threads)


def test_a_program_with_a_global_thread_pool_can_use_it(bundle):
    code = f"""
import logging, onnxruntime
import numpy as np
from organ_infer import OrganClassifier
if not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
    raise SystemExit(77)
logging.basicConfig(level=logging.INFO)
onnxruntime.set_global_thread_pool_sizes(2, 1)
with OrganClassifier({str(bundle)!r}, device="cpu") as classifier:
    assert len(classifier.predict(np.zeros((28, 28), np.uint8))) == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    if done.returncode == 77:
        pytest.skip("this onnxruntime has no global thread pool for Python")
    assert done.returncode == 0, done.stderr
    assert "global pool" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "garbage"}, 4),
        ({"sys/fs/cgroup/cpu.max": "100000 0"}, 4),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "max 1",
                "sys/fs/cgroup/a/cpu.max": "300 100",
            },
            3,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n1:memory:/x",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            1,
        ),
    ],
)
def test_processors_follow_the_affinity_mask_and_the_containers_quota(
    tmp_path, monkeypatch, files, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert usable_processors(tmp_path) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_a_narrow_affinity_mask_is_kept_to():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from organ_infer.engine.cpu_count import usable_processors; print(usable_processors())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert done.stdout.strip() == "1"


def test_a_session_of_another_process_refuses(monkeypatch):
    session = Session(
        make_graph(), output="logits", classes=len(CLASSES), where="g", device="cpu", threads=1
    )
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(OrganInferError, match=f"opened in process {pid} .* fork {pid + 1}"):
        session.run(np.zeros((1, 1, 28, 28), np.float32))


@needs_default
@needs_heap
def test_memory_does_not_grow_as_batch_sizes_vary():
    """onnxruntime 11627, 22271: memory that is kept for each new shape, gigabytes in the end."""
    code = """
import numpy as np
from support.heap import heap_bytes
from organ_infer import OrganClassifier

rng = np.random.default_rng(0)
with OrganClassifier(device="cpu", threads=2) as classifier:
    def some(count):
        for size in rng.integers(1, 65, count):
            classifier.predict_proba(np.zeros((size, 28, 28), np.uint8))
    opened = heap_bytes()
    some(60)
    before = heap_bytes()
    some(60)
    print(before - opened, heap_bytes() - before)
"""
    environment = child_environment()
    environment["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    # Three networks, two threads, pieces of 16 slices. Python 3.12 takes 1.1 MB in the first call.
    first, more = map(int, done.stdout.split())
    assert first < 10 << 20 and more < 1 << 20


# What onnxruntime does on its own.


def test_onnxruntime_is_loaded_with_its_telemetry_off(bundle):
    """From 1.29 on it would send usage statistics; a variable while it loads is its full opt-out."""
    code = f"""
import os, sys
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
from organ_infer import OrganClassifier
OrganClassifier({str(bundle)!r}, device="cpu").close()
assert seen == ["1"], seen
assert "ORT_DISABLE_TELEMETRY" not in os.environ
"""
    environment = child_environment()
    del environment["ORT_DISABLE_TELEMETRY"]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_alone_silences_onnxruntimes_own_logger(install_fake, bundle, capfd):
    """It is one for the whole process, and writes lines about a GPU that does not start, which are raised too."""
    from organ_infer.cli import main

    ort = install_fake(available=(CPU,))
    OrganClassifier(bundle).close()
    assert ort.severities == [] and ort_module.silent is False
    assert main(["--bundle", str(bundle), "/dev/null"]) == 1
    assert set(ort.severities) == {4} and ort_module.silent is False
    ort.severities.clear()
    OrganClassifier(bundle).close()
    assert ort.severities == []


def test_a_user_who_set_the_variable_keeps_it(monkeypatch):
    monkeypatch.setenv(ort_module.TELEMETRY_VARIABLE, "0")
    ort_module.import_onnxruntime()
    assert os.environ[ort_module.TELEMETRY_VARIABLE] == "0"
