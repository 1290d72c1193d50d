"""`--tensorboard DIR`: epochs, augmented slices and figures on the board; training goes on without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tests.support.unequal_splits import unequal_data
from train import tensorboard
from train.all import main
from train.config import TrainConfig
from train.errors import RunError
from train.fit import fit
from train.jobs import Job
from train.stages import STAGES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return unequal_data({"train": 40, "val": 22, "test": 27})


def job_of(directory, name="base", seed=1, folder=None, epochs=3):
    config = TrainConfig(seed=seed, batch_size=16, max_epochs=epochs, weights="none", amp="off")
    return Job(STAGES[name], config, directory / (folder or name))


class Writer:
    """Records what a SummaryWriter is told."""

    all: ClassVar[list[Writer]] = []

    def __init__(self, directory, purge_step):
        self.directory, self.purge_step = Path(directory), purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.images: dict[str, np.ndarray] = {}
        self.closed, self.flushed = False, 0
        Writer.all.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def add_image(self, name, image, step, dataformats):
        assert dataformats == ("HW" if image.ndim == 2 else "HWC") and image.dtype == np.uint8
        self.images[name] = image

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    monkeypatch.setattr(tensorboard, "writer_class", lambda: Writer)
    monkeypatch.setattr(Writer, "all", [])
    return Writer.all


def trained(job, data, board):
    return fit(
        job.stage, data, job.config, CPU, job.directory, report=lambda line: None,
        watch=board.watch(job, data),
    )  # fmt: skip


def test_every_epoch_is_on_the_board_as_in_the_history(tmp_path, data, writers):
    board = tensorboard.Board(tmp_path / "board", "set")
    checkpoint = trained(job_of(tmp_path), data, board)
    (writer,) = writers
    assert writer.directory == tmp_path / "board" / "set" / "base" and writer.purge_step == 0
    for column, name in tensorboard.SCALARS.items():
        found = [(value, step) for scalar, value, step in writer.scalars if scalar == name]
        if column != "seconds":
            assert found == [(row[column], row["epoch"]) for row in checkpoint.history]
        assert [step for _, step in found] == [1, 2, 3]
    assert writer.flushed == 3 and not writer.closed
    board.close()
    assert writer.closed


def test_a_finished_or_resumed_stage_has_its_earlier_epochs_too(
    tmp_path, data, writers, monkeypatch
):
    board = tensorboard.Board(tmp_path / "board", "set")
    from train import fit as module

    real, calls = module.train_epoch, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(job_of(tmp_path), data, board)
    trained(job_of(tmp_path), data, board)
    trained(job_of(tmp_path), data, board)
    steps = [[step for name, _, step in w.scalars if name == "loss/train"] for w in writers]
    assert steps == [[1, 2], [1, 2, 3], [1, 2, 3]]


def test_training_is_the_same_with_a_board(tmp_path, data, writers):
    board = tensorboard.Board(tmp_path / "board", "set")
    shown = trained(job_of(tmp_path / "a", "edge"), data, board)
    job = job_of(tmp_path / "b", "edge")
    plain = fit(job.stage, data, job.config, CPU, job.directory, report=lambda line: None)
    assert all(torch.equal(shown.state[name], plain.state[name]) for name in plain.state)


def tiles(grid):
    """The slices of a grid, in rows of 8 with a pixel between."""
    assert grid.shape == (4 * 29 - 1, 8 * 29 - 1)
    return [grid[r : r + 28, c : c + 28] for r in range(0, 115, 29) for c in range(0, 231, 29)]


def test_the_grid_shows_slices_spread_over_train_as_the_network_gets_them(tmp_path, data):
    rows = np.linspace(0, 39, 32).round().astype(int)
    plain = tiles(tensorboard.augmented_slices(job_of(tmp_path, "base"), data))
    assert all(np.array_equal(t, data.images["train"][i]) for t, i in zip(plain, rows, strict=True))
    edge = tensorboard.augmented_slices(job_of(tmp_path, "edge"), data)
    changed = [not np.array_equal(a, b) for a, b in zip(tiles(edge), plain, strict=True)]
    assert sum(changed) > 25
    assert np.array_equal(edge, tensorboard.augmented_slices(job_of(tmp_path, "edge"), data))
    other = tensorboard.augmented_slices(job_of(tmp_path, "edge", seed=2), data)
    assert not np.array_equal(edge, other)


def test_a_small_split_has_a_small_grid(tmp_path):
    few = unequal_data({"train": 11, "val": 11, "test": 11})
    assert tensorboard.augmented_slices(job_of(tmp_path), few).shape == (57, 231)


def test_seeds_have_directories_of_their_own(tmp_path, data, writers):
    board = tensorboard.Board(tmp_path / "board", "set")
    board.watch(job_of(tmp_path, "base", 2, "base/seed-2"), data)
    assert writers[0].directory.name == "base-2" and set(writers[0].images) == {"augmented"}


def test_a_disk_that_fills_up_ends_the_board_and_not_the_training(
    tmp_path, data, writers, monkeypatch, capsys
):
    board = tensorboard.Board(tmp_path / "board", "set")

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "add_scalar", full)
    assert trained(job_of(tmp_path), data, board).finished
    board.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"train: warning: {tmp_path / 'board' / 'set'}: TensorBoard's files cannot be written (No space left on device);"
        " training continues without them"
    )


def test_a_missing_package_is_one_line_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = tmp_path / "board"
    arguments = ["--dataset", f"folder:{tmp_path / 'none'}", "--device", "cpu", "--stages", "base"]
    assert main([*arguments, "--tensorboard", str(board)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert errors == [
        "train: error: --tensorboard: tensorboard is not installed; run pip install tensorboard, or leave the option out"
    ]
    assert not board.exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, writers):
    (tmp_path / "file").touch()
    with pytest.raises(
        RunError, match=r"--tensorboard .*file: cannot be written \(Not a directory\); choose"
    ):
        tensorboard.Board(tmp_path / "file", "set")


@pytest.mark.slow
def test_the_figures_of_the_report_are_on_the_board(tmp_path, writers):
    from train.report.mpl import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    board = tensorboard.Board(tmp_path / "board", "set")
    board.add_figures({"curves": figure})
    (writer,) = writers
    image = writer.images["curves"]
    assert writer.directory.name == "report" and image.shape == (120, 240, 3)
    assert image.min() < 100 and image.max() == 255


def test_a_run_writes_what_tensorboard_reads(tmp_path):
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    content = {}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        images = np.random.default_rng(7).integers(0, 255, (count, 28, 28), dtype=np.uint8)
        content |= {f"{split}_images": images, f"{split}_labels": np.arange(count) % 3}
    np.savez(tmp_path / "mine.npz", **content)
    assert main([
        "--dataset", f"npz:{tmp_path / 'mine.npz'}", "--out", str(tmp_path / "runs"), "--smoke", "--stages", "base",
        "--device", "cpu", "--amp", "off", "--precision", "fp32", "--tensorboard", str(tmp_path / "board"),
    ]) == 0  # fmt: skip

    def events(name):
        found = reading.EventAccumulator(str(tmp_path / "board" / "mine" / name))
        found.Reload()
        return found

    stage = events("base")
    history = (tmp_path / "runs" / "mine" / "base" / "history.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[1]) for line in history]
    assert [e.value for e in stage.Scalars("loss/train")] == pytest.approx(losses)
    assert stage.Tags()["images"] == ["augmented"] and len(stage.Tags()["scalars"]) == 6
    names = {"accuracy_by_stage", "base_curves", "base_confusion_train", "base_confusion_val"}
    assert names <= {*events("report").Tags()["images"]}
