"""Which network bundle/ holds: the sentences at the end of a run and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from organ_infer.bundle.files import packaged_bundle
from tests.support.report_page import Page
from tests.support.result_rows import split_metrics, stage_result
from train import run
from train.bundled import describe_bundle, stage_of_members
from train.data import SPLITS, Data
from train.report import write_report
from train.report.run import read_run
from train.results_format import Dataset, Results, write_results
from train.stages import STAGES


def row(name, seed, accuracy):
    scores = split_metrics(accuracy)
    return stage_result(name, seed, train=scores, val=scores, test=scores)


def results_of(*rows, **more):
    dataset = Dataset(flag="organamnist", classes=["liver", "heart"])
    return Results(stages=[row(*values) for values in rows], dataset=dataset, **more)


def test_one_seed_is_named_without_a_choice():
    assert describe_bundle(results_of(("edge", 1, 0.9)), "edge", 1) == [
        "edge, the last measured stage of the ladder, validation accuracy 0.9000; seed 1"
    ]


def test_the_best_of_several_seeds_is_named_with_all_of_them():
    results = results_of(("edge", 1, 0.8), ("edge", 2, 0.9), ("edge", 3, 0.7))
    assert describe_bundle(results, "edge", 2) == [
        "edge, the last measured stage of the ladder; seed 2, the best of seeds 1, 2, 3 on validation: accuracy 0.9000"
        " with seed 2, 0.8000 as the mean over 3 seeds"
    ]


@pytest.mark.parametrize(
    ("better", "place"),
    [("ensemble", "bundle-ensemble"), ("big", "big/, without a bundle")],
)
def test_a_better_stage_is_named_with_its_place(better, place):
    lines = describe_bundle(results_of((better, 1, 0.95), ("edge", 1, 0.9)), "edge", 1)
    assert lines[1:] == [f"{better} is the best stage on validation (0.9500); it is in {place}"]


def test_a_better_stage_of_several_seeds_is_shown_as_their_mean():
    results = results_of(("big", 1, 0.99), ("big", 2, 0.95), ("edge", 1, 0.9), ("edge", 2, 0.8))
    assert describe_bundle(results, "edge", 1)[1] == (
        "big is the best stage on validation (0.9700 as the mean over 2 seeds); it is in big/, without a bundle"
    )


def test_stages_are_compared_by_their_means_over_seeds():
    results = results_of(("big", 1, 0.99), ("big", 2, 0.5), ("edge", 1, 0.9), ("edge", 2, 0.9))
    assert len(describe_bundle(results, "edge", 1)) == 1


def test_an_equally_good_stage_is_not_better():
    assert len(describe_bundle(results_of(("big", 1, 0.9), ("edge", 1, 0.9)), "edge", 1)) == 1


def test_the_members_of_a_bundle_name_its_stage():
    assert stage_of_members({"edge"}) == "edge"
    assert stage_of_members(set(STAGES["ensemble"].members)) == "ensemble"


def test_the_end_of_a_run_names_the_network_and_warns_of_a_smoke_run(capsys):
    results = results_of(("base", 1, 0.95), ("edge", 1, 0.8), ("edge", 2, 0.9))
    run._print_outcome(Path("r"), results, Path("r/bundle"))
    printed = capsys.readouterr().out
    for line in describe_bundle(results, "edge", 2):
        assert f"\n        {line}\n" in printed
    assert "warning" not in printed
    results.smoke = True
    run._print_outcome(Path("r"), results, Path("r/bundle"))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "warning: r/bundle: from a smoke run, its answers mean nothing; train without --smoke"
    )


# the report


@pytest.fixture
def data():
    images = {split: np.zeros((2, 28, 28), np.uint8) for split in SPLITS}
    labels = {split: np.array([0, 1]) for split in SPLITS}
    counts = {split: [1, 1] for split in SPLITS}
    return Data("organamnist", "axial", 28, "", ["liver", "heart"], images, labels, counts)


def bundle_of_seed(directory, seed):
    manifest = json.loads((packaged_bundle() / "manifest.json").read_text())
    manifest["training"]["seed"] = seed
    # without its checksum a changed manifest is accepted
    manifest["training"].pop("seal")
    (directory / "bundle").mkdir()
    (directory / "bundle" / "manifest.json").write_text(json.dumps(manifest))


def test_the_report_names_the_network_in_the_bundle(tmp_path, data):
    results = results_of(("base", 1, 0.95), ("edge_ensemble", 2, 0.9))
    write_results(tmp_path, results)
    assert "In bundle/:" not in Page(write_report(tmp_path, data)).text
    bundle_of_seed(tmp_path, 2)
    text = Page(write_report(tmp_path, data)).text
    for line in describe_bundle(results, "edge_ensemble", 2):
        assert line in text


def test_a_damaged_bundle_is_not_described(tmp_path):
    write_results(tmp_path, results_of(("edge_ensemble", 2, 0.9)))
    bundle_of_seed(tmp_path, 2)
    assert read_run(tmp_path).bundle == ("edge_ensemble", 2)
    (tmp_path / "bundle" / "manifest.json").write_text("{")
    assert read_run(tmp_path).bundle is None
