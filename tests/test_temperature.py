"""The temperature against searches by hand, and what it is where the labels cannot tell."""

import json

import numpy as np
import pytest
from conftest import CLASSES, make_graph

from export.bundle import Slices, Trained, write_bundle
from export.temperature import HIGHEST, LOWEST, expected_calibration_error, fit_temperature, mean_softmax
from organ_infer import OrganClassifier
from train.results import calibration


def drawn(*, count=4000, classes=5, seed=0):
    """Logits, and labels drawn from their softmax: calibrated as they are."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, classes))
    p = mean_softmax([logits])
    return logits, (p.cumsum(1) < generator.random((count, 1))).sum(1).clip(max=classes - 1)


def loss(logits, labels, temperature):
    p = np.mean(
        [np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True) for z in logits], axis=0
    )
    return -np.log(p[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_a_network_that_is_too_sure_is_cooled_by_as_much(scale):
    logits, labels = drawn()
    found = fit_temperature([scale * logits], labels)
    assert found == pytest.approx(scale, rel=0.06)
    if scale == 4.0:
        before, after = (
            expected_calibration_error(mean_softmax([4 * logits], t), labels) for t in (1, found)
        )
        assert after < 0.02 < 0.1 < before


def test_it_is_the_members_mean_that_becomes_likely():
    (first, labels), (second, _) = drawn(), drawn(seed=1)
    members = [6 * first.astype(np.float32), 0.5 * second.astype(np.float32)]
    grid = np.geomspace(0.3, 15, 400)
    best = grid[np.argmin([loss([m.astype(float) for m in members], labels, t) for t in grid])]
    assert fit_temperature(members, labels) == pytest.approx(best, rel=0.011)
    assert fit_temperature(members[:1], labels) != pytest.approx(best, rel=0.05)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.eye(3) * 5, [0, 1, 2]),  # all right
        (np.zeros((6, 3)), [0, 1, 2, 0, 1, 2]),  # one answer for all
        (np.array([[9.0, 0, 0], [8.0, 0, 0]]), [0, 0]),  # one class
        (np.zeros((0, 3)), []),
    ],
)
def test_it_is_1_where_the_labels_cannot_tell(logits, labels):
    assert fit_temperature([logits, logits], np.array(labels, int)) == 1.0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("labels", [[1, 2, 0, 1], [0, 1, 2, 1], [0, 0, 0, 0]])
def test_it_stays_within_its_bounds(scale, labels):
    logits = scale * np.array([[9.0, 0, 1], [0, 9, 1], [0, 1, 9], [3, 2, 1]])
    assert LOWEST <= fit_temperature([logits], np.array(labels)) <= HIGHEST
    wrong = fit_temperature([1e6 * np.eye(3)], np.array([1, 2, 0]))
    assert wrong == HIGHEST


def test_kept_probabilities_calibrate_as_their_logits_would():
    (first, labels), (second, _) = drawn(), drawn(seed=1)
    halves = {"val": slice(0, 2000), "test": slice(2000, None)}
    logits = {s: [5 * first[rows], second[rows]] for s, rows in halves.items()}
    members = [{s: mean_softmax([logits[s][i]]).astype(np.float32) for s in halves} for i in (0, 1)]
    found = calibration(members, {s: labels[rows] for s, rows in halves.items()})
    assert found["temperature"] == pytest.approx(fit_temperature(logits["val"], labels[:2000]), abs=0.002)
    for split, rows in halves.items():
        expected = expected_calibration_error(mean_softmax(logits[split], found["temperature"]), labels[rows])
        assert found[f"{split}_ece"] == pytest.approx(expected, abs=1e-3)
    assert list(found) == ["temperature", "val_ece", "test_ece"]


def test_probabilities_of_zero_are_no_infinite_logits():
    member = {s: np.eye(3, dtype=np.float32) for s in ("val", "test")}
    found = calibration([member], {"val": np.array([0, 1, 1]), "test": np.array([0, 1, 2])})
    assert LOWEST <= found["temperature"] <= HIGHEST and np.isfinite(list(found.values())).all()


def test_a_bundle_holds_the_temperature_of_what_it_lists(tmp_path):
    """Two networks that know nothing: the bundle's answers are calibrated, its float32 figures stay as they were."""
    generator = np.random.default_rng(3)
    images, labels = generator.integers(0, 256, (300, 28, 28), np.uint8), generator.integers(0, 11, 300)
    members = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(make_graph(seed=seed))
        members.append(Trained(f"net{seed}", path))
    said = []
    bundle = write_bundle(
        tmp_path / "bundle",
        dataset="organamnist",
        view="axial",
        classes=CLASSES,
        size=28,
        members=members,
        slices=Slices(images, images, labels, 28),
        precisions=("fp32",),
        metrics={"val": {"accuracy": 0.1, "auc": None, "ece": 0.7}},
        training={"seed": 1},
        name="organamnist-ensemble",
        say=said.append,
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    with OrganClassifier(bundle, device="cpu") as classifier:
        found = classifier.predict_proba(images)
    listed = manifest["metrics"]["val_as_listed"]
    assert manifest["temperature"] > 1
    assert listed["accuracy"] == (found.argmax(1) == labels).mean()
    assert listed["ece"] == pytest.approx(expected_calibration_error(found, labels), abs=1e-5)
    assert listed["ece"] < listed["ece_uncalibrated"]
    assert manifest["metrics"]["val"]["ece"] == 0.7
    card = (bundle / "MODEL_CARD.md").read_text()
    for text in (f"temperature {manifest['temperature']:g}", f"{listed['ece_uncalibrated']:.4f} before", f"{listed['ece']:.4f} after"):  # fmt: skip
        assert text in card
    assert said[-1].startswith(f"temperature {manifest['temperature']:g}: ECE on validation")
