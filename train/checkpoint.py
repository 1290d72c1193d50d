"""Checkpoints of a stage: what they hold, how they are stored, and when they are written.

On disk a checkpoint is one flat dictionary of tensors and plain values, which `torch.load(..., weights_only=True)`
reads. Its keys keep their names from version to version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from train import record
from train.errors import RunError

FORMAT = 1
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class StageSettings:
    """The settings that must be equal for a stage to be resumed.

    Args:
        batch_size: slices per step.
        max_epochs: epochs at most.
        method: the recipe's settings, as `Recipe.stored_settings` gives them.
        precision: of the forward pass, `bf16`, `fp16` or `fp32`; None in checkpoints that did not record it.
    """

    batch_size: int
    max_epochs: int
    method: Mapping[str, Any]
    precision: str | None = None


@dataclass(frozen=True)
class StageFacts:
    """What a stage trains, on which data, known before its first epoch.

    Args:
        stage: its name.
        network: a row of `train.networks.NETWORKS`.
        dataset: MedMNIST's name of the data set.
        classes: class names, by index.
        size: pixels per side of the network's input.
        stored: pixels per side of the slices in the file.
        resample: how slices are resampled: area, linear or cubic.
        data_md5: of the data set's file.
        seed: of the run.
        weights: where the starting weights are from; `none` if they were drawn from the seed.
        smoke: whether this is a smoke run.
        parameters: trainable ones.
        settings: stored under `recipe`.
    """

    stage: str
    network: str
    dataset: str
    classes: list[str]
    size: int
    stored: int
    resample: str
    data_md5: str
    seed: int
    weights: str
    smoke: bool
    parameters: int
    settings: StageSettings


@dataclass(frozen=True)
class ResumeState:
    """What an unfinished stage needs to continue.

    Args:
        optimizer: its state dict.
        ema: the state dict of the moving average; None if the recipe keeps none.
        scaler: the state dict of the loss scaler; None in checkpoints of versions without one.
        best: the best weights so far, on the CPU.
        best_accuracy: on validation, 0 to 1.
    """

    optimizer: dict[str, Any]
    ema: dict[str, Any] | None
    scaler: dict[str, Any] | None
    best: dict[str, Tensor] | None
    best_accuracy: float


@dataclass(frozen=True)
class Checkpoint:
    """A stage after one of its epochs, or at its end.

    Args:
        facts: what was trained on what.
        state: weights by name: the last ones, or the best ones of a finished stage.
        best_epoch: counted from 1.
        history: one row per epoch, columns `record.HISTORY_COLUMNS`.
        resume: None once the stage is finished.
    """

    facts: StageFacts
    state: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, float]] = field(default_factory=list)
    resume: ResumeState | None = None

    @property
    def finished(self) -> bool:
        """Whether the stage was trained to its end."""
        return self.resume is None

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on validation in the epoch whose weights are kept; None if the history lacks it."""
        rows = (row for row in self.history if row.get("epoch") == self.best_epoch)
        return next((row.get("val_accuracy") for row in rows), None)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that is stored."""
        facts = vars(self.facts) | {"recipe": dict(vars(self.facts.settings))}
        del facts["settings"]
        stored = {"format": FORMAT} | facts | {"finished": self.finished, "state": self.state}
        if self.resume:
            stored |= {
                "optimiser": self.resume.optimizer,
                "average": self.resume.ema,
                "scaler": self.resume.scaler,
                "best": self.resume.best,
                "best_accuracy": self.resume.best_accuracy,
            }
        return stored | {"best_epoch": self.best_epoch, "history": list(self.history)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint of a stored dictionary, of this version or an earlier one.

        Raises:
            KeyError: an entry is missing that every version stores.
        """
        # Versions that could not resample slices did not record the stored size. Versions that could only resample them
        # by area did not record how.
        stored = {"stored": stored["size"], "resample": "area"} | dict(stored)
        settings = {name: stored["recipe"].get(name) for name in StageSettings.__dataclass_fields__}
        facts = {
            name: stored[name] for name in StageFacts.__dataclass_fields__ if name != "settings"
        }
        resume = None
        if not stored["finished"]:
            resume = ResumeState(
                stored["optimiser"],
                stored.get("average"),
                stored.get("scaler"),
                stored["best"],
                stored["best_accuracy"],
            )
        return cls(
            StageFacts(**facts, settings=StageSettings(**settings)),
            stored["state"],
            stored["best_epoch"],
            stored["history"],
            resume,
        )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        RunError: the file is missing, damaged, or no checkpoint of this program.
    """
    stored = record.load_checkpoint(path)
    try:
        return Checkpoint.from_dict(stored)
    except KeyError as e:
        raise RunError(
            f"{path}: not a checkpoint of this program, it has no {e} entry; use another file"
        ) from e
    except (TypeError, AttributeError, ValueError) as e:
        raise RunError(
            f"{path}: not a checkpoint of this program, its entries have other types; use another file"
        ) from e


class CheckpointWriter:
    """Writes a stage's checkpoint at a new best, and otherwise at most every CHECKPOINT_SECONDS.

    A checkpoint of ResNet-152 holds 0.93 GB and can take longer to write than its epoch to train. An epoch that is
    not written is copied to memory, and written if training stops early (a signal, an error).

    Args:
        path: of the checkpoint; it is replaced as a whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written_at = float("-inf")
        self._unwritten: dict[str, Any] | None = None

    def epoch_ended(self, checkpoint: Checkpoint, *, new_best: bool) -> None:
        """Write the checkpoint, or keep a copy of it in memory."""
        if new_best or time.monotonic() - self._written_at >= CHECKPOINT_SECONDS:
            self.write(checkpoint)
        else:
            self._unwritten = copy_to_cpu(checkpoint.to_dict())

    def write(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint now."""
        self._save(checkpoint.to_dict())

    def write_pending(self) -> None:
        """Write the last epoch unless it was written; call it when training stops early."""
        if self._unwritten is not None:
            self._save(self._unwritten)

    def _save(self, stored: dict[str, Any]) -> None:
        record.save_checkpoint(self.path, stored)
        self._written_at, self._unwritten = time.monotonic(), None


def copy_to_cpu(value: Any) -> Any:
    """Copy nested dictionaries and lists of tensors and plain values to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copy_to_cpu, value))
    return value
