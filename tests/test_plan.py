"""`--plan`: what a run would do, measured on a few steps, with nothing written."""

from __future__ import annotations

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.unequal_splits import unequal_data
from train import fit, plan, record
from train.all import main
from train.errors import RunError
from train.jobs import epoch_caps, plan_jobs
from train.options import TrainOptions
from train.stages import chosen_stages

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return unequal_data({"train": 40, "val": 22, "test": 27})


def jobs_of(directory, *names, caps=(), **options):
    given = TrainOptions(batch_size=16, amp="off", weights="none", **options)
    return plan_jobs(chosen_stages(names), given, epoch_caps(caps), directory)


def lines_of(directory, data, *names, fresh=False, **options):
    jobs = jobs_of(directory, *names, **options)
    return plan.plan_lines(jobs, data, CPU, directory, ("fp32",), fresh=fresh)


def row(lines, stage):
    """The columns of a stage: parameters, epochs, seconds, minutes."""
    (line,) = [line for line in lines if line.startswith(f"{stage} ")]
    return re.split(r"\s{2,}", line)[1:]


def test_a_plan_has_a_row_per_stage_and_what_the_run_needs(tmp_path, data):
    lines = lines_of(tmp_path / "runs" / "x", data, "base", "big", "edge")
    parameters = {
        name: sum(p.numel() for p in fit.starting_network(job.stage, data, job.config)[0].parameters())
        for job in jobs_of(tmp_path, "base", "big", "edge")
        for name in [job.stage.name]
    }  # fmt: skip
    assert [row(lines, name)[0] for name in parameters] == [f"{n:,}" for n in parameters.values()]
    assert [row(lines, name)[1] for name in parameters] == ["5", "6 to 100", "32"]
    rest = "\n".join(lines[lines.index("") :])
    assert re.search(r"^disk    about \d+ MB needed below .*runs/x, .* free$", rest, re.M)
    assert re.search(r"^memory  about [\d.]+ GB of [\d.]+ GB$", rest, re.M)
    assert re.search(r"^time    about [\d.]+ (to [\d.]+ )?minutes of training on cpu", rest, re.M)
    assert list(tmp_path.iterdir()) == []


def test_an_average_is_named_with_its_members(tmp_path, data, monkeypatch):
    monkeypatch.setattr(plan, "_epoch", lambda *_: (1000, 6.0))
    lines = lines_of(tmp_path, data, "ensemble", caps=("3",))
    assert "ensemble          the mean of batch_norm, resnet50, resnet101, resnet152" in lines
    # four networks of 3 epochs of 6 seconds
    assert any(line.startswith("time    about 1.2 minutes") for line in lines)


@pytest.mark.parametrize("cost", [0.0001, 0.003, 0.5])
@pytest.mark.parametrize("total", [10, 1000, 34_561])
def test_the_seconds_of_a_pass_are_those_per_slice_times_the_slices(cost, total):
    asked = []

    def timed(rows):
        asked.append(rows)
        # the first pass is slow
        return cost * rows + (100 if len(asked) == 1 else 0)

    assert plan._seconds_of_pass(timed, total, 64) == pytest.approx(cost * total)
    assert (max(asked) <= total and asked[-1] * cost >= 1) or asked[-1] == total
    assert sum(asked) * cost <= 10 or len(asked) == 2


def test_steps_of_the_stages_own_recipe_and_batches_are_timed(tmp_path, data, monkeypatch):
    seen = []

    def train_epoch(learner, images, labels, classes, stage, config, epoch):
        seen.append((stage.name, len(images), classes, config.batch_size, learner.recipe))
        assert np.array_equal(images.numpy(), data.images["train"][: len(images)])
        return 0.0, 0.0

    monkeypatch.setattr(fit, "train_epoch", train_epoch)
    (job,) = jobs_of(tmp_path, "edge")
    plan._epoch(job.stage, job.config, data, CPU)
    recipe = job.stage.recipe_for(data.recipe_view)
    assert {entry[0] for entry in seen} == {"edge"} and all(e[4] == recipe for e in seen)
    assert [entry[1] for entry in seen] == [32, 32, 40] and seen[0][2:4] == (len(data.classes), 16)


def test_what_a_run_has_trained_is_not_counted_again(tmp_path, data, monkeypatch):
    monkeypatch.setattr(plan, "_epoch", lambda *_: (1000, 60.0))

    def history(*accuracies):
        return [
            {"epoch": i + 1.0, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": a, "seconds": 1.0, "learning_rate": 0.1}
            for i, a in enumerate(accuracies)
        ]  # fmt: skip

    record.write_history(tmp_path / "big" / "history.csv", history(0.1, 0.5, 0.4, 0.3))
    record.write_history(tmp_path / "edge" / "history.csv", history(*[0.5] * 20))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "probabilities.npz").touch()
    names = ("base", "big", "edge")
    lines = lines_of(tmp_path, data, *names)
    assert [row(lines, name)[1] for name in names] == ["0", "3 to 96", "12"]
    assert row(lines, "big")[3] == "3.0 to 96.0"
    lines = lines_of(tmp_path, data, *names, fresh=True)
    assert [row(lines, name)[1] for name in names] == ["5", "6 to 100", "32"]
    (tmp_path / "big" / "history.csv").write_text("damaged")
    assert row(lines_of(tmp_path, data, "big"), "big")[1] == "6 to 100"


def test_several_seeds_have_a_row_each(tmp_path, data, monkeypatch):
    monkeypatch.setattr(plan, "_epoch", lambda *_: (1000, 60.0))
    lines = lines_of(tmp_path, data, "base", seeds=2)
    assert row(lines, "base #1") == row(lines, "base #2") == ["1,000", "5", "60.00", "5.0"]
    assert any(line.startswith("time    about 10.0 minutes") for line in lines)


def test_a_disk_that_is_too_small_is_told_and_is_no_error(tmp_path, data, monkeypatch):
    monkeypatch.setattr(plan, "_epoch", lambda *_: (1000, 60.0))
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    (line,) = [line for line in lines_of(tmp_path / "a" / "b", data, "base") if line[:4] == "disk"]
    assert line.endswith("0 MB free; too little, free disk space or choose another --out")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError()])
def test_a_batch_that_does_not_fit_is_one_line(tmp_path, data, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(plan, "_epoch", fails)
    with pytest.raises(
        RunError, match="base: out of memory on cpu at batch size 16; try --batch-size 8"
    ) as e:
        lines_of(tmp_path, data, "base")
    assert e.value.exit_code == 1


def test_the_command_stops_after_the_plan_with_0_and_writes_nothing(tmp_path, capsys):
    generator = np.random.default_rng(5)
    content = {}
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = generator.integers(0, 255, (9, 28, 28), dtype=np.uint8)
        content[f"{split}_labels"] = np.arange(9) % 3
    np.savez(tmp_path / "mine.npz", **content)
    out = tmp_path / "runs"
    (out / "mine" / "base").mkdir(parents=True)
    (out / "mine" / "base" / "kept").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = [
        "--dataset", f"npz:{tmp_path / 'mine.npz'}", "--out", str(out), "--stages", "base", "--device", "cpu",
        "--amp", "off", "--plan", "--fresh",
    ]  # fmt: skip
    assert main(arguments) == 0
    found = capsys.readouterr().out.splitlines()
    assert found[-1].startswith("plan    nothing was trained or written; run the command without")
    assert found[1].startswith("data    3 classes, 9 + 9 + 9 slices (train + val + test)")
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(out)
    assert main(arguments) == 0 and not out.exists()


def test_a_plan_is_of_one_process(monkeypatch, capsys):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29")):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert main(["--plan", "--device", "cpu", "--stages", "base"]) == 2
    assert "--plan: measures one process; run it without torchrun" in capsys.readouterr().err
