"""Several processes under torchrun: how they communicate, what they refuse, and how a failure ends."""

import datetime
import hashlib
import os
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from train import devices, parallel
from train.errors import RunError
from train.parallel import ALONE, Group

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
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *a, **k: iter([(store, 0, 2)]))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *a, **k: begun.append((a, k))
    )
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


@pytest.fixture
def others(monkeypatch):
    """torch.distributed with one other process, whose values are given: `others.value`."""

    class Others:
        value, calls = None, []

        def all_reduce(self, tensor):
            tensor += self.value

        def broadcast_object_list(self, box, src):
            self.calls.append(("broadcast", src))
            box[0] = self.value

        def barrier(self, async_op):
            assert async_op
            self.calls.append("barrier")
            polls = iter([False, False, True])
            return types.SimpleNamespace(
                is_completed=lambda: next(polls), wait=lambda: self.calls.append("passed")
            )

        def destroy_process_group(self):
            self.calls.append("left")

    found = Others()
    found.calls = []
    for name in ("all_reduce", "broadcast_object_list", "barrier", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, getattr(found, name))
    return found


def test_rows_are_dealt_out_in_turn():
    batch = torch.arange(7)
    assert [Group(rank, 3).share(batch).tolist() for rank in range(3)] == [
        [0, 3, 6],
        [1, 4],
        [2, 5],
    ]
    assert ALONE.share(batch) is batch


def test_a_group_sums_agrees_and_waits(others, monkeypatch):
    group, others.value = Group(1, 2), 5.0
    naps = []
    monkeypatch.setattr(parallel.time, "sleep", naps.append)
    assert float(group.sum(torch.tensor(2.0))) == 7
    assert group.agree(2.0) == 5.0 and others.calls == [("broadcast", 0)]
    group.wait()
    assert others.calls[1:] == ["barrier", "passed"]
    # signals are handled between naps
    assert len(naps) == 2 and all(0 < seconds <= 0.1 for seconds in naps)
    parallel.leave(group)
    assert others.calls[3:] == ["left"]


def test_a_process_alone_communicates_with_nobody(others):
    value, network = torch.tensor(2.0), torch.nn.Linear(1, 1)
    assert ALONE.sum(value) is value and ALONE.agree(2.0) == 2.0 and ALONE.wrap(network) is network
    ALONE.wait()
    parallel.leave(ALONE)
    assert others.calls == [] and float(value) == 2


def test_only_the_first_process_writes():
    assert (ALONE.first, Group(0, 2).first, Group(1, 2).first) == (True, True, False)
    assert (ALONE.rank, ALONE.size) == (0, 1)


@pytest.mark.parametrize("call", ["sum", "agree", "wait"])
def test_a_process_that_has_ended_is_reported_by_the_others(monkeypatch, call):
    def fail(*_, **__):
        raise RuntimeError("Connection closed by peer\nmore")

    for name in ("all_reduce", "broadcast_object_list", "barrier"):
        monkeypatch.setattr(torch.distributed, name, fail)
    arguments = () if call == "wait" else (torch.tensor(1.0),)
    with pytest.raises(RunError) as failed:
        getattr(Group(0, 2), call)(*arguments)
    assert failed.value.exit_code == 1
    assert str(failed.value) == (
        "torchrun: another process of this run ended (Connection closed by peer); see its own message"
    )


def test_gradients_are_averaged_by_distributed_data_parallel(monkeypatch):
    made = []
    monkeypatch.setattr(
        torch.nn.parallel,
        "DistributedDataParallel",
        lambda *a, **k: made.append((a, k)) or "wrapped",
    )
    network = torch.nn.Linear(1, 1)
    assert Group(0, 2).wrap(network) == "wrapped"
    # running statistics are those of the first process
    assert made == [((network,), {"broadcast_buffers": True})]


def test_torchrun_says_which_process_this_is(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert parallel.group_from_environment() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parallel.group_from_environment() is ALONE  # without a rank
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for rank, size in ((3, 4), (1, 2)):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        monkeypatch.setenv("RANK", str(rank))
        assert parallel.group_from_environment() == Group(rank, size)


VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def set_variables(monkeypatch, text):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for entry in text.split():
        monkeypatch.setenv(*entry.split("=", 1))


@pytest.mark.parametrize(
    "environment",
    [
        "RANK=0",
        "RANK=3",
        "WORLD_SIZE=",
        "WORLD_SIZE=1 RANK=0",
        "WORLD_SIZE=1 RANK=0 MASTER_ADDR=no.such.host MASTER_PORT=29500 LOCAL_RANK=0",
        "LOCAL_RANK=0 MASTER_PORT=abc",
    ],
)
def test_variables_of_a_single_process_change_nothing(monkeypatch, environment):
    set_variables(monkeypatch, environment)
    assert parallel.group_from_environment() is ALONE


AT_LOCALHOST = "MASTER_ADDR=localhost MASTER_PORT=29500"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("WORLD_SIZE=2", "RANK: not set, but WORLD_SIZE is 2; start several processes with torchrun"),
        ("WORLD_SIZE=2 RANK=", "RANK: not set, but WORLD_SIZE is 2"),
        ("WORLD_SIZE=2 RANK=0", "MASTER_ADDR: not set, but WORLD_SIZE is 2"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost", "MASTER_PORT: not set"),
        (f"WORLD_SIZE=abc RANK=0 {AT_LOCALHOST}", "WORLD_SIZE='abc': expected 1 or more"),
        ("WORLD_SIZE=0", "WORLD_SIZE='0': expected 1 or more"),
        ("WORLD_SIZE=-1", "WORLD_SIZE='-1': expected 1 or more"),
        ("WORLD_SIZE=2.0", "WORLD_SIZE='2.0': expected 1 or more"),
        ("WORLD_SIZE=\u00b2", "WORLD_SIZE='\u00b2': expected 1 or more"),
        ("WORLD_SIZE=1 RANK=1", "RANK='1': expected 0 to 0"),
        (f"WORLD_SIZE=2 RANK=2 {AT_LOCALHOST}", "RANK='2': expected 0 to 1"),
        (f"WORLD_SIZE=2 RANK=x {AT_LOCALHOST}", "RANK='x': expected 0 to 1"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost MASTER_PORT=x", "MASTER_PORT='x': expected 1 to 65535"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost MASTER_PORT=70000", "MASTER_PORT='70000': expected 1 to 65535"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=no.such.host.invalid MASTER_PORT=29500", "MASTER_ADDR='no.such.host.invalid': not found"),
        (f"WORLD_SIZE=2 RANK=0 MASTER_ADDR={'x' * 100} MASTER_PORT=29500", "not found"),
    ],
)  # fmt: skip
def test_variables_that_name_no_process_are_one_line(monkeypatch, environment, words):
    set_variables(monkeypatch, environment)
    with pytest.raises(RunError) as caught:
        parallel.group_from_environment()
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "or unset WORLD_SIZE" in str(caught.value) and caught.value.exit_code == 2


def test_a_process_that_finds_no_other_ends_in_one_line(monkeypatch, capsys):
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    set_variables(monkeypatch, f"WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost MASTER_PORT={port}")
    monkeypatch.setattr(parallel, "JOIN_MINUTES", 0.02)
    with pytest.raises(RunError, match=f"localhost:{port}: the processes cannot connect") as caught:
        parallel.join(Group(0, 2), CPU, "stages")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert "waits for every process of WORLD_SIZE=2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "index"),
    [
        ("", 0),
        ("LOCAL_RANK=1", 1),
        ("RANK=3", 1),
        ("LOCAL_RANK=0 RANK=3", 0),
        ("LOCAL_RANK= RANK=", 0),
    ],
)
def test_a_process_without_a_local_rank_takes_the_gpu_of_its_rank(monkeypatch, environment, index):
    set_variables(monkeypatch, environment)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "check_gpu", lambda device: None)
    assert devices.choose_device("auto") == torch.device("cuda", index)


def test_a_local_rank_that_is_no_number_is_one_line(monkeypatch):
    set_variables(monkeypatch, "LOCAL_RANK=abc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match="LOCAL_RANK='abc': expected 0 or more"):
        devices.choose_device("auto")


def test_the_group_waits_for_its_slowest_process_for_a_day(monkeypatch):
    begun, joined = [], []
    store = torch.distributed.HashStore()
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *a, **k: begun.append(k["timeout"])
    )

    def rendezvous(*arguments, timeout):
        joined.append(timeout)
        yield store, 0, 2

    monkeypatch.setattr(torch.distributed, "rendezvous", rendezvous)
    set_variables(monkeypatch, AT_LOCALHOST)
    parallel.join(Group(0, 2), CPU, "stages")
    assert begun == [datetime.timedelta(hours=24)] == [store.timeout]
    assert joined == [datetime.timedelta(minutes=30)]


@pytest.mark.parametrize(
    ("available", "initialized", "expected"),
    [(True, True, True), (True, False, False), (False, None, False)],
)
def test_a_process_knows_whether_it_is_in_a_group(monkeypatch, available, initialized, expected):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: available)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: initialized)
    assert parallel.is_joined() is expected


def test_processes_are_counted_by_the_group_without_torchruns_count(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RunError, match="found 2 processes and 1 GPUs"):
        parallel.check(Group(0, 2), GPU, "batches")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    parallel.check(ALONE, GPU, "batches")


# A rank that fails while the others train. Its group is never shut down: with NCCL that waits for every rank.
FAILING = """
import os, sys, time
import torch
from train import fit, parallel

rank = os.environ["RANK"]


def shut_down():
    if rank == "1":
        time.sleep(600)


def train(stage, data, recipe, device, directory, *, report=print, group=None, label=""):
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


@pytest.mark.parametrize("share", ["stages", pytest.param("batches", marks=pytest.mark.slow)])
def test_a_rank_that_fails_says_why_and_ends_the_run(tmp_path, share):
    from tests.test_data import medmnist_file

    content = medmnist_file()
    (tmp_path / "organamnist.npz").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    patch = f"from medmnist import INFO\nINFO['organamnist'] = INFO['organamnist'] | {{'MD5': {md5!r}}}\n"
    script = tmp_path / "failing.py"
    script.write_text(patch + FAILING)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        script,
    ]
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
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0 and time.monotonic() - begun < 100
    assert "made to fail" in done.stderr and "train: error: " in done.stderr
    # the healthy rank is ended by torchrun, or loses its peer while it waits for it, whichever comes first
    ended = ("train: stopped", "another process of this run ended")
    assert any(words in done.stderr for words in ended)
    assert "Traceback" not in done.stderr.partition("torch/distributed/elastic")[0]
