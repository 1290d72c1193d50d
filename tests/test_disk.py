"""The disk space of a run: estimated from the networks and from what exists, and checked before training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from train import disk
from train.data import SPLITS, Data
from train.errors import RunError
from train.jobs import plan_jobs
from train.networks import count_parameters, make_network
from train.options import TrainOptions
from train.stages import LISTED, STAGES, chosen_stages

CLASSES = [f"organ {i}" for i in range(11)]
# the numbers of slices are those of OrganAMNIST
SLICES = {"train": 34561, "val": 6491, "test": 17778}


@pytest.fixture(scope="module")
def data():
    labels = {split: np.zeros(SLICES[split], np.int64) for split in SPLITS}
    return Data("organamnist", "axial", 28, "0" * 32, CLASSES, {}, labels, {})


def jobs_of(directory, *names, seeds=1):
    return plan_jobs(chosen_stages(names), TrainOptions(seeds=seeds), {}, directory)


def parameters(name):
    return count_parameters(make_network(STAGES[name].network, classes=11, size=28, seed=1))


def fill(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(count)


def test_the_whole_ladder_needs_two_gigabytes(tmp_path, data):
    """A measured smoke run of every stage left 1.9 GB, and needs more while ResNet-152 is trained."""
    needed = disk.needed_bytes(tmp_path, jobs_of(tmp_path, *LISTED), data, ("int8", "fp32", "fp16"))
    assert 1.9e9 < needed < 2.4e9


def test_each_seed_has_its_own_checkpoints(tmp_path, data):
    one, two = (
        disk.needed_bytes(tmp_path, jobs_of(tmp_path, "big", seeds=n), data, ("fp32",))
        for n in (1, 2)
    )
    assert two - one >= 4 * parameters("big")


def test_networks_that_are_trained_side_by_side_need_more(tmp_path, data):
    jobs = jobs_of(tmp_path, "ensemble")
    one, four = (disk.needed_bytes(tmp_path, jobs, data, ("fp32",), n) for n in (1, 4))
    assert four > one + 4 * parameters("resnet101")


def test_what_exists_is_not_needed_again(tmp_path, data):
    jobs, size = jobs_of(tmp_path, "big"), 4 * parameters("big")
    stage = tmp_path / "big"
    before = disk.needed_bytes(tmp_path, jobs, data, ("fp32",))
    fill(stage / "checkpoint.pt", size + 1000)
    trained = disk.needed_bytes(tmp_path, jobs, data, ("fp32",))
    fill(stage / "member.onnx", size + 1000)
    exported = disk.needed_bytes(tmp_path, jobs, data, ("fp32",))
    fill(stage / "predictions_test.csv", 1)
    (tmp_path / "bundle").mkdir()
    assert before > trained > exported > disk.needed_bytes(tmp_path, jobs, data, ("fp32",)) == 0


def test_an_interrupted_stage_is_not_taken_for_a_finished_one(tmp_path, data):
    jobs, size = jobs_of(tmp_path, "big"), 4 * parameters("big")
    fill(tmp_path / "big" / "checkpoint.pt", 4 * size)
    assert disk.needed_bytes(tmp_path, jobs, data, ("fp32",)) > 3 * size


def test_every_precision_of_the_bundle_counts(tmp_path, data):
    jobs = jobs_of(tmp_path, "big")
    fill(tmp_path / "big" / "checkpoint.pt", 4 * parameters("big"))
    fp32, every = (
        disk.needed_bytes(tmp_path, jobs, data, names) for names in (("fp32",), ("int8", "fp16"))
    )
    assert every - fp32 == 3 * parameters("big")


def test_a_run_that_fits_says_what_it_needs_and_one_that_does_not_is_refused(
    tmp_path, data, monkeypatch
):
    jobs = jobs_of(tmp_path, "big")
    needed = disk.needed_bytes(tmp_path, jobs, data, ("fp32",))
    free = SimpleNamespace(free=needed)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: free)
    megabytes = f"{needed / 1e6:.0f} MB"
    assert disk.check_space(tmp_path, jobs, data, ("fp32",)) == (
        f"disk    about {megabytes} needed below {tmp_path}, {megabytes} free"
    )
    free.free = 1_000_000
    with pytest.raises(RunError) as caught:
        disk.check_space(tmp_path, jobs, data, ("fp32",))
    assert str(caught.value) == (
        f"{tmp_path}: about {megabytes} needed, 1 MB free; free disk space, or choose another --out"
    )


def test_large_sizes_are_in_gigabytes():
    assert (disk.size_text(1_949_000_000), disk.size_text(99_000_000)) == ("1.9 GB", "99 MB")
