"""A whole run on made slices: every number it leaves, worked out again from its probabilities and its data file.

The numbers come from here: plain NumPy, scikit-learn and SciPy, onnxruntime for the exported networks.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.stats import binom, rankdata
from sklearn.metrics import precision_recall_fscore_support

from tests.conftest import CLASSES as LABELS
from tests.support.report_page import Page
from tests.support.tiny_run import (
    CLASSES,
    CORRUPTED,
    FITTED_ON,
    FLAG,
    MEMBERS,
    NETWORKS,
    PEAK,
    SPLITS,
    STAGES,
    VIEW,
    TinyRun,
    evenly,
    tiny_run,
)

NAMES = {"train": "train", "val": "validation", "test": "test"}
FITTED_TEXT = "50 validation slices and 13 corrupted copies of each (MedMNIST-C, severity 3)"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> TinyRun:
    return tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def results(run) -> dict[str, Any]:
    return json.loads((run.directory / "results.json").read_text())


@pytest.fixture(scope="module")
def rows(results) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in results["stages"]}


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(run.directory / "report" / "index.html")


@pytest.fixture(scope="module")
def truth(run) -> dict[tuple[str, str], dict[str, Any]]:
    """By stage and split, what the probabilities and the labels of the data file say."""
    found = {}
    for stage in STAGES:
        probabilities = run.probabilities(stage)
        for split in SPLITS:
            found[stage, split] = measured(probabilities[split], run.labels[split])
    return found


def measured(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Metrics by their definitions; rows of the confusion matrix are true classes."""
    predicted = probabilities.argmax(1)
    confusion = np.zeros((CLASSES, CLASSES), int)
    for true, said in zip(labels, predicted, strict=True):
        confusion[true, said] += 1
    precision, recall, f1 = (
        value for value in precision_recall_fscore_support(labels, predicted, zero_division=0)[:3]
    )
    support = np.bincount(labels, minlength=CLASSES)
    organs = np.array([re.sub("-(left|right)$", "", label) for label in LABELS])
    return {
        "accuracy": np.mean(predicted == labels),
        "precision": precision @ support / len(labels),
        "recall": recall @ support / len(labels),
        "f1": f1 @ support / len(labels),
        "auc": np.mean([area(probabilities[:, c], labels == c) for c in range(CLASSES)]),
        "ece": calibration_error(probabilities, labels),
        "confusion": confusion,
        "side_merged": np.mean(organs[predicted] == organs[labels]),
    }


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive slice gets a higher score than another, ties counted as half (Mann and Whitney)."""
    ranks, count = rankdata(scores), positive.sum()
    return (ranks[positive].sum() - count * (count + 1) / 2) / (count * (~positive).sum())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Over 15 equal bins, closed on the right (Guo et al., ICML 2017)."""
    top, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    error = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (top > low) & (top <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    return error


def cooled(members: list[np.ndarray], temperature: float) -> np.ndarray:
    """The mean over members of probabilities whose logits are divided by a temperature."""
    powers = [np.asarray(p, np.float64) ** (1 / temperature) for p in members]
    return np.mean([p / p.sum(1, keepdims=True) for p in powers], axis=0)


def best_temperature(members: list[np.ndarray], labels: np.ndarray) -> float:
    """The one of the least negative log likelihood."""
    rows = np.arange(len(labels))

    def loss(temperature: float) -> float:
        return -np.log(cooled(members, temperature)[rows, labels]).mean()

    return minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-5}).x


def softmax_of(graph: Path, images: np.ndarray) -> np.ndarray:
    """What an exported network says of slices: gray 0 to 255 as -1 to 1."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    x = (images.astype(np.float32)[:, None] / 255 - 0.5) / 0.5
    (logits,) = session.run(["logits"], {"images": x})
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def members_of(run: TinyRun, stage: str, split: str) -> list[np.ndarray]:
    return [
        run.probabilities(name)[split] for name in (MEMBERS if stage == "ensemble" else (stage,))
    ]


def fitting_labels(run: TinyRun) -> np.ndarray:
    """Those of some validation slices, as they are and in 13 corrupted copies."""
    return np.concatenate([run.labels["val"][evenly(FITTED_ON, SPLITS["val"])]] * 14)


def history_of(run: TinyRun, stage: str) -> dict[str, np.ndarray]:
    with (run.directory / stage / "history.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {key: np.array([float(line[key]) for line in lines]) for key in lines[0]}


# which slices and labels each step is given


def test_the_splits_can_be_told_apart_by_every_number(truth):
    for metric in ("accuracy", "precision", "recall", "f1", "auc", "ece", "side_merged"):
        shown = [f"{truth[stage, split][metric]:.3f}" for stage in STAGES for split in SPLITS]
        repeated = [value for value, count in Counter(shown).items() if count > 1]
        assert len(repeated) <= 1, (metric, repeated)
    for stage in STAGES:
        for split in SPLITS:
            confusion = truth[stage, split]["confusion"]
            assert (confusion != confusion.T).any() and 0.3 < truth[stage, split]["accuracy"] < 1


def test_training_sees_train_alone_and_is_validated_on_validation(run):
    epochs = [event for event in run.events if event.name in ("train_epoch", "evaluate")]
    trained = [i for i, event in enumerate(epochs) if event.name == "train_epoch"]
    assert len(trained) == 5 + 6 + 6
    for i in trained:
        assert epochs[i].holds == {"images": "train images", "labels": "train labels"}
        assert (epochs[i + 1].name, epochs[i + 1].holds) == ("evaluate", {"images": "val images"})


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("export", [{"images": "val images", "labels": "val labels"}] * 3),
        ("fit_temperature", [{"labels": "fitting labels"}] * 4),
        ("calibrated", [{"labels": "val labels"}, {"labels": "test labels"}] * 4),
        (
            "measure",
            [{"labels": "train labels"}, {"labels": "val labels"}] * 4
            + [{"labels": "test labels"}] * 4,
        ),
        ("robustness", [{"images": "some test images", "labels": "some test labels"}] * 2),
        (
            "write_bundle",
            [
                {
                    "train": "train images",
                    "val": "val images",
                    "val_labels": "val labels",
                    "fitting": "fitting images",
                    "fitting_labels": "fitting labels",
                }
            ]
            * 2,
        ),
        ("write_report", [{f"{s} {k}": f"{s} {k}" for s in SPLITS for k in ("images", "labels")}]),
    ],
)
def test_each_step_is_given_the_slices_and_labels_it_is_for(run, step, expected):
    assert [event.holds for event in run.named(step)] == expected


def test_test_is_looked_at_once_and_after_everything_is_chosen(run):
    looks = [i for i, event in enumerate(run.events) if event.holds == {"images": "test images"}]
    chosen = [
        i
        for i, event in enumerate(run.events)
        if event.name == "train_epoch"
        or event.holds in ({"labels": "val labels"}, {"images": "val images"})
        if event.name != "calibrated"
    ]
    assert len(looks) == len(NETWORKS) and max(chosen) < min(looks)
    assert all(run.events[i].name == "evaluate" for i in looks)
    before = [value for event in run.events[: min(looks)] for value in event.holds.values()]
    assert not any("test" in value or value == "unknown" for value in before)


@pytest.mark.parametrize("stage", NETWORKS)
def test_the_probabilities_are_the_exported_networks_own_slice_by_slice(run, stage):
    kept = run.probabilities(stage)
    for split in SPLITS:
        expected = softmax_of(run.directory / stage / "member.onnx", run.images[split])
        np.testing.assert_allclose(kept[split], expected, atol=1e-5)
        assert kept[split].dtype == np.float32
    plain = kept["val_corrupted"][:FITTED_ON]
    np.testing.assert_allclose(plain, kept["val"][evenly(FITTED_ON, SPLITS["val"])], atol=1e-6)
    assert len(kept["val_corrupted"]) == 14 * FITTED_ON


def test_the_ensemble_is_the_mean_of_its_members_probabilities(run):
    for split in SPLITS:
        mean = np.mean([p.astype(np.float64) for p in members_of(run, "ensemble", split)], axis=0)
        np.testing.assert_allclose(run.probabilities("ensemble")[split], mean, atol=1e-7)


# results.json, results.csv, history.csv and what the command prints


def test_results_json_holds_the_metrics_of_each_stage_and_split(rows, truth):
    assert list(rows) == list(STAGES)
    for (stage, split), expected in truth.items():
        found = rows[stage][split]
        assert found["confusion"] == expected["confusion"].tolist()
        for metric in ("accuracy", "precision", "recall", "f1", "auc", "ece"):
            assert found[metric] == pytest.approx(expected[metric], abs=1e-6), (
                stage,
                split,
                metric,
            )
        assert set(found) == set(expected) - {"side_merged"}


def test_results_json_holds_the_temperature_and_what_it_does_to_the_calibration(run, rows):
    for stage in STAGES:
        found = rows[stage]["calibration"]
        expected = best_temperature(members_of(run, stage, "val_corrupted"), fitting_labels(run))
        assert (
            found["temperature"] == pytest.approx(expected, abs=2e-3) and found["temperature"] != 1
        )
        for split in ("val", "test"):
            shares = cooled(members_of(run, stage, split), found["temperature"])
            assert found[f"{split}_ece"] == pytest.approx(
                calibration_error(shares, run.labels[split]), abs=1e-6
            )
        assert found["fitted_on"] == FITTED_TEXT
        assert set(found) == {"temperature", "val_ece", "test_ece", "fitted_on"}


def test_results_json_names_the_data_that_was_used(run, results):
    counts = {split: np.bincount(run.labels[split], minlength=CLASSES).tolist() for split in SPLITS}
    about = {"flag": FLAG, "size": 28, "resample_from": None, "classes": LABELS, "counts": counts}
    about["resample"] = "area"
    assert results["dataset"] == about | {"md5": hashlib.md5(run.content).hexdigest()}
    assert (results["format"], results["smoke"]) == (1, False)
    assert results["device"] == "cpu (" + results["device"].partition("(")[2]
    assert "summary" not in results
    assert results["settings"] == {
        "seed": 1,
        "seeds": 1,
        "size": 28,
        "resample_from": None,
        "resample": "area",
        "batch_size": 16,
        "weights": "imagenet",
        "smoke": False,
        "max_epochs": {"all": 6},
        "deterministic": False,
        "amp": "off",
    }


def test_a_stages_row_says_what_was_trained_and_for_how_long(run, rows):
    for stage in NETWORKS:
        history, row = history_of(run, stage), rows[stage]
        best = (
            int(history["val_accuracy"].argmax()) + 1
            if stage == "batch_norm"
            else len(history["epoch"])
        )
        assert (row["epochs"], row["best_epoch"]) == (len(history["epoch"]), best)
        assert row["seconds"] == pytest.approx(history["seconds"].sum())
        assert row["seconds_per_epoch"] == pytest.approx(history["seconds"].mean())
        assert row["parameters"] == parameters_of(run.directory / stage / "member.onnx", stage)
        slices = {"slices": SPLITS["val"], "val_accuracy": pytest.approx(row["val"]["accuracy"])}
        assert {key: row["export"][key] for key in slices} == slices and row["export"][
            "max_abs"
        ] < 1e-4
        assert (row["seed"], row["weights"], row["precision"]) == (1, "none", "fp32")
    named = {stage: rows[stage]["network"] for stage in NETWORKS}
    assert named == {"base": "small", "batch_norm": "big_batch_norm", "edge": "edge_orientation"}


def parameters_of(graph: Path, stage: str) -> int:
    """Weights of the tiny networks: two convolutions, three linear layers, and two values a channel of each normalization.

    That of edge: seven convolutions, one of them 1x1, with normalization, and the linear layers of two heads.
    """
    if stage == "edge":
        convolutions = 9 * (8 + 8 * 8 + 8 * 8 + 8 * 16 + 16 * 16) + 8 * 16
        heads = (16 * 11 + 11) + (16 * 64 + 64) + (64 * 9 + 9)
        return convolutions + 2 * (8 + 8 + 8 + 16 + 16 + 16) + heads
    width, norm = {"base": (6, False), "batch_norm": (5, True)}[stage]
    weights = width * 9 + width * width * 9 + width * 49 * 32 + 32 * 24
    others = 2 * (width + width + 32 + 24) if norm else width + width + 32 + 24
    return weights + others + 24 * 11 + 11


def test_the_ensembles_row_sums_its_members(rows):
    members = [rows[name] for name in MEMBERS]
    for key in ("parameters", "epochs", "seconds", "seconds_per_epoch"):
        assert rows["ensemble"][key] == pytest.approx(sum(row[key] for row in members)), key
    assert rows["ensemble"]["network"] == "mean probability of base, batch_norm"
    assert (rows["ensemble"]["best_epoch"], rows["ensemble"]["weights"]) == (None, "none")
    assert "export" not in rows["ensemble"]


def test_the_kept_epoch_of_the_history_is_what_the_kept_weights_reach(run, truth, rows):
    for stage in NETWORKS:
        history, best = history_of(run, stage), rows[stage]["best_epoch"] - 1
        assert history["val_accuracy"][best] == pytest.approx(truth[stage, "val"]["accuracy"])
        shares = run.probabilities(stage)["val"].astype(np.float64)
        chosen = shares[np.arange(SPLITS["val"]), run.labels["val"]]
        assert history["val_loss"][best] == pytest.approx(-np.log(chosen).mean(), abs=1e-4)
        assert history["epoch"].tolist() == list(range(1, len(history["epoch"]) + 1))
        for metric in ("loss", "accuracy"):
            assert (history[f"train_{metric}"] != history[f"val_{metric}"]).all()


def test_results_csv_has_every_metric_of_each_stage_and_split(run, rows, truth):
    with (run.directory / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["stage"], line["split"]) for line in lines] == [
        (n, s) for n in STAGES for s in SPLITS
    ]
    for line in lines:
        expected, row = truth[line["stage"], line["split"]], rows[line["stage"]]
        for metric in ("accuracy", "precision", "recall", "f1", "auc", "ece", "side_merged"):
            assert float(line[metric]) == pytest.approx(expected[metric], abs=1e-6), metric
        after = row["calibration"].get(f"{line['split']}_ece")
        assert line["ece_calibrated"] == ("" if after is None else str(after))
        for key in ("network", "parameters", "weights", "epochs", "best_epoch", "seconds"):
            assert line[key] == ("" if row[key] is None else str(row[key])), key
        assert float(line["temperature"]) == row["calibration"]["temperature"]
        assert (line["dataset"], line["size"], line["smoke"], line["seed"]) == (
            FLAG,
            "28",
            "false",
            "1",
        )


def test_the_run_ends_in_a_table_of_accuracies_and_the_places_of_what_it_made(run, rows, truth):
    lines = run.printed.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("stage "))
    assert lines[head].split() == [
        "stage",
        "parameters",
        "epochs",
        "kept",
        "s/epoch",
        "train",
        "val",
        "test",
    ]
    assert lines[head - 1].startswith(f"{FLAG}, accuracy on cpu (")
    for line, stage in zip(lines[head + 2 :], STAGES, strict=False):
        row = rows[stage]
        accuracies = [f"{truth[stage, split]['accuracy']:.4f}" for split in SPLITS]
        best = [] if row["best_epoch"] is None else [str(row["best_epoch"])]
        counts = [
            f"{row['parameters']:,}",
            str(row["epochs"]),
            *best,
            f"{row['seconds_per_epoch']:.1f}",
        ]
        assert line.split() == [stage, *counts, *accuracies]
    assert f"report  {run.directory / 'report' / 'index.html'}" in lines
    assert f"bundle  {run.directory / 'bundle'}" in lines
    assert f"use it  organ-infer --bundle {run.directory / 'bundle'} images/*.png" in lines
    assert "smoke" not in run.printed and "epoch   6/6" in run.printed
    for stage in NETWORKS:
        (said,) = [
            line for line in lines if line.startswith(f"{stage} ") and "exported: 97 slices" in line
        ]
        assert re.search(rf"val accuracy {truth[stage, 'val']['accuracy']:.4f}, \d+\.\d s$", said)
        assert any(re.match(rf"{stage} +measured: .*, \d+\.\d s$", line) for line in lines)
    phases = [line[10:].split() for line in lines if " done in " in line and "variants" not in line]
    assert [words[0] for words in phases] == ["measuring", "robustness", "bundle", "report"]
    assert sum(": variants done in " in line for line in lines) >= 1


# the bundles


@pytest.fixture(scope="module", params=[("bundle", "edge"), ("bundle-ensemble", "ensemble")])
def bundle(request, run) -> tuple[Path, str, dict[str, Any], str]:
    folder, stage = run.directory / request.param[0], request.param[1]
    manifest = json.loads((folder / "manifest.json").read_text())
    return folder, stage, manifest, (folder / "MODEL_CARD.md").read_text()


def test_the_manifests_metrics_are_those_of_the_stage(bundle, truth, rows):
    _, stage, manifest, _ = bundle
    for split in SPLITS:
        found = manifest["metrics"][split]
        for metric in ("accuracy", "auc", "ece"):
            assert found[metric] == pytest.approx(truth[stage, split][metric], abs=1e-6), (
                split,
                metric,
            )
        after = rows[stage]["calibration"].get(f"{split}_ece")
        assert found.get("ece_calibrated") == after
    assert "seeds" not in manifest["metrics"]


def test_the_manifests_members_are_the_trained_networks(bundle, run, truth):
    folder, stage, manifest, _ = bundle
    names = list(MEMBERS) if stage == "ensemble" else [stage]
    assert [member["stage"] for member in manifest["members"]] == names
    for member in manifest["members"]:
        content = (folder / member["file"]).read_bytes()
        assert (member["sha256"], member["bytes"]) == (
            hashlib.sha256(content).hexdigest(),
            len(content),
        )
        assert member["val_accuracy"] == pytest.approx(truth[member["stage"], "val"]["accuracy"])
        found = softmax_of(folder / member["file"], run.images["test"])
        np.testing.assert_allclose(found, run.probabilities(member["stage"])["test"], atol=1e-4)
        exported = (run.directory / member["stage"] / "member.onnx").read_bytes()
        assert (
            manifest["training"]["members"][member["stage"]] == hashlib.sha256(exported).hexdigest()
        )


def test_the_manifest_calibrates_what_it_lists(bundle, run):
    folder, _, manifest, _ = bundle
    listed = [
        softmax_of(folder / member["file"], run.images["val"]) for member in manifest["members"]
    ]
    names = [member["stage"] for member in manifest["members"]]
    fitting = [run.probabilities(name)["val_corrupted"] for name in names]
    temperature = manifest["temperature"]
    assert temperature == pytest.approx(best_temperature(fitting, fitting_labels(run)), abs=2e-3)
    after, labels = cooled(listed, temperature), run.labels["val"]
    assert manifest["metrics"]["val_as_listed"] == {
        "accuracy": pytest.approx((after.argmax(1) == labels).mean()),
        "ece": pytest.approx(calibration_error(after, labels), abs=1e-5),
        "ece_uncalibrated": pytest.approx(calibration_error(cooled(listed, 1.0), labels), abs=1e-5),
    }


def test_the_manifest_says_what_was_trained_on_what(bundle, run, results, rows):
    _, stage, manifest, _ = bundle
    assert manifest["name"] == f"{FLAG}-{stage}"
    assert (manifest["task"]["dataset"], manifest["task"]["view"]) == (FLAG, VIEW)
    assert manifest["task"]["classes"] == LABELS
    assert (manifest["input"]["size"], manifest["input"]["orientation"]) == (28, None)
    training = manifest["training"]
    assert training["data_md5"] == hashlib.md5(run.content).hexdigest()
    assert (training["seed"], training["weights"], training["smoke"]) == (1, "none", False)
    assert (training["versions"], training["device"]) == (results["versions"], results["device"])
    assert (training["precisions_tried"], training["temperature_fitted_on"]) == (
        ["fp32"],
        FITTED_TEXT,
    )
    assert ("recipe" in training) == (stage == "edge")
    if stage == "edge":
        assert training["recipe"]["epochs"] == rows["edge"]["epochs"] == 6
        assert f"{rows['edge']['parameters']:,} parameters" in training["recipe"]["network"]
        # axial slices alone are flipped front to back
        assert training["recipe"]["settings"]["peak"] == PEAK
        assert training["recipe"]["settings"]["mirror"] == 0.0


def test_the_model_card_has_the_numbers_of_each_split(bundle, run, truth, rows):
    _, stage, manifest, card = bundle
    for split in SPLITS:
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {split} |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:] == [f"{truth[stage, split][m]:.4f}" for m in ("accuracy", "auc", "ece")]
    text = " ".join(card.split())
    listed, calibration = manifest["metrics"]["val_as_listed"], rows[stage]["calibration"]
    assert (
        f"temperature {manifest['temperature']:g}, fitted to the listed variants on {FITTED_TEXT}."
        in text
    )
    before, after = f"{truth[stage, 'val']['ece']:.4f}", f"{listed['ece']:.4f}"
    assert f"ECE on validation {before} before, {after} after" in text
    before, after = f"{truth[stage, 'test']['ece']:.4f}", f"{calibration['test_ece']:.4f}"
    assert f"; on test {before} before, {after} after (float32, its own temperature)." in text
    forms = [
        f"`{m['stage']}` fp32 {truth[m['stage'], 'val']['accuracy']:.4f}"
        for m in manifest["members"]
    ]
    assert f"the one listed for CPUs first: {'; '.join(forms)}." in text
    assert f"the listed variants reach {truth[stage, 'val']['accuracy']:.4f} on validation" in text


def test_the_model_card_names_the_view_and_the_data(bundle, run):
    _, stage, _, card = bundle
    assert card.startswith(f"# {FLAG}-{stage}\n")
    assert "coronal view: one of 11 classes" in card and "- Only coronal slices." in card
    assert (
        "axial" not in card.lower() and "sagittal" not in card.lower() and "rows run to" not in card
    )
    assert f"(MD5 {hashlib.md5(run.content).hexdigest()})" in card
    networks = "`base`, `batch_norm`" if stage == "ensemble" else "`edge`"
    assert f"Networks: {networks}, trained from scratch, seed 1." in card
    assert ("Their probabilities are averaged." in card) == (stage == "ensemble")
    assert "One seed." in card and "smoke" not in card.lower()


def test_the_runtime_answers_as_the_calibrated_networks(bundle, run):
    from organ_infer import OrganClassifier

    folder, stage, manifest, _ = bundle
    expected = cooled(members_of(run, stage, "test"), manifest["temperature"])
    with OrganClassifier(folder, device="cpu") as classifier:
        found = classifier.predict_proba(run.images["test"])
    np.testing.assert_allclose(found, expected, atol=1e-4)


# the page


def shown(values: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def test_the_scores_stand_under_the_split_and_metric_they_are_of(page, truth):
    label = "Accuracy, precision, recall and F1 by stage and split"
    metrics = ("accuracy", "precision", "recall", "f1")
    splits, columns, *lines = page.table(label)
    assert [name.split()[0] for name in splits] == ["stage", "train", "validation", "test"]
    assert page.spans[label][0] == [1, 4, 4, 4]
    assert columns == ["accuracy", "precision", "recall", "F1"] * 3
    assert [line[0].removesuffix("chosen") for line in lines] == list(STAGES)
    for stage in STAGES:
        assert page.row(label, stage) == shown(
            [truth[stage, s][m] for s in SPLITS for m in metrics]
        )


def test_ranking_calibration_and_sides_stand_under_their_split(page, truth):
    label = "AUC, ECE and left-right merged accuracy by stage and split"
    splits, columns, *_ = page.table(label)
    assert [name.split()[0] for name in splits] == ["stage", "train", "validation", "test"]
    assert (
        page.spans[label][0] == [1, 3, 3, 3] and columns == ["AUC", "ECE", "left-right merged"] * 3
    )
    for stage in STAGES:
        metrics = ("auc", "ece", "side_merged")
        assert page.row(label, stage) == shown(
            [truth[stage, s][m] for s in SPLITS for m in metrics]
        )


def test_calibration_stands_before_and_after_by_split(page, run, rows, truth):
    label = "ECE before and after calibration by stage"
    head, columns, *_ = page.table(label)
    assert head == ["stage", "temperature", "validation ECE", "test ECE"]
    assert columns == ["before", "after"] * 2
    for stage in STAGES:
        temperature = rows[stage]["calibration"]["temperature"]
        expected = [temperature]
        for split in ("val", "test"):
            shares = cooled(members_of(run, stage, split), temperature)
            expected += [truth[stage, split]["ece"], calibration_error(shares, run.labels[split])]
        assert page.row(label, stage) == shown(expected)


def test_the_test_accuracy_stands_with_its_counts_and_interval(page, truth):
    label = "Test accuracy with a bootstrap interval"
    assert page.table(label)[0] == ["stage", "accuracy", "95 % interval", "right", "slices"]
    for stage in STAGES:
        accuracy, interval, right, slices = page.row(label, stage)
        share = truth[stage, "test"]["accuracy"]
        assert (accuracy, slices) == (f"{share:.3f}", str(SPLITS["test"]))
        assert right == str(np.trace(truth[stage, "test"]["confusion"]))
        assert_interval(interval, share)


def assert_interval(text: str, share: float) -> None:
    """The 2.5th and 97.5th percentile of as many slices drawn anew."""
    low, high = map(float, text.split(" to "))
    expected = binom.ppf([0.025, 0.975], SPLITS["test"], share) / SPLITS["test"]
    assert [low, high] == pytest.approx(expected, abs=1.01 / SPLITS["test"])


def test_the_headline_is_of_test_and_says_how_the_stage_was_chosen(page, truth):
    best = max(STAGES, key=lambda stage: truth[stage, "val"]["accuracy"])
    assert best == "ensemble"
    val, test = (truth[best, split]["accuracy"] for split in ("val", "test"))
    assert page.texts["h1"] == [f"The ensemble is right on {100 * test:.1f} % of the test slices"]
    (lede,) = [text for text in page.texts["p"] if text.startswith("It is the best stage")]
    found = re.fullmatch(
        r"It is the best stage on validation, with accuracy (.+?)\. Test was evaluated once, after every choice was "
        r"made: accuracy (.+?) \(95 % interval (.+?)\)\. That is (.+?) (above|below) the 0\.905 published for the official "
        r"network at 28 pixels\.",
        lede,
    )
    assert found and found.group(1, 2) == (f"{val:.3f}", f"{test:.3f}")
    assert_interval(found[3], test)
    assert found.group(4, 5) == (f"{0.905 - test:.3f}", "below")
    assert [row[0] for row in page.rows if row and row[0].endswith("chosen")] == [
        "ensemblechosen"
    ] * 2


def test_the_chosen_stage_is_marked_in_every_table(page):
    tables = [
        label for label in page.tables if "by stage" in label or label.startswith("Test accuracy")
    ]
    assert len(tables) == 4
    for label in tables:
        assert [row[0].removesuffix("chosen") for row in page.marked[label]] == ["ensemble"], label
    # what it was chosen by: its accuracy on validation, the fifth column behind the name
    assert page.bold["Accuracy, precision, recall and F1 by stage and split"] == [5]


def test_the_files_beside_the_page_are_its_figures(run):
    names = {path.name for path in (run.directory / "report").iterdir()}
    drawn = {f"{name}.svg" for name in run.figures}
    sheets = {"mistakes_val.png", "mistakes_test.png"}
    assert names == {"index.html", "accuracy_by_stage.png", "reliability.png"} | drawn | sheets
    with Image.open(run.directory / "report" / "mistakes_test.png") as sheet:
        assert sheet.width == 4 * 1.5 * 120  # four columns of 1.5 inches, 120 pixels an inch
    with Image.open(run.directory / "report" / "reliability.png") as chart:
        assert chart.width == 4.6 * 160


def test_the_key_figures_are_of_the_split_they_name(page, truth):
    best = {split: truth["ensemble", split] for split in SPLITS}
    assert page.pairs[:5] == [
        ("validation accuracy", f"{best['val']['accuracy']:.3f}"),
        ("test accuracy", f"{best['test']['accuracy']:.3f}"),
        ("test AUC", f"{best['test']['auc']:.3f}"),
        ("test, left-right merged", f"{best['test']['side_merged']:.3f}"),
        ("test ECE", f"{best['test']['ece']:.3f}"),
    ]


def test_each_class_has_its_own_precision_and_recall_by_split(page, run):
    label = "Precision, recall and F1 of each class"
    head, columns, *lines = page.table(label)
    assert [name.split()[0] for name in head] == ["class", "validation", "test"]
    assert columns == ["precision", "recall", "F1", "slices"] * 2
    expected: dict[str, list[str]] = {name: [name] for name in LABELS}
    swapped = 0
    for split in ("val", "test"):
        predicted = run.probabilities("ensemble")[split].argmax(1)
        scores = precision_recall_fscore_support(
            run.labels[split], predicted, labels=range(CLASSES)
        )
        for name, precision, recall, f1, support in zip(LABELS, *scores, strict=True):
            expected[name] += [*shown([precision, recall, f1]), str(support)]
            swapped += f"{precision:.3f}" != f"{recall:.3f}"
    assert lines == list(expected.values()) and swapped > CLASSES


def test_published_results_stand_beside_this_runs_test_figures(page, truth):
    found = page.row("Published test results", "this run, ensemble")
    best = truth["ensemble", "test"]
    assert found == [f"{best['accuracy']:.3f}", f"{best['auc']:.3f}", "28", "validation", ""]


def test_the_data_are_counted_by_class_and_split(page, run):
    label = "Slices of each class by split"
    counts = {split: np.bincount(run.labels[split], minlength=CLASSES) for split in SPLITS}
    head, *lines, last = page.table(label)
    assert head == ["class", "examples", "train", "validation", "test"]
    assert last == ["all", "", "330", "97", "139"]
    for i, (name, line) in enumerate(zip(LABELS, lines, strict=True)):
        assert line == [name, "", *(str(counts[split][i]) for split in SPLITS)]
    bars = [
        a["style"]
        for tag, a in page.elements
        if tag == "i" and (a.get("style") or "").startswith("width")
    ]
    widths = [
        100 * counts[split][i] / counts[split].max() for i in range(CLASSES) for split in SPLITS
    ]
    assert bars == [f"width:{width:.1f}%" for width in widths]


def test_sample_slices_are_of_train_and_of_their_class(page, run):
    samples = [(alt, image) for alt, image in page.images if ", example " in alt]
    assert Counter(alt.split(",")[0] for alt, _ in samples) == dict.fromkeys(LABELS, 4)
    for alt, image in samples:
        same = (run.images["train"] == image).all((1, 2))
        assert same.any() and set(run.labels["train"][same]) == {LABELS.index(alt.split(",")[0])}


def wrong_slices(run: TinyRun, split: str) -> list[tuple[int, str, str, float]]:
    """The ensemble's mistakes on a split, the surest first: number, truth, answer, probability."""
    shares, labels = run.probabilities("ensemble")[split], run.labels[split]
    found = [
        (i, LABELS[true], LABELS[row.argmax()], float(row.max()))
        for i, (row, true) in enumerate(zip(shares, labels, strict=True))
        if row.argmax() != true
    ]
    return sorted(found, key=lambda mistake: -mistake[3])[:12]


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_surest_mistakes_are_judged_by_their_own_splits_labels(page, run, split):
    expected = wrong_slices(run, split)
    alts = [
        f"slice {i} of {NAMES[split]}: {true} predicted as {said}" for i, true, said, _ in expected
    ]
    found = [(alt, image) for alt, image in page.images if f" of {NAMES[split]}: " in alt]
    assert [alt for alt, _ in found] == alts and len(alts) > 5
    for (_, image), (i, *_) in zip(found, expected, strict=True):
        assert np.array_equal(image, run.images[split][i])
    texts = ["".join(text.split()) for text in page.texts["li"]]
    for i, true, said, probability in expected:
        assert f"{said}{probability:.3f}true:{true}no.{i}" in texts


def test_the_contact_sheets_show_the_same_mistakes(run):
    for (images, captions), split in zip(run.sheets, ("val", "test"), strict=True):
        expected = wrong_slices(run, split)
        assert captions == [
            f"{said} {p:.3f}\ntrue: {true}, no. {i}" for i, true, said, p in expected
        ]
        assert all(
            np.array_equal(image, run.images[split][i])
            for image, (i, *_) in zip(images, expected, strict=True)
        )


def test_corrupted_slices_are_tabled_as_they_were_measured(page, run):
    entries = json.loads((run.directory / "robustness.json").read_text())["stages"]
    chosen = evenly(CORRUPTED, SPLITS["test"])
    label = "Accuracy and balanced error on corrupted slices, test, 40 slices"
    assert page.table(label)[0] == ["stage", "clean", "corrupted", "balancederror"]
    by_corruption = page.table("Accuracy by corruption and stage, test, 40 slices")
    assert by_corruption[0] == ["corruption", "ensemble", "edge"]
    for column, (stage, entry) in enumerate(
        zip(("ensemble", "edge"), entries, strict=True), start=1
    ):
        right = run.probabilities(stage)["test"][chosen].argmax(1) == run.labels["test"][chosen]
        assert entry["name"] == stage and entry["clean_accuracy"] == pytest.approx(right.mean())
        accuracy = np.array(list(entry["accuracy"].values()))
        error = np.array(list(entry["balanced_error"].values()))
        assert accuracy.shape == error.shape == (13, 5)
        assert page.row(label, stage) == shown([right.mean(), accuracy.mean(), error.mean()])
        assert [line[column] for line in by_corruption[1:]] == shown(list(accuracy.mean(1)))
    assert [line[0].replace(" ", "_") for line in by_corruption[1:]] == list(entries[0]["accuracy"])
    assert "Test, 40 of 139 slices" in page.texts["h3"]


def test_the_page_names_the_view_the_stages_that_did_not_run_and_the_record(
    page, run, results, rows
):
    assert "Training report · OrganCMNIST · coronal · 28 pixels" in page.texts["p"]
    assert "axial" not in page.text.lower() and "sagittal" not in page.text.lower()
    (missing,) = [text for text in page.texts["p"] if text.startswith("Not run")]
    assert missing.endswith(": early_stopping, big, augmentation, resnet50, resnet101, resnet152.")
    pairs = Counter(page.pairs)
    spent = sum(row["seconds"] for row in rows.values())
    for pair in (
        ("data set", "OrganCMNIST, coronal, 28 × 28 pixels"),
        ("MD5", hashlib.md5(run.content).hexdigest()),
        ("device", results["device"]),
        ("time, all stages", f"{spent:.1f} s"),
        ("max epochs", "all 6"),
        ("smoke", "no"),
        *(results["versions"].items()),
    ):
        assert pairs[pair] >= 1, pair
    for stage in STAGES:
        assert pairs["parameters", f"{rows[stage]['parameters']:,}"] == 1
        assert pairs["network", rows[stage]["network"]] == 1
        assert pairs["time", f"{rows[stage]['seconds']:.1f} s"] >= 1
    assert Counter(text for name, text in page.pairs if name == "kept epoch") == Counter(
        str(rows[stage]["best_epoch"]) for stage in NETWORKS
    )
    augmented = [text for name, text in page.pairs if name == "augmented"]
    assert augmented == ["no", "yes", "by a recipe of its own"]


def test_captions_and_names_of_figures_hold_the_numbers_drawn(page, run, rows, truth):
    drawings = page.drawings()
    parts = [
        f"{stage}: " + ", ".join(f"{NAMES[s]} {truth[stage, s]['accuracy']:.3f}" for s in SPLITS)
        for stage in STAGES
    ]
    assert "Accuracy by stage. " + "; ".join(parts) + "." in drawings
    for stage in NETWORKS:
        history = history_of(run, stage)
        end = f"validation loss {history['val_loss'][-1]:.3f} and accuracy {history['val_accuracy'][-1]:.3f}"
        assert f"Loss and accuracy of {stage} by epoch. At the end, {end}." in drawings
    for stage in STAGES:
        for split in ("train", "val"):
            matrix = truth[stage, split]["confusion"]
            off = matrix - np.diag(np.diag(matrix))
            true, said = np.unravel_index(off.argmax(), off.shape)
            assert (
                f"Confusion matrix of {stage} on {NAMES[split]}: {np.trace(matrix)} of {SPLITS[split]} slices right; most "
                f"often {LABELS[true]} was predicted as {LABELS[said]}, {off.max()} times."
                in drawings
            )
            assert f"{stage} on {NAMES[split]}, {SPLITS[split]} slices." in page.texts["figcaption"]
    calibration = rows["ensemble"]["calibration"]
    before = [f"{truth['ensemble', split]['ece']:.3f}" for split in ("val", "test")]
    assert page.texts["figcaption"][1].endswith(
        f"ECE {before[0]} on validation, {before[1]} on test; with temperature {calibration['temperature']:.3f}: "
        f"{calibration['val_ece']:.3f} and {calibration['test_ece']:.3f}."
    )


# the figures as matplotlib holds them


def line_of(axes: Any, label: str) -> Any:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


@pytest.mark.parametrize("stage", NETWORKS)
def test_the_curves_are_the_historys_columns(run, rows, stage):
    loss, accuracy = run.figures[f"{stage}_curves"][0].axes
    history = history_of(run, stage)
    for axes, metric in ((loss, "loss"), (accuracy, "accuracy")):
        assert axes.get_title(loc="left") == metric
        for split in ("train", "val"):
            line = line_of(axes, NAMES[split])
            np.testing.assert_allclose(line.get_xdata(), history["epoch"])
            np.testing.assert_allclose(line.get_ydata(), history[f"{split}_{metric}"])
        (kept,) = [line for line in axes.lines if line.get_label() not in NAMES.values()]
        assert list(kept.get_xdata()) == [rows[stage]["best_epoch"]] * 2


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_confusion_figure_has_true_classes_in_rows_and_is_shaded_by_row(
    run, truth, stage, split
):
    (axes,) = run.figures[f"{stage}_confusion_{split}"][0].axes
    counts = truth[stage, split]["confusion"]
    shares = counts / counts.sum(1, keepdims=True)
    texts, shades = drawn_matrix(axes)
    np.testing.assert_array_equal(texts, counts)
    np.testing.assert_allclose(shades, 0.95 * np.sqrt(shares), atol=1e-3)
    assert [text.get_text() for text in axes.get_yticklabels()] == LABELS
    assert [text.get_text() for text in axes.get_xticklabels()] == LABELS


def drawn_matrix(axes: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a reader sees, row by row from the top: the numbers, and how dark their squares are."""
    size = len(axes.get_yticklabels())
    texts, shades = np.zeros((size, size), int), np.zeros((size, size))
    assert axes.get_ylim() == (size, 0) and axes.get_xlim() == (0, size)  # the first row on top
    for text in axes.texts:
        column, row = text.get_position()
        texts[int(row), int(column)] = int(text.get_text())
    for patch in axes.patches:
        assert (patch.get_width(), patch.get_height()) == (1, 1)
        shades[patch.get_y(), patch.get_x()] = patch.get_alpha()
    np.testing.assert_allclose(axes.get_yticks(), np.arange(size) + 0.5)
    np.testing.assert_allclose(axes.get_xticks(), np.arange(size) + 0.5)
    return texts, shades


def test_the_chart_of_stages_shows_each_split_by_its_color_and_name(run, truth):
    (axes,) = run.figures["accuracy_by_stage"][0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == list(STAGES)
    colors = set()
    for split in SPLITS:
        line = line_of(axes, NAMES[split])
        assert list(line.get_xdata()) == [0, 1, 2, 3]
        expected = [truth[stage, split]["accuracy"] for stage in STAGES]
        np.testing.assert_allclose(line.get_ydata(), expected)
        colors.add(to_hex(line.get_color()))
    assert len(colors) == 3


def test_the_reliability_diagram_is_of_both_splits_bins(run):
    upper, lower = run.figures["reliability"][0].axes
    assert (upper.get_title(loc="left"), lower.get_title(loc="left")) == (
        "share right",
        "share of the slices",
    )
    for split in ("val", "test"):
        shares, labels = run.probabilities("ensemble")[split], run.labels[split]
        top, right = shares.max(1).astype(np.float64), shares.argmax(1) == labels
        bins = [(top > i / 15) & (top <= (i + 1) / 15) for i in range(15)]
        bins = [inside for inside in bins if inside.any()]
        line = line_of(upper, NAMES[split])
        np.testing.assert_allclose(
            line.get_xdata(), [top[inside].mean() for inside in bins], atol=1e-6
        )
        np.testing.assert_allclose(line.get_ydata(), [right[inside].mean() for inside in bins])
        (below,) = [other for other in lower.lines if other.get_color() == line.get_color()]
        np.testing.assert_allclose(below.get_xdata(), line.get_xdata())
        np.testing.assert_allclose(below.get_ydata(), [inside.mean() for inside in bins])
        gap = np.abs(np.subtract(line.get_ydata(), line.get_xdata())).max()
        assert f"on {NAMES[split]} the widest gap is {gap:.2f}" in run.figures["reliability"][1]


# the same command again


def test_the_same_command_again_trains_measures_and_bundles_nothing(run, results):
    bundles = [run.directory / name / "manifest.json" for name in ("bundle", "bundle-ensemble")]
    before = [path.stat().st_mtime_ns for path in bundles]

    again = tiny_run(run.directory.parent.parent)

    assert json.loads((run.directory / "results.json").read_text()) == results
    assert [path.stat().st_mtime_ns for path in bundles] == before
    assert {event.name for event in again.events} == {"write_report"}
    assert "epoch" not in again.printed.split("accuracy on")[0]
