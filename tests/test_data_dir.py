"""The data folder of a run: recorded by training, found again by the commands that read the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from train.data import SPLITS, Data
from train.data_dir import data_dir_of, data_dir_of_checkpoint
from train.errors import RunError
from train.results import open_results
from train.results_format import Dataset, Results, read_results, write_results


@pytest.fixture
def folder(tmp_path):
    """A data folder with an empty file in the place of OrganAMNIST."""
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "organamnist.npz").touch()
    return directory


def _data():
    """One slice per split."""
    arrays = {split: np.zeros((1, 28, 28), np.uint8) for split in SPLITS}
    labels = {split: np.zeros(1, np.int64) for split in SPLITS}
    counts = {split: [1, 0] for split in SPLITS}
    return Data("organamnist", "axial", 28, "0" * 32, ["liver", "heart"], arrays, labels, counts)


def results_of(data_dir, **dataset):
    return Results(
        dataset=Dataset(flag="organamnist", **dataset),
        data_dir=None if data_dir is None else str(data_dir),
    )


def written(directory, results):
    directory.mkdir(parents=True, exist_ok=True)
    write_results(directory, results)
    return directory


def test_a_run_records_its_data_folder_as_an_absolute_path(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"smoke": False}
    relative = open_results(tmp_path, _data(), torch.device("cpu"), settings, data_dir=Path("data"))
    assert relative.data_dir == str(folder)
    assert open_results(tmp_path, _data(), torch.device("cpu"), settings).data_dir is None


def test_a_resumed_run_records_the_folder_of_its_last_command(tmp_path, folder):
    settings = {"smoke": False, "deterministic": False}
    first = open_results(tmp_path, _data(), torch.device("cpu"), settings, data_dir=tmp_path)
    write_results(tmp_path, first)
    open_again = open_results(tmp_path, _data(), torch.device("cpu"), settings, data_dir=folder)
    assert read_results(tmp_path).data_dir == str(tmp_path)
    assert open_again.data_dir == str(folder)


def test_the_recorded_folder_is_used_unless_another_is_given(tmp_path, folder):
    assert data_dir_of(results_of(folder), None) == folder
    assert data_dir_of(results_of(folder), tmp_path) == tmp_path
    assert data_dir_of(results_of(tmp_path / "gone"), tmp_path) == tmp_path
    assert data_dir_of(results_of(None), None) is None


@pytest.mark.parametrize("dataset", [{"size": 64}, {"size": 28, "resample_from": 64}])
def test_the_file_of_the_runs_size_is_looked_for(folder, dataset):
    with pytest.raises(RunError, match=r"organamnist_64\.npz: the run used this file"):
        data_dir_of(results_of(folder, **dataset), None)
    (folder / "organamnist_64.npz").touch()
    assert data_dir_of(results_of(folder, **dataset), None) == folder


def test_a_recorded_folder_that_is_gone_is_one_line_and_is_not_created(tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(RunError) as caught:
        data_dir_of(results_of(gone), None)
    assert str(caught.value) == (
        f"{gone / 'organamnist.npz'}: the run used this file, but it is gone; pass --data-dir DIR"
    )
    assert not gone.exists()


@pytest.mark.parametrize("stage", ["base", "edge/seed-2"])
def test_a_checkpoint_finds_the_folder_of_its_run(tmp_path, folder, stage, monkeypatch):
    run = written(tmp_path / "runs" / "organamnist", results_of(folder))
    checkpoint = run / stage / "checkpoint.pt"
    assert data_dir_of_checkpoint(checkpoint, None) == folder
    assert data_dir_of_checkpoint(checkpoint, tmp_path) == tmp_path
    monkeypatch.chdir(run)
    assert data_dir_of_checkpoint(Path(stage) / "checkpoint.pt", None) == folder


def test_a_checkpoint_outside_of_a_run_uses_the_default_folder(tmp_path):
    assert data_dir_of_checkpoint(tmp_path / "copied" / "checkpoint.pt", None) is None


def test_an_unreadable_record_of_the_run_is_noted_and_does_not_stop_the_export(tmp_path, capsys):
    (tmp_path / "results.json").write_text("not JSON")
    assert data_dir_of_checkpoint(tmp_path / "base" / "checkpoint.pt", None) is None
    assert "results.json: not valid JSON" in capsys.readouterr().err
