"""The rows of results.json: each split measured on its own slices and labels, an ensemble calibrated on its members."""

import json

import numpy as np
import pytest
import torch
from conftest import CLASSES
from support.checkpoints import finished_checkpoint
from torch import nn

from export.member import Parity
from export.temperature import fit_temperature, mean_softmax
from organ_infer.evaluation.calibration import expected_calibration_error
from tests.support.result_rows import split_metrics, stage_result
from tests.support.unequal_splits import LABEL_STEP, LENGTHS, Origins, unequal_data
from train import results as results_module
from train.calibration import SPLIT, add_calibration_split
from train.config import TrainConfig
from train.jobs import Job
from train.json_format import to_json
from train.metrics import measure
from train.results import measure_stage, measure_test, summary
from train.results_format import MeanStd, Results
from train.stages import STAGES

CPU = torch.device("cpu")
CONFIG = TrainConfig(seed=1, batch_size=64, max_epochs=2, weights="none")


class ReadsTheCorner(nn.Module):
    """Reads the label from a slice's corner, and takes the next one if the slice's last pixel is above 170."""

    def __init__(self):
        super().__init__()
        self.sureness = nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        gray = (x[:, 0] * 0.5 + 0.5) * 255  # (N, S, S)
        label = ((gray[:, 0, 0] - 5) / LABEL_STEP).round().clamp(0, 10).long()
        return (
            self.sureness
            * nn.functional.one_hot((label + (gray[:, -1, -1] > 170)) % 11, 11).float()
        )


def answers_of(data, split):
    """What ReadsTheCorner answers, from the slices themselves."""
    return (data.labels[split] + (data.images[split][:, -1, -1] > 170)) % 11


def confusion_of(data, split):
    counts = np.zeros((11, 11), int)
    np.add.at(counts, (data.labels[split], answers_of(data, split)), 1)
    return counts.tolist()


@pytest.fixture(scope="module")
def data():
    return add_calibration_split(unequal_data(), 5)


@pytest.fixture
def exported(monkeypatch):
    """What was handed to the export, which itself is left out."""
    calls = []

    def export(network, path, images, labels, *, size, resample):
        assert resample == "area"
        calls.append((images, labels, size))
        path.write_bytes(b"an exported network")
        return Parity(len(images), 1e-6, 0.5, np.zeros((len(images), 11), np.float32))

    checkpoint = finished_checkpoint(seconds=(2.0, 4.0), best_epoch=2)
    monkeypatch.setattr(results_module, "export_member", export)
    monkeypatch.setattr(results_module, "load_trained", lambda job: (ReadsTheCorner(), checkpoint))
    return calls


@pytest.fixture
def measured(data, exported, tmp_path):
    """The results of one network, measured on train and validation, then on test; and its directory."""
    job, results = Job(STAGES["base"], CONFIG, tmp_path / "base"), Results()
    job.directory.mkdir()
    measure_stage(job, data, CPU, results)
    assert results.stages[0].test is None
    measure_test(job, data, CPU, results)
    return results.stages[0], job.directory


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_each_split_is_measured_on_its_own_slices_and_labels(data, measured, split):
    row, _ = measured
    others = [confusion_of(data, other) for other in LENGTHS if other != split]
    assert row.on(split).confusion == confusion_of(data, split) not in others
    assert row.on(split).accuracy == (answers_of(data, split) == data.labels[split]).mean()


def test_the_export_is_compared_on_validation(data, measured, exported):
    ((images, labels, size),) = exported
    assert Origins(unequal_data()).places(images, labels, "val") == list(range(37)) and size == 28


def test_the_kept_probabilities_are_those_of_each_split(data, measured):
    _, directory = measured
    with np.load(directory / "probabilities.npz") as kept:
        splits = [name for name in kept.files if not name.startswith("labels_")]
        assert sorted(splits) == sorted([*LENGTHS, SPLIT])
        for split in LENGTHS:
            assert np.array_equal(kept[split].argmax(1), answers_of(data, split)), split
        assert len(kept[SPLIT]) == len(data.labels[SPLIT]) == 70


def test_the_calibration_is_fitted_on_the_corrupted_copies_and_judged_on_validation_and_test(
    data, measured
):
    row, directory = measured
    with np.load(directory / "probabilities.npz") as kept:
        logits = {split: np.log(kept[split].astype(float)) for split in [*LENGTHS, SPLIT]}
    temperature = fit_temperature([logits[SPLIT]], data.labels[SPLIT])
    errors = {
        split: expected_calibration_error(
            mean_softmax([logits[split]], temperature), data.labels[split]
        )
        for split in ("val", "test")
    }
    assert row.calibration.temperature == temperature != 1
    assert row.calibration.val_ece == pytest.approx(errors["val"], abs=1e-6)
    assert row.calibration.test_ece == pytest.approx(errors["test"], abs=1e-6)
    assert abs(errors["val"] - errors["test"]) > 1e-3
    assert row.calibration.fitted_on.startswith("5 validation slices and 13 corrupted copies")


def test_seconds_are_summed_over_the_epochs(measured):
    row, _ = measured
    assert (row.seconds, row.seconds_per_epoch, row.epochs, row.best_epoch) == (6.0, 3.0, 2, 2)


MEMBERS = STAGES["ensemble"].members


@pytest.fixture
def ensemble(data, tmp_path):
    """Four members of very unequal sureness, on disk; their probabilities, and the ensemble's measured row."""
    generator = np.random.default_rng(0)
    logits = []
    for sureness in (12, 0.5, 2, 5):
        member = {}
        for split, labels in data.labels.items():
            shown = np.where(
                generator.random(len(labels)) < 0.7, labels, generator.integers(0, 11, len(labels))
            )
            member[split] = sureness * (
                np.eye(11)[shown] + generator.normal(0, 0.3, (len(labels), 11))
            )
        logits.append(member)
    probabilities = [
        {s: mean_softmax([z]).astype(np.float32) for s, z in m.items()} for m in logits
    ]
    about = {"parameters": 10, "epochs": 3, "seconds": 5.0, "seconds_per_epoch": 2.0}
    rows = [stage_result(name, weights=w, **about) for name, w in zip(MEMBERS, "abbn", strict=True)]
    results = Results(stages=rows)
    for name, kept in zip(MEMBERS, probabilities, strict=True):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "probabilities.npz", **kept)
    job = Job(STAGES["ensemble"], CONFIG, tmp_path / "ensemble")
    measure_stage(job, data, CPU, results)
    measure_test(job, data, CPU, results)
    return probabilities, results.stages[-1]


def test_an_ensemble_is_measured_by_the_mean_of_its_members(data, ensemble):
    probabilities, row = ensemble
    for split in LENGTHS:
        mean = np.mean([member[split].astype(float) for member in probabilities], axis=0)
        expected = measure(mean.astype(np.float32), data.labels[split])
        assert row.on(split) == expected, split
    assert row.parameters == 40 and row.epochs == 12 and row.seconds_per_epoch == 8.0
    assert row.weights == "a; b; n"


def test_an_ensemble_is_calibrated_on_its_members_and_not_on_their_mean(data, ensemble):
    probabilities, row = ensemble
    logits = [np.log(member[SPLIT].astype(float).clip(1e-38)) for member in probabilities]
    temperature = fit_temperature(logits, data.labels[SPLIT])
    of_mean = fit_temperature([np.log(mean_softmax(logits))], data.labels[SPLIT])
    assert row.calibration.temperature == pytest.approx(temperature, abs=0.002)
    assert abs(of_mean - temperature) > 0.1


def test_the_rows_are_valid_json(measured):
    row = to_json(measured[0])
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_the_summary_is_the_mean_and_the_samples_deviation_over_seeds():
    def row(name, seed, accuracy, auc=0.5):
        others = dict.fromkeys(("precision", "recall", "f1", "ece"), accuracy) | {"auc": auc}
        metrics = split_metrics(accuracy, **others)
        return stage_result(name, seed, train=metrics, val=metrics, test=metrics)

    first, second = summary(
        [row("base", 1, 0.5), row("base", 2, 0.8), row("base", 3, 0.8), row("big", 1, 0.9, None)]
    )
    assert (first.name, first.seeds, second.seeds) == ("base", [1, 2, 3], [1])
    # deviations of -0.2, 0.1, 0.1 from 0.7; divided by two, not three
    assert first.test["accuracy"] == MeanStd(pytest.approx(0.7), pytest.approx(0.03**0.5))
    assert second.test["accuracy"] == MeanStd(0.9, None)
    assert second.test["auc"] == MeanStd(None, None)


def test_the_tiny_splits_are_unequal_in_every_way():
    """What these tests rely on."""
    data = unequal_data()
    lengths = [len(y) for y in data.labels.values()]
    counts = [tuple(c) for c in data.counts.values()]
    assert len(set(lengths)) == len(set(counts)) == 3 and all(min(c) > 0 for c in counts)
    shortest = min(lengths)
    orders = {tuple(y[:shortest]) for y in data.labels.values()}
    assert len(orders) == 3 and data.classes == CLASSES
    Origins(data)  # no two slices are alike
