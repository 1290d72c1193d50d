"""Training with several processes of torchrun: each trains other stages, or all share the batches of each stage."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

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


def group_from_environment() -> Group:
    """Return the group of processes that torchrun started; ALONE without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return Group(int(os.environ["RANK"]), size) if size > 1 else ALONE


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
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", group.size))
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
    """
    if group.size == 1:
        return
    from datetime import timedelta

    nccl = device.type == "cuda" and share == "batches"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # 24 hours: a process that has finished its stages waits for the slowest one
    torch.distributed.init_process_group(
        "nccl" if nccl else "gloo", timeout=timedelta(hours=24), device_id=device if nccl else None
    )


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
