"""results.json of a run that goes on, its summary over seeds, the table that ends a run; which jobs a run has."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import finished_checkpoint

from tests.support.result_rows import split_metrics, stage_result
from train import calibration, results, run
from train.config import TrainConfig
from train.data import Data
from train.errors import RunError
from train.jobs import Job, epoch_caps, member_of, plan_jobs
from train.json_format import to_json
from train.options import TrainOptions
from train.parallel import ALONE
from train.results_format import Calibration, Dataset, ExportCheck, MeanStd, Results, StageResult
from train.stages import LADDER, STAGES

CPU = torch.device("cpu")
SETTINGS = {
    "seed": 1,
    "seeds": 1,
    "batch_size": 128,
    "smoke": False,
    "deterministic": False,
    "amp": "auto",
}
COUNTS = {"train": 9, "val": 6, "test": 7}


@pytest.fixture(scope="module")
def data() -> Data:
    """Three splits of another length; two classes."""
    generator = np.random.default_rng(0)
    images = {s: generator.integers(0, 256, (n, 28, 28), np.uint8) for s, n in COUNTS.items()}
    labels = {s: np.arange(n) % 3 % 2 for s, n in COUNTS.items()}
    counts = {s: np.bincount(y, minlength=2).tolist() for s, y in labels.items()}
    made = Data("organcmnist", "coronal", 28, "0123", ["liver", "spleen"], images, labels, counts)
    return calibration.add_calibration_split(made, 4)


def config(seed: int = 1) -> TrainConfig:
    return TrainConfig(seed=seed, batch_size=128, max_epochs=3, weights="none")


def wrongly(labels: np.ndarray, *wrong: int) -> np.ndarray:
    """Probabilities that are right but for some slices."""
    said = labels.copy()
    said[list(wrong)] = 1 - said[list(wrong)]
    return np.where(np.arange(2) == said[:, None], 0.75, 0.25).astype(np.float32)


# opened


def test_a_new_results_json_names_data_device_versions_and_settings(tmp_path, data):
    found = results.open_results(tmp_path, data, CPU, SETTINGS | {"smoke": True})
    assert list(to_json(found)) == [
        "format",
        "smoke",
        "dataset",
        "device",
        "versions",
        "settings",
        "stages",
    ]
    assert to_json(found)["dataset"] == {
        "flag": "organcmnist",
        "size": 28,
        "resample_from": None,
        "resample": "area",
        "md5": "0123",
        "counts": data.counts,
        "classes": ["liver", "spleen"],
    }
    assert (found.format, found.smoke, found.stages) == (1, True, [])
    assert found.settings == SETTINGS | {"smoke": True} and found.device.startswith("cpu (")
    assert found.versions["numpy"] == np.__version__ and "python" in found.versions
    assert found.versions.keys() <= {"python", *results.VERSIONS}


def test_slices_of_a_larger_file_are_said_to_be_resampled_from_it(tmp_path, data):
    large = {split: np.zeros((n, 64, 64), np.uint8) for split, n in COUNTS.items()}
    resampled = Data(
        "organcmnist", "coronal", 28, "0123", data.classes, large, data.labels, data.counts, "cubic"
    )
    found = results.open_results(tmp_path, resampled, CPU, SETTINGS).dataset
    assert found is not None and (found.size, found.resample_from) == (28, 64)
    assert found.resample == "cubic"


def test_a_run_goes_on_with_the_rows_that_are_there(tmp_path, data):
    summary = [{"name": "base", "seeds": [1]}]
    old = {"settings": SETTINGS, "stages": [to_json(stage_result("base"))], "device": "another"}
    (tmp_path / "results.json").write_text(json.dumps(old | {"summary": summary}))
    found = results.open_results(
        tmp_path, data, CPU, SETTINGS | {"amp": "off"}
    )  # of each stage alone
    assert found.stages == [stage_result("base")]
    assert (
        found.device != "another"
        and found.settings["amp"] == "off"
        and "summary" not in to_json(found)
    )


def test_settings_that_an_older_run_did_not_record_count_as_they_were(tmp_path, data):
    old = {key: value for key, value in SETTINGS.items() if key != "deterministic"}
    (tmp_path / "results.json").write_text(json.dumps({"settings": old}))
    assert results.open_results(tmp_path, data, CPU, SETTINGS).stages == []
    with pytest.raises(
        RunError,
        match="a run with no --deterministic, but this command has --deterministic; repeat",
    ):
        results.open_results(tmp_path, data, CPU, SETTINGS | {"deterministic": True})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], ": not a results file of this program"),
        ({"settings": []}, ": not a results file of this program"),
        (
            {"settings": SETTINGS | {"batch_size": 64}},
            "holds a run with --batch-size 64, but this command has --batch-size 128; repeat the options",
        ),
        (
            {"settings": SETTINGS | {"smoke": True, "weights": "none", "seed": 2}},
            "holds a smoke run, whose results mean nothing; use --fresh to remove it, or another --out",
        ),
        (
            {"settings": SETTINGS, "stages": [to_json(stage_result("other"))]},
            "stage 'other' is of another version",
        ),
        ({"settings": SETTINGS, "stages": [{"name": "base"}]}, r"stages\[0\]: no key 'seed'"),
    ],
)
def test_results_of_another_run_are_refused(tmp_path, data, content, words):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=words) as raised:
        results.open_results(tmp_path, data, CPU, SETTINGS)
    assert raised.value.exit_code == 2 and str(tmp_path) in str(raised.value)


def test_a_smoke_run_does_not_continue_a_real_one(tmp_path, data):
    (tmp_path / "results.json").write_text(json.dumps({"settings": SETTINGS}))
    with pytest.raises(RunError, match="holds a run without --smoke; use another --out"):
        results.open_results(tmp_path, data, CPU, SETTINGS | {"smoke": True, "weights": "none"})


def test_every_option_that_differs_is_named_as_on_the_command_line(tmp_path, data):
    """All settings of a run at once, so that none is shown as Python writes it."""
    before = run.Plan(
        TrainOptions(max_epochs=("3,base=2",)), [], {"all": 3, "base": 2}, (), CPU, ALONE
    )
    options = TrainOptions(
        seed=2,
        seeds=4,
        size=64,
        resample_from=128,
        resample="cubic",
        batch_size=7,
        weights="none",
        deterministic=True,
    )
    now = run.Plan(options, [], {}, (), CPU, ALONE).settings
    assert [key for key in now if now[key] == before.settings[key]] == ["smoke", "amp"]
    (tmp_path / "results.json").write_text(json.dumps({"settings": before.settings}))
    with pytest.raises(RunError) as refused:
        results.open_results(tmp_path, data, CPU, now)
    assert str(refused.value) == (
        f"{tmp_path}: holds a run with --seed 1, --seeds 1, --size 28, no --resample-from, --resample area, --batch-size 128, --weights"
        " imagenet, --max-epochs 3,base=2, no --deterministic, but this command has --seed 2, --seeds 4, --size 64,"
        " --resample-from 128, --resample cubic, --batch-size 7, --weights none, no --max-epochs, --deterministic; repeat the options of"
        " that run to resume it, use --fresh to start over, or another --out"
    )


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(results, "VERSIONS", ("numpy", "no-such-package"))
    assert list(results._versions()) == ["python", "numpy"]


# measured


class Network(torch.nn.Module):
    """Says of each slice what it was told to, by the slice's first pixel and the split's length."""

    def __init__(self, answers: dict[int, np.ndarray]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.answers = answers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.log(self.answers[len(x)]))


@pytest.fixture
def job(tmp_path, data, monkeypatch) -> Job:
    """A trained stage: 2 of 9 wrong on train, 1 of 6 on validation, 3 of 7 on test. Exports are counted."""
    wrong = {"train": (0, 3), "val": (5,), "test": (0, 1, 6), calibration.SPLIT: (0, 9)}
    answers = {len(data.labels[s]): wrongly(data.labels[s], *places) for s, places in wrong.items()}
    made = Job(STAGES["base"], config(), tmp_path / "base")
    made.directory.mkdir()
    checkpoint = finished_checkpoint(
        seconds=(2.0, 4.0, 3.0), best_epoch=2, parameters=77, precision="bf16"
    )
    monkeypatch.setattr(results, "load_trained", lambda _: (Network(answers), checkpoint))
    exports: list[Path] = []

    def export(
        _: Any, path: Path, images: np.ndarray, labels: np.ndarray, *, size: int, resample: str
    ) -> Any:
        assert images is data.images["val"] and labels is data.labels["val"]
        assert (size, resample) == (28, "area")
        path.touch()
        exports.append(path)
        return argparse.Namespace(max_abs=1e-6, accuracy=0.8, slices=6)

    monkeypatch.setattr(results, "export_member", export)
    monkeypatch.setattr(results, "exports", exports, raising=False)
    return made


def test_a_stage_is_measured_on_train_and_validation_and_on_test_at_the_end(job, data):
    found = Results(stages=[stage_result("base", 2), stage_result("base", 1, network="old")])
    results.measure_stage(job, data, CPU, found)
    other, row = found.stages
    assert other == stage_result("base", 2)
    assert (row.train.accuracy, row.val.accuracy, row.test) == (7 / 9, 5 / 6, None)
    assert (row.epochs, row.best_epoch, row.seconds, row.seconds_per_epoch) == (3, 2, 9.0, 3.0)
    assert (row.network, row.parameters, row.precision) == ("small", 77, "bf16")
    assert row.export == ExportCheck(
        max_abs=1e-6,
        val_accuracy=0.8,
        slices=6,
        sha256=hashlib.sha256((job.directory / "member.onnx").read_bytes()).hexdigest(),
    )
    results.measure_test(job, data, CPU, found)
    assert row.test.accuracy == 4 / 7
    # 0.75 for each slice, and each right or wrong
    assert row.test.ece == pytest.approx(0.75 - 4 / 7) and row.val.ece == pytest.approx(
        5 / 6 - 0.75
    )
    # 54 of 56 slices right: the best temperature says so
    assert row.calibration.fitted_on.startswith("4 validation slices and 13 corrupted copies")
    share = 3 ** (1 / row.calibration.temperature)
    assert share / (share + 1) == pytest.approx(54 / 56, abs=1e-3)
    assert row.calibration.test_ece == pytest.approx(54 / 56 - 4 / 7, abs=1e-3)
    assert row.calibration.val_ece == pytest.approx(54 / 56 - 5 / 6, abs=1e-3)
    # the keys of results.json, in their order
    assert list(to_json(row)) == [
        *(
            "name",
            "seed",
            "network",
            "parameters",
            "epochs",
            "best_epoch",
            "seconds",
            "seconds_per_epoch",
        ),
        *("weights", "precision", "export", "train", "val", "test", "calibration"),
    ]
    with np.load(job.directory / "probabilities.npz") as kept:
        splits = {"train", "val", "test", calibration.SPLIT}
        assert set(kept) == splits | {f"labels_{split}" for split in splits}
        assert all(np.array_equal(kept[f"labels_{s}"], data.labels[s]) for s in splits)
        assert np.allclose(kept["test"], wrongly(data.labels["test"], 0, 1, 6))


def tables_of(job):
    return {split: job.directory / f"predictions_{split}.csv" for split in results.SPLITS}


def test_a_stage_has_a_table_of_predictions_per_split(job, data):
    found = Results()
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    for split, wrong in {"train": {0, 3}, "val": {5}, "test": {0, 1, 6}}.items():
        with tables_of(job)[split].open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["index", "label", "predicted", "probability", *data.classes]
        assert [row["index"] for row in rows] == [str(i) for i in range(COUNTS[split])]
        assert [row["label"] for row in rows] == [data.classes[k] for k in data.labels[split]]
        assert {i for i, row in enumerate(rows) if row["predicted"] != row["label"]} == wrong
        for row in rows:
            assert row["probability"] == row[row["predicted"]] and float(row["probability"]) > 0.7
            assert sum(float(row[name]) for name in data.classes) == pytest.approx(1.0, abs=1e-6)


def test_numbers_of_a_table_are_exact_in_float32_and_names_are_quoted():
    value = np.float32(1 / 3)
    text = results.predictions_csv(
        np.array([[value, 1 - value]], np.float32), np.array([0]), ["liver, left", "heart"]
    )
    (row,) = csv.DictReader(text.splitlines())
    assert (row["label"], row["predicted"]) == ("liver, left", "heart")
    assert np.float32(row["liver, left"]) == value


def test_tables_of_predictions_that_are_lost_or_old_are_written_again(job, data):
    found = Results()
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    tables = tables_of(job)
    expected = {split: path.read_bytes() for split, path in tables.items()}
    tables["train"].unlink()
    tables["val"].write_text("old")
    os.utime(tables["val"], (1, 1))
    tables["test"].write_text("mine")
    results.measure_test(job, data, CPU, found)
    assert tables["train"].read_bytes() == expected["train"]
    assert tables["val"].read_bytes() == expected["val"]
    assert tables["test"].read_text() == "mine"


def test_probabilities_of_earlier_versions_without_labels_are_read(job, data):
    found = Results()
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    path = job.directory / "probabilities.npz"
    with np.load(path) as kept:
        arrays = {name: kept[name] for name in kept if not name.startswith("labels_")}
    np.savez(path, **arrays)
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    assert len(results.exports) == 1


def test_a_stage_that_is_measured_is_not_measured_again(job, data, monkeypatch):
    found = Results()
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    before = json.dumps(to_json(found))
    with monkeypatch.context() as patched:
        patched.setattr(results, "load_trained", None)
        patched.setattr(results, "fit_calibration", None)
        results.measure_stage(job, data, CPU, found)
        results.measure_test(job, data, CPU, found)
    assert json.dumps(to_json(found)) == before and len(results.exports) == 1


@pytest.mark.parametrize("lost", ["row", "member.onnx", "probabilities.npz", calibration.SPLIT])
def test_a_stage_is_measured_anew_if_part_of_it_is_lost(job, data, lost):
    found = Results()
    results.measure_stage(job, data, CPU, found)
    if lost == "row":
        found.stages = []
    elif lost == calibration.SPLIT:
        with np.load(job.directory / "probabilities.npz") as kept:
            arrays = {split: kept[split] for split in kept if split != lost}
        np.savez(job.directory / "probabilities.npz", **arrays)
    else:
        (job.directory / lost).unlink()
    results.measure_stage(job, data, CPU, found)
    assert len(results.exports) == 2 and len(found.stages) == 1
    with np.load(job.directory / "probabilities.npz") as kept:
        assert calibration.SPLIT in kept


@pytest.mark.parametrize("lost", ["row", "probabilities"])
def test_test_is_measured_anew_if_its_row_or_its_probabilities_are_lost(job, data, lost):
    found = Results()
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    (row,) = found.stages
    if lost == "row":
        row.test = None
    else:
        row.test = split_metrics(0.0)
        with np.load(job.directory / "probabilities.npz") as kept:
            arrays = {split: kept[split] for split in kept if split != "test"}
        np.savez(job.directory / "probabilities.npz", **arrays)
    results.measure_test(job, data, CPU, found)
    assert row.test.accuracy == 4 / 7
    with np.load(job.directory / "probabilities.npz") as kept:
        assert len(kept["test"]) == COUNTS["test"]


def test_a_calibration_on_other_slices_is_made_anew(job, data):
    found = Results()
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    (row,) = found.stages
    expected = row.calibration
    for fitted_on in ("validation", None):
        row.calibration = Calibration(9.0, 0.5, 0.5, fitted_on)
        results.measure_test(job, data, CPU, found)
        assert row.calibration == expected


def test_an_ensemble_averages_the_members_of_its_own_seed(tmp_path, data, monkeypatch):
    monkeypatch.setitem(
        STAGES, "ensemble", STAGES["ensemble"].__class__("ensemble", None, members=("base", "big"))
    )
    rows, wrong = [], {"base": (0, 1), "big": (1, 2)}
    for name, seed in (("base", 1), ("base", 2), ("big", 1), ("big", 2)):
        place = tmp_path / name / f"seed-{seed}"
        place.mkdir(parents=True)
        places = wrong[name] if seed == 2 else (0, 1, 2, 3)
        arrays = {split: wrongly(labels, *places) for split, labels in data.labels.items()}
        sure = {"base": 1.0, "big": 0.5}[name]  # base is the surer one
        np.savez(
            place / "probabilities.npz", **{s: 0.5 + (a - 0.5) * sure for s, a in arrays.items()}
        )
        about = {
            "parameters": 10 * seed,
            "epochs": seed,
            "seconds": 2.0 * seed,
            "seconds_per_epoch": 0.5,
        }
        weights = {"base": "none", "big": "ImageNet"}[name]
        rows.append(stage_result(name, seed, weights=weights, **about))
    found = Results(stages=rows)
    job = Job(STAGES["ensemble"], config(2), tmp_path / "ensemble" / "seed-2")
    job.directory.mkdir(parents=True)
    results.measure_stage(job, data, CPU, found)
    results.measure_test(job, data, CPU, found)
    row = found.stages[-1]
    assert (row.name, row.seed, row.network) == ("ensemble", 2, "mean probability of base, big")
    assert (row.parameters, row.epochs, row.seconds, row.seconds_per_epoch) == (40, 4, 8.0, 1.0)
    assert (row.best_epoch, row.weights) == (None, "ImageNet")
    assert not {"export", "precision"} & set(to_json(row)) and to_json(row)["best_epoch"] is None
    # the surer member decides: slices 0 and 1 are wrong in each split
    for split, count in COUNTS.items():
        assert row.on(split).accuracy == pytest.approx((count - 2) / count)
    with np.load(job.directory / "probabilities.npz") as kept:
        assert {name for name in kept if not name.startswith("labels_")} == {"train", "val", "test"}
        assert kept["test"].dtype == np.float32
        assert sorted({float(p) for p in kept["test"].max(1)}) == pytest.approx([0.5625, 0.6875])
    rows = found.stages[:-1]
    for member in rows:
        member.weights = {"base": "ImageNet", "big": "other"}[member.name]
    found = Results(stages=rows)
    results.measure_stage(job, data, CPU, found)
    assert found.stages[-1].weights == "ImageNet; other"


def test_an_ensemble_of_networks_from_scratch_has_no_weights_and_is_measured_once(
    tmp_path, data, monkeypatch, capsys
):
    monkeypatch.setitem(
        STAGES, "ensemble", STAGES["ensemble"].__class__("ensemble", None, members=("base",))
    )
    (tmp_path / "base").mkdir()
    np.savez(
        tmp_path / "base" / "probabilities.npz",
        **{s: wrongly(y, 0) for s, y in data.labels.items()},
    )
    found = Results(stages=[stage_result("base")])
    job = Job(STAGES["ensemble"], config(), tmp_path / "ensemble")
    job.directory.mkdir()
    results.measure_stage(job, data, CPU, found)
    row = found.stages[-1]
    assert row.weights == "none" and capsys.readouterr().out == ""
    results.measure_stage(job, data, CPU, found)
    accuracy = f"{row.val.accuracy:.4f}"
    assert re.fullmatch(
        rf"ensemble       finished in this run on [-\d]+ [:\d]+, val accuracy {accuracy}; not repeated\n",
        capsys.readouterr().out,
    )
    assert found.stages[-1] is row and len(found.stages) == 2


def test_an_export_that_is_not_the_network_ends_the_run_with_1(job, data, monkeypatch):
    from export.member import ExportError

    def export(*_: Any, **__: Any) -> None:
        raise ExportError("logits differ")

    monkeypatch.setattr(results, "export_member", export)
    with pytest.raises(RunError, match="export of base: logits differ") as raised:
        results.measure_stage(job, data, CPU, Results())
    assert raised.value.exit_code == 1


# over seeds


def scored(name: str, seed: int, accuracy: float, **more: Any) -> StageResult:
    splits = {
        split: split_metrics(accuracy - i / 10, auc=accuracy / 2, ece=0.1 * seed)
        for i, split in enumerate(("train", "val", "test"))
    }
    about = {"parameters": 12_345, "epochs": 7, "best_epoch": 3, "seconds_per_epoch": 1.25}
    return stage_result(name, seed, **about | splits | more)


def test_the_summary_is_the_mean_and_the_sample_deviation_by_stage_and_split():
    rows = [
        scored("base", 1, 0.9),
        scored("big", 1, 0.7),
        scored("base", 2, 0.6),
        scored("base", 4, 0.6),
    ]
    base, big = results.summary(rows)
    assert (base.name, base.seeds, big.name, big.seeds) == ("base", [1, 2, 4], "big", [1])
    for i, split in enumerate(("train", "val", "test")):
        assert base.on(split)["accuracy"].mean == pytest.approx(0.7 - i / 10)
        assert base.on(split)["accuracy"].std == pytest.approx(0.03**0.5)
        assert base.on(split)["auc"].mean == pytest.approx(0.35)
        assert base.on(split)["ece"].mean == pytest.approx(0.7 / 3)
        assert big.on(split)["accuracy"] == MeanStd(pytest.approx(0.7 - i / 10), None)
        assert list(base.on(split)) == ["accuracy", "precision", "recall", "f1", "auc", "ece"]
    assert to_json(big)["val"]["auc"] == {"mean": 0.35, "std": None}


def test_the_summary_of_what_one_seed_lacks_is_not_known():
    rows = [scored("base", 1, 0.9), scored("base", 2, 0.6, test=None)]
    rows[0].val = split_metrics(0.8, auc=None)
    (base,) = results.summary(rows)
    assert base.test["accuracy"] == base.val["auc"] == MeanStd(None, None)
    assert base.val["accuracy"].mean == pytest.approx(0.65)


def about(rows: list[StageResult], **more: Any) -> Results:
    return Results(dataset=Dataset(flag="organcmnist"), device="cpu", stages=rows, **more)


def test_the_table_has_a_line_for_each_stage():
    text = results.table(
        about([scored("base", 1, 0.9), scored("ensemble", 1, 0.7, best_epoch=None, test=None)])
    )
    _, title, head, rule, base, ensemble = text.split("\n")
    assert title == "organcmnist, accuracy on cpu" and set(rule) == {"-"} and len(rule) == len(head)
    assert head.split() == [
        "stage",
        "parameters",
        "epochs",
        "kept",
        "s/epoch",
        "train",
        "val",
        "test",
    ]
    assert base.split() == ["base", "12,345", "7", "3", "1.2", "0.9000", "0.8000", "0.7000"]
    assert ensemble.split() == ["ensemble", "12,345", "7", "1.2", "0.7000", "0.6000", "–"]
    assert len(base) == len(ensemble) == len(head)


def test_the_table_over_seeds_names_them_and_ends_in_their_mean():
    rows = [scored("base", 1, 0.9), scored("base", 2, 0.6), scored("big", 1, 0.5)]
    lines = results.table(about(rows, summary=results.summary(rows))).split("\n")
    assert [line[:15].strip() for line in lines[4:7]] == ["base #1", "base #2", "big #1"]
    assert lines[7:] == ["base           test accuracy 0.5500 ± 0.2121 as the mean over 2 seeds"]


# jobs


@pytest.mark.parametrize(
    ("given", "caps"),
    [
        ([], {}),
        (["5"], {"all": 5}),
        (["base=2,7", "edge=1"], {"all": 7, "base": 2, "edge": 1}),
        (["3", "4"], {"all": 4}),
        (["ensemble=01"], {"ensemble": 1}),
    ],
)
def test_most_epochs_are_given_for_all_stages_or_by_stage(given, caps):
    assert epoch_caps(given) == caps and list(epoch_caps(given)) == sorted(caps)


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "", "base=", "base=0", "=5=", "base=1,,2"])
def test_numbers_of_epochs_that_are_none_are_refused(text):
    with pytest.raises(
        RunError, match=r"--max-epochs: expected N or STAGE=N with N of at least 1, found"
    ):
        epoch_caps([text])


def test_an_unknown_stage_has_no_number_of_epochs():
    with pytest.raises(RunError, match="unknown stage 'nope'; choose from base"):
        epoch_caps(["nope=3"])


def options(**changed: Any) -> TrainOptions:
    return TrainOptions(**changed)


def test_a_job_for_each_stage_with_the_studys_settings():
    # the reference study: batches of 128, at most 100 epochs, base 5; edge and the networks beside it 32
    jobs = plan_jobs(list(LADDER), options(), {}, Path("runs"))
    epochs = {job.stage.name: job.config.max_epochs for job in jobs}
    assert epochs == dict.fromkeys(STAGES, 100) | {
        "base": 5,
        "edge": 32,
        "edge_wide": 32,
        "edge_deep": 32,
    }
    assert [job.directory for job in jobs] == [Path("runs") / name for name in STAGES]
    assert {(job.config.seed, job.config.batch_size, job.config.weights) for job in jobs} == {
        (1, 128, "imagenet")
    }
    assert not any(job.config.smoke for job in jobs) and jobs[0].config.amp == "auto"


def test_a_job_for_each_seed_in_a_directory_of_its_own():
    stages = [STAGES["base"], STAGES["edge"]]
    given = options(seed=5, seeds=2, amp="off", weights_dir=Path("w"), batch_size=7)
    jobs = plan_jobs(stages, given, {"base": 2}, Path("runs"))
    assert [
        (job.stage.name, job.config.seed, job.config.max_epochs, job.directory) for job in jobs
    ] == [
        ("base", 5, 2, Path("runs/base/seed-5")),
        ("base", 6, 2, Path("runs/base/seed-6")),
        ("edge", 5, 32, Path("runs/edge/seed-5")),
        ("edge", 6, 32, Path("runs/edge/seed-6")),
    ]
    assert {(j.config.amp, j.config.weights_dir, j.config.batch_size) for j in jobs} == {
        ("off", Path("w"), 7)
    }


def test_a_smoke_run_starts_from_scratch_for_two_epochs():
    (job,) = plan_jobs([STAGES["resnet50"]], options(smoke=True), {}, Path("runs"))
    assert (job.config.smoke, job.config.weights, job.config.max_epochs) == (True, "none", 2)


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("runs/organsmnist/ensemble", "runs/organsmnist/base"),
        ("runs/organsmnist/ensemble/seed-3", "runs/organsmnist/base/seed-3"),
        ("ensemble/organsmnist/ensemble/seed-3", "ensemble/organsmnist/base/seed-3"),
        ("ensemble/organsmnist/ensemble", "ensemble/organsmnist/base"),
    ],
)
def test_a_member_lies_beside_its_ensemble_with_the_same_seed(directory, expected):
    assert member_of(Job(STAGES["ensemble"], config(), Path(directory)), "base") == Path(expected)
