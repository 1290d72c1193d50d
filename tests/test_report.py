"""The report: self-contained, its numbers those of results.json, and at ease with runs of every state."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.support.report_page import Page
from tests.support.result_rows import robustness_entry, stage_result
from train import metrics
from train.errors import RunError
from train.json_format import to_json
from train.report import measures, write_report
from train.report.__main__ import main
from train.report.pictures import samples
from train.report.published import PUBLISHED, STUDY
from train.report.run import read_run
from train.results_format import Results

CLASSES = ["kidney-left", "kidney-right", "liver", "<b>spleen & co</b>"]
SPLITS = {"train": 24, "val": 12, "test": 16}
METRICS = ("accuracy", "precision", "recall", "f1", "auc", "ece")


def make_split(flag: str = "organamnist", size: int = 8) -> SimpleNamespace:
    generator = np.random.default_rng(0)
    images = {
        s: generator.integers(0, 256, (n, size, size), dtype=np.uint8) for s, n in SPLITS.items()
    }
    labels = {s: np.arange(n) % len(CLASSES) for s, n in SPLITS.items()}
    about = {"flag": flag, "view": "axial", "size": size, "md5": "0123abcd", "classes": CLASSES}
    return SimpleNamespace(images=images, labels=labels, own=None, **about)


def make_entry(
    name: str,
    split: SimpleNamespace,
    *,
    seed: int = 1,
    offset: float = 0.0,
    auc: float | None = 0.9,
):
    """A row of results.json, as JSON, whose every metric is a number of its own."""
    about = {
        "parameters": 106239,
        "epochs": 3,
        "best_epoch": 2,
        "seconds": 12.5,
        "seconds_per_epoch": 4.0,
    }
    entry = to_json(stage_result(name, seed, **about))
    for i, part in enumerate(SPLITS):
        confusion = np.diag(np.bincount(split.labels[part]))
        confusion[0, 0] -= 1
        confusion[0, 1] += 1
        values = {
            m: round(0.9011 - 0.0503 * i - 0.0107 * j + offset, 6) for j, m in enumerate(METRICS)
        }
        entry[part] = {
            **values,
            "auc": None if auc is None else values["auc"],
            "confusion": confusion.tolist(),
        }
    return entry


def make_run(directory: Path, split: SimpleNamespace, entries: list[dict], **extra) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    several = len({entry["seed"] for entry in entries}) > 1
    for entry in entries:
        stage = directory / entry["name"] / (f"seed-{entry['seed']}" if several else "")
        stage.mkdir(parents=True, exist_ok=True)
        write_history(stage)
        arrays = {
            s: generator.dirichlet(np.ones(len(CLASSES)), n).astype(np.float32)
            for s, n in SPLITS.items()
        }
        np.savez(stage / "probabilities.npz", **arrays)
    counts = {s: np.bincount(split.labels[s]).tolist() for s in SPLITS}
    results = {
        "format": 1,
        "smoke": False,
        "device": "cpu",
        "versions": {"torch": "2.9.1"},
        "settings": {"seed": 1, "batch_size": 128, "max_epochs": None},
        "dataset": {
            "flag": split.flag,
            "size": split.size,
            "md5": split.md5,
            "counts": counts,
            "classes": CLASSES,
        },
        "stages": entries,
        **extra,
    }
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def write_history(stage: Path) -> None:
    rows = ["epoch,train_loss,train_accuracy,val_loss,val_accuracy,seconds,learning_rate"]
    rows += [f"{epoch},{1 / epoch},0.5,{1.2 / epoch},0.6,4.0,0.001" for epoch in (1, 2, 3)]
    (stage / "history.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory) -> tuple[Path, Page, SimpleNamespace]:
    split = make_split()
    entries = [make_entry("base", split), make_entry("resnet50", split, offset=0.01, auc=None)]
    run_dir = make_run(tmp_path_factory.mktemp("run"), split, entries)
    return run_dir, Page(write_report(run_dir, split)), split


def test_the_page_loads_nothing_from_elsewhere_and_its_anchors_lead_somewhere(two_stages):
    _, page, _ = two_stages
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base"), tag
        for key in ("src", "srcset", "href", "xlink:href", "data", "poster"):
            address = attributes.get(key)
            assert address is None or address.startswith(("#", "data:image/png;base64,")), (
                tag,
                key,
                address,
            )
    assert not re.search(r"@import|url\((?!#)", page.source)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        a["href"][1:]
        for tag, a in page.elements
        if tag == "a" and (a.get("href") or "").startswith("#")
    }
    assert targets <= set(ids)


def test_every_picture_has_a_text(two_stages):
    _, page, _ = two_stages
    pictures = [(tag, a) for tag, a in page.elements if tag in ("img", "svg")]
    assert len(pictures) > 20
    for tag, attributes in pictures:
        assert attributes.get("alt" if tag == "img" else "aria-label"), attributes


def test_the_tables_hold_the_numbers_of_results_json(two_stages):
    run_dir, page, _ = two_stages
    for entry in json.loads((run_dir / "results.json").read_text())["stages"]:
        scores, more = page.rows_of(entry["name"])[:2]
        expected = [
            f"{entry[s][m]:.3f}" for s in SPLITS for m in ("accuracy", "precision", "recall", "f1")
        ]
        assert scores[1:] == expected
        aucs = ["–" if entry[s]["auc"] is None else f"{entry[s]['auc']:.3f}" for s in SPLITS]
        assert more[1::3] == aucs
        assert more[2::3] == [f"{entry[s]['ece']:.3f}" for s in SPLITS]
        assert more[3::3] == ["1.000"] * 3  # the one mistake is kidney-left taken for kidney-right


def test_figures_lie_beside_the_page_and_nothing_partial_is_left(two_stages):
    run_dir, _, _ = two_stages
    names = {path.name for path in (run_dir / "report").iterdir()}
    assert {
        "index.html",
        "accuracy_by_stage.svg",
        "accuracy_by_stage.png",
        "reliability.svg",
    } <= names
    assert {"base_curves.svg", "base_confusion_train.svg", "base_confusion_val.svg"} <= names
    assert {"mistakes_val.png", "mistakes_test.png"} <= names
    assert not list(run_dir.rglob("*.partial"))
    with Image.open(run_dir / "report" / "mistakes_val.png") as sheet:
        assert (
            np.asarray(sheet.convert("L"))[: sheet.height // 4].std() > 40
        )  # slices, not blank paper


def test_results_csv_has_a_row_a_stage_and_split(two_stages):
    run_dir, _, _ = two_stages
    with (run_dir / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["split"]) for row in rows] == [
        (n, s) for n in ("base", "resnet50") for s in SPLITS
    ]
    stages = {e["name"]: e for e in json.loads((run_dir / "results.json").read_text())["stages"]}
    for row in rows:
        values = stages[row["stage"]][row["split"]]
        assert float(row["accuracy"]) == values["accuracy"]
        assert row["auc"] == ("" if values["auc"] is None else str(values["auc"]))
        assert (row["side_merged"], row["smoke"], row["seed"]) == ("1.0", "false", "1")


def test_names_are_escaped_in_text_and_figures(two_stages):
    run_dir, page, _ = two_stages
    assert CLASSES[3] in page.text
    assert CLASSES[3] not in page.source
    assert CLASSES[3] not in (run_dir / "report" / "base_confusion_val.svg").read_text()


def test_a_hostile_stage_name_stays_in_the_report(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path / "run", split, [make_entry("../<script>", split)])
    page = Page(write_report(run_dir, split))
    assert "script" not in {tag for tag, _ in page.elements}
    assert "../<script>" in page.text
    assert {path.parent for path in tmp_path.rglob("*.svg")} == {run_dir / "report"}


def test_the_study_stands_beside_organsmnist_only(two_stages, tmp_path):
    _, axial, _ = two_stages
    assert not axial.rows_of("reference study")
    split = make_split("organsmnist")
    page = Page(write_report(make_run(tmp_path, split, [make_entry("base", split)]), split))
    (study,) = page.rows_of("reference study")
    assert study[1:] == [f"{value:.3f}" for s in SPLITS for value in STUDY["base"][s]]


@pytest.mark.parametrize("flag", PUBLISHED)
def test_published_results_are_marked_with_size_and_source(flag, tmp_path):
    split = make_split(flag)
    page = Page(write_report(make_run(tmp_path, split, []), split))
    for published in PUBLISHED[flag]:
        assert any(
            f"{published.accuracy:.3f}" in row and published.pixels in row
            for row in page.rows_of(published.source)
        )
    assert (PUBLISHED[flag][0].pixels, PUBLISHED[flag][0].chosen_on) == ("28", "validation")


def test_a_smoke_run_says_so_everywhere_and_no_other_does(two_stages, tmp_path):
    assert "smoke run" not in two_stages[1].text.lower()
    split = make_split()
    run_dir = make_run(tmp_path, split, [make_entry("base", split)], smoke=True)
    short = {
        s: np.full((5, len(CLASSES)), 0.25, np.float32) for s in SPLITS
    }  # of the first slices only
    np.savez(run_dir / "base" / "probabilities.npz", **short)
    page = Page(write_report(run_dir, split))
    assert any(a.get("class") == "smoke" and a.get("role") == "alert" for _, a in page.elements)
    assert "These figures mean nothing." in page.text
    assert "SMOKE RUN" in page.text
    assert "true" in (run_dir / "results.csv").read_text()


def test_missing_files_and_metrics_leave_dashes_and_words(tmp_path):
    split = make_split()
    entry = make_entry("ensemble", split)
    entry["test"] = None
    del entry["train"]
    run_dir = make_run(tmp_path, split, [entry])
    (run_dir / "ensemble" / "history.csv").unlink()
    (run_dir / "ensemble" / "probabilities.npz").unlink()
    page = Page(write_report(run_dir, split))
    cells = page.rows_of("ensemble")[0][1:]
    assert cells[:4] == cells[8:] == ["–"] * 4
    assert "Test has not been evaluated yet." in page.text
    assert not {"None", "nan"} & set(re.split(r"\W+", page.text))


@pytest.mark.parametrize("place", ["run", "stage", "metrics", "robustness"])
def test_an_unknown_key_is_named_with_its_place(tmp_path, place):
    split = make_split()
    entry, measured, extra = make_entry("base", split), make_measured("base"), {}
    places = {"run": extra, "stage": entry, "metrics": entry["val"], "robustness": measured}
    places[place]["val_merged"] = 0.5
    run_dir = make_run(tmp_path, split, [entry], **extra)
    (run_dir / "robustness.json").write_text(json.dumps({"format": 1, "stages": [measured]}))
    shown = {
        "run": r"results\.json",
        "stage": r"results\.json: stages\[0\]",
        "metrics": r"results\.json: stages\[0\]: val",
        "robustness": r"robustness\.json: stages\[0\]",
    }
    with pytest.raises(
        RunError, match=rf"{shown[place]}: unknown key 'val_merged'; read it with the version"
    ):
        write_report(run_dir, split)


def test_stages_begun_but_not_finished_are_shown_as_such(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path, split, [])
    (run_dir / "base").mkdir()
    write_history(run_dir / "base")
    page = Page(write_report(run_dir, split))
    assert "no stage is measured yet" in page.text
    assert "3 epochs so far" in page.text
    assert "Not run or not finished: base, early_stopping" in page.text


def test_several_seeds_show_mean_and_deviation(tmp_path):
    split = make_split()
    entries = [
        make_entry("base", split, seed=seed, offset=offset)
        for seed, offset in ((1, 0.0), (2, 0.02))
    ]
    mean = {"accuracy": {"mean": 0.4321, "std": 0.0123}}
    summary = [{"name": "base", "seeds": [1, 2], "val": mean, "test": {}}]
    run_dir = make_run(tmp_path, split, entries, summary=summary)
    page = Page(write_report(run_dir, split))
    cells = page.rows_of("base")[0]
    assert cells[5] == "0.432± 0.012"  # as recorded
    assert cells[1] == "0.911± 0.014"  # worked out
    assert read_run(run_dir).stages[0].shown.seed == 2
    assert len((run_dir / "results.csv").read_text().splitlines()) == 1 + 2 * 3


def test_the_best_stage_is_validation_s_never_test_s(tmp_path):
    split = make_split()
    first, second, third = (make_entry(name, split) for name in ("base", "big", "batch_norm"))
    first["test"]["accuracy"] = 0.999
    second["val"]["accuracy"] = third["val"]["accuracy"] = 0.97
    assert (
        read_run(make_run(tmp_path, split, [first, second, third])).best.name == "big"
    )  # the first of equals


def test_the_most_confident_mistakes_come_first():
    probabilities = np.array(
        [[0.9, 0.1], [0.6, 0.4], [0.05, 0.95], [0.8, 0.2], [0.2, 0.8], [np.nan, 0.5]]
    )
    labels = np.array([0, 1, 0, 1, 0, 1, 1, 1])  # longer, as in a smoke run
    found = measures.confident_mistakes(probabilities, labels, 3)
    rows = [(m.index, m.true, m.predicted, m.probability) for m in found]
    assert rows == [(2, 0, 1, 0.95), (3, 1, 0, 0.8), (4, 0, 1, 0.8)]
    assert measures.confident_mistakes(probabilities[:1], labels, 3) == []


def test_merging_sides_counts_an_organ_once():
    confusion = np.array([[5, 3, 1, 0], [2, 6, 0, 0], [0, 1, 4, 0], [0, 0, 0, 0]])
    assert metrics.side_merged_accuracy(confusion, CLASSES) == (5 + 3 + 2 + 6 + 4) / 22
    assert metrics.side_merged_accuracy(np.zeros((4, 4), int), CLASSES) is None


def test_per_class_figures_of_a_class_never_seen_are_undefined():
    seen, absent = measures.per_class(np.array([[3, 0], [0, 0]]))
    assert seen == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}
    assert absent == {"precision": None, "recall": None, "f1": None, "support": 0}


def test_the_interval_holds_the_accuracy_and_narrows_with_more_slices():
    few = measures.accuracy_interval(np.diag([40, 40]) + np.array([[0, 10], [10, 0]]))
    many = measures.accuracy_interval((np.diag([40, 40]) + np.array([[0, 10], [10, 0]])) * 100)
    assert few[0] < many[0] < 0.8 < many[1] < few[1]
    assert few == pytest.approx((0.72, 0.88), abs=0.011)
    assert measures.accuracy_interval(np.zeros((2, 2), int)) is None


def test_reliability_bins_are_closed_on_the_right():
    probabilities = np.array([[1.0, 0.0], [0.2, 0.8], [0.8, 0.2]])
    points = measures.reliability(probabilities, np.array([0, 1, 1]))
    assert points.counts.tolist() == [2, 1]
    assert points.accuracy.tolist() == [0.5, 1.0]
    assert points.confidence == pytest.approx([0.8, 1.0])


def test_samples_are_of_the_class_and_spread():
    labels = np.arange(18) % 2
    assert (samples(labels, 0, 2), samples(labels, 1, 20)) == ([6, 10], list(range(1, 18, 2)))
    assert samples(labels, 5, 2) == []


def test_writing_twice_gives_the_same_bytes(two_stages):
    run_dir, page, split = two_stages
    assert write_report(run_dir, split).read_text(encoding="utf-8") == page.source


def test_a_directory_that_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(RunError, match=r": no results\.json; pass the directory of a data set"):
        write_report(tmp_path, make_split())
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"train.report: error: {tmp_path}")
    (tmp_path / "runs" / "organsmnist").mkdir(parents=True)
    (tmp_path / "runs" / "organsmnist" / "results.json").touch()
    with pytest.raises(RunError) as refused:
        write_report(tmp_path / "runs", make_split())
    assert str(refused.value) == (
        f"{tmp_path / 'runs'}: no results.json, but it has organsmnist/results.json; pass the directory of a data set,"
        f" such as {tmp_path / 'runs' / 'organsmnist'}"
    )


def calibrated(entry, *, temperature=1.25, val=0.0123, test=0.0456):
    return entry | {"calibration": {"temperature": temperature, "val_ece": val, "test_ece": test}}


def test_calibration_stands_before_and_after(two_stages, tmp_path):
    assert "temperature" not in two_stages[1].text
    split = make_split()
    entry = calibrated(make_entry("base", split))
    run_dir = make_run(tmp_path, split, [entry, make_entry("big", split)])
    page = Page(write_report(run_dir, split))
    before = [f"{entry[s]['ece']:.3f}" for s in ("val", "test")]
    assert page.rows_of("base")[2][1:] == ["1.250", before[0], "0.012", before[1], "0.046"]
    assert page.rows_of("big")[2][1:] == ["–", before[0], "–", before[1], "–"]
    with (run_dir / "results.csv").open(newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert (first["ece_calibrated"], first["temperature"]) == ("", "1.25")  # train has none
    assert (second["split"], second["ece_calibrated"]) == ("val", "0.0123")


@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_a_rejected_temperature_is_named_with_its_reason(tmp_path, seeds):
    split = make_split()
    entries = [calibrated(make_entry("base", split, seed=seed), temperature=1.0) for seed in seeds]
    reason = "temperature 20 raises the ECE of validation from 0.0100 to 0.4000"
    entries[-1]["calibration"]["rejected"] = reason
    text = Page(write_report(make_run(tmp_path, split, entries), split)).text
    name = "base" if len(seeds) == 1 else "base, seed 2"
    assert f"{name}: the fitted temperature is rejected, and 1 is used instead: {reason}." in text
    assert text.count("the fitted temperature is rejected") == 1


def test_calibration_over_several_seeds_is_their_mean(tmp_path):
    split = make_split()
    entries = [
        calibrated(make_entry("base", split, seed=1)),
        calibrated(make_entry("base", split, seed=2), temperature=0.9, val=0.0323),
    ]
    row = Page(write_report(make_run(tmp_path, split, entries), split)).rows_of("base")[2]
    assert row[1] == "1.250, 0.900" and row[3] == "0.022± 0.014"


def make_measured(
    name: str, *, accuracy: float = 0.8, split: str = "test", slices: int = 9
) -> dict:
    """An entry of robustness.json of two corruptions, as JSON."""
    entry = robustness_entry(
        name,
        split=split,
        slices=slices,
        split_slices=SPLITS[split],
        clean_accuracy=accuracy + 0.1,
        mean_corrupted_accuracy=accuracy - 0.05,
        mean_balanced_error=0.3217,
        accuracy={
            "shot_noise": [accuracy] * 5,
            "contrast_up": [accuracy - 0.1 * i for i in range(5)],
        },
    )
    return to_json(entry)


def test_robustness_is_shown_where_it_was_measured(two_stages, tmp_path):
    assert "#robustness" not in two_stages[1].source and "MedMNIST-C" not in two_stages[1].text
    split = make_split()
    run_dir = make_run(tmp_path, split, [make_entry("base", split), make_entry("ensemble", split)])
    measured = [
        make_measured("ensemble"),
        make_measured("base", accuracy=0.7),
        make_measured("base", split="val", slices=12),
    ]
    (run_dir / "robustness.json").write_text(json.dumps({"format": 1, "stages": measured}))
    page = Page(write_report(run_dir, split))
    assert 'href="#robustness"' in page.source and "Test, 9 of 16 slices" in page.text
    assert "Validation, all 12 slices" in page.text
    assert page.text.index("Test, 9 of") < page.text.index("Validation, all")
    assert ["0.800", "0.650", "0.322"] in [row[1:] for row in page.rows_of("base")]
    assert ["0.900", "0.750", "0.322"] in [row[1:] for row in page.rows_of("ensemble")]
    test, val = page.rows_of("shot noise")  # stages in the ladder's order
    assert (test[1:], val[1:]) == (["0.700", "0.800"], ["0.800"])
    assert page.rows_of("contrast up")[0][1:] == ["0.500", "0.600"]


def test_a_damaged_robustness_json_is_named(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path, split, [make_entry("base", split)])
    (run_dir / "robustness.json").write_text("{")
    with pytest.raises(RunError, match=r"robustness\.json: not valid JSON"):
        write_report(run_dir, split)


def test_how_the_stages_were_trained_stands_in_the_report(two_stages):
    """The reference study's hyperparameters, as published, not as the code has them."""
    html = (two_stages[0] / "report" / "index.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    for words in (
        "Adam, learning rate 0.001, constant",
        "batch size 128",
        "loss cross-entropy",
        "with probability 0.5 each: rotation by up to 30 degrees, erasing of 2 % to 33 % of the area at an aspect ratio of"
        " 0.3 to 3.3, perspective distortion 0.5",
        "rotation and perspective are one warp with one bilinear interpolation",
        "stops after 5 epochs, keeping the last weights",
    ):
        assert words in text, words


def test_when_each_stage_stops():
    from train.report.wording import stopping

    def of(name, *, smoke=False, **caps):
        run = SimpleNamespace(results=Results(settings={"max_epochs": caps}), smoke=smoke)
        return stopping(SimpleNamespace(name=name), run)

    patient = "after 5 epochs without a better validation accuracy, at the latest after {}, keeping the best weights"
    assert of("batch_norm") == of("resnet50") == patient.format(100)
    assert of("edge") == "after 32 epochs, keeping the last weights"
    assert of("ensemble") == of("of another version") == "–"
    assert of("resnet50", ensemble=7) == of("batch_norm", all=7) == patient.format(7)
    assert of("batch_norm", ensemble=7) == patient.format(100)
    assert of("batch_norm", smoke=True) == patient.format(2)
    assert of("base", base=3, all=4) == "after 3 epochs, keeping the last weights"


SEEDS_TABLE = "Accuracy by stage and seed"
SCORES_TABLE = "Accuracy, precision, recall and F1 by stage and split"
TEST_TABLE = "Test accuracy with a bootstrap interval"


def test_several_seeds_are_listed_one_by_one_and_one_is_not(two_stages, tmp_path):
    split = make_split()
    entries = [
        make_entry("base", split, seed=1),
        make_entry("base", split, seed=2, offset=0.02),
        make_entry("big", split, seed=2),
    ]
    page = Page(write_report(make_run(tmp_path, split, entries), split))
    head, *lines = page.table(SEEDS_TABLE)
    assert head == ["stage", "seed", "train", "validation", "test"]
    expected = [
        [e["name"], str(e["seed"]), *(f"{e[s]['accuracy']:.3f}" for s in SPLITS)] for e in entries
    ]
    assert lines == expected
    assert "This section shows seed 2, the best of the stage on validation." in page.text
    assert (
        "The matrices show seed 2, the best on validation. The curves show all seeds." in page.text
    )
    assert "Error bars: one standard deviation over 2 seeds." in page.text
    assert "Each of these is the mean over 2 seeds, ± one standard deviation." in page.text
    assert "The accuracy is the mean over seeds." in page.text
    assert (
        "Every value is the mean over seeds 1, 2" in page.text and "Only one seed" not in page.text
    )
    alone = two_stages[1]
    assert SEEDS_TABLE not in alone.tables and "Only one seed was run" in alone.text
    for words in (
        "This section shows seed",
        "The matrices show seed",
        "standard deviation",
        "mean over seeds",
    ):
        assert words not in alone.text


def test_without_a_measured_validation_no_stage_is_chosen(tmp_path):
    split = make_split()
    entry = make_entry("base", split)
    entry["val"] = None
    page = Page(write_report(make_run(tmp_path, split, [calibrated(entry)]), split))
    assert (
        not page.marked
        and not page.bold
        and "chosen" not in [row[0][-6:] for row in page.rows if row]
    )
    assert "No stage is measured on validation yet." in page.text
    assert page.row(SCORES_TABLE, "base")[4:8] == ["–"] * 4
    assert "Precision, recall and F1 of each class" not in page.tables and not page.pairs[0][
        0
    ].startswith("val")


def test_a_stage_that_is_not_measured_on_test_has_dashes_for_it_alone(tmp_path):
    split = make_split()
    first, second = make_entry("base", split), make_entry("big", split, offset=0.01)
    second["test"] = None
    page = Page(write_report(make_run(tmp_path, split, [first, second]), split))
    assert page.row(TEST_TABLE, "big") == ["–"] * 4
    assert page.row(TEST_TABLE, "base")[2:] == ["15", "16"]  # one of 16 is wrong
    for label in CLASSES[:3]:
        val, test = page.row("Precision, recall and F1 of each class", label)[:4], ["–"] * 4
        assert (
            page.row("Precision, recall and F1 of each class", label) == val + test
            and "–" not in val
        )


def test_the_studys_rows_stand_under_their_stages_in_the_scores_alone(two_stages, tmp_path):
    split = make_split("organsmnist")
    entries = [make_entry(name, split) for name in ("base", "resnet50", "edge")]
    page = Page(write_report(make_run(tmp_path, split, entries), split))
    assert [row[0].removesuffix("chosen") for row in page.table(SCORES_TABLE)[2:]] == [
        "base",
        "reference study",
        "resnet50",
        "reference study",
        "edge",
    ]
    # of the members of its ensemble the study gives the validation accuracy alone, in its text
    assert (
        page.rows_of("reference study")[1][1:] == ["–"] * 4 + ["0.912", "–", "–", "–"] + ["–"] * 4
    )
    assert len(page.rows_of("reference study")) == 2
    name = "the reference study (C. Mariño, 2022)"
    assert (
        f"The rows under the stages are from {name}" in page.text
        and f"Dashed lines: {name}." in page.text
    )
    assert "Hollow markers: members of the ensemble." in page.text
    other = two_stages[1]  # of another data set
    assert name not in other.text and "Hollow markers" in other.text


def test_without_members_no_marks_are_hollow(tmp_path):
    split = make_split()
    page = Page(write_report(make_run(tmp_path, split, [make_entry("base", split)]), split))
    assert "Hollow markers" not in page.text


def test_slices_are_counted_as_recorded_of_the_whole_file_or_else_as_they_are(tmp_path):
    split = make_split()
    label, counts = "Slices of each class by split", {s: [4, 300, 20, 1] for s in SPLITS}
    run_dir = make_run(tmp_path / "recorded", split, [])
    results = json.loads((run_dir / "results.json").read_text())
    results["dataset"]["counts"] = counts
    (run_dir / "results.json").write_text(json.dumps(results))
    recorded = Page(write_report(run_dir, split))
    assert recorded.row(label, "kidney-right") == ["", "300", "300", "300"]
    assert recorded.row(label, "all") == ["", "325", "325", "325"]
    for dataset in ({}, None):
        run_dir = make_run(tmp_path / str(dataset), split, [])
        (run_dir / "results.json").write_text(json.dumps({"stages": [], "dataset": dataset}))
        assert Page(write_report(run_dir, split)).row(label, "liver") == ["", "6", "3", "4"]


def test_a_split_without_mistakes_says_so_and_has_no_sheet(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path, split, [make_entry("base", split)])
    right = {s: np.eye(len(CLASSES), dtype=np.float32)[y] for s, y in split.labels.items()}
    right["test"] = np.roll(right["test"], 1, axis=1)
    np.savez(run_dir / "base" / "probabilities.npz", **right)
    page = Page(write_report(run_dir, split))
    assert page.texts["p"].count("None: every slice is classified correctly.") == 1
    assert not (run_dir / "report" / "mistakes_val.png").exists()
    assert (run_dir / "report" / "mistakes_test.png").exists()
    assert len([alt for alt, _ in page.images if " of test: " in alt]) == 12


def test_probabilities_of_one_split_are_shown_without_the_other(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path, split, [make_entry("base", split)])
    wrong = np.roll(np.eye(len(CLASSES), dtype=np.float32)[split.labels["val"]], 1, axis=1)
    np.savez(
        run_dir / "base" / "probabilities.npz",
        val=wrong,
        test=np.empty((0, len(CLASSES)), np.float32),
    )
    page = Page(write_report(run_dir, split))
    (name,) = [name for name in page.drawings() if name.startswith("Reliability")]
    assert name == "Reliability diagram of base: on validation the widest gap is 1.00."
    assert {alt.partition(":")[0].split(" of ")[1] for alt, _ in page.images if ":" in alt} == {
        "validation"
    }
    np.savez(run_dir / "base" / "probabilities.npz", train=wrong)
    page = Page(write_report(run_dir, split))
    assert not any(name.startswith("Reliability") for name in page.drawings())
    assert (
        "No reliability diagram: the probabilities of this stage are not in its directory."
        in page.text
    )
    assert (
        "No mistakes shown: the probabilities of this stage are not in its directory." in page.text
    )


def test_corrupted_slices_of_test_and_of_more_slices_come_first(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path, split, [make_entry("base", split)])
    kinds = [("val", 12), ("test", 4), ("val", 3), ("test", 16)]
    measured = [make_measured("base", split=part, slices=slices) for part, slices in kinds]
    (run_dir / "robustness.json").write_text(json.dumps({"format": 1, "stages": measured}))
    page = Page(write_report(run_dir, split))
    titles = [text for text in page.texts["h3"] if "slices" in text]
    assert titles == [
        "Test, all 16 slices",
        "Test, 4 of 16 slices",
        "Validation, all 12 slices",
        "Validation, 3 of 12 slices",
    ]
    assert [label for label in page.tables if label.startswith("Accuracy and balanced error")] == [
        f"Accuracy and balanced error on corrupted slices, {name}, {slices} slices"
        for name, slices in (("test", 16), ("test", 4), ("validation", 12), ("validation", 3))
    ]


def test_a_run_without_stages_has_no_charts_but_its_data_and_published_results(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path, split, [])
    page = Page(write_report(run_dir, split))
    assert not page.drawings() and SCORES_TABLE not in page.tables
    assert "No stage has finished yet." in page.texts["p"]
    assert {path.name for path in (run_dir / "report").iterdir()} == {"index.html"}
    assert (
        "Not run or not finished: base, early_stopping, big, augmentation, batch_norm" in page.text
    )
    assert not any(row[0].startswith("this run") for row in page.table("Published test results"))


def test_an_unfinished_stage_of_no_epochs_has_no_curves(tmp_path):
    split = make_split()
    run_dir = make_run(tmp_path, split, [])
    for name in ("base", "big"):
        (run_dir / name).mkdir()
    (run_dir / "base" / "history.csv").write_text("epoch,val_loss\n")
    write_history(run_dir / "big")
    page = Page(write_report(run_dir, split))
    assert "0 epochs so far." in page.text and "3 epochs so far." in page.text
    names = [
        "Loss and accuracy of big by epoch. At the end, validation loss 0.400 and accuracy 0.600."
    ]
    assert page.drawings() == names
    assert (run_dir / "report" / "big_curves.svg").exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("batch_norm", "batch_norm"),
        ("big/seed-2", "big-seed-2"),
        ("../<b>", "b"),
        ("..", "stage"),
        ("é", "stage"),
    ],
)
def test_names_become_parts_of_addresses(name, part):
    from train.report.page import anchor

    assert anchor(name) == part
