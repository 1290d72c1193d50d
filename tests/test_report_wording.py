"""The report's sentences and numbers, and what is read from a run's directory."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from train.errors import RunError
from train.report import measures, wording
from train.report.measures import Reliability
from train.report.run import Row, Run, Stage, read

# 8 of 10 on train, 6 of 10 on validation, 3 of 4 on test; each has its own side errors
MATRICES = {
    "train": [[4, 1, 0], [0, 2, 1], [0, 0, 2]],
    "val": [[1, 2, 0], [0, 3, 0], [2, 0, 2]],
    "test": [[1, 0, 0], [1, 1, 0], [0, 0, 1]],
}
CLASSES = ("kidney-left", "kidney-right", "liver")


def entry(name: str = "big", *, seed: int = 1, **changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "seed": seed, "network": "big", "parameters": 1_662_939}
    made |= {"weights": "none", "epochs": 7, "best_epoch": 3, "seconds": 90.0, "seconds_per_epoch": 12.9}
    for i, (split, matrix) in enumerate(MATRICES.items()):
        accuracy = np.trace(matrix) / np.sum(matrix)
        others = {"precision": 0.51, "recall": 0.52, "f1": 0.53, "auc": 0.54, "ece": 0.55}
        made[split] = {key: value + i / 100 for key, value in others.items()}
        made[split] |= {"accuracy": accuracy, "confusion": matrix}
    made["calibration"] = {"temperature": 1.25, "val_ece": 0.021, "test_ece": 0.032}
    return made | changed


def row_of(**changed: Any) -> Row:
    made = entry(**changed)
    return Row(made["name"], made["seed"], Path("/nowhere"), made, CLASSES)


def run_of(*stages: Stage, **results: Any) -> Run:
    return Run(Path("/nowhere"), results, stages, ())


def slices(flag: str = "organamnist", size: int = 28) -> SimpleNamespace:
    return SimpleNamespace(flag=flag, size=size, view="axial", md5="0123")


def with_test(accuracy: float, name: str = "big") -> Stage:
    made = row_of(name=name)
    made.entry["test"]["accuracy"] = accuracy
    return Stage(name, (made,))


# numbers


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (0.9996, "1.000"), (1, "1.000"), (0.0, "0.000"), (None, "–")]
)
def test_metrics_have_three_decimals(value, text):
    assert wording.number(value) == text


def test_numbers_are_written_as_readers_expect_them():
    assert wording.number(0.98765, 1) == "1.0"
    assert (wording.grouped(1_662_939), wording.grouped(0), wording.grouped(None)) == ("1,662,939", "0", "–")
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
    assert wording.pairs_of({"batch_size": 128, "smoke": False}) == [("batch size", "128"), ("smoke", "no")]
    assert wording.pairs_of([1]) == wording.pairs_of(None) == []


# the headline


def test_the_headlines_test_figure_is_tests():
    found = wording.headline(run_of(Stage("big", (row_of(),))), slices(size=64))
    assert found["line"] == "The big network is right on 75.0 % of the test slices"
    low, high = measures.accuracy_interval(np.array(MATRICES["test"]))
    assert found["text"] == (
        "It is the best stage on validation, at 0.600. Test was looked at once, at the end, and never chosen by: "
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
        ("organsmnist", 0.9, " The study’s ensemble reached 0.811."),
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
    rows[1].entry["test"] = rows[1].entry["test"] | {"accuracy": 0.85}
    rows[1].entry["val"] = rows[1].entry["val"] | {"accuracy": 0.8}
    found = wording.headline(run_of(Stage("big", rows)), slices(size=64))
    assert found["line"] == "The big network is right on 80.0 % of the test slices"
    assert "at 0.700. Test" in found["text"] and "interval" not in found["text"]
    assert found["text"].endswith("accuracy 0.800 (mean of 2 seeds, standard deviation 0.071).")


def test_a_headline_before_test_says_that_validation_leads():
    found = wording.headline(run_of(Stage("big", (row_of(test=None),))), slices())
    assert found == {
        "line": "OrganAMNIST: big leads on validation",
        "text": "The big network is the best stage on validation, at 0.600. Test has not been looked at yet.",
    }


def test_a_headline_without_stages_and_of_a_smoke_run_claims_nothing():
    assert wording.headline(run_of(), slices("organsmnist"))["line"] == (
        "OrganSMNIST: no stage is measured yet"
    )
    smoke = wording.headline(run_of(Stage("big", (row_of(),)), smoke=True), slices())
    assert smoke["line"] == "A smoke run: nothing here is a result"
    assert "OrganAMNIST" in smoke["text"] and not any(c.isdigit() for c in smoke["line"] + smoke["text"])


def test_the_key_figures_are_of_the_split_and_metric_they_name():
    found = wording.key_figures(Stage("big", (row_of(),)))
    assert [(key["label"], key["split"], key["value"], key["spread"]) for key in found] == [
        ("validation accuracy", "val", 0.6, None),
        ("test accuracy", "test", 0.75, None),
        ("test AUC", "test", 0.56, None),
        ("test, sides merged", "test", 1.0, None),
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
        "starting weights": "none: drawn at random, trained from scratch",
        "trained in": "bf16",
        "stops": "after 5 epochs without a better validation accuracy, and after 40 at most, keeping the best weights",
        "augmented": "no",
        "epochs": "7",
        "best epoch": "3",
        "seconds": "90.0 s",
        "seconds an epoch": "12.9 s",
        "seed": "1",
    }


def test_facts_over_several_seeds_are_listed_seed_by_seed():
    rows = (row_of(), row_of(seed=5, epochs=9, best_epoch=None, seconds=200.0, seconds_per_epoch=1.0))
    found = dict(wording.facts(Stage("big", rows), run_of()))
    assert (found["seeds"], found["epochs"], found["best epoch"]) == ("1, 5", "7, 9", "3, –")
    assert (found["seconds"], found["seconds an epoch"]) == ("90.0 s, 3 min", "12.9 s, 1.0 s")
    assert "seed" not in found and "trained in" not in found


def test_facts_that_are_not_known_are_left_out():
    rows = (Row("other", None, Path("/nowhere"), {}, CLASSES),)
    found = dict(wording.facts(Stage("other", rows), run_of()))
    assert found == {"starting weights": "none: drawn at random, trained from scratch"}


@pytest.mark.parametrize(
    ("name", "weights", "text"),
    [
        ("resnet50", "resnet50.pth (sha256 0676ba61)", "resnet50.pth (sha256 0676ba61)"),
        ("ensemble", "torchvision IMAGENET1K_V1", "torchvision IMAGENET1K_V1"),
        ("ensemble", "none", "those of its members"),
        ("big", "none", "none: drawn at random, trained from scratch"),
        ("big", None, "none: drawn at random, trained from scratch"),
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
        wording.training(run_of(Stage("of another version", (row_of(),)))) == wording.training(run_of()) == []
    )
    assert dict(wording.training(run_of(Stage("base", (row_of(name="base"),)))))["batch size"] == "–"


def test_the_record_sums_the_time_and_names_the_data():
    stages = (
        Stage("big", (row_of(), row_of(seed=2, seconds=None))),
        Stage("base", (row_of(name="base", seconds=5.5),)),
    )
    results = {
        "dataset": {"md5": "89ab"},
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
        "time, all stages": "95.5 s",
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
    text = wording.confusion_alt("big", "val", np.array([[900, 100, 0], [0, 1234, 5], [0, 0, 7]]), CLASSES)
    assert text == (
        "Confusion matrix of big on validation: 2,141 of 2,246 slices right; most often kidney-left was taken for "
        "kidney-right, 100 times."
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


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", [0.5]])
def test_a_metric_that_is_no_number_is_not_known(value):
    row = row_of(val={"accuracy": value}, test=None, calibration=None)
    assert row.metric("val", "accuracy") is None and row.metric("test", "accuracy") is None
    assert row.metric("val", "side_merged") is None and row.confusion("test") is None
    assert row.metric("val", "ece_calibrated") is None and row.temperature is None


def test_a_stage_of_one_seed_has_no_deviation_and_of_several_their_sample_deviation():
    rows = (row_of(), row_of(seed=2), row_of(seed=3))
    for row, accuracy in zip(rows, (0.5, 0.6, 0.9), strict=True):
        row.entry["val"] = row.entry["val"] | {"accuracy": accuracy}
    assert Stage("big", rows[:1]).value("val", "accuracy") == (0.5, None)
    mean, deviation = Stage("big", rows).value("val", "accuracy")
    assert (mean, deviation) == pytest.approx((2 / 3, np.std([0.5, 0.6, 0.9], ddof=1)))
    assert Stage("big", rows).shown.seed == 3
    rows[1].entry["val"]["accuracy"] = None
    assert Stage("big", rows).value("val", "accuracy") == (None, None)


def test_a_recorded_mean_is_taken_as_it_is():
    rows = (row_of(), row_of(seed=2))
    summary = {"val": {"accuracy": {"mean": 0.1, "std": 0.2}, "auc": {"mean": None, "std": None}}}
    stage = Stage("big", rows, summary)
    assert stage.value("val", "accuracy") == (0.1, 0.2)
    assert stage.value("val", "auc") == pytest.approx((0.55, 0.0))
    assert stage.value("test", "accuracy") == (0.75, 0.0)
    assert Stage("big", rows[:1], summary).value("val", "accuracy") == (0.6, None)


def test_the_seed_shown_is_validations_best_and_the_first_of_equals():
    rows = tuple(row_of(seed=seed) for seed in (1, 2, 3, 4))
    for row, val, test in zip(rows, (None, 0.7, 0.7, 0.6), (0.9, 0.1, 0.2, 0.95), strict=True):
        row.entry["val"] = {"accuracy": val}
        row.entry["test"] = {"accuracy": test}
    assert Stage("big", rows).shown.seed == 2
    assert Stage("big", rows[:1]).shown.seed == 1


def test_seeds_are_listed_once_in_their_order():
    stages = (
        Stage("base", (row_of(seed=5), row_of(seed=3))),
        Stage("big", (row_of(seed=5), row_of(seed=None))),
    )
    assert run_of(*stages).seeds == (5, 3)


def test_a_run_without_measured_stages_has_no_best():
    assert run_of().best is None
    assert run_of(Stage("big", (row_of(val=None),))).best is None
    measured = Stage("base", (row_of(name="base"),))
    assert run_of(Stage("big", (row_of(val=None),)), measured).best is measured


def test_a_stage_that_is_never_right_on_validation_is_not_the_best():
    poor, better = (Stage(name, (row_of(name=name),)) for name in ("base", "big"))
    poor.rows[0].entry["val"]["accuracy"] = 0.0
    assert run_of(poor, better).best is better and run_of(poor).best is poor


def write(directory: Path, content: Any, **files: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_a_run_is_read_stage_by_stage_and_seed_by_seed(tmp_path):
    about = {"name": "big", "seeds": [1, 2], "val": {}}
    stages = [entry(seed=1), entry("edge", seed=1), entry(seed=2)]
    content = {"dataset": {"classes": list(CLASSES)}, "stages": stages, "summary": [about], "smoke": True}
    (tmp_path / "big" / "seed-1").mkdir(parents=True)
    (tmp_path / "edge").mkdir()
    run = read(write(tmp_path, content))
    assert [(stage.name, [row.seed for row in stage.rows]) for stage in run.stages] == [
        ("big", [1, 2]),
        ("edge", [1]),
    ]
    assert run.stages[0].summary == about and run.stages[1].summary == {}
    places = [row.directory for stage in run.stages for row in stage.rows]
    assert places == [tmp_path / "big" / "seed-1", tmp_path / "big", tmp_path / "edge"]
    assert run.stages[0].rows[0].classes == CLASSES and run.smoke and run.robustness == ()
    assert run.stages[0].rows[1].entry["seed"] == 2


def test_what_was_begun_and_is_not_in_the_results_is_unfinished(tmp_path):
    for place in ("big/seed-2", "big/seed-1", "base", "edge", "other"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "history.csv").write_text("epoch,val_loss\n1,0.5\n2,\n")
    run = read(write(tmp_path, {"stages": [entry(seed=1), entry("edge")]}))
    assert [row.name for row in run.unfinished] == ["base", "big/seed-2"]
    assert [row.seed for row in run.unfinished] == [None, None]
    first, second = run.unfinished[0].history
    assert first == {"epoch": 1.0, "val_loss": 0.5} and np.isnan(second["val_loss"])


def test_files_that_are_not_there_are_empty(tmp_path):
    row = Row("big", 1, tmp_path, {}, CLASSES)
    assert row.history == [] and row.probabilities == {}


def test_probabilities_are_read_by_split_and_no_others(tmp_path):
    arrays = {
        split: np.full((i + 1, 3), i, np.float32) for i, split in enumerate(("val", "test", "val_corrupted"))
    }
    np.savez(tmp_path / "probabilities.npz", **arrays)
    found = Row("big", 1, tmp_path, {}, CLASSES).probabilities
    assert list(found) == ["val", "test"]
    assert np.array_equal(found["val"], arrays["val"]) and np.array_equal(found["test"], arrays["test"])


def test_probabilities_that_hold_code_are_not_read(tmp_path):
    np.savez(tmp_path / "probabilities.npz", val=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        _ = Row("big", 1, tmp_path, {}, CLASSES).probabilities


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ([], "it has no list of stages"),
        ({"stages": {}}, "it has no list of stages"),
    ],
)
def test_a_results_json_that_is_none_is_named(tmp_path, content, words):
    with pytest.raises(RunError, match=words) as raised:
        read(write(tmp_path, content))
    assert str(tmp_path / "results.json") in str(raised.value) and raised.value.exit_code == 2


def test_an_empty_results_json_is_a_run_without_stages(tmp_path):
    run = read(write(tmp_path, {}))
    assert (run.stages, run.unfinished, run.seeds, run.smoke) == ((), (), (), False)


def test_the_robustness_is_read_where_it_was_measured(tmp_path):
    (tmp_path / "robustness.json").write_text(json.dumps({"stages": [{"name": "edge"}]}))
    assert read(write(tmp_path, {})).robustness == ({"name": "edge"},)


def test_the_csv_has_a_line_for_each_stage_seed_and_split():
    stages = (Stage("big", (row_of(), row_of(seed=2, test=None, calibration=None))),)
    text = measures.comparison_csv(run_of(*stages, smoke=True), slices("organcmnist", 64))
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
