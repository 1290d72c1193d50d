"""The temperature against searches by hand, and what it is where the labels cannot tell."""

import json

import numpy as np
import pytest
from conftest import CLASSES, make_graph

from export.bundle import Slices, Trained, write_bundle
from export.forms import logits_of
from export.temperature import HIGHEST, LOWEST, expected_calibration_error, fit_temperature, mean_softmax
from organ_infer import OrganClassifier
from train.calibration import SPLIT, calibration, described, fitted_on
from train.corruptions import CORRUPTIONS, corrupt
from train.data import Data


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
    halves = {"val": slice(0, 1000), SPLIT: slice(1000, 2500), "test": slice(2500, None)}
    logits = {s: [5 * first[rows], second[rows]] for s, rows in halves.items()}
    members = [{s: mean_softmax([logits[s][i]]).astype(np.float32) for s in halves} for i in (0, 1)]
    found = calibration(members, {s: labels[rows] for s, rows in halves.items()})
    assert found["temperature"] == pytest.approx(
        fit_temperature(logits[SPLIT], labels[halves[SPLIT]]), abs=0.002
    )
    for split in ("val", "test"):
        rows = halves[split]
        expected = expected_calibration_error(mean_softmax(logits[split], found["temperature"]), labels[rows])
        assert found[f"{split}_ece"] == pytest.approx(expected, abs=1e-3)
    assert list(found) == ["temperature", "val_ece", "test_ece"]


def test_probabilities_of_zero_are_no_infinite_logits():
    member = {s: np.eye(3, dtype=np.float32) for s in ("val", SPLIT, "test")}
    wrong = np.array([0, 1, 1])
    found = calibration([member], {"val": wrong, SPLIT: wrong, "test": np.array([0, 1, 2])})
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


def some_data(count=30):
    generator = np.random.default_rng(5)
    images = {s: generator.integers(0, 256, (count, 28, 28), np.uint8) for s in ("train", "val", "test")}
    labels = {s: generator.integers(0, 11, count) for s in images}
    return Data("organamnist", "axial", 28, "0" * 32, list(CLASSES), images, labels, {})


def test_temperatures_are_fitted_on_validation_and_its_corrupted_copies():
    data = some_data()
    found = fitted_on(data, 10)
    chosen = np.linspace(0, 29, 10).round().astype(int)
    plain = data.images["val"][chosen]
    copies = found.images[SPLIT].reshape(14, 10, 28, 28)
    assert np.array_equal(copies[0], plain)
    for name, copy in zip(CORRUPTIONS, copies[1:], strict=True):
        assert np.array_equal(copy, corrupt(plain, name, 3)) and not np.array_equal(copy, plain), name
    assert np.array_equal(found.labels[SPLIT].reshape(14, 10), np.tile(data.labels["val"][chosen], (14, 1)))
    assert all(found.images[s] is data.images[s] and found.labels[s] is data.labels[s] for s in data.images)
    assert described(found) == "10 validation slices and 13 corrupted copies of each (MedMNIST-C, severity 3)"
    assert len(fitted_on(data).labels[SPLIT]) == 14 * 30  # no more than there are


def test_a_bundle_is_calibrated_on_what_it_is_told(tmp_path):
    """Labels that are the network's own answers on validation, and others on the slices to fit on."""
    generator = np.random.default_rng(4)
    images = generator.integers(0, 256, (200, 28, 28), np.uint8)
    path = tmp_path / "net.onnx"
    path.write_bytes(make_graph(seed=1))
    right = logits_of(path.read_bytes(), images, 28).argmax(1)
    mixed = np.where(np.arange(200) % 2, right, (right + 1) % 11)
    slices = Slices(images, images, right, 28, (images[:150], mixed[:150]))
    bundle = write_bundle(
        tmp_path / "bundle",
        dataset="organamnist",
        view="axial",
        classes=CLASSES,
        size=28,
        members=[Trained("net", path)],
        slices=slices,
        precisions=("fp32",),
        metrics={"val": {"accuracy": 1.0, "auc": None, "ece": 0.1}},
        training={"seed": 1, "temperature_fitted_on": "slices made for this test"},
        name="organamnist-net",
        say=lambda line: None,
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    expected = fit_temperature([logits_of(path.read_bytes(), images[:150], 28)], mixed[:150])
    assert manifest["temperature"] == expected != 1.0  # validation alone, all right, would give 1
    assert manifest["metrics"]["val_as_listed"]["accuracy"] == 1.0
    assert (
        "fitted to the forms in use on\nslices made for this test." in (bundle / "MODEL_CARD.md").read_text()
    )
