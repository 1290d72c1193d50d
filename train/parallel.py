"""Training with several processes of torchrun: each trains other stages, or all share the batches of each stage."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from organ_infer.engine.cpu_count import usable_processors
from organ_infer.engine.threads import affordable_threads
from train.errors import RunError


@dataclass(frozen=True)
class Group:
    """The processes that train one network together. In a group of one process, the default, every call is a no-op."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the group's files."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its backward pass averages gradients over the group (DistributedDataParallel).

        Batch normalization takes its statistics from each process's share of a batch.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network, broadcast_buffers=True)

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's rows of a batch."""
        return batch[self.rank :: self.size] if self.size > 1 else batch

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the group."""
        if self.size > 1:
            with _peer_errors():
                torch.distributed.all_reduce(value)
        return value

    def agree(self, value: float) -> float:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        values = [value]
        with _peer_errors():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until every process of the group has called this. Signals are handled during the wait."""
        if self.size > 1:
            with _peer_errors():
                barrier = torch.distributed.barrier(async_op=True)
                while not barrier.is_completed():
                    time.sleep(0.01)
                barrier.wait()


@contextlib.contextmanager
def _peer_errors() -> Iterator[None]:
    """Turn an error of communication into RunError: another process of the group has ended."""
    try:
        yield
    except RuntimeError as e:
        reason = str(e).splitlines()[0]
        raise RunError(
            f"torchrun: another process of this run ended ({reason}); see its own message",
            exit_code=1,
        ) from e


ALONE = Group()
# a process waits this long for the others, of which the first one downloads the weights before
JOIN_MINUTES = 30
# a process that has finished its stages waits for the slowest one
GROUP_TIMEOUT = timedelta(hours=24)
_START = "start several processes with torchrun, or unset WORLD_SIZE to train in one"


def environment_number(name: str, least: int, most: int | None = None) -> int | None:
    """Read a number from an environment variable.

    Args:
        name: of the variable.
        least: the smallest valid number.
        most: the largest valid number; None if there is none.

    Returns:
        The number; None if the variable is not set, or empty.

    Raises:
        RunError: the variable has another value.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    valid = re.fullmatch(r"[0-9]{1,9}", text) is not None
    if not valid or int(text) < least or (most is not None and int(text) > most):
        expected = f"{least} or more" if most is None else f"{least} to {most}"
        raise RunError(f"{name}={text!r}: expected {expected}; {_START}")
    return int(text)


def group_from_environment() -> Group:
    """Return the group of processes that torchrun started; ALONE without torchrun.

    A job scheduler may set the same variables for a single process.

    Raises:
        RunError: a variable is missing or has an invalid value.
    """
    size = environment_number("WORLD_SIZE", 1)
    if size is None:
        return ALONE
    rank = environment_number("RANK", 0, size - 1)
    if size == 1:
        return ALONE
    port = environment_number("MASTER_PORT", 1, 65535)
    address = os.environ.get("MASTER_ADDR", "").strip()
    required = {"RANK": rank is not None, "MASTER_ADDR": address, "MASTER_PORT": port}
    if missing := [name for name, value in required.items() if not value]:
        raise RunError(f"{missing[0]}: not set, but WORLD_SIZE is {size}; {_START}")
    try:
        socket.getaddrinfo(address, port)
    except (OSError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or "not a host name"
        raise RunError(f"MASTER_ADDR={address!r}: not found ({reason}); {_START}") from e
    return Group(rank or 0, size)


def check(group: Group, device: torch.device, share: str) -> None:
    """Check that the processes of this machine can share its GPUs.

    NCCL allows one process per GPU. With `--parallel stages` several processes can train on one GPU.

    Args:
        group: the processes of the run.
        device: of this process.
        share: the value of --parallel.

    Raises:
        RunError: there are fewer GPUs than processes that share batches.
    """
    processes = environment_number("LOCAL_WORLD_SIZE", 1) or group.size
    if group.size > 1 and share == "batches" and device.type == "cuda":
        gpus = torch.cuda.device_count()
        if processes > gpus:
            raise RunError(
                f"--parallel batches: needs a GPU per process, found {processes} processes and {gpus} GPUs on this machine;"
                f" use torchrun --nproc-per-node {gpus}, or --parallel stages"
            )


def join(group: Group, device: torch.device, share: str) -> None:
    """Set up communication between the group's processes.

    The backend is NCCL if the processes share batches on CUDA, otherwise gloo. Processes that train other stages need
    barriers only, and with gloo several of them can use one GPU.

    Args:
        group: the processes of the run.
        device: of this process.
        share: the value of --parallel.

    Raises:
        RunError: the processes do not find each other within JOIN_MINUTES.
    """
    if group.size == 1:
        return
    nccl = device.type == "cuda" and share == "batches"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        print(
            f"train: note: {address}: waits for every process of WORLD_SIZE={group.size}, at most"
            f" {JOIN_MINUTES} minutes",
            file=sys.stderr,
            flush=True,
        )
    try:
        store, _, _ = next(
            torch.distributed.rendezvous(  # type: ignore[attr-defined]
                "env://", group.rank, group.size, timeout=timedelta(minutes=JOIN_MINUTES)
            )
        )
        store.set_timeout(GROUP_TIMEOUT)
        torch.distributed.init_process_group(
            "nccl" if nccl else "gloo",
            store=torch.distributed.PrefixStore("train", store),  # type: ignore[attr-defined]
            rank=group.rank,
            world_size=group.size,
            timeout=GROUP_TIMEOUT,
            device_id=device if nccl else None,
        )
    except (RuntimeError, ValueError) as e:
        reason = str(e).splitlines()[0].rstrip(".")
        raise RunError(f"{address}: the processes cannot connect ({reason}); {_START}") from e


def leave(group: Group) -> None:
    """End communication after success. NCCL's shutdown waits for every process, so a failed process must not call this."""
    if group.size > 1:
        torch.distributed.destroy_process_group()


def is_joined() -> bool:
    """Return whether this process is still in a group, as it is after a failure."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def use_all_processors() -> None:
    """Use every processor again after the other processes have finished.

    torchrun sets OMP_NUM_THREADS=1 for its processes (https://pytorch.org/docs/stable/elastic/run.html).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(affordable_threads(usable_processors()))


def limit_threads() -> None:
    """Let PyTorch use only threads that can be started. OpenMP ends the process if it cannot start one."""
    threads = torch.get_num_threads()
    affordable = affordable_threads(threads)
    if affordable < threads:
        torch.set_num_threads(affordable)
