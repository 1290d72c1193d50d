"""The report's sentences and numbers, and what is read from a run's directory."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.result_rows import robustness_entry, split_metrics, stage_result
from train.errors import RunError
from train.json_format import to_json
from train.report import measures, wording
from train.report.comparison import comparison_csv
from train.report.measures import Reliability
from train.report.run import Row, Run, Stage, StageFiles, read_run
from train.results_format import (
    Calibration,
    Dataset,
    ExportCheck,
    MeanStd,
    Results,
    StageResult,
    StageSummary,
    read_results,
    write_results,
)

# 8 of 10 on train, 6 of 10 on validation, 3 of 4 on test; each has its own side errors
MATRICES = {
    "train": [[4, 1, 0], [0, 2, 1], [0, 0, 2]],
    "val": [[1, 2, 0], [0, 3, 0], [2, 0, 2]],
    "test": [[1, 0, 0], [1, 1, 0], [0, 0, 1]],
}
CLASSES = ("kidney-left", "kidney-right", "liver")


def result(name: str = "big", *, seed: int = 1, **changed: Any) -> StageResult:
    usual: dict[str, Any] = {
        "network": "big",
        "parameters": 1_662_939,
        "epochs": 7,
        "best_epoch": 3,
    }
    usual |= {
        "seconds": 90.0,
        "seconds_per_epoch": 12.9,
        "calibration": Calibration(1.25, 0.021, 0.032),
    }
    for i, (split, matrix) in enumerate(MATRICES.items()):
        accuracy = float(np.trace(matrix) / np.sum(matrix))
        others = {"precision": 0.51, "recall": 0.52, "f1": 0.53, "auc": 0.54, "ece": 0.55}
        values = {key: value + i / 100 for key, value in others.items()}
        usual[split] = split_metrics(accuracy, confusion=matrix, **values)
    return stage_result(name, seed, **usual | changed)


def row_of(**changed: Any) -> Row:
    return Row(Path("/nowhere"), result(**changed), CLASSES)


def set_accuracy(row: Row, split: str, accuracy: float) -> None:
    """Give a row another accuracy on a split."""
    setattr(row.result, split, replace(row.result.on(split) or split_metrics(), accuracy=accuracy))


def run_of(*stages: Stage, **results: Any) -> Run:
    return Run(Path("/nowhere"), Results(**results), stages, ())


def slices(flag: str = "organamnist", size: int = 28) -> SimpleNamespace:
    return SimpleNamespace(flag=flag, size=size, view="axial", md5="0123")


def with_test(accuracy: float, name: str = "big") -> Stage:
    made = row_of(name=name)
    set_accuracy(made, "test", accuracy)
    return Stage(name, (made,))


# numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (0.9996, "1.000"), (1, "1.000"), (0.0, "0.000"), (None, "–")],
)
def test_metrics_have_three_decimals(value, text):
    assert wording.number(value) == text


def test_numbers_are_written_as_readers_expect_them():
    assert wording.number(0.98765, 1) == "1.0"
    assert (wording.grouped(1_662_939), wording.grouped(0), wording.grouped(None)) == (
        "1,662,939",
        "0",
        "–",
    )
    assert (wording.percent(0.93251), wording.percent(1.0)) == ("93.3 %", "100.0 %")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (99.94, "99.9 s"),
        (99.96, "2 min"),
        (150, "2 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (7290, "2 h 2 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations_are_told_in_seconds_minutes_or_hours(seconds, text):
    assert wording.duration(seconds) == text


def test_stages_are_subjects_of_sentences():
    found = [wording.subject(name) for name in ("resnet101", "ensemble", "batch_norm")]
    assert found == ["ResNet-101", "The ensemble", "The batch_norm network"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("", "–"),
        ({}, "–"),
        ([], "–"),
        (0, "0"),
        (False, "no"),
        (True, "yes"),
        ([1, None, "x"], "1, –, x"),
        ((True,), "yes"),
        ({"all": 5, "edge": [1, 2]}, "all 5, edge 1, 2"),
    ],
)
def test_values_of_results_json_are_written_for_readers(value, text):
    assert wording.text_of(value) == text


def test_pairs_are_made_of_an_object_alone():
    assert wording.pairs_of({"batch_size": 128, "smoke": False}) == [
        ("batch size", "128"),
        ("smoke", "no"),
    ]
    assert wording.pairs_of({}) == []


# the headline


def test_the_headlines_test_figure_is_tests():
    found = wording.headline(run_of(Stage("big", (row_of(),))), slices(size=64))
    assert found["line"] == "The big network is right on 75.0 % of the test slices"
    low, high = measures.accuracy_interval(np.array(MATRICES["test"]))
    assert found["text"] == (
        "It is the best stage on validation, with accuracy 0.600. Test was evaluated once, after every choice was made: "
        f"accuracy 0.750 (95 % interval {low:.3f} to {high:.3f})."
    )


@pytest.mark.parametrize(
    ("flag", "accuracy", "words"),
    [
        # MedMNIST v2's official networks at 28 pixels: 0.935, 0.905
        (
            "organamnist",
            0.955,
            " That is 0.020 above the 0.935 published for the official network at 28 pixels.",
        ),
        (
            "organamnist",
            0.925,
            " That is 0.010 below the 0.935 published for the official network at 28 pixels.",
        ),
        (
            "organamnist",
            0.935,
            " That is 0.000 above the 0.935 published for the official network at 28 pixels.",
        ),
        (
            "organcmnist",
            0.915,
            " That is 0.010 above the 0.905 published for the official network at 28 pixels.",
        ),
        (
            "organcmnist",
            0.805,
            " That is 0.100 below the 0.905 published for the official network at 28 pixels.",
        ),
        (
            "organsmnist",
            0.9,
            " The ensemble of the reference study (C. Mariño, 2022) reached 0.811.",
        ),
        ("pathmnist", 0.9, ""),
    ],
)
def test_the_headline_says_whether_test_is_above_or_below_what_is_published(flag, accuracy, words):
    text = wording.headline(run_of(with_test(accuracy)), slices(flag))["text"]
    assert text.endswith(f").{words}")
    assert ("above" in text or "below" in text) == ("That is" in words)


def test_nothing_is_compared_at_another_size():
    for flag in ("organamnist", "organsmnist"):
        text = wording.headline(run_of(with_test(0.9)), slices(flag, 64))["text"]
        assert text.endswith(").") and "published" not in text and "study" not in text


def test_a_headline_over_several_seeds_has_their_mean_and_deviation():
    rows = (row_of(), row_of(seed=2))
    set_accuracy(rows[1], "test", 0.85)
    set_accuracy(rows[1], "val", 0.8)
    found = wording.headline(run_of(Stage("big", rows)), slices(size=64))
    assert found["line"] == "The big network is right on 80.0 % of the test slices"
    assert (
        "with accuracy 0.700 as the mean over 2 seeds. Test" in found["text"]
        and "interval" not in found["text"]
    )
    assert found["text"].endswith(
        "accuracy 0.800 as the mean over 2 seeds (standard deviation 0.071)."
    )


def test_a_headline_before_test_says_that_validation_leads():
    found = wording.headline(run_of(Stage("big", (row_of(test=None),))), slices())
    assert found == {
        "line": "OrganAMNIST: big leads on validation",
        "text": "The big network is the best stage on validation, with accuracy 0.600. Test has not been evaluated yet.",
    }


def test_a_headline_without_stages_and_of_a_smoke_run_claims_nothing():
    assert wording.headline(run_of(), slices("organsmnist"))["line"] == (
        "OrganSMNIST: no stage is measured yet"
    )
    smoke = wording.headline(run_of(Stage("big", (row_of(),)), smoke=True), slices())
    assert smoke["line"] == "Smoke run: nothing here is a result"
    assert "OrganAMNIST" in smoke["text"] and not any(
        c.isdigit() for c in smoke["line"] + smoke["text"]
    )


def test_the_key_figures_are_of_the_split_and_metric_they_name():
    found = wording.key_figures(Stage("big", (row_of(),)))
    assert [(key["label"], key["split"], key["value"], key["deviation"]) for key in found] == [
        ("validation accuracy", "val", 0.6, None),
        ("test accuracy", "test", 0.75, None),
        ("test AUC", "test", 0.56, None),
        ("test, left-right merged", "test", 1.0, None),
        ("test ECE", "test", pytest.approx(0.57), None),
    ]
    assert wording.key_figures(None) == []


# what was trained


def test_facts_of_a_stage_are_those_of_its_entry():
    run = run_of(settings={"max_epochs": {"all": 40}})
    found = dict(wording.facts(Stage("big", (row_of(precision="bf16"),)), run))
    assert found == {
        "network": "big",
        "parameters": "1,662,939",
        "starting weights": "none: random, trained from scratch",
        "training precision": "bf16",
        "stops": "after 5 epochs without a better validation accuracy, at the latest after 40, keeping the best weights",
        "augmented": "no",
        "epochs": "7",
        "kept epoch": "3",
        "time": "90.0 s",
        "time per epoch": "12.9 s",
        "seed": "1",
    }


def test_facts_over_several_seeds_are_listed_seed_by_seed():
    rows = (
        row_of(),
        row_of(seed=5, epochs=9, best_epoch=None, seconds=200.0, seconds_per_epoch=1.0),
    )
    found = dict(wording.facts(Stage("big", rows), run_of()))
    assert (found["seeds"], found["epochs"], found["kept epoch"]) == ("1, 5", "7, 9", "3, –")
    assert (found["time"], found["time per epoch"]) == ("90.0 s, 3 min", "12.9 s, 1.0 s")
    assert "seed" not in found and "training precision" not in found


def test_facts_that_are_not_known_are_left_out():
    rows = (row_of(name="other", network="", best_epoch=None, precision=None),)
    found = dict(wording.facts(Stage("other", rows), run_of()))
    assert not {"network", "training precision", "stops", "augmented", "kept epoch"} & set(found)
    assert found["starting weights"] == "none: random, trained from scratch"


@pytest.mark.parametrize(
    ("name", "weights", "text"),
    [
        ("resnet50", "resnet50.pth (sha256 0676ba61)", "resnet50.pth (sha256 0676ba61)"),
        ("ensemble", "torchvision IMAGENET1K_V1", "torchvision IMAGENET1K_V1"),
        ("ensemble", "none", "those of its members"),
        ("big", "none", "none: random, trained from scratch"),
    ],
)
def test_the_origin_of_the_starting_weights(name, weights, text):
    assert wording.origin(Stage(name, (row_of(name=name, weights=weights),))) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("big", "no"),
        ("base", "no"),
        ("augmentation", "yes"),
        ("resnet152", "yes"),
        ("edge", "by a recipe of its own"),
        ("ensemble", "–"),
        ("of another version", "–"),
    ],
)
def test_which_stages_are_augmented(name, text):
    assert wording.augmented(SimpleNamespace(name=name)) == text


def test_the_method_is_told_where_a_stage_of_the_study_was_trained():
    study = dict(wording.training(run_of(Stage("big", (row_of(),)), settings={"batch_size": 128})))
    # the reference study's: Adam at 1e-3, batches of 128
    assert study["optimizer"] == "Adam, learning rate 0.001, constant"
    assert (study["batch size"], study["loss"]) == ("128", "cross-entropy")
    assert wording.training(run_of(Stage("edge", (row_of(name="edge"),)))) == []
    assert (
        wording.training(run_of(Stage("of another version", (row_of(),))))
        == wording.training(run_of())
        == []
    )
    assert (
        dict(wording.training(run_of(Stage("base", (row_of(name="base"),)))))["batch size"] == "–"
    )


def test_the_record_sums_the_time_and_names_the_data():
    stages = (
        Stage("big", (row_of(), row_of(seed=2, seconds=10.0))),
        Stage("base", (row_of(name="base", seconds=5.5),)),
    )
    results = {
        "dataset": Dataset(md5="89ab"),
        "device": "cuda",
        "settings": {"seed": 1},
        "versions": {"torch": "2"},
    }
    groups = dict(wording.record(run_of(*stages, **results), slices("organcmnist", 64)))
    assert dict(groups["Run"]) == {
        "data set": "OrganCMNIST, axial, 64 × 64 pixels",
        "MD5": "89ab",
        "seeds": "1, 2",
        "device": "cuda",
        "time, all stages": "2 min",
    }
    assert [name for name, _ in groups["Starting weights"]] == ["big", "base"]
    assert (groups["Settings"], groups["Versions"]) == ([("seed", "1")], [("torch", "2")])


def test_a_record_of_nothing_leaves_dashes():
    groups = dict(wording.record(run_of(), slices("other")))
    assert list(groups) == ["Run"]
    assert dict(groups["Run"]) == {
        "data set": "other, axial, 28 × 28 pixels",
        "MD5": "0123",
        "seeds": "–",
        "device": "–",
        "time, all stages": "–",
    }


# what figures are called


def test_a_matrix_is_called_by_its_most_frequent_confusion():
    text = wording.confusion_alt(
        "big", "val", np.array([[900, 100, 0], [0, 1234, 5], [0, 0, 7]]), CLASSES
    )
    assert text == (
        "Confusion matrix of big on validation: 2,141 of 2,246 slices right; most often kidney-left was predicted "
        "as kidney-right, 100 times."
    )
    text = wording.confusion_alt("big", "train", np.diag([1, 2, 3]), CLASSES)
    assert text == "Confusion matrix of big on train: 6 of 6 slices right."


def test_curves_are_called_by_their_last_epoch_on_validation():
    lines = [
        {"train_loss": 9.0, "val_loss": 1.5, "train_accuracy": 0.9, "val_accuracy": 0.25},
        {"train_loss": 8.0, "val_loss": 0.5, "train_accuracy": 0.8, "val_accuracy": 0.75},
    ]
    rows = [SimpleNamespace(history=lines), SimpleNamespace(history=[{}])]
    assert wording.curves_alt("big", rows) == (
        "Loss and accuracy of big by epoch. At the end, validation loss 0.500, nan and accuracy 0.750, nan."
    )


def test_reliability_is_called_by_its_widest_gap():
    points = {
        "val": Reliability(np.array([0.5, 0.9]), np.array([0.2, 0.85]), np.array([2, 2])),
        "test": Reliability(np.array([0.5, 0.6]), np.array([0.55, 0.7]), np.array([2, 2])),
    }
    assert wording.reliability_alt("big", points) == (
        "Reliability diagram of big: on validation the widest gap is 0.30; on test the widest gap is 0.10."
    )


def test_the_chart_is_called_by_its_accuracies():
    stages = (Stage("big", (row_of(),)), Stage("base", (row_of(name="base", test=None),)))
    assert wording.chart_alt(run_of(*stages)) == (
        "Accuracy by stage. big: train 0.800, validation 0.600, test 0.750; base: train 0.800, validation 0.600, test –."
    )


# a run as it is read


def test_a_rows_metrics_are_those_of_the_split():
    row = row_of()
    assert [row.metric(split, "accuracy") for split in MATRICES] == [0.8, 0.6, 0.75]
    assert [row.metric(split, "side_merged") for split in MATRICES] == [0.9, 0.8, 1.0]
    assert [row.metric(split, "ece_calibrated") for split in MATRICES] == [None, 0.021, 0.032]
    assert [row.metric(split, "auc") for split in MATRICES] == pytest.approx([0.54, 0.55, 0.56])
    for split, matrix in MATRICES.items():
        assert row.confusion(split).tolist() == matrix and row.confusion(split).dtype == np.int64
    assert row.temperature == 1.25


def test_what_is_not_measured_is_not_known():
    row = row_of(val=split_metrics(auc=None), test=None, calibration=None)
    assert row.metric("val", "auc") is None and row.metric("test", "accuracy") is None
    assert row.metric("val", "side_merged") is None and row.confusion("test") is None
    assert row.metric("val", "ece_calibrated") is None and row.temperature is None
    assert row.metric("test", "side_merged") is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"0.5"', "[0.5]", "true", "null"])
def test_a_metric_that_is_no_number_is_refused(tmp_path, value):
    content = json.dumps({"stages": [to_json(result())]})
    assert content.count('"val": {"accuracy": 0.6,') == 1
    damaged = content.replace('"val": {"accuracy": 0.6,', f'"val": {{"accuracy": {value},')
    with pytest.raises(
        RunError, match=r"stages\[0\]: val: accuracy: expected a finite number, found "
    ):
        read_run(write(tmp_path, damaged))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("parameters", 1.5, r"stages\[0\]: parameters: expected an integer, found 1.5"),
        ("seed", True, r"stages\[0\]: seed: expected an integer, found True"),
        ("weights", None, r"stages\[0\]: weights: expected a text, found None"),
        ("calibration", [], r"stages\[0\]: calibration: expected an object, found \[\]"),
        ("best_epoch", "3", r"stages\[0\]: best_epoch: expected an integer, found '3'"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(tmp_path, key, value, words):
    row = to_json(result()) | {key: value}
    with pytest.raises(RunError, match=words) as raised:
        read_run(write(tmp_path, {"stages": [row]}))
    assert str(raised.value).startswith(str(tmp_path / "results.json"))


def test_a_row_without_a_key_is_refused_and_an_old_one_is_read(tmp_path):
    row = to_json(result())
    del row["parameters"]
    with pytest.raises(RunError, match=r"stages\[0\]: no key 'parameters'"):
        read_run(write(tmp_path, {"stages": [row]}))
    old = to_json(result()) | {
        "calibration": {"temperature": 1.5, "val_ece": 0.25, "test_ece": 0.5}
    }
    for key in ("precision", "export"):  # runs that did not record them
        old.pop(key, None)
    assert read_run(write(tmp_path, {"stages": [old]})).stages[0].rows[0].temperature == 1.5


def test_results_json_is_written_as_it_was_read(tmp_path):
    """Byte for byte, of a network and of an ensemble, of which neither has all keys of the other."""
    network = result(precision="bf16", export=ExportCheck(1e-6, 0.6, 10))
    unrecorded = result(seed=2, precision=None, export=ExportCheck(1e-6, 0.6, 10), calibration=None)
    ensemble = result("ensemble", best_epoch=None, test=None)
    rows = [to_json(row) for row in (network, unrecorded, ensemble)]
    assert [("precision" in row, "export" in row, "calibration" in row) for row in rows] == [
        (True, True, True),
        (True, True, False),
        (False, False, True),
    ]
    content = {
        "format": 1,
        "smoke": False,
        "dataset": to_json(Dataset("organcmnist", classes=["a"])),
    }
    content |= {"device": "cpu", "versions": {"torch": "2"}, "settings": {"max_epochs": {"all": 3}}}
    content |= {
        "stages": rows,
        "summary": [to_json(StageSummary("big", [1, 2], val={"auc": MeanStd(1, None)}))],
    }
    before = json.dumps(content, indent=1) + "\n"
    write(tmp_path, before)
    write_results(tmp_path, read_results(tmp_path))
    assert (tmp_path / "results.json").read_text() == before


def test_a_stage_of_one_seed_has_no_deviation_and_of_several_their_sample_deviation():
    rows = (row_of(), row_of(seed=2), row_of(seed=3))
    for row, accuracy in zip(rows, (0.5, 0.6, 0.9), strict=True):
        set_accuracy(row, "val", accuracy)
    assert Stage("big", rows[:1]).value("val", "accuracy") == (0.5, None)
    mean, deviation = Stage("big", rows).value("val", "accuracy")
    assert (mean, deviation) == pytest.approx((2 / 3, np.std([0.5, 0.6, 0.9], ddof=1)))
    assert Stage("big", rows).shown.seed == 3
    rows[1].result.val = None
    assert Stage("big", rows).value("val", "accuracy") == (None, None)


def test_a_recorded_mean_is_taken_as_it_is():
    rows = (row_of(), row_of(seed=2))
    means = {"accuracy": MeanStd(0.1, 0.2), "auc": MeanStd(None, None)}
    summary = StageSummary("big", [1, 2], val=means)
    stage = Stage("big", rows, summary)
    assert stage.value("val", "accuracy") == (0.1, 0.2)
    assert stage.value("val", "auc") == pytest.approx((0.55, 0.0))
    assert stage.value("test", "accuracy") == (0.75, 0.0)
    assert Stage("big", rows[:1], summary).value("val", "accuracy") == (0.6, None)


def test_the_seed_shown_is_validations_best_and_the_first_of_equals():
    rows = tuple(row_of(seed=seed) for seed in (1, 2, 3, 4))
    for row, val, test in zip(rows, (None, 0.7, 0.7, 0.6), (0.9, 0.1, 0.2, 0.95), strict=True):
        row.result.val = val and split_metrics(val)
        row.result.test = split_metrics(test)
    assert Stage("big", rows).shown.seed == 2
    assert Stage("big", rows[:1]).shown.seed == 1


def test_seeds_are_listed_once_in_their_order():
    stages = (
        Stage("base", (row_of(seed=5), row_of(seed=3))),
        Stage("big", (row_of(seed=5), row_of(seed=4))),
    )
    assert run_of(*stages).seeds == (5, 3, 4)


def test_a_run_without_measured_stages_has_no_best():
    assert run_of().best is None
    assert run_of(Stage("big", (row_of(val=None),))).best is None
    measured = Stage("base", (row_of(name="base"),))
    assert run_of(Stage("big", (row_of(val=None),)), measured).best is measured


def test_a_stage_that_is_never_right_on_validation_is_not_the_best():
    poor, better = (Stage(name, (row_of(name=name),)) for name in ("base", "big"))
    set_accuracy(poor.rows[0], "val", 0.0)
    assert run_of(poor, better).best is better and run_of(poor).best is poor


def write(directory: Path, content: Any, **files: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return directory


def test_a_run_is_read_stage_by_stage_and_seed_by_seed(tmp_path):
    about = {"name": "big", "seeds": [1, 2], "val": {"auc": {"mean": 0.5, "std": None}}}
    stages = [to_json(row) for row in (result(seed=1), result("edge", seed=1), result(seed=2))]
    content = {
        "dataset": {"classes": list(CLASSES)},
        "stages": stages,
        "summary": [about],
        "smoke": True,
    }
    (tmp_path / "big" / "seed-1").mkdir(parents=True)
    (tmp_path / "edge").mkdir()
    run = read_run(write(tmp_path, content))
    assert [(stage.name, [row.seed for row in stage.rows]) for stage in run.stages] == [
        ("big", [1, 2]),
        ("edge", [1]),
    ]
    assert run.stages[0].summary == StageSummary("big", [1, 2], val={"auc": MeanStd(0.5, None)})
    assert run.stages[1].summary is None
    places = [row.directory for stage in run.stages for row in stage.rows]
    assert places == [tmp_path / "big" / "seed-1", tmp_path / "big", tmp_path / "edge"]
    assert run.stages[0].rows[0].classes == CLASSES and run.smoke and run.robustness == ()
    assert run.stages[0].rows[1].result == result(seed=2)


def test_what_was_begun_and_is_not_in_the_results_is_unfinished(tmp_path):
    for place in ("big/seed-2", "big/seed-1", "base", "edge", "other"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "history.csv").write_text(
            "epoch,train_loss,train_accuracy,val_loss,val_accuracy\n1,0.7,0.8,0.5,0.9\n2,0.6,0.8,,\n"
        )
    stages = [to_json(row) for row in (result(seed=1), result("edge"))]
    run = read_run(write(tmp_path, {"stages": stages}))
    assert [stage.name for stage in run.unfinished] == ["base", "big/seed-2"]
    assert [stage.best_epoch for stage in run.unfinished] == [None, None]
    first, second = run.unfinished[0].history
    assert (first["epoch"], first["val_loss"]) == (1.0, 0.5) and np.isnan(second["val_loss"])


def test_files_that_are_not_there_are_empty(tmp_path):
    row = StageFiles(tmp_path)
    assert row.history == [] and row.probabilities == {}


def test_probabilities_are_read_by_split_and_no_others(tmp_path):
    arrays = {
        split: np.full((i + 1, 3), i, np.float32)
        for i, split in enumerate(("val", "test", "val_corrupted"))
    }
    np.savez(tmp_path / "probabilities.npz", **arrays)
    found = StageFiles(tmp_path).probabilities
    assert list(found) == ["val", "test"]
    assert np.array_equal(found["val"], arrays["val"]) and np.array_equal(
        found["test"], arrays["test"]
    )


def test_probabilities_that_hold_code_are_not_read(tmp_path, capsys):
    np.savez(tmp_path / "probabilities.npz", val=np.array([{"a": 1}], dtype=object))
    assert StageFiles(tmp_path).probabilities == {}
    assert "allow_pickle=False" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ([], "it has no list of stages"),
        ({"stages": {}}, "it has no list of stages"),
    ],
)
def test_a_results_json_that_is_none_is_named(tmp_path, content, words):
    with pytest.raises(RunError, match=words) as raised:
        read_run(write(tmp_path, content))
    assert str(tmp_path / "results.json") in str(raised.value) and raised.value.exit_code == 2


def test_an_empty_results_json_is_a_run_without_stages(tmp_path):
    run = read_run(write(tmp_path, {}))
    assert (run.stages, run.unfinished, run.seeds, run.smoke) == ((), (), (), False)


def test_the_robustness_is_read_where_it_was_measured(tmp_path):
    entry = robustness_entry("edge")
    (tmp_path / "robustness.json").write_text(json.dumps({"stages": [to_json(entry)]}))
    assert read_run(write(tmp_path, {})).robustness == (entry,)


def test_the_csv_has_a_line_for_each_stage_seed_and_split():
    stages = (Stage("big", (row_of(), row_of(seed=2, test=None, calibration=None))),)
    text = comparison_csv(run_of(*stages, smoke=True), slices("organcmnist", 64))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["seed"], line["split"]) for line in lines] == [
        (seed, split) for seed in "12" for split in MATRICES
    ]
    assert {(line["dataset"], line["size"], line["smoke"]) for line in lines} == {
        ("organcmnist", "64", "true")
    }
    assert [line["accuracy"] for line in lines] == ["0.8", "0.6", "0.75", "0.8", "0.6", ""]
    assert [line["precision"] for line in lines[:3]] == ["0.51", "0.52", "0.53"]
    assert [float(line["recall"]) for line in lines[:3]] == pytest.approx([0.52, 0.53, 0.54])
    assert [line["ece_calibrated"] for line in lines] == ["", "0.021", "0.032", "", "", ""]
    assert [line["temperature"] for line in lines] == ["1.25"] * 3 + [""] * 3
    assert [line["side_merged"] for line in lines] == ["0.9", "0.8", "1.0", "0.9", "0.8", ""]
    assert {line["parameters"] for line in lines} == {"1662939"}
    assert "\r" not in text
