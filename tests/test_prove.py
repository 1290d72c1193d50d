"""The script that proves the GPU paths: a failure never stops it, its time is bounded, its report is whole.

The checks here are made up and need no GPU; what they become on one is for `tests/gpu/prove.py` itself.
"""

import inspect
import json
import os
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, child_environment

sys.path.insert(0, str(ROOT / "tests" / "gpu"))

import prove
from proof import bundles, harness, machine, runtime_checks, slices, training_commands
from proof.harness import FAILED, NOT_RUN, OK, SKIPPED, Check, Context, Settings, Skip
from proof.runtime_access import left_on_cpu, recorded_sizes

from organ_infer import OrganClassifier

GPU_TESTS = ROOT / "tests" / "gpu"


def passes(ctx):
    ctx.figures["answer"] = 42
    ctx.figures["process"] = os.getpid()
    ctx.summary = "forty-two"


def fails(ctx):
    ctx.figures["measured"] = 1
    ctx.expect(1 > 2, "one is not more than two")
    ctx.expect(True, "never noted")
    ctx.figures["also measured"] = 2


def raises(ctx):
    raise ValueError("a message\nof two lines")


def skips(ctx):
    raise Skip("needs a GPU: there is none")


def crashes(ctx):
    os._exit(7)


def hangs(ctx):
    time.sleep(60)


STARTS = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), child.wait(), os._exit(0)))
time.sleep(60)
"""


def hangs_in_a_command(ctx):
    """The command ends its own child, which is in another session, only if it gets SIGTERM: as torchrun does."""
    machine.run_command(["-c", STARTS], 60, ctx.settings.scratch / "log")


def waits(ctx):
    time.sleep(2)


def tells_environment(ctx):
    ctx.figures["variable"] = os.environ.get("PROVE_TEST")


def check(run, name=None, group="runtime", seconds=0.1, **more):
    return Check(name or run.__name__, group, run, "nothing", seconds, seconds, **more)


@pytest.fixture
def settings(tmp_path):
    return Settings("cpu", quick=True, data_dir=None, scratch=tmp_path)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs prove.py with made-up checks on the CPU; the exit code and the report."""
    monkeypatch.setattr(machine, "describe", lambda: {"commit": "abc"})

    def run(*checks, arguments=()):
        monkeypatch.setattr(prove, "CHECKS", checks)
        out = tmp_path / "report.json"
        code = prove.main(["--device", "cpu", "--out", str(out), *arguments])
        return code, json.loads(out.read_text())

    return run


# Verdicts.


def test_a_failure_does_not_stop_the_rest(script, capsys):
    code, report = script(check(fails), check(raises), check(crashes), check(skips), check(passes))
    assert code == 1
    verdicts = {row["name"]: (row["verdict"], row["reason"]) for row in report["checks"]}
    assert verdicts == {
        "fails": (FAILED, "one is not more than two"),
        "raises": (FAILED, "ValueError: a message of two lines"),
        "crashes": (FAILED, "its process ended unexpectedly (exit code 7)"),
        "skips": (SKIPPED, "needs a GPU: there is none"),
        "passes": (OK, ""),
    }
    assert report["checks"][0]["figures"] == {"measured": 1, "also measured": 2}
    table = capsys.readouterr().out
    assert "1 ok, 3 FAILED, 1 skipped, 0 not run: time" in table
    assert [line.split()[:2] for line in table.splitlines() if line.startswith("passes ")] == [
        ["passes", "ok"]
    ]


def test_the_report_names_the_machine_and_every_figure(script):
    code, report = script(check(passes))
    assert code == 0
    assert report["machine"] == {"commit": "abc"}
    assert (report["device"], report["quick"], report["budget"]) == ("cpu", True, 600)
    (row,) = report["checks"]
    assert (row["figures"]["answer"], row["summary"]) == (42, "forty-two")
    assert 0 <= row["seconds"] <= report["seconds"]


def test_the_report_is_whole_before_the_next_check_begins(script, monkeypatch, tmp_path):
    """What a run that is killed leaves behind."""

    class Killed(BaseException):
        pass

    real = prove.Report.add

    def add(self, result):
        real(self, result)
        raise Killed

    monkeypatch.setattr(prove.Report, "add", add)
    with pytest.raises(Killed):
        script(check(passes), check(skips))
    written = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in written["checks"]] == ["passes"]


def test_a_run_in_which_nothing_could_be_checked_proves_nothing(script):
    assert script(check(skips))[0] == 2


# Time.


def test_what_would_exceed_the_time_left_is_not_run(script):
    code, report = script(
        check(passes),
        check(waits, seconds=1000),
        check(passes, "last"),
        arguments=("--budget", "60"),
    )
    assert code == 0
    first, skipped, last = report["checks"]
    assert (first["verdict"], last["verdict"]) == (OK, OK)
    assert skipped["verdict"] == NOT_RUN
    assert skipped["reason"].startswith("expected 1000 s, left ")


@pytest.mark.slow
def test_a_check_that_hangs_is_ended_and_the_next_one_runs(settings, monkeypatch):
    monkeypatch.setattr(harness, "LEAST_LIMIT", 3.0)
    monkeypatch.setattr(harness, "QUICK_FACTOR", 1.0)
    begun = time.monotonic()
    hung, after = harness.run_checks([check(hangs), check(passes)], settings, 600)
    assert (hung.verdict, hung.reason) == (FAILED, "still running after 3 s, its time limit")
    assert after.verdict == OK
    assert time.monotonic() - begun < 50


@pytest.mark.slow
def test_a_check_that_is_running_when_the_time_is_up_has_not_failed(settings):
    (stopped,) = harness.run_checks([check(hangs)], settings, 4)
    assert stopped.verdict == NOT_RUN
    assert stopped.reason == "still running when the time was up, after 4 s"


@pytest.mark.slow
def test_a_check_that_fills_its_time_must_end_by_itself(settings):
    (stopped,) = harness.run_checks([check(hangs, fills=True)], settings, 4)
    assert (stopped.verdict, stopped.reason) == (FAILED, "still running after 4 s, its time limit")


@pytest.mark.slow
def test_what_a_hanging_check_started_is_ended_in_order(settings, monkeypatch):
    monkeypatch.setattr(harness, "LEAST_LIMIT", 3.0)
    monkeypatch.setattr(harness, "QUICK_FACTOR", 1.0)
    (hung,) = harness.run_checks([check(hangs_in_a_command)], settings, 600)
    assert hung.verdict == FAILED
    started = int((settings.scratch / "log").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)


@pytest.mark.slow
def test_a_larger_budget_lets_slow_checks_go_on(settings, monkeypatch):
    monkeypatch.setattr(harness, "LEAST_LIMIT", 1.0)
    monkeypatch.setattr(harness, "QUICK_FACTOR", 1.0)
    (stopped,) = harness.run_checks([check(waits)], settings, 600)
    (done,) = harness.run_checks([check(waits)], settings, 12_000)
    assert (stopped.verdict, done.verdict) == (FAILED, OK)


# Processes.


def test_a_group_shares_a_process_and_a_failure_gets_a_new_one(settings):
    checks = [
        check(passes, "first"),
        check(passes, "second"),
        check(fails),
        check(passes, "third"),
        check(passes, "other", group="training"),
    ]
    results = {result.name: result for result in harness.run_checks(checks, settings, 600)}
    first, second, third, other = (
        results[name].figures["process"] for name in ("first", "second", "third", "other")
    )
    assert first == second != third
    assert len({first, third, other, os.getpid()}) == 4


def test_a_check_can_have_a_process_to_itself_from_its_start(settings):
    checks = [check(passes, "before"), check(passes, "fresh", fresh=True), check(passes, "after")]
    before, fresh, after = (
        result.figures["process"] for result in harness.run_checks(checks, settings, 600)
    )
    assert before != fresh == after


def test_a_check_gets_its_variables_and_no_other_does(settings):
    checks = [
        check(tells_environment, "with", environment=(("PROVE_TEST", "yes"),)),
        check(tells_environment, "without"),
    ]
    given, other = harness.run_checks(checks, settings, 600)
    assert (given.figures["variable"], other.figures["variable"]) == ("yes", None)
    assert "PROVE_TEST" not in os.environ


# The command line.


def test_the_list_names_every_check_and_runs_none(capsys):
    assert prove.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [check.name for check in prove.CHECKS]
    assert len(set(listed)) == len(listed)
    assert all(check.proves and check.seconds > 0 for check in prove.CHECKS)
    groups = [check.group for check in prove.CHECKS]
    assert groups == sorted(groups)  # each group in one piece, so that each has one process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "cuda_equals_cpu,nope"],
            "--only: unknown check 'nope'; choose from cuda_equals_cpu, ",
        ),
        (["--device", "gpu"], "expected cpu, cuda or cuda:N, found 'gpu'"),
    ],
)
def test_what_is_unknown_ends_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        prove.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_only_the_chosen_checks_run_in_their_own_order(script):
    _, report = script(
        check(passes, "a"), check(fails), check(passes, "b"), arguments=("--only", "b,a")
    )
    assert [row["name"] for row in report["checks"]] == ["a", "b"]


def test_without_a_gpu_it_ends_with_2_and_says_what_was_found(monkeypatch, capsys):
    about = {
        "torch": {"version": "2.11", "cuda_available": False},
        "onnxruntime": {"providers": ["CPUExecutionProvider"]},
    }
    monkeypatch.setattr(machine, "describe", lambda: about)
    assert prove.main([]) == 2
    assert (
        "torch 2.11 sees no GPU; onnxruntime offers CPUExecutionProvider" in capsys.readouterr().err
    )


@pytest.mark.parametrize("part", ["torch", "onnxruntime"])
def test_either_package_with_cuda_is_enough_to_begin(part):
    about = {
        "torch": {"version": "2.11", "cuda_available": part == "torch"},
        "onnxruntime": {
            "providers": ["CUDAExecutionProvider"]
            if part == "onnxruntime"
            else ["CPUExecutionProvider"]
        },
    }
    assert prove.no_gpu(about) is None


def test_the_table_of_checks_imports_neither_torch_nor_onnxruntime():
    code = (
        f"import sys; sys.path.insert(0, {str(GPU_TESTS)!r}); import prove\n"
        "sys.exit(bool({'torch', 'onnxruntime', 'onnx', 'train', 'organ_infer'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=child_environment()).returncode == 0


@pytest.mark.slow
def test_real_checks_run_on_the_cpu(tmp_path):
    out = tmp_path / "report.json"
    command = [sys.executable, GPU_TESTS / "prove.py", "--device", "cpu", "--quick", "--out", out]
    command += ["--data-dir", tmp_path, "--only", "cuda_equals_cpu,node_placement,device"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_environment(), timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    equal, placed, device = report["checks"]
    assert equal["figures"]["data"] == "made-up slices"
    assert equal["figures"]["fp32"]["examples_right"] >= 42
    assert equal["figures"]["fp16"]["largest_difference"] > 0
    assert (placed["verdict"], placed["reason"][:11]) == (SKIPPED, "needs a GPU")
    assert device["verdict"] == OK
    assert report["machine"]["torch"]["version"] and report["machine"]["onnxruntime"]["providers"]


# What the checks judge by.


@pytest.fixture
def context(settings):
    return Context(settings, deadline=time.monotonic() + 60)


@pytest.mark.parametrize(
    ("precision", "change", "words"),
    [
        ("fp32", {}, None),
        ("fp32", {"largest_difference": 2e-3}, "a probability differs by 2.0e-03"),
        ("fp16", {"largest_difference": 2e-3}, None),
        ("fp32", {"labels_differ": 1}, None),
        ("fp32", {"labels_differ": 1, "labels_differ_clearly": 1}, "1 of 1000 labels differ"),
        ("fp16", {"labels_differ": 1}, None),
        ("fp16", {"labels_differ": 2}, "2 of 1000 labels differ"),
        ("fp32", {"examples_right": 41}, "41 of 44 examples right"),
    ],
)
def test_the_verdict_on_a_comparison(context, precision, change, words):
    compared = {
        "labels_differ": 0,
        "labels_differ_clearly": 0,
        "largest_difference": 0.0,
        "examples_right": 44,
    }
    runtime_checks.judge(context, precision, compared | change, 1000, 44)
    assert [words in problem for problem in context.problems] == ([True] if words else [])


def test_labels_of_ties_are_told_from_wrong_ones():
    expected = np.array([[0.5005, 0.4995], [0.9, 0.1], [0.2, 0.8]])
    found = np.array([[0.4995, 0.5005], [0.1, 0.9], [0.2, 0.8]])
    compared = runtime_checks.compare(expected, found, close=1e-3)
    assert (compared["labels_differ"], compared["labels_differ_clearly"]) == (2, 1)
    assert compared["largest_difference"] == pytest.approx(0.8)


def test_operators_that_compute_may_not_stay_on_the_cpu():
    placed = {
        "CUDAExecutionProvider": ["Conv", "Relu"],
        "CPUExecutionProvider": ["Shape", "Gather", "Gemm", "Conv"],
    }
    assert left_on_cpu(placed) == ["Conv", "Gemm"]
    assert (
        left_on_cpu({"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["Softmax"]}) == []
    )


def test_memory_that_grows_is_a_problem(context):
    runtime_checks._expect_flat(context, "40 threads", {"host": 3, "gpu": 49})
    assert context.problems == ["40 threads: gpu memory grew by 49 MiB"]


def test_what_a_run_reported_is_read_from_its_lines():
    output = (
        "12:00:00  base           epoch   1/3  loss 1.2  val accuracy 0.5 (best 0.5000, epoch 1)  1.0 s\n"
        "12:00:01  base           epoch   2/3  loss 1.1  val accuracy 0.6 (best 0.6000, epoch 2)  1.0 s\n"
        "12:00:02  edge           epoch  10/24  loss 1.1  val accuracy 0.6 (best 0.7000, epoch 9)  1.0 s\n"
    )
    assert training_commands._epochs(output) == {
        "base": {"epoch": 2, "of": 3, "val_accuracy": 0.6},
        "edge": {"epoch": 10, "of": 24, "val_accuracy": 0.7},
    }


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "3,5", "5"),
        ("cuda", "GPU-ab", "GPU-ab"),
    ],
)
def test_nvidia_smi_is_asked_about_the_same_gpu(device, visible, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert machine.smi_id(device, environment) == expected


def test_a_module_in_place_of_a_missing_one_counts_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", ModuleType("filelock"))
    assert machine.missing(["numpy", "filelock", "no_such.module"]) == [
        "filelock",
        "no_such.module",
    ]


def test_a_command_that_does_not_end_is_stopped(tmp_path):
    code = "import time; print('begun', flush=True); time.sleep(60)"
    done = machine.run_command(["-c", code], 2, tmp_path / "log")
    assert done.stopped and done.code == -15 and done.output == "begun\n" and done.seconds < 20


# The runtime's checks on a CUDA that computes on the CPU (support/fake_onnxruntime.py). Without the real onnxruntime no fp16 is made.


@pytest.fixture
def on_cuda(install_fake, tmp_path, monkeypatch):
    """Runs a check of the runtime in this process with a fake onnxruntime; its result."""
    memory = iter(range(1000, 1_000_000, 10))

    def run(function, *, grows=False, **how):
        install_fake(compute="network", **how)
        # the fake has no tools, whatever a test before has imported of the real onnxruntime's
        for name in [name for name in sys.modules if name.startswith("onnxruntime.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(
            runtime_checks, "gpu_memory", lambda device: next(memory) * 10 if grows else 1000
        )
        settings = Settings("cuda", quick=True, data_dir=None, scratch=tmp_path)
        return harness.run_one(check(function), settings, 300)

    return run


def test_cuda_that_answers_as_the_cpu_is_proved_equal(on_cuda):
    result = on_cuda(runtime_checks.cuda_equals_cpu)
    assert (result.verdict, result.reason) == (OK, "")
    assert result.figures["fp32"]["labels_differ"] == 0
    assert result.figures["fp16"].startswith("not run: fp16 is made with onnxruntime.transformers")


def test_an_onnxruntime_without_cuda_skips_the_check(on_cuda):
    result = on_cuda(runtime_checks.cuda_equals_cpu, available=("CPUExecutionProvider",))
    assert result.verdict == SKIPPED
    assert result.reason == "needs onnxruntime with CUDA; this one offers CPUExecutionProvider"


def test_cuda_that_is_offered_and_not_granted_fails_the_check(on_cuda):
    result = on_cuda(runtime_checks.cuda_equals_cpu, granted=("CPUExecutionProvider",))
    assert result.verdict == FAILED
    assert result.reason.startswith("DeviceError: device cuda: onnxruntime activated")


@pytest.mark.parametrize(
    ("on_cpu", "verdict", "reason"),
    [(["Shape"], OK, ""), (["Shape", "Gemm"], FAILED, "packaged fp32: on the CPU remain Gemm")],
)
def test_the_placement_of_nodes_is_judged(on_cuda, on_cpu, verdict, reason):
    placed = {"CUDAExecutionProvider": ["Conv", "Relu", "Conv"], "CPUExecutionProvider": on_cpu}
    result = on_cuda(runtime_checks.node_placement, placed=placed)
    assert (result.verdict, result.reason) == (verdict, reason)
    assert result.figures["packaged fp32"][0]["CUDAExecutionProvider"] == {"Conv": 2, "Relu": 1}


def test_latency_is_measured_for_every_batch_size(on_cuda):
    result = on_cuda(runtime_checks.latency_packaged)
    figures = result.figures["packaged fp32"]
    assert list(figures["batches"]) == [1, 4, 16, 64, 256]
    assert all(row["first_ms"] > 0 and row["p95_us"] > 0 for row in figures["batches"].values())
    assert figures["recorded"] == [(1, 4, 16, 64, 256)]


@pytest.mark.parametrize("grows", [False, True])
def test_gpu_memory_must_stay_flat(on_cuda, grows, monkeypatch):
    for name, count in {"CLASSIFIERS": 5, "WARM": 2, "THREADS": 4}.items():
        monkeypatch.setattr(runtime_checks, name, count)
    result = on_cuda(runtime_checks.lifetimes, grows=grows)
    assert result.figures["classifiers"]["growth_mib"]["gpu"] == (100 if grows else 0)
    assert (result.verdict == FAILED) == grows
    assert ("5 classifiers: gpu memory grew by 100 MiB" in result.reason) == grows


@pytest.mark.parametrize("refuses", [None, "capture"])
def test_graphs_must_be_recorded_and_answer_alike(on_cuda, refuses):
    result = on_cuda(runtime_checks.cuda_graphs, refuses=refuses)
    if "cuda_graphs" not in inspect.signature(OrganClassifier).parameters:
        assert result.verdict == SKIPPED and "cuda_graphs=..." in result.reason
        return
    recorded = [()] if refuses else [(1, 4, 16, 64, 256)]
    assert result.figures["packaged fp32"]["recorded"] == recorded
    assert result.verdict == (FAILED if refuses else OK)


# Slices and bundles.


def test_made_up_slices_are_the_same_each_time():
    made = slices.load.__wrapped__(None)
    assert {split: len(images) for split, images in made.images.items()} == slices.MADE_UP
    assert set(made.labels["val"]) == set(range(11))
    again = slices.load.__wrapped__(None)
    assert all(np.array_equal(made.images[split], again.images[split]) for split in slices.SPLITS)


@pytest.mark.parametrize("name", ["resnet50", "batch_norm"])
def test_the_random_networks_have_the_shapes_of_the_ladder(name):
    from onnx import numpy_helper
    from torch import nn

    from train.networks import make_network
    from train.stages import STAGES

    graph = bundles._Graph(seed=1)
    if name == "batch_norm":
        graph.small_cnn("images")
    else:
        graph.resnet("images", bundles.BLOCKS[name])
    written = sorted(
        value.shape for value in map(numpy_helper.to_array, graph.tensors) if value.ndim > 1
    )
    network = make_network(STAGES[name].network, classes=11, size=28, seed=1)
    trained = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shapes = sorted(tuple(weight.shape) for weight in trained)
    if name == "resnet50":  # its stem is folded to one channel when it is exported
        shapes = sorted([(64, 1, 7, 7), *(shape for shape in shapes if shape != (64, 3, 7, 7))])
    assert written == shapes


def test_the_random_ensemble_opens_and_answers(tmp_path):
    bundle = bundles.random_ensemble(["batch_norm"], "fp16", tmp_path)
    images = slices.load(None).images["val"][:8]
    with OrganClassifier(bundle, device="cpu") as classifier:
        answers = classifier.predict_proba(images)
        assert classifier.manifest.members[0].precision == "fp16"
    assert answers.shape == (8, 11) and np.ptp(answers, axis=0).max() > 1e-4


def test_without_onnx_the_ensemble_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(
        bundles, "missing", lambda names: [name for name in names if name == "onnx"]
    )
    with pytest.raises(Skip, match="onnx, which is not installed"):
        bundles.random_ensemble(["batch_norm"], "fp32", tmp_path)


def test_internals_that_have_changed_are_named(context):
    with pytest.raises(LookupError, match=r"internals have changed .*runtime_access.py"):
        recorded_sizes(SimpleNamespace(_ensemble=SimpleNamespace()))
