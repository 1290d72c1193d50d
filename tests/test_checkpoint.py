"""Checkpoints: the dictionary that is stored, those of earlier versions, those of other programs."""

import dataclasses

import pytest
import torch

from train import record
from train.checkpoint import Checkpoint, ResumeState, StageFacts, StageSettings, read_checkpoint
from train.errors import RunError

SETTINGS = {
    "batch_size": 64,
    "max_epochs": 5,
    "method": {"learning_rate": 1e-3},
    "precision": "bf16",
}
FACTS = {
    "stage": "base",
    "network": "small",
    "dataset": "organamnist",
    "classes": ["liver", "spleen"],
    "size": 28,
    "stored": 64,
    "resample": "linear",
    "data_md5": "0123",
    "seed": 3,
    "weights": "none",
    "smoke": False,
    "parameters": 7,
}
WEIGHTS, BEST = {"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}
HISTORY = [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.25}]
# the dictionaries as the first version wrote them
FINISHED = {"format": 1} | FACTS | {
    "recipe": SETTINGS,
    "finished": True,
    "state": BEST,
    "best_epoch": 1,
    "history": HISTORY,
}  # fmt: skip
UNFINISHED = FINISHED | {
    "finished": False,
    "state": WEIGHTS,
    "optimiser": {"step": 4},
    "average": {"steps": 9},
    "scaler": {"scale": 2.0},
    "best": BEST,
    "best_accuracy": 0.5,
}


def test_what_is_stored_keeps_its_keys():
    facts = StageFacts(**FACTS, settings=StageSettings(**SETTINGS))
    resume = ResumeState({"step": 4}, {"steps": 9}, {"scale": 2.0}, BEST, 0.5)
    assert Checkpoint(facts, BEST, 1, HISTORY).to_dict() == FINISHED
    assert Checkpoint(facts, WEIGHTS, 1, HISTORY, resume).to_dict() == UNFINISHED


@pytest.mark.parametrize("stored", [FINISHED, UNFINISHED])
def test_a_checkpoint_reads_back_as_it_was_written(stored, tmp_path):
    path = tmp_path / "checkpoint.pt"
    record.save_checkpoint(path, stored)
    checkpoint = read_checkpoint(path)
    assert checkpoint.to_dict() == stored
    assert checkpoint.finished == stored["finished"]
    assert checkpoint.facts == StageFacts(**FACTS, settings=StageSettings(**SETTINGS))


def test_checkpoints_of_earlier_versions_are_read():
    """They knew no resampling, did not record the precision, and had no scaler."""
    settings = {key: value for key, value in SETTINGS.items() if key != "precision"}
    left_out = ("stored", "resample", "scaler")
    earlier = {key: value for key, value in UNFINISHED.items() if key not in left_out} | {
        "recipe": settings
    }
    checkpoint = Checkpoint.from_dict(earlier)
    assert (checkpoint.facts.stored, checkpoint.facts.settings.precision) == (28, None)
    assert checkpoint.facts.resample == "area"
    assert checkpoint.resume == ResumeState({"step": 4}, {"steps": 9}, None, BEST, 0.5)


@pytest.mark.parametrize(
    "missing", ["stage", "recipe", "state", "finished", "history", "best_epoch"]
)
def test_an_entry_that_is_missing_is_named(missing, tmp_path):
    stored = {key: value for key, value in FINISHED.items() if key != missing}
    record.save_checkpoint(tmp_path / "checkpoint.pt", stored)
    with pytest.raises(
        RunError, match=f"checkpoint.pt: not a checkpoint of this program, it has no '{missing}'"
    ):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_a_checkpoint_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Checkpoint.from_dict(FINISHED).best_epoch = 2
