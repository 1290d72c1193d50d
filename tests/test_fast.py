"""fast=True and --fast: of a bundle that averages several networks, only the one that its manifest names is used."""

import json
import pickle
import re

import numpy as np
import pytest
from conftest import make_graph, write_bundle

from organ_infer import BundleError, OrganClassifier
from organ_infer.audit.run import identity_of
from organ_infer.bundle import files
from organ_infer.bundle.fast import fast_bundle
from organ_infer.bundle.files import list_bundle
from organ_infer.engine import ensemble as engine
from organ_infer.notebook import classifier_html
from tests.support.orientation_graphs import orientation_bundle, orientation_graph, slice_of

GRAPHS = {
    "first.onnx": make_graph(seed=1),
    "second.onnx": make_graph(seed=2),
    "third.onnx": make_graph(seed=3),
}
FAST = {"stage": "second", "temperature": 0.5, "plausibility": None, "metrics": {}}


@pytest.fixture(scope="module")
def fast_ensemble(tmp_path_factory):
    """Three networks, of which the second is the fast one."""
    folder = tmp_path_factory.mktemp("fast") / "three"
    return write_bundle(folder, GRAPHS, name="three", temperature=2.0, fast=FAST)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The fast member with its temperature as a bundle of its own."""
    graphs = {"second.onnx": GRAPHS["second.onnx"]}
    return write_bundle(tmp_path_factory.mktemp("fast") / "one", graphs, temperature=0.5)


@pytest.fixture
def opened_files(monkeypatch):
    """The names of the graphs that are opened as sessions."""
    names = []
    real = engine.Session

    def session(graph, **options):
        names.append(re.split(r"[\\/]", options["where"])[-1])
        return real(graph, **options)

    monkeypatch.setattr(engine, "Session", session)
    return names


# The answers.


@pytest.mark.parametrize("options", [{}, {"tta": True}, {"batch_size": 3}, {"orientation": "PL"}])
def test_the_answers_are_those_of_a_bundle_of_this_member_alone(
    fast_ensemble, alone, slices, options
):
    with (
        OrganClassifier(fast_ensemble, device="cpu", fast=True, **options) as fast,
        OrganClassifier(alone, device="cpu", **options) as single,
        OrganClassifier(fast_ensemble, device="cpu", **options) as whole,
    ):
        expected = single.predict_proba(slices[:10])
        np.testing.assert_array_equal(fast.predict_proba(slices[:10]), expected)
        assert fast.predict(slices[:4]) == single.predict(slices[:4])
        np.testing.assert_array_equal(fast.explain(slices[0]), single.explain(slices[0]))
        labels = [0] * 10
        assert fast.evaluate(slices[:10], labels) == single.evaluate(slices[:10], labels)
        assert np.abs(whole.predict_proba(slices[:10]) - expected).max() > 0.01


def test_the_member_has_its_own_threshold_of_plausibility(tmp_path):
    graphs = [orientation_graph([0.04, *[0.12] * 8]), orientation_graph([0.2, *[0.1] * 8])]
    plausibility = {"output": "orientation", "threshold": 0.05}
    fast = FAST | {"stage": "m0", "plausibility": plausibility}
    folder = orientation_bundle(tmp_path / "b", *graphs, threshold=0.15, fast=fast)
    found = {}
    for threshold in (0.03, 0.05):
        text = json.loads((folder / "manifest.json").read_text())
        text["fast"]["plausibility"]["threshold"] = threshold
        (folder / "manifest.json").write_text(json.dumps(text))
        with OrganClassifier(folder, device="cpu", fast=True) as opened:
            (prediction,) = opened.predict(slice_of(0))
        assert prediction.plausibility == pytest.approx(0.04, abs=1e-6)
        found[threshold] = any("plausibility" in warning for warning in prediction.warnings)
    assert found == {0.03: False, 0.05: True}


# The files.


def test_only_the_file_of_the_member_is_read_and_opened(fast_ensemble, opened_files, monkeypatch):
    read = []
    real = files._read
    monkeypatch.setattr(files, "_read", lambda p, limit: read.append(p.name) or real(p, limit))
    with OrganClassifier(fast_ensemble, device="cpu", fast=True) as opened:
        assert opened.manifest.members[0].stage == "second"
    assert opened_files == ["second.onnx"]
    assert sorted(read) == ["MODEL_CARD.md", "manifest.json", "second.onnx"]
    OrganClassifier(fast_ensemble, device="cpu").close()
    assert opened_files[1:] == list(GRAPHS)


def test_damage_to_another_member_is_no_obstacle_but_a_missing_file_is(tmp_path):
    folder = write_bundle(tmp_path / "b", GRAPHS, fast=FAST)
    data = bytearray(GRAPHS["third.onnx"])
    data[-1] ^= 1
    (folder / "third.onnx").write_bytes(data)
    OrganClassifier(folder, device="cpu", fast=True).close()
    with pytest.raises(BundleError, match=r"third\.onnx: sha256"):
        OrganClassifier(folder, device="cpu")
    (folder / "third.onnx").unlink()
    with pytest.raises(BundleError, match=r"'third\.onnx' is listed in manifest\.json but missing"):
        OrganClassifier(folder, device="cpu", fast=True)


def test_each_device_has_its_variant_of_the_member(tmp_path):
    half = make_graph(seed=5)

    def change(manifest):
        variant = manifest["members"].pop() | {"precision": "fp16"}
        manifest["members"][1]["alternatives"] = [variant]

    graphs = GRAPHS | {"half.onnx": half}
    folder = write_bundle(tmp_path / "b", graphs, fast=FAST, change=change)
    used = fast_bundle(list_bundle(folder))
    assert [e.file for e, _ in used.verified("cpu").graphs] == ["second.onnx"]
    assert [e.file for e, _ in used.verified("cuda").graphs] == ["half.onnx"]


def test_the_cache_keeps_the_member_and_the_average_apart(
    fast_ensemble, slices, tmp_path, monkeypatch, opened_files
):
    monkeypatch.setattr(engine, "CACHE_THRESHOLD", 0)
    monkeypatch.setenv("ORGAN_INFER_CACHE", str(tmp_path / "cache"))
    answers = {}
    for fast in (True, False, True, False):
        with OrganClassifier(fast_ensemble, device="cpu", fast=fast) as opened:
            found = opened.predict_proba(slices[:3])
        np.testing.assert_array_equal(answers.setdefault(fast, found), found)
    entries = sorted((tmp_path / "cache").iterdir())
    assert len(entries) == 2
    before = {path: path.stat().st_ino for path in entries}
    OrganClassifier(fast_ensemble, device="cpu", fast=True).close()
    # neither replaced the other
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").iterdir()} == before


# What is refused, and what has no effect.


def test_an_average_that_names_no_fast_member_is_refused_in_one_line(ensemble):
    with pytest.raises(BundleError) as caught:
        OrganClassifier(ensemble, device="cpu", fast=True)
    assert str(caught.value) == (
        f"{ensemble}: averages 3 networks, and names none of them for --fast or fast=True;"
        " export the bundle again with python -m export.all, or leave the option out"
    )


def test_a_bundle_of_one_network_is_the_same_with_and_without(bundle, slices):
    with (
        OrganClassifier(bundle, device="cpu", fast=True) as fast,
        OrganClassifier(bundle, device="cpu") as plain,
    ):
        np.testing.assert_array_equal(
            fast.predict_proba(slices[:5]), plain.predict_proba(slices[:5])
        )
        assert fast.manifest == plain.manifest and repr(fast) == repr(plain)


def test_the_pinned_model_is_the_whole_bundle(fast_ensemble):
    sha256 = list_bundle(fast_ensemble).sha256
    with OrganClassifier(fast_ensemble, device="cpu", fast=True, expected_sha256=sha256) as opened:
        assert opened.sha256 == sha256
    with pytest.raises(BundleError, match="another model"):
        OrganClassifier(fast_ensemble, device="cpu", fast=True, expected_sha256="0" * 64)


# What says that only one member is used.


def test_a_classifier_says_which_member_it_uses(fast_ensemble):
    with OrganClassifier(fast_ensemble, device="cpu", fast=True) as opened:
        assert repr(opened).startswith("<OrganClassifier three (only second), axial, 11 classes, ")
        page = classifier_html(opened.manifest, opened.sha256, "CPU")
        assert "three (only second)" in page and "second (fp32)" in page and "first" not in page
        assert opened.manifest.temperature == 0.5 and opened.manifest.fast is None


def test_a_pickled_classifier_keeps_the_option(fast_ensemble, slices):
    with (
        OrganClassifier(fast_ensemble, device="cpu", fast=True) as opened,
        pickle.loads(pickle.dumps(opened)) as again,
    ):
        assert repr(again) == repr(opened)
        np.testing.assert_array_equal(
            again.predict_proba(slices[:3]), opened.predict_proba(slices[:3])
        )


def test_an_audit_with_and_without_the_option_are_two_runs(fast_ensemble):
    with (
        OrganClassifier(fast_ensemble, device="cpu", fast=True) as fast,
        OrganClassifier(fast_ensemble, device="cpu") as whole,
    ):
        first, second = (identity_of(opened, 5.0, False) for opened in (fast, whole))
    assert first.difference(first) is None and second.difference(second) is None
    assert second.difference(first) == "the model three (only second), now three"
    assert first.difference(second) == "the model three, now three (only second)"


# The command.


def test_the_command_runs_the_member_alone(command, fast_ensemble, alone, three_images):
    options = ("--device", "cpu", "--format", "csv", *three_images)
    fast = command("--fast", "--bundle", fast_ensemble, *options, model=None)
    single = command("--bundle", alone, *options, model=None)
    whole = command("--bundle", fast_ensemble, *options, model=None)
    assert fast.returncode == single.returncode == 0
    assert fast.stdout == single.stdout != whole.stdout


def test_the_report_and_the_metrics_name_the_member(command, fast_ensemble, three_images, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{path},liver\n" for path in three_images))
    page, metrics = tmp_path / "r.html", tmp_path / "m.json"
    done = command(
        "--fast", "--bundle", fast_ensemble, "--device", "cpu", "--report", page, "--labels", labels,
        "--metrics", metrics, *three_images, model=None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(metrics.read_text())["model"] == "three (only second)"
    assert "three (only second), axial slices" in page.read_text()


def test_the_command_refuses_an_average_without_a_fast_member(command, ensemble, three_images):
    done = command("--fast", "--bundle", ensemble, *three_images, model=None)
    assert done.returncode == 2 and "averages 3 networks" in done.stderr


def test_the_check_says_which_member_is_used(command, fast_ensemble, ensemble):
    check = ("--check", "--device", "cpu", "--bundle")
    fast = command("--fast", *check, fast_ensemble, model=None)
    assert fast.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in fast.stdout.splitlines() if line[0] != " ")
    assert lines["model"].startswith("three (only second): ")
    assert lines["fast"] == "only second is used, 1 of 3 networks (--fast)"
    assert lines["self-test"].startswith("second fp32: ")
    plain = command(*check, fast_ensemble, model=None).stdout
    assert "all 3 networks are used; with --fast only second\n" in plain
    assert "first fp32, second fp32, third fp32: " in plain
    refused = command("--fast", *check, ensemble, model=None)
    assert refused.returncode == 2 and "averages 3 networks" in refused.stderr
    assert "fast  " not in command(*check, ensemble, model=None).stdout


@pytest.mark.parametrize("key", ["golden", "golden_orientation"])
def test_the_check_names_the_known_answers_that_are_malformed(command, tmp_path, key):
    graphs = [orientation_graph([0.2, *[0.1] * 8])] * 2
    plausibility = {"output": "orientation", "threshold": 0.05}
    fast = FAST | {"stage": "m0", "plausibility": plausibility, "metrics": {key: {"cpu": ["1"]}}}
    folder = orientation_bundle(tmp_path / "b", *graphs, threshold=0.15, fast=fast)
    options = ("--check", "--device", "cpu", "--bundle", folder)
    done = command(*options, "--fast", model=None)
    assert done.returncode == 2
    assert f"manifest.json: fast.metrics.{key}.cpu must be 16 strings" in done.stderr
    assert command(*options, model=None).returncode == 0


# Ray and the web service take the arguments of the classifier.


def test_a_ray_worker_takes_the_option(fast_ensemble, alone, pictures):
    pytest.importorskip("pyarrow")
    from organ_infer.ray import ClassifyBatch

    names = np.array([str(path) for path in sorted(pictures.glob("*.png"))[:3]])
    fast = ClassifyBatch(fast_ensemble, fast=True)({"path": names})
    single = ClassifyBatch(alone)({"path": names})
    assert fast.num_rows == len(names) and fast.equals(single)


def test_a_ray_worker_of_an_audit_takes_the_option(fast_ensemble):
    from organ_infer.ray import AuditBatch

    worker = AuditBatch(fast_ensemble, fast=True)
    assert "three (only second)" in repr(worker._auditor._classifier)


def test_the_service_names_the_member(fast_ensemble, tmp_path):
    pytest.importorskip("starlette")
    from support.service import running_service

    options = ("--fast", "--bundle", fast_ensemble, "--device", "cpu", "--threads", 1)
    with running_service(tmp_path / "log", *options) as service:
        assert service.ask("GET", "/healthz").json["model"] == "three (only second)"
        assert service.stop()[0] == 143
