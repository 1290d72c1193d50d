"""The lines that a run prints after every epoch and after every phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from train.stages import Stage


def progress_line(
    stage: Stage,
    max_epochs: int,
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
    best: float,
    *,
    label: str = "",
) -> str:
    """Format the outcome of the last epoch and the remaining time of the stage.

    Args:
        stage: a row of `train.stages`.
        max_epochs: epochs at most.
        history: one row per epoch so far, columns `record.HISTORY_COLUMNS`.
        best_epoch: counted from 1.
        best: its accuracy on validation, 0 to 1.
        label: what the line begins with; by default the stage's name.

    Returns:
        One line.
    """
    row, epoch = history[-1], len(history)
    seconds = float(np.mean([entry["seconds"] for entry in history]))
    longest = (max_epochs - epoch) * seconds
    shortest = longest
    if stage.patience is not None:
        shortest = min(longest, (best_epoch + stage.patience - epoch) * seconds)
    left = clock(longest) if shortest == longest else f"{clock(shortest)} to {clock(longest)}"
    kept = "kept: last epoch" if stage.patience is None else f"best {best:.4f}, epoch {best_epoch}"
    return (
        f"{label or stage.name:<14} epoch {epoch:>3}/{max_epochs}  loss {row['train_loss']:.3f}  "
        f"val accuracy {row['val_accuracy']:.4f} ({kept})  "
        f"{row['seconds']:.1f} s  left {left}"
    )


def taken_line(label: str, path: Path, accuracy: float | None) -> str:
    """Format that a finished stage is taken from the run.

    Args:
        label: what the line begins with.
        path: of the stage's file that was written last; its time is the stage's.
        accuracy: on validation, 0 to 1; None if it is not known.

    Returns:
        One line.
    """
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    shown = "" if accuracy is None else f", val accuracy {accuracy:.4f}"
    return f"{label:<14} finished in this run on {date}{shown}; not repeated"


@contextlib.contextmanager
def phase(name: str, report: Callable[[str], None]) -> Iterator[None]:
    """Report the time of a phase of the run when it has ended.

    Args:
        name: of the phase.
        report: called with one line.
    """
    start = time.perf_counter()
    yield
    report(f"{name:<14} done in {time.perf_counter() - start:.1f} s")


def clock(seconds: float) -> str:
    """Format a duration as minutes and seconds, `9:05`, or with hours, `1:09:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
