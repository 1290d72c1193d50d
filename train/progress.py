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
    """Format the outcome of the last epoch and the remaining time of the stage.

    Args:
        stage: a row of `train.stages`.
        max_epochs: epochs at most.
        history: one row per epoch so far, columns `record.HISTORY_COLUMNS`.
        best_epoch: counted from 1.
        best: its accuracy on validation, 0 to 1.

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
    return (
        f"{stage.name:<14} epoch {epoch:>3}/{max_epochs}  loss {row['train_loss']:.3f}  "
        f"val accuracy {row['val_accuracy']:.4f} (best {best:.4f}, epoch {best_epoch})  "
        f"{row['seconds']:.1f} s  left {left}"
    )


def clock(seconds: float) -> str:
    """Format a duration as minutes and seconds, `9:05`, or with hours, `1:09:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
