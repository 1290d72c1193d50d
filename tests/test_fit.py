"""One stage: early stopping, restart, what is kept, and what stops it."""

import csv
import dataclasses
import os
from datetime import datetime

import numpy as np
import pytest
import torch

from train import checkpoint, fit, record
from train.batches import split_order
from train.config import TrainConfig
from train.data import Data
from train.errors import RunError, StageFailed
from train.learner import Learner
from train.record import HISTORY_COLUMNS
from train.results import open_results
from train.stages import STAGES, Stage

CPU = torch.device("cpu")
CLASSES = ["bladder", "femur-left", "femur-right"]


def made_data(n=257, seed=0):
    """Slices whose class shows in their brightness; 257 leaves a last batch of one."""
    rng = np.random.default_rng(seed)
    images, labels = {}, {}
    for split, count in (("train", n), ("val", 60), ("test", 60)):
        labels[split] = rng.integers(0, 3, count)
        noise = rng.integers(0, 60, (count, 28, 28))
        images[split] = (noise + 70 * labels[split][:, None, None]).astype(np.uint8)
    counts = {s: np.bincount(y, minlength=3).tolist() for s, y in labels.items()}
    return Data("organamnist", "axial", 28, "0" * 32, CLASSES, images, labels, counts)


@pytest.fixture(scope="module")
def data():
    return made_data()


def trained(stage, data, directory, **changes):
    config = dataclasses.replace(
        TrainConfig(seed=1, batch_size=64, max_epochs=3, weights="none"), **changes
    )
    return fit.fit(stage, data, config, CPU, directory, report=lambda line: None)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.mark.parametrize("stage", ["base", "augmentation", "batch_norm"])
def test_a_stage_learns_and_leaves_its_files(stage, data, tmp_path):
    done = trained(STAGES[stage], data, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "history.csv"]
    assert done.history[-1]["train_loss"] < done.history[0]["train_loss"]
    assert max(row["val_accuracy"] for row in done.history) > 0.9
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert tuple(rows[0]) == HISTORY_COLUMNS and len(rows) == 3
    kept = record.load_checkpoint(tmp_path / "checkpoint.pt")
    assert kept["finished"] and "optimiser" not in kept and kept["parameters"] > 100_000


def scripted(monkeypatch, accuracies):
    """Validation accuracies by epoch, of a network that is never trained."""
    steps = iter(range(1, 1000))

    def train_epoch(learner, *rest):
        with torch.no_grad():
            learner.network.head.bias += 1  # so that each epoch's weights differ
        return 1.0, 0.5

    def evaluate(network, images):
        right = round(accuracies[next(steps) - 1] * 100)
        logits = np.zeros((100, 3), np.float32)
        logits[:right, 0] = 1
        logits[right:, 1] = 1
        return logits

    monkeypatch.setattr(fit, "train_epoch", train_epoch)
    monkeypatch.setattr(fit, "evaluate", evaluate)
    zeros = {s: np.zeros((100, 28, 28), np.uint8) for s in ("train", "val", "test")}
    labels = {s: np.zeros(100, np.int64) for s in zeros}
    return dataclasses.replace(made_data(), images=zeros, labels=labels)


def test_early_stopping_waits_five_epochs_and_restores_the_best(monkeypatch, tmp_path):
    data = scripted(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.7, 0.69, 0.1, 0.99])
    done = trained(STAGES["early_stopping"], data, tmp_path, max_epochs=100)
    assert len(done.history) == 7 and done.best_epoch == 2  # only strictly better counts
    start = fit.starting_network(STAGES["early_stopping"], data, TrainConfig(1, 64, 1, "none"))[0]
    torch.testing.assert_close(done.state["head.bias"], start.head.bias.detach() + 2)


def test_base_runs_its_five_epochs_and_keeps_the_last(monkeypatch, tmp_path):
    data = scripted(monkeypatch, [0.9, 0.1, 0.2, 0.3, 0.4, 0.99])
    done = trained(STAGES["base"], data, tmp_path, max_epochs=STAGES["base"].max_epochs)
    assert len(done.history) == 5 and done.best_epoch == 5


@pytest.mark.parametrize("stage", ["batch_norm", "augmentation"])
def test_killed_after_any_epoch_the_next_run_ends_the_same(stage, data, tmp_path, monkeypatch):
    whole = trained(STAGES[stage], data, tmp_path / "whole")
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    save, finished = record.save_checkpoint, 0
    for _ in range(4):
        monkeypatch.setattr(record, "save_checkpoint", killed_after(1, save))
        with pytest.raises(Killed):
            trained(STAGES[stage], data, tmp_path / "killed")
        finished += 1
    monkeypatch.setattr(record, "save_checkpoint", save)
    again = trained(STAGES[stage], data, tmp_path / "killed")
    assert finished == 4 and again.finished
    assert without_seconds(again.history) == without_seconds(whole.history)
    assert all(torch.equal(again.state[key], value) for key, value in whole.state.items())


def test_a_stage_is_not_continued_in_another_precision(data, tmp_path, monkeypatch):
    """Begun where `auto` is bf16, as on an A100, and continued where it is not, as on a V100."""
    monkeypatch.setattr(record, "save_checkpoint", killed_after(1, record.save_checkpoint))
    with pytest.raises(Killed):
        trained(STAGES["base"], data, tmp_path, amp="bf16")
    monkeypatch.undo()
    with pytest.raises(
        RunError,
        match="trained in bf16 so far, but --amp off trains in fp32 on cpu; continue with --amp bf16, or start over",
    ):
        trained(STAGES["base"], data, tmp_path, amp="off")
    done = trained(STAGES["base"], data, tmp_path, amp="bf16")
    assert done.finished and len(done.history) == 3 and done.facts.settings.precision == "bf16"


@pytest.mark.parametrize("amp", ["fp16", "bf16", "off"])
def test_every_precision_learns(data, tmp_path, amp):
    done = trained(STAGES["base"], data, tmp_path, amp=amp)
    assert done.facts.settings.precision == {"off": "fp32"}.get(amp, amp)
    assert done.history[-1]["train_loss"] < done.history[0]["train_loss"]
    assert all(value.dtype != torch.float16 for value in done.state.values())


def test_fp16_scales_the_loss_and_keeps_the_scale(data, tmp_path, monkeypatch):
    """A step whose gradients overflow is left out, and the scale halved; a checkpoint holds the scale."""
    network = fit.starting_network(STAGES["batch_norm"], data, TrainConfig(1, 64, 1, "none"))[0]
    learner = Learner.of(network, STAGES["batch_norm"].recipe_for("axial"), precision="fp16")
    assert (
        learner.scaler.is_enabled() and not Learner.of(network, learner.recipe).scaler.is_enabled()
    )
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = {key: value.clone() for key, value in network.named_parameters()}
    images = torch.from_numpy(data.images["train"][:64])
    labels = torch.from_numpy(data.labels["train"][:64])
    config = TrainConfig(1, 64, 1, "none", amp="fp16")
    fit.train_epoch(learner, images, labels, 3, STAGES["batch_norm"], config, 1)
    assert all(torch.equal(value, before[key]) for key, value in network.named_parameters())
    assert learner.scaler.get_scale() == 2.0**99
    other = Learner.of(network, learner.recipe, precision="fp16")
    other.restore(network.state_dict(), learner.resume_state(None, 0.0))
    assert other.scaler.get_scale() == 2.0**99


class Killed(BaseException):
    pass


def killed_after(count, save):
    """`record.save_checkpoint` of a run that is killed once it has saved `count` times."""
    left = iter(range(count - 1, -1, -1))

    def save_then_die(path, state):
        save(path, state)
        if next(left) == 0:
            raise Killed

    return save_then_die


def saved_epochs(monkeypatch):
    """The epochs of every checkpoint that is written from now on; a finished one counts as "end"."""
    save, epochs = record.save_checkpoint, []

    def watched(path, state):
        epochs.append("end" if state["finished"] else len(state["history"]))
        save(path, state)

    monkeypatch.setattr(record, "save_checkpoint", watched)
    return epochs


def test_checkpoints_are_written_at_a_new_best_and_at_the_end(monkeypatch, tmp_path):
    data = scripted(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.8, 0.1])
    epochs = saved_epochs(monkeypatch)
    done = trained(STAGES["early_stopping"], data, tmp_path, max_epochs=6)
    assert epochs == [1, 2, 5, "end"] and len(done.history) == 6


def test_checkpoints_are_written_when_a_minute_has_passed(monkeypatch, tmp_path):
    assert (
        checkpoint.CHECKPOINT_SECONDS == 60
    )  # docs/guides/training.md, "What is written, and resuming"
    data = scripted(monkeypatch, [0.7, 0.5, 0.5, 0.5, 0.5, 0.5])
    epochs, clock = saved_epochs(monkeypatch), iter(range(0, 10_000, 25))
    monkeypatch.setattr(fit.time, "monotonic", lambda: next(clock))
    trained(STAGES["early_stopping"], data, tmp_path, max_epochs=6)
    assert epochs[0] == 1 and epochs[-1] == "end" and 2 <= len(epochs) - 1 <= 3


@pytest.mark.parametrize("broken_off_by", [KeyboardInterrupt, StageFailed, torch.OutOfMemoryError])
def test_an_epoch_that_was_not_written_is_when_training_breaks_off(
    monkeypatch, tmp_path, broken_off_by
):
    data = scripted(monkeypatch, [0.7, 0.6, 0.5])
    scripted_epoch, calls = fit.train_epoch, []

    def train_epoch(learner, *rest):
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                learner.network.head.bias += 100  # the broken epoch leaves no trace
            raise broken_off_by("broken off")
        return scripted_epoch(learner, *rest)

    monkeypatch.setattr(fit, "train_epoch", train_epoch)
    epochs = saved_epochs(monkeypatch)
    with pytest.raises((broken_off_by, StageFailed)):
        trained(STAGES["early_stopping"], data, tmp_path, max_epochs=6)
    assert epochs == [1, 3]
    kept = record.load_checkpoint(tmp_path / "checkpoint.pt")
    start = fit.starting_network(STAGES["early_stopping"], data, TrainConfig(1, 64, 1, "none"))[0]
    torch.testing.assert_close(kept["state"]["head.bias"], start.head.bias.detach() + 3)
    assert [row["val_accuracy"] for row in kept["history"]] == [0.7, 0.6, 0.5] and kept[
        "best_epoch"
    ] == 1


def test_the_seconds_of_a_stage_hold_its_checkpoints(monkeypatch, tmp_path):
    data = scripted(monkeypatch, [0.5, 0.6, 0.7])
    save, now = record.save_checkpoint, [100.0]
    monkeypatch.setattr(fit.time, "perf_counter", lambda: now[0])

    def slow(path, state):
        now[0] += 10
        save(path, state)

    monkeypatch.setattr(record, "save_checkpoint", slow)
    done = trained(STAGES["early_stopping"], data, tmp_path, max_epochs=3)
    assert [row["seconds"] for row in done.history] == [0, 10, 20]


def test_validation_keeps_cudnn_on_and_its_float32_full(data, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    seen = []

    class Network(torch.nn.Linear):
        def forward(self, x):
            flags = torch.backends.cudnn
            seen.append((flags.enabled, flags.benchmark, flags.deterministic, flags.allow_tf32))
            return super().forward(x.flatten(1))

    fit.evaluate(Network(28 * 28, 3), data.images["val"])
    assert seen == [(True, False, True, False)]


@pytest.mark.parametrize(
    ("size", "batch"), [(28, 1024), (64, 196), (128, 49), (224, 16), (2000, 1)]
)
def test_the_batch_of_evaluation_holds_the_same_number_of_pixels(size, batch):
    assert fit.evaluation_batch(size) == batch


class Limited(torch.nn.Linear):
    """A network on a device that takes at most `limit` slices at a time."""

    def __init__(self, limit):
        super().__init__(28 * 28, 3)
        self.limit, self.batches = limit, []

    def forward(self, x):
        self.batches.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x.flatten(1))


def test_evaluation_that_runs_out_of_memory_is_tried_again_with_half_the_batch(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28), np.uint8)
    monkeypatch.setattr(fit, "EVALUATION_PIXELS", 64 * 28 * 28)
    roomy, tight = Limited(64), Limited(32)
    tight.load_state_dict(roomy.state_dict())
    np.testing.assert_allclose(fit.evaluate(tight, images), fit.evaluate(roomy, images), atol=1e-5)
    assert tight.batches == [64, 32, 32, 32, 4] and roomy.batches == [64, 36]
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    with pytest.raises(
        StageFailed, match="cpu: out of memory while evaluating 32 slices at a time"
    ):
        fit.evaluate(Limited(31), images)
    assert len(freed) == 2
    monkeypatch.setattr(fit, "EVALUATION_PIXELS", 1)
    with pytest.raises(StageFailed, match="while evaluating 1 slices at a time"):
        fit.evaluate(Limited(0), images)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_epochs": 2}, "trained with --max-epochs 1, but this command has --max-epochs 2"),
        (
            {"max_epochs": 1, "batch_size": 32},
            "trained with --batch-size 64, but this command has --batch-size 32",
        ),
        (
            {"max_epochs": 1, "seed": 2},
            "trained with --seed 1, but this command has --seed 2",
        ),
        ({"smoke": True}, "of a run without --smoke"),
    ],
)
def test_a_finished_stage_of_other_settings_is_not_taken_for_this_one(
    data, tmp_path, changes, named
):
    first = trained(STAGES["base"], data, tmp_path, max_epochs=1)
    assert first.finished
    with pytest.raises(RunError, match=f"checkpoint.pt: {named}; use --fresh to start over"):
        trained(STAGES["base"], data, tmp_path, **changes)
    other = dataclasses.replace(data, md5="1" * 32)
    with pytest.raises(RunError, match="trained on another file of the data set"):
        trained(STAGES["base"], other, tmp_path, max_epochs=1)
    assert trained(STAGES["base"], data, tmp_path, max_epochs=1).history == first.history


@pytest.mark.parametrize(("stage", "label"), [("base", ""), ("batch_norm", "batch_norm #2")])
def test_a_finished_stage_is_reported_when_it_is_taken_from_the_run(data, tmp_path, stage, label):
    first = trained(STAGES[stage], data, tmp_path, max_epochs=2)
    accuracy = first.history[first.best_epoch - 1]["val_accuracy"]
    written = datetime(2026, 11, 25, 14, 3).timestamp()
    os.utime(tmp_path / "checkpoint.pt", (written, written))
    lines = []
    config = TrainConfig(seed=1, batch_size=64, max_epochs=2, weights="none")
    fit.fit(STAGES[stage], data, config, CPU, tmp_path, report=lines.append, label=label)
    assert lines == [
        f"{label or stage:<14} finished in this run on 2026-11-25 14:03, val accuracy {accuracy:.4f}; not repeated"
    ]


def test_torchvisions_weights_are_fetched_once_and_checked(tmp_path, data, monkeypatch):
    from train.networks import weights

    stage = Stage("resnet50", "resnet50", pretrained=True)
    config = TrainConfig(1, 64, 1, "imagenet")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def fetch(url, path, digest, *, algorithm):
        asked.append((url.rsplit("/", 1)[1], digest, algorithm))
        path.parent.mkdir()
        path.write_bytes(b"not the weights")

    monkeypatch.setattr(weights, "download", fetch)
    for _ in range(2):
        with pytest.raises(
            RunError,
            match=r"resnet50-0676ba61.pth: not torchvision's file, its SHA-256 begins with",
        ):
            fit.starting_network(stage, data, config)
    assert asked == [("resnet50-0676ba61.pth", "0676ba61", "sha256")]

    def refuse(*_, **__):
        raise RunError("no network")

    (tmp_path / "checkpoints" / "resnet50-0676ba61.pth").unlink()
    monkeypatch.setattr(weights, "download", refuse)
    with pytest.raises(
        RunError, match=r"ImageNet weights of resnet50: no network; .*--weights none"
    ):
        fit.starting_network(stage, data, config)


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    record.atomic_write(path, b"old")

    def half(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        record.atomic_save(path, half)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(data, tmp_path, monkeypatch):
    real, calls = fit.train_epoch, []

    def broken(network, *rest):
        calls.append(1)
        return real(network, *rest) if len(calls) < 2 else (float("nan"), 0.5)

    monkeypatch.setattr(fit, "train_epoch", broken)
    with pytest.raises(
        StageFailed,
        match=r"base: the loss is not finite in epoch 2; .*checkpoint.pt holds epoch 1",
    ):
        trained(STAGES["base"], data, tmp_path)
    kept = record.load_checkpoint(tmp_path / "checkpoint.pt")
    assert len(kept["history"]) == 1 and all(
        torch.isfinite(v).all() for v in kept["state"].values()
    )


def test_out_of_memory_says_which_batch_size_to_try(data, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fit, "train_epoch", full)
    for size, smaller in ((64, 32), (1, 1)):
        with pytest.raises(
            StageFailed,
            match=f"base: out of memory on cpu at batch size {size}; try --batch-size {smaller} --fresh",
        ) as failed:
            trained(STAGES["base"], data, tmp_path, batch_size=size)
        assert failed.value.exit_code == 1


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match=r"checkpoint.pt: not a readable checkpoint .*--fresh"):
        trained(STAGES["base"], data, tmp_path)


def test_the_last_batch_of_one_joins_the_one_before():
    sizes = [len(b) for b in split_order(torch.arange(257), 128, at_least=2)]
    assert sizes == [128, 129]
    assert [len(b) for b in split_order(torch.arange(258), 128, at_least=2)] == [128, 128, 2]
    assert [len(b) for b in split_order(torch.arange(1), 128, at_least=2)] == [1]


def test_pretrained_stages_take_weights_from_a_directory_or_say_how(tmp_path, data):
    stage = Stage("resnet50", "resnet50", pretrained=True)
    config = TrainConfig(1, 64, 1, "imagenet", weights_dir=tmp_path)
    with pytest.raises(
        RunError,
        match=r": no resnet50.pth or resnet50-0676ba61.pth; fetch https://.*--weights none",
    ):
        fit.starting_network(stage, data, config)
    import torchvision

    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    network, source = fit.starting_network(stage, data, config)
    assert source.startswith("resnet50.pth (sha256 ") and network.resnet.fc.out_features == 3
    assert (
        fit.starting_network(stage, data, dataclasses.replace(config, weights="none"))[1] == "none"
    )
    (tmp_path / "resnet50.pth").write_bytes(b"broken")
    with pytest.raises(RunError, match=r"resnet50.pth: not a readable PyTorch weights file"):
        fit.starting_network(stage, data, config)


def test_results_of_another_version_s_stages_are_refused(tmp_path):
    data = made_data()
    record.write_json(
        tmp_path / "results.json",
        {"settings": {"smoke": False}, "stages": [{"name": "edge_teacher1"}]},
    )
    with pytest.raises(RunError, match="stage 'edge_teacher1' is of another version"):
        open_results(tmp_path, data, CPU, {"smoke": False})


def test_settings_are_compared_with_those_of_the_run_before(tmp_path):
    data = made_data()
    settings = {"smoke": False, "deterministic": False, "amp": "auto"}
    record.write_json(tmp_path / "results.json", {"settings": settings, "stages": []})
    # each stage compares its own precision
    assert open_results(tmp_path, data, CPU, settings | {"amp": "bf16"}).settings["amp"] == "bf16"
    with pytest.raises(
        RunError,
        match="a run with no --deterministic, but this command has --deterministic; repeat",
    ):
        open_results(tmp_path, data, CPU, settings | {"deterministic": True})
    # a run of before the setting was recorded
    record.write_json(tmp_path / "results.json", {"settings": {"smoke": False}, "stages": []})
    open_results(tmp_path, data, CPU, settings)
    with pytest.raises(
        RunError,
        match="a run with no --deterministic, but this command has --deterministic; repeat",
    ):
        open_results(tmp_path, data, CPU, settings | {"deterministic": True})


def test_the_history_on_the_disk_has_every_epoch_that_is_reported(monkeypatch, tmp_path):
    data = scripted(monkeypatch, [0.1, 0.2, 0.3])
    lengths = []

    def report(line):
        text = (tmp_path / "history.csv").read_text()
        lengths.append(len(text.splitlines()) - 1)

    config = TrainConfig(1, 64, 3, "none")
    fit.fit(STAGES["base"], data, config, CPU, tmp_path, report=report)
    assert lengths[:3] == [1, 2, 3]
