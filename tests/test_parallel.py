"""Several processes under torchrun: how they communicate, what they refuse, and how a failure ends."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from train import parallel
from train.parallel import ALONE, Group
from train.record import RunError

ROOT = Path(__file__).resolve().parent.parent
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "share", "backend", "bound"),
    [
        (GPU, "batches", "nccl", GPU),
        # barriers only, and two processes on one GPU, which NCCL refuses
        (GPU, "stages", "gloo", None),
        (CPU, "batches", "gloo", None),
        (CPU, "stages", "gloo", None),
    ],
)
def test_stages_are_shared_through_gloo(monkeypatch, device, share, backend, bound):
    begun, current = [], []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *a, **k: begun.append((a, k)))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    parallel.join(Group(0, 2), device, share)
    assert begun[0][0] == (backend,) and begun[0][1]["device_id"] == bound
    assert current == ([device] if device == GPU else [])
    parallel.join(ALONE, device, share)
    assert len(begun) == 1


def test_batches_are_not_shared_by_two_processes_on_one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(
        RunError, match=r"found 3 processes and 2 GPUs .*--nproc-per-node 2, or --parallel stages"
    ):
        parallel.check(Group(0, 3), GPU, "batches")
    parallel.check(Group(0, 3), GPU, "stages")
    parallel.check(Group(0, 3), CPU, "batches")
    parallel.check(ALONE, GPU, "batches")
    # six processes on two machines of three GPUs each
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    parallel.check(Group(0, 6), GPU, "batches")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "1"}, [7]),
        ({"TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "4"}, []),
        ({"OMP_NUM_THREADS": "1"}, []),
    ],
)
def test_the_one_thread_that_torchrun_sets_is_undone(monkeypatch, environment, expected):
    for name in ("TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(parallel, "usable_processors", lambda: 7)
    parallel.use_all_processors()
    assert threads == expected


# A rank that fails while the others train. Its group is never shut down: with NCCL that waits for every rank.
FAILING = """
import os, sys, time
import torch
from train import fit, parallel

rank = os.environ["RANK"]


def shut_down():
    if rank == "1":
        time.sleep(600)


def train(stage, data, recipe, device, directory, *, say=print, group=None):
    if rank == "1":
        raise fit.StageFailed(f"{stage.name}: made to fail")
    if group is not None and group.size > 1:
        group.wait()
    time.sleep(600)


torch.distributed.destroy_process_group = shut_down
fit.fit = train
from train import all

all.run_and_exit()
"""


@pytest.mark.parametrize("share", ["stages", "batches"])
def test_a_rank_that_fails_says_why_and_ends_the_run(tmp_path, share):
    from tests.test_data import medmnist_file

    content = medmnist_file()
    (tmp_path / "organamnist.npz").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    patch = f"from medmnist import INFO\nINFO['organamnist'] = INFO['organamnist'] | {{'MD5': {md5!r}}}\n"
    script = tmp_path / "failing.py"
    script.write_text(patch + FAILING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    arguments = [
        "--dataset",
        "organamnist",
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    ]
    begun = time.monotonic()
    done = subprocess.run(
        [*launch, *arguments, "--stages", "base,big", "--parallel", share],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0 and time.monotonic() - begun < 100
    assert "made to fail" in done.stderr and "train: error: " in done.stderr
    # the healthy rank is ended by torchrun, or loses its peer while it waits for it, whichever comes first
    ended = ("train: stopped", "another process of this run has ended")
    assert any(words in done.stderr for words in ended)
    assert "Traceback" not in done.stderr.partition("torch/distributed/elastic")[0]
