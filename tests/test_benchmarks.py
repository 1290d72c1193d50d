"""tests/benchmarks with pytest-benchmark's own options: a baseline is saved, and a slower build fails against it."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT, child_environment, entry, make_graph, needs_default, write_bundle

from organ_infer import OrganClassifier
from tests.benchmarks.bundles import with_precision

# Each runs benchmarks in a process of its own.
pytestmark = [needs_default, pytest.mark.slow]

LATENCY = "tests/benchmarks/test_latency.py"
CASES = [f"{LATENCY}::test_predict_proba[cpu-packaged-int8-1]", f"{LATENCY}::test_pack[4]"]
# As a slower build would be: 10 ms more than some 0.2 ms.
SLOWER = """
import time
from organ_infer import OrganClassifier

predict_proba = OrganClassifier.predict_proba

def slower(self, images):
    time.sleep(0.01)
    return predict_proba(self, images)

OrganClassifier.predict_proba = slower
"""
# So generous that a busy machine does not exceed it: 11 times as long.
THRESHOLD = "--benchmark-compare-fail=median:1000%"
TURNS = """
import time
from tests.benchmarks.comparison import compare

turns = []

def turn(name, seconds):
    turns.append(name)
    time.sleep(seconds)

def test_turns(benchmark):
    try:
        medians = compare(
            benchmark,
            lambda: turn("target", 0.1),
            lambda: turn("baseline", 0.001),
            group="sleeping",
            against="a nap",
            rounds=5,
            warmup_rounds=2,
        )
    finally:
        assert turns == ["target", "baseline"] * (7 if benchmark.enabled else 1)
    assert medians.ratio == medians.target / medians.baseline
    assert abs(medians.ratio * medians.speedup - 1) < 1e-9
    assert medians.ratio LIMIT
"""


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """Runs the two cases with pytest-benchmark's options, and results in a directory of the test's own."""
    storage = tmp_path_factory.mktemp("storage")
    plugins = tmp_path_factory.mktemp("plugins")
    (plugins / "slower_build.py").write_text(SLOWER)
    environment = {
        name: value
        for name, value in child_environment().items()
        if not name.startswith(("PYTEST_", "ORGAN_INFER_BENCHMARK"))
    }
    environment["PYTHONPATH"] += os.pathsep + str(plugins)

    def run(*options, cases=CASES, **variables):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-ra",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
        ]
        return subprocess.run(
            [*command, f"--benchmark-storage=file://{storage}", *options, *cases],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment | variables,
            timeout=120,
        )

    run.storage = storage
    return run


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The file for --benchmark-json."""
    return tmp_path_factory.mktemp("figures") / "figures.json"


@pytest.fixture(scope="module")
def saved(benchmarks, figures):
    """The finished run that saved the baseline and wrote the JSON."""
    return benchmarks(
        "--benchmark-only", "--benchmark-save=baseline", f"--benchmark-json={figures}"
    )


def test_a_baseline_is_saved(benchmarks, saved):
    assert saved.returncode == 0, saved.stdout + saved.stderr
    assert "2 passed" in saved.stdout
    files = list(benchmarks.storage.rglob("*.json"))
    assert [file.name for file in files] == ["0001_baseline.json"]
    names = [each["fullname"] for each in json.loads(files[0].read_text())["benchmarks"]]
    assert names == CASES


def test_the_same_build_passes_against_the_baseline(benchmarks, saved):
    done = benchmarks("--benchmark-compare=0001", THRESHOLD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0001_baseline.json" in done.stderr


def test_a_slower_build_fails_against_the_baseline(benchmarks, saved):
    done = benchmarks("-p", "slower_build", "--benchmark-compare", THRESHOLD)
    assert done.returncode == 1, done.stdout + done.stderr
    regressions = (done.stdout + done.stderr).partition("Performance has regressed:")[2]
    assert "test_predict_proba[cpu-packaged-int8-1]" in regressions
    assert "test_pack" not in regressions


def test_the_json_holds_plain_figures(saved, figures):
    predict, pack = json.loads(figures.read_text())["benchmarks"]
    assert predict["group"] == "cpu packaged int8"
    assert predict["params"] == {"model": "cpu-packaged-int8", "batch": 1}
    extra = predict["extra_info"]
    assert (extra["bundle"], extra["precision"], extra["batch"]) == ("packaged", "int8", 1)
    assert extra["device"] and extra["onnxruntime"]
    assert extra["slices_per_second"] == pytest.approx(1 / predict["stats"]["median"])
    seconds = predict["stats"]["data"]
    assert len(seconds) == 300
    assert extra["p95"] == pytest.approx(
        statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    )
    assert (pack["group"], pack["extra_info"]["batch"]) == ("cpu packing", 4)
    assert pack["extra_info"]["slices_per_second"] == pytest.approx(4 / pack["stats"]["median"])


def test_every_case_is_collected_in_one_order(benchmarks):
    """Names stay, because a baseline is found by them."""
    done = benchmarks("--collect-only", "-q", cases=[LATENCY])
    names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    expected = [
        f"test_{call}[{device}-{bundle}-{precision}-{batch}]"
        for call in ("predict_proba", "predict", "predict_paths")
        for device, bundle, precision in [
            ("cpu", "packaged", "int8"),
            ("cpu", "packaged", "fp32"),
            ("cpu", "ensemble", "int8"),
            ("cpu", "ensemble", "fp32"),
            ("cuda", "packaged", "fp32"),
            ("cuda", "ensemble", "fp16"),
            ("cuda", "ensemble", "fp32"),
        ]
        for batch in (1, 4, 16, 64, 256)
    ]
    expected += [f"test_pack[{batch}]" for batch in (1, 4, 16, 64, 256)]
    assert sorted(names) == sorted(expected)


# Bundles.

FEW_BITS, EXACT = make_graph(seed=1), make_graph(seed=2)


def two_precisions(folder, **top):
    """A bundle with one member in int8 and float32, by the manifest's word alone: the two have different weights."""

    def change(manifest):
        listed = {**entry(FEW_BITS, "few_bits.onnx"), "precision": "int8"}
        manifest["members"] = [{**listed, "alternatives": [entry(EXACT, "exact.onnx")]}]

    return write_bundle(
        folder, {"few_bits.onnx": FEW_BITS, "exact.onnx": EXACT}, change=change, **top
    )


def test_a_bundle_of_ones_own_runs_in_each_of_its_precisions(benchmarks, tmp_path):
    bundle = two_precisions(tmp_path / "own", name="my own")
    cases = [f"{LATENCY}::test_predict[cpu-my-own-{precision}-1]" for precision in ("int8", "fp32")]
    done = benchmarks(
        f"--benchmark-json={tmp_path / 'figures.json'}",
        cases=cases,
        ORGAN_INFER_BENCHMARK_BUNDLE=str(bundle),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())["benchmarks"]
    assert [each["group"] for each in found] == ["cpu my-own int8", "cpu my-own fp32"]
    assert [each["extra_info"]["precision"] for each in found] == ["int8", "fp32"]


def test_a_copy_of_a_bundle_runs_in_the_precision_that_is_asked_for(tmp_path, slices):
    bundle = two_precisions(tmp_path / "both")
    plain = write_bundle(tmp_path / "plain", {"exact.onnx": EXACT})
    copy = with_precision(bundle, "fp32", "cpu", tmp_path / "copy")
    assert with_precision(bundle, "int8", "cpu", tmp_path / "unused") == bundle
    with (
        OrganClassifier(copy, device="cpu") as found,
        OrganClassifier(plain, device="cpu") as expected,
    ):
        assert (found.predict_proba(slices) == expected.predict_proba(slices)).all()


# Comparisons.


@pytest.mark.parametrize(("limit", "code"), [("> 2", 0), ("< 2", 1)])
def test_contestants_take_turns(benchmarks, tmp_path, limit, code):
    file = tmp_path / "test_turns.py"
    file.write_text(TURNS.replace("LIMIT", limit))
    done = benchmarks(
        "--benchmark-only", f"--benchmark-json={tmp_path / 'turns.json'}", cases=[str(file)]
    )
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        [found] = json.loads((tmp_path / "turns.json").read_text())["benchmarks"]
        extra = found["extra_info"]
        assert (found["group"], extra["baseline"]) == ("sleeping", "a nap")
        assert extra["ratio"] == pytest.approx(found["stats"]["median"] / extra["baseline_seconds"])


def test_a_comparison_is_skipped_when_benchmarks_are_disabled(benchmarks, tmp_path):
    file = tmp_path / "test_turns.py"
    file.write_text(TURNS.replace("LIMIT", "< 0"))
    done = benchmarks("--benchmark-disable", cases=[str(file)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "benchmarks are disabled: both ran once, nothing was timed" in done.stdout
