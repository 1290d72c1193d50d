"""`--tensorboard DIR`: a run seen live: figures of each epoch, augmented slices, and the figures of the report.

The package is imported when a board is opened, so that training needs it only with the option.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from train.augment import normalize
from train.data import Data
from train.errors import RunError
from train.jobs import Job

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

    from train.report.mpl import Figure

# of the grid of augmented slices
COLUMNS, ROWS = 8, 4
# names on the board by column of the history
SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "seconds": "seconds_per_epoch",
}


def writer_class() -> type[SummaryWriter]:
    """Import PyTorch's writer of TensorBoard's files.

    Raises:
        RunError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as e:
        raise RunError(
            "--tensorboard: tensorboard is not installed; run pip install tensorboard, or leave the option out"
        ) from e
    return SummaryWriter


class Board:
    """Writes what TensorBoard shows of a run, a directory per stage.

    Args:
        directory: of the board; it is created.
        run: the name of the run, which its directories on the board begin with.

    Raises:
        RunError: tensorboard is not installed, or the directory cannot be written.
    """

    def __init__(self, directory: Path, run: str) -> None:
        self._writer_class = writer_class()
        self.directory = directory / run
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise RunError(
                f"--tensorboard {directory}: cannot be written ({e.strerror}); choose another directory"
            ) from e
        self._writers: list[SummaryWriter] = []
        self._failed = False

    def watch(self, job: Job, data: Data) -> Callable[[Mapping[str, float]], None]:
        """Write augmented slices of a stage. Returns what writes an epoch, a row of its history."""
        writer = self._open(job.label.replace(" #", "-"))
        if writer is not None:
            grid = augmented_slices(job, data)
            self._write(lambda: writer.add_image("augmented", grid, 0, dataformats="HW"))

        def write_epoch(row: Mapping[str, float]) -> None:
            if writer is None:
                return

            def add() -> None:
                for column, name in SCALARS.items():
                    if column in row:
                        writer.add_scalar(name, row[column], int(row["epoch"]))
                writer.flush()

            self._write(add)

        return write_epoch

    def add_figures(self, drawn: Mapping[str, Figure]) -> None:
        """Write the figures of the report, by name."""
        from train.report import figures

        writer = self._open("report")
        if writer is None:
            return
        with figures.drawing():
            for name, figure in drawn.items():
                picture = Image.open(io.BytesIO(figures.to_png(figure, dpi=120))).convert("RGB")
                add = partial(writer.add_image, name, np.asarray(picture), 0, dataformats="HWC")
                self._write(add)

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers:
            self._write(writer.close)
        self._writers.clear()

    def _open(self, name: str) -> SummaryWriter | None:
        """Open a directory of the board. What an earlier command wrote there is hidden: a resumed stage writes all again."""
        opened: list[SummaryWriter] = []
        self._write(
            lambda: opened.append(self._writer_class(str(self.directory / name), purge_step=0))
        )
        self._writers += opened
        return opened[0] if opened else None

    def _write(self, action: Callable[[], Any]) -> None:
        """Write to the board. A full disk ends the board and not the training."""
        if self._failed:
            return
        try:
            action()
        except OSError as e:
            self._failed = True
            print(
                f"train: warning: {self.directory}: TensorBoard's files cannot be written ({e.strerror or e}); training"
                " continues without them",
                file=sys.stderr,
                flush=True,
            )


def augmented_slices(job: Job, data: Data) -> NDArray[np.uint8]:
    """Return slices of train as the stage's recipe gives them to the network, in a grid, uint8 (H, W).

    The slices are spread over the split. They are drawn by a generator of their own, which does not change the training.
    """
    total = len(data.labels["train"])
    rows = np.linspace(0, total - 1, min(total, COLUMNS * ROWS)).round().astype(int)
    x = normalize(torch.from_numpy(data.as_network_images(data.images["train"][rows])))
    labels = torch.from_numpy(data.labels["train"][rows])
    generator = torch.Generator().manual_seed(job.config.seed)
    recipe = job.stage.recipe_for(data.recipe_view)
    x, _ = recipe.prepare(x, labels, len(data.classes), generator)  # (N, 1, S, S)
    gray = ((x[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    side = gray.shape[-1] + 1
    grid = np.zeros((-(-len(gray) // COLUMNS) * side - 1, COLUMNS * side - 1), np.uint8)
    for i, image in enumerate(gray):
        top, left = i // COLUMNS * side, i % COLUMNS * side
        grid[top : top + side - 1, left : left + side - 1] = image
    return grid
