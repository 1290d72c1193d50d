"""The model card: every figure in its own place. Each value of these metrics occurs once."""

import re

import pytest
from conftest import CLASSES

from export.bundle_info import BundleInfo
from export.model_card import model_card
from organ_infer.bundle.files import Member

METRICS = {
    "train": {"accuracy": 0.9101, "auc": 0.9202, "ece": 0.0303},
    "val": {"accuracy": 0.8404, "auc": 0.8505, "ece": 0.0606},
    "test": {"accuracy": 0.7707, "auc": 0.7808, "ece": 0.0909, "ece_calibrated": 0.0111},
    "val_as_listed": {"accuracy": 0.8312, "ece": 0.0213, "ece_uncalibrated": 0.0514},
}
TRAINING = {
    "seed": 17,
    "data_md5": "d41d8cd98f",
    "temperature_fitted_on": "1,000 validation slices",
}


def member(stage, precision, accuracy, *alternatives):
    return Member(stage, f"{stage}.onnx", "0" * 64, 5, precision, "logits", accuracy, alternatives)


MEMBERS = [
    member(
        "first", "int8", 0.8112, member("first", "fp32", 0.8213), member("first", "fp16", 0.8214)
    ),
    member("second", "fp32", 0.8415),
]


def card(
    *,
    dataset="organamnist",
    view="axial",
    size=28,
    members=MEMBERS,
    metrics=METRICS,
    training=TRAINING,
    temperature=0.443,
):
    info = BundleInfo("tiny", dataset, view, CLASSES, size, metrics, training)
    return model_card(info, members, temperature)


def flat(text):
    """With its line breaks as spaces."""
    return " ".join(text.split())


def rows(text):
    return dict(re.findall(r"^\| (train|val|test) \| (.*) \|$", text, re.MULTILINE))


def test_each_split_has_a_row_of_its_own_figures_in_order():
    text = card()
    assert rows(text) == {
        "train": "0.9101 | 0.9202 | 0.0303",
        "val": "0.8404 | 0.8505 | 0.0606",
        "test": "0.7707 | 0.7808 | 0.0909",
    }
    assert list(rows(text)) == ["train", "val", "test"]
    assert "| organamnist, 28 px | accuracy | AUC | ECE |\n|---|---|---|---|\n| train |" in text


def test_a_split_or_a_figure_that_was_not_measured_is_not_invented():
    metrics = {"val": {"accuracy": 0.8404, "auc": None}, "val_as_listed": METRICS["val_as_listed"]}
    assert rows(card(metrics=metrics)) == {"val": "0.8404 | – | –"}


def test_calibration_tells_the_error_before_and_after_on_validation():
    text = flat(card())
    assert (
        "logits are divided by the temperature 0.443, fitted to the listed variants on 1,000 validation slices. "
        "ECE on validation 0.0514 before, 0.0213 after" in text
    )
    assert "Together the listed variants reach 0.8312 on validation." in text


def test_calibration_on_test_tells_the_error_of_test_before_and_after():
    assert "; on test 0.0909 before, 0.0111 after (float32, its own temperature)." in flat(card())


@pytest.mark.parametrize("test", [{}, {"test": {"accuracy": 0.7707, "auc": 0.7808, "ece": 0.0909}}])
def test_where_calibration_was_not_measured_on_test_it_warns(test):
    metrics = {name: METRICS[name] for name in ("val", "val_as_listed")} | test
    text = flat(card(metrics=metrics))
    assert "0.0213 after; on other scans expect it to be higher." in text and "on test " not in text


def test_every_variant_has_its_accuracy_the_listed_one_first():
    assert (
        "the one listed for CPUs first: `first` int8 0.8112, fp32 0.8213, fp16 0.8214; `second` fp32 0.8415."
        in flat(card())
    )


@pytest.mark.parametrize("count", [1, 2])
def test_averaging_is_told_of_several_networks_alone(count):
    text = flat(card(members=MEMBERS[:count]))
    assert ("Their probabilities are averaged." in text) == (count == 2)
    assert (
        f"Networks: {', '.join(('`first`', '`second`')[:count])}, trained from scratch, seed 17."
        in text
    )


def test_imagenet_weights_are_named():
    text = flat(card(training=TRAINING | {"weights": "timm/resnet50.a1_in1k"}))
    assert "trained from ImageNet weights (timm/resnet50.a1_in1k), seed 17" in text
    assert "trained from scratch" in flat(card(training=TRAINING | {"weights": "none"}))


def test_the_scans_and_slices_are_the_published_ones():
    """medmnist.INFO for the slices; 115, 16 and 70 scans: Yang et al., Scientific Data 2023, OrganMNIST."""
    expected = {
        "organamnist": ("34,561", "6,491", "17,778"),
        "organcmnist": ("12,975", "2,392", "8,216"),
        "organsmnist": ("13,932", "2,452", "8,827"),
    }
    for dataset, (train, val, test) in expected.items():
        text = flat(card(dataset=dataset))
        assert f"{dataset} of MedMNIST v2 (MD5 d41d8cd98f)" in text and "one of 11 classes" in text
        assert (
            f"{train} slices for training, {val} for validation, {test} for testing, of 115, 16 and 70 CT scans"
            in text
        )


@pytest.mark.parametrize(
    "view, words",
    [
        ("axial", " (rows run to the patient's left, columns to the back)."),
        ("coronal", "."),
        ("sagittal", "."),
    ],
)
def test_the_orientation_is_told_where_it_was_established(view, words):
    text = flat(card(view=view, size=64))
    assert f"{view} view: one of" in text and f"- Only {view} slices." in text
    assert (
        f"Input: 64 x 64 gray pixels of a crop around one organ, as MedMNIST stores them{words}"
        in text
    )


def test_a_smoke_run_says_that_its_figures_mean_nothing():
    warning = "**A smoke run: these figures mean nothing.**"
    assert warning in card(training=TRAINING | {"smoke": True})
    assert warning not in card(training=TRAINING | {"smoke": False}) and warning not in card()


def test_the_spread_of_seeds_is_told_by_split_and_metric():
    measured = {
        "val": {
            "accuracy": {"mean": 0.81, "std": 0.011},
            "auc": {"mean": 0.82, "std": 0.012},
            "ece": {"mean": 0.03, "std": 0.013},
        },
        "test": {
            "accuracy": {"mean": 0.71, "std": 0.021},
            "auc": {"mean": 0.72, "std": 0.022},
            "ece": {"mean": 0.04, "std": 0.023},
        },
    }
    text = flat(card(metrics=METRICS | {"seeds": {"count": 3} | measured}))
    assert (
        "The table is of seed 17, the best of 3 seeds on validation. As the mean over 3 seeds, ± one standard deviation: val accuracy 0.8100 ± 0.0110, "
        "val auc 0.8200 ± 0.0120, val ece 0.0300 ± 0.0130, test accuracy 0.7100 ± 0.0210, "
        "test auc 0.7200 ± 0.0220, test ece 0.0400 ± 0.0230." in text
    )
    assert "One seed." not in text and "One seed." in flat(card())


def test_the_recipe_is_told_where_there_is_one():
    recipe = {"network": "A network", "epochs": 24, "settings": {"peak": 0.003, "shift": 2}}
    text = flat(card(training=TRAINING | {"recipe": recipe}))
    assert "A network; 24 epochs. Recipe: peak 0.003, shift 2. Input:" in text
    assert "Recipe:" not in card()
