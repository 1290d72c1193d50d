"""The line that a run prints after every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from train.stages import Stage


def progress_line(
    stage: Stage,
    max_epochs: int,
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
    best: float,
) -> str:
    """The epoch's outcome, and how long the stage may still take.

    Args:
        stage: a row of the table.
        max_epochs: epochs at most.
        history: one row per epoch so far, the last one included.
        best_epoch: counted from 1.
        best: its accuracy on validation, 0 to 1.
    """
    row, epoch = history[-1], len(history)
    seconds = float(np.mean([entry["seconds"] for entry in history]))
    most = (max_epochs - epoch) * seconds
    least = (
        most
        if stage.patience is None
        else min(most, (best_epoch + stage.patience - epoch) * seconds)
    )
    left = clock(most) if least == most else f"{clock(least)} to {clock(most)}"
    return (
        f"{stage.name:<14} epoch {epoch:>3}/{max_epochs}  loss {row['train_loss']:.3f}  "
        f"val accuracy {row['val_accuracy']:.4f} (best {best:.4f}, epoch {best_epoch})  "
        f"{row['seconds']:.1f} s  left {left}"
    )


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, `9:05`, or with hours, `1:09:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
