"""The temperature against searches by hand, and what it is where the labels cannot tell."""

import hashlib
import json
import re

import numpy as np
import pytest
from conftest import CLASSES, make_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from export.bundle import Trained, write_bundle
from export.bundle_info import BundleInfo
from export.temperature import (
    HIGHEST,
    LOWEST,
    Labeled,
    fit_temperature,
    mean_softmax,
    why_higher,
    why_rejected,
)
from export.variants import Slices, logits_of
from organ_infer import OrganClassifier
from organ_infer.evaluation.calibration import expected_calibration_error
from tests.support.unequal_splits import Origins, npz_of, unequal_data
from train import calibration as calibration_module
from train.calibration import (
    SPLIT,
    add_calibration_split,
    describe_split,
    fit_calibration,
    variant_slices,
)
from train.corruptions import CORRUPTIONS, corrupt
from train.data import load_data


def drawn(*, count=4000, classes=5, seed=0):
    """Logits, and labels drawn from their softmax: calibrated as they are."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, classes))
    p = mean_softmax([logits])
    return logits, (p.cumsum(1) < generator.random((count, 1))).sum(1).clip(max=classes - 1)


def loss(logits, labels, temperature):
    p = np.mean(
        [np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True) for z in logits],
        axis=0,
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


# three kinds of slices, whose labels occur exactly as often as the probabilities say
SHARES = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9]])


def calibrated():
    """Logits (60, 3) that are calibrated exactly, and their labels."""
    counts = np.rint(20 * SHARES).astype(int)
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
    return np.log(SHARES).repeat(20, axis=0), labels


@pytest.mark.parametrize("temperature", [0.06, 0.25, 0.8, 1.0, 1.5, 2.0, 7.0, 19.0])
def test_a_known_temperature_is_recovered_to_three_decimals(temperature):
    logits, labels = calibrated()
    assert fit_temperature([temperature * logits], labels) == pytest.approx(temperature, abs=0.0011)
    assert fit_temperature(
        [(temperature * logits).astype(np.float32)] * 3, labels
    ) == pytest.approx(temperature, abs=0.0011)


@pytest.mark.parametrize(
    ("temperature", "bound"), [(0.001, 0.05), (0.04, 0.05), (25.0, 20.0), (1000.0, 20.0)]
)
def test_a_temperature_beyond_005_and_20_is_the_bound(temperature, bound):
    logits, labels = calibrated()
    assert fit_temperature([temperature * logits], labels) == bound


@pytest.mark.parametrize(
    ("temperature", "rounded"), [(0.1237, 0.124), (1.2344, 1.234), (7.6548, 7.655)]
)
def test_a_temperature_is_rounded_to_three_decimals(temperature, rounded):
    logits, labels = calibrated()
    assert fit_temperature([temperature * logits], labels) == rounded


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.sampled_from([0.1, 1.0, 8.0]))
def test_a_temperature_changes_no_label_of_a_single_network(seed, temperature, spread):
    logits = np.random.default_rng(seed).normal(0, spread, (20, 11))
    found = mean_softmax([logits], temperature)
    assert np.array_equal(found.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(found, softmax(logits / temperature, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.permutations(range(4)))
def test_the_order_of_the_members_changes_neither_mean_nor_temperature(seed, temperature, order):
    generator = np.random.default_rng(seed)
    members = [generator.normal(0, spread, (30, 5)) for spread in (0.5, 1, 3, 9)]
    other = [members[i] for i in order]
    expected = np.mean([softmax(z / temperature, axis=1) for z in members], axis=0)
    np.testing.assert_allclose(mean_softmax(members, temperature), expected, rtol=1e-12)
    np.testing.assert_allclose(mean_softmax(other, temperature), expected, rtol=1e-12)
    labels = generator.integers(0, 5, 30)
    assert fit_temperature(members, labels) == pytest.approx(
        fit_temperature(other, labels), abs=0.0011
    )


def test_an_ensemble_whose_mean_answers_every_slice_right_keeps_temperature_1():
    """Each member alone errs, so that a temperature could be fitted to it."""
    first = np.array([[4.0, 0, 0], [0.5, 0, 0], [0, 0, 3.0]])
    second = np.array([[0, 0.5, 0], [0, 5.0, 0], [0, 0, 3.0]])
    labels = np.array([0, 1, 2])
    assert fit_temperature([first, second], labels) == 1.0
    assert fit_temperature([first], labels) != 1.0


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


def always_first(confidence, accuracy, count=200):
    """A network that always answers class 0 of 11, with this confidence, and is right this often."""
    logits = np.zeros((count, 11))
    logits[:, 0] = np.log(10 * confidence / (1 - confidence))
    return Labeled([logits], np.where(np.arange(count) < accuracy * count, 0, 1))


@pytest.mark.parametrize(
    ("temperature", "fitted_on", "validation", "reason"),
    [
        # at the upper bound: good for the corrupted slices, bad for validation as it is
        (HIGHEST, (0.5, 0.1), (0.5, 0.5), "ECE of validation from 0.0000 to 0.3"),
        (HIGHEST, (0.5, 0.1), (0.5, 0.1), ""),
        # at the lower bound
        (LOWEST, (0.5, 1.0), (0.5, 0.5), "ECE of validation from 0.0000 to 0.5000"),
        (LOWEST, (0.5, 1.0), (0.5, 1.0), ""),
        (LOWEST, (0.9, 0.96), (0.9, 0.96), "negative log likelihood of the slices that it was fitted on"),
        # inside the bounds validation as it is may lose, but not the slices that it was fitted on
        (5.0, (0.5, 0.1), (0.5, 0.5), ""),
        (5.0, (0.5, 0.5), (0.5, 0.1), "ECE of the slices that it was fitted on from 0.0000 to"),
        # of 200 slices, chance explains an ECE that is 0.07 higher
        (1.25, (0.5, 0.5), (0.5, 0.5), "raises the ECE of the slices that it was fitted on"),
        (1.1, (0.5, 0.5), (0.5, 0.5), "raises the negative log likelihood of the slices"),
        (1.0, (0.5, 0.1), (0.5, 0.5), ""),
    ],
)  # fmt: skip
def test_a_temperature_that_makes_validation_worse_is_rejected(
    temperature, fitted_on, validation, reason
):
    found = why_rejected(temperature, always_first(*fitted_on), always_first(*validation))
    assert reason in found and bool(found) == bool(reason)
    assert not reason or found.startswith(f"temperature {temperature:g} raises the ")


def test_the_likelihood_is_that_of_the_mean_probability():
    (first, labels), (second, _) = drawn(), drawn(seed=1)
    found = Labeled([first, second], labels).negative_log_likelihood(2.0)
    assert found == pytest.approx(loss([first, second], labels, 2.0))


# corrupted slices that a network gets wrong, with labels that it gets right on validation as it is
FITTED, PLAIN = always_first(0.9, 0.0), always_first(0.9, 0.9)


def test_a_rejected_temperature_is_1_and_is_recorded():
    assert fit_temperature(FITTED.logits, FITTED.labels) == HIGHEST
    slices = {SPLIT: FITTED, "val": PLAIN, "test": PLAIN}
    member = {s: mean_softmax(x.logits).astype(np.float32) for s, x in slices.items()}
    found = fit_calibration([member], {s: x.labels for s, x in slices.items()})
    assert found.temperature == 1.0
    assert found.rejected.startswith("temperature 20 raises the ECE of validation from 0.0000 to")
    assert found.val_ece == pytest.approx(0.0, abs=1e-6)


def test_a_bundle_whose_temperature_is_rejected_has_temperature_1(tmp_path):
    generator = np.random.default_rng(4)
    images = generator.integers(0, 256, (200, 28, 28), np.uint8)
    path = tmp_path / "net.onnx"
    path.write_bytes(make_graph(seed=1))
    logits = logits_of(path.read_bytes(), images, 28)
    right = logits.argmax(1)
    lines = []
    bundle = write_bundle(
        tmp_path / "bundle",
        BundleInfo("net", "organamnist", "axial", CLASSES, 28, {}, {}),
        [Trained("net", path)],
        # right on all of validation, and as wrong as can be on all slices to fit on
        Slices(images, images, right, 28, (images, logits.argmin(1))),
        precisions=("fp32",),
        report=lines.append,
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    listed = manifest["metrics"]["val_as_listed"]
    assert manifest["temperature"] == 1.0 and listed["ece"] == listed["ece_uncalibrated"]
    assert "raises the ECE of validation" in listed["temperature_rejected"]
    assert f"{listed['temperature_rejected']}; it stays 1" in lines
    card = " ".join((bundle / "MODEL_CARD.md").read_text().split())
    assert "Calibration: none, the temperature is 1. A temperature was fitted" in card
    assert f"and rejected: {listed['temperature_rejected']}." in card
    assert f"ECE on validation {listed['ece']:.4f};" in card and "logits are divided" not in card


@pytest.mark.parametrize(
    ("before", "after", "is_higher"),
    [(0.0105, 0.0482, True), (0.0482, 0.0105, False), (0.01, 0.01, False), (0.01, 0.01004, False)],
)
def test_a_temperature_that_raises_ece_on_validation_is_explained(before, after, is_higher):
    text = why_higher(before, after)
    assert text.startswith("higher, because the temperature was chosen on validation") == is_higher
    assert bool(text) == is_higher and not text.endswith(".")


def test_the_line_of_a_bundle_explains_a_higher_ece(tmp_path):
    """Fitted on slices on which the network is often wrong, measured on validation, where it is right."""
    generator = np.random.default_rng(4)
    images = generator.integers(0, 256, (400, 28, 28), np.uint8)
    path = tmp_path / "net.onnx"
    path.write_bytes(make_graph(seed=1))
    p = mean_softmax([logits_of(path.read_bytes(), images, 28)])
    drawn_labels = (p.cumsum(1) < generator.random((400, 1))).sum(1).clip(max=10)
    fitting_labels = np.where(
        generator.random(400) < 0.5, generator.integers(0, 11, 400), drawn_labels
    )

    def written(name, fitted_on):
        lines = []
        bundle = write_bundle(
            tmp_path / name,
            BundleInfo(
                "net", "organamnist", "axial", CLASSES, 28, {}, {"temperature_fitted_on": "slices"}
            ),
            [Trained("net", path)],
            Slices(images, images, drawn_labels, 28, fitted_on),
            precisions=("fp32",),
            report=lines.append,
        )
        return lines[-1], " ".join((bundle / "MODEL_CARD.md").read_text().split())

    higher, card = written("higher", (images, fitting_labels))
    assert re.fullmatch(
        r"temperature [\d.]+: ECE on validation [\d.]+, without it [\d.]+; higher, because the temperature was chosen on"
        r" validation slices together with corrupted copies of them: .*",
        higher,
    )
    assert "On validation it is higher, because the temperature was chosen on validation" in card
    assert "higher" not in written("own", None)[0]


def test_kept_probabilities_calibrate_as_their_logits_would():
    (first, labels), (second, _) = drawn(), drawn(seed=1)
    halves = {"val": slice(0, 1000), SPLIT: slice(1000, 2500), "test": slice(2500, None)}
    logits = {s: [5 * first[rows], 3 * first[rows] + second[rows]] for s, rows in halves.items()}
    members = [{s: mean_softmax([logits[s][i]]).astype(np.float32) for s in halves} for i in (0, 1)]
    found = fit_calibration(members, {s: labels[rows] for s, rows in halves.items()})
    assert found.temperature == pytest.approx(
        fit_temperature(logits[SPLIT], labels[halves[SPLIT]]), abs=0.002
    )
    errors = {}
    for split in ("val", "test"):
        rows = halves[split]
        errors[split] = expected_calibration_error(
            mean_softmax(logits[split], found.temperature), labels[rows]
        )
        assert getattr(found, f"{split}_ece") == pytest.approx(errors[split], abs=1e-4)
    assert abs(errors["val"] - errors["test"]) > 2e-4  # one is not taken for the other
    assert found.fitted_on is None
    of_mean = fit_temperature([np.log(mean_softmax(logits[SPLIT]))], labels[halves[SPLIT]])
    assert abs(of_mean - found.temperature) > 0.1


def test_probabilities_of_zero_are_no_infinite_logits():
    member = {s: np.eye(3, dtype=np.float32) for s in ("val", SPLIT, "test")}
    wrong = np.array([0, 1, 1])
    found = fit_calibration([member], {"val": wrong, SPLIT: wrong, "test": np.array([0, 1, 2])})
    assert (
        LOWEST <= found.temperature <= HIGHEST
        and np.isfinite([found.val_ece, found.test_ece]).all()
    )


def test_a_bundle_holds_the_temperature_of_what_it_lists(tmp_path):
    """Two networks that know nothing: the bundle's answers are calibrated, its float32 figures stay as they were."""
    generator = np.random.default_rng(3)
    images, labels = (
        generator.integers(0, 256, (300, 28, 28), np.uint8),
        generator.integers(0, 11, 300),
    )
    members = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(make_graph(seed=seed))
        members.append(Trained(f"net{seed}", path))
    lines = []
    bundle = write_bundle(
        tmp_path / "bundle",
        BundleInfo(
            name="organamnist-ensemble",
            dataset="organamnist",
            view="axial",
            classes=CLASSES,
            size=28,
            metrics={"val": {"accuracy": 0.1, "auc": None, "ece": 0.7}},
            training={"seed": 1},
        ),
        members,
        Slices(images, images, labels, 28),
        precisions=("fp32",),
        report=lines.append,
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
    start = f"temperature {manifest['temperature']:g}: ECE on validation"
    assert any(line.startswith(start) for line in lines)


def test_temperatures_are_fitted_on_validation_and_its_corrupted_copies():
    data = unequal_data()
    found = add_calibration_split(data, 10)
    chosen = np.array([0, 4, 8, 12, 16, 20, 24, 28, 32, 36])  # of 37
    plain = data.images["val"][chosen]
    copies = found.images[SPLIT].reshape(14, 10, 28, 28)
    assert np.array_equal(copies[0], plain)
    for name, copy in zip(CORRUPTIONS, copies[1:], strict=True):
        assert np.array_equal(copy, corrupt(plain, name, 3)) and not np.array_equal(copy, plain), (
            name
        )
    assert np.array_equal(
        found.labels[SPLIT].reshape(14, 10), np.tile(data.labels["val"][chosen], (14, 1))
    )
    assert all(
        found.images[s] is data.images[s] and found.labels[s] is data.labels[s] for s in data.images
    )
    assert (
        describe_split(found)
        == "10 validation slices and 13 corrupted copies of each (MedMNIST-C, severity 3)"
    )


def test_no_more_slices_are_corrupted_than_there_are():
    data = unequal_data()
    found = add_calibration_split(data)
    assert np.array_equal(found.images[SPLIT][:37], data.images["val"])
    assert len(found.labels[SPLIT]) == len(found.images[SPLIT]) == 14 * 37


def test_1000_slices_are_corrupted_unless_told_otherwise(monkeypatch):
    """As docs/results/edge.md says; the corruptions themselves are left out, which take seconds."""
    monkeypatch.setattr(calibration_module, "corrupt", lambda images, name, severity: images)
    found = add_calibration_split(unequal_data({"train": 20, "val": 1207, "test": 30}))
    assert describe_split(found).startswith("1,000 validation slices and 13 corrupted copies")


def test_every_slice_keeps_its_split_and_label_from_the_file_to_the_temperature(
    tmp_path, monkeypatch
):
    from medmnist import INFO

    whole = unequal_data({"train": 300, "val": 277, "test": 289})
    content = npz_of(whole)
    (tmp_path / "organamnist.npz").write_bytes(content)
    published = INFO["organamnist"] | {"MD5": hashlib.md5(content).hexdigest()}
    monkeypatch.setitem(INFO, "organamnist", published)
    origins = Origins(whole)

    data = load_data("organamnist", directory=tmp_path)
    for split, count in (("train", 300), ("val", 277), ("test", 289)):
        assert origins.places(data.images[split], data.labels[split], split) == list(range(count))
    smoke = data.smoke()
    for split in ("train", "val", "test"):
        assert origins.places(smoke.images[split], smoke.labels[split], split) == list(range(256))
    assert smoke.counts == data.counts == whole.counts
    fitting = add_calibration_split(smoke, 9)
    chosen = origins.places(fitting.images[SPLIT][:9], fitting.labels[SPLIT][:9], "val")
    assert chosen == sorted(set(chosen)) and (chosen[0], chosen[-1]) == (0, 255)
    slices = variant_slices(fitting)
    assert origins.places(slices.train, smoke.labels["train"], "train") == list(range(256))
    assert origins.places(slices.val, slices.labels, "val") == list(range(256))
    images, labels = slices.fitted_on
    assert origins.places(images[:9], labels[:9], "val") == chosen
    assert np.array_equal(labels, np.tile(labels[:9], 14)) and len(images) == len(labels)
    assert slices.size == 28


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
        BundleInfo(
            name="organamnist-net",
            dataset="organamnist",
            view="axial",
            classes=CLASSES,
            size=28,
            metrics={"val": {"accuracy": 1.0, "auc": None, "ece": 0.1}},
            training={"seed": 1, "temperature_fitted_on": "slices made for this test"},
        ),
        [Trained("net", path)],
        slices,
        precisions=("fp32",),
        report=lambda line: None,
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    expected = fit_temperature([logits_of(path.read_bytes(), images[:150], 28)], mixed[:150])
    assert manifest["temperature"] == expected != 1.0  # validation alone, all right, would give 1
    assert manifest["metrics"]["val_as_listed"]["accuracy"] == 1.0
    assert (
        "fitted to the listed variants on\nslices made for this test."
        in (bundle / "MODEL_CARD.md").read_text()
    )
