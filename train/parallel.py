"""Several processes under torchrun: either each trains stages of its own, or all share the batches of each stage."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """The processes that train one network together; of one process by default, where every call is a no-op."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what the group leaves behind."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over the group (DistributedDataParallel).

        Batch normalisation takes its statistics from each process's share of a batch.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network, broadcast_buffers=True)

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return batch[self.rank :: self.size] if self.size > 1 else batch

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the group."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def agree(self, value: float) -> float:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until every process of the group has come here."""
        if self.size > 1:
            torch.distributed.barrier()


ALONE = Group()


def launched() -> Group:
    """The processes that torchrun started, this one's place among them; ALONE without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return Group(int(os.environ["RANK"]), size) if size > 1 else ALONE


def join(group: Group, device: torch.device) -> None:
    """Set up communication between the group's processes: NCCL on CUDA, gloo elsewhere."""
    if group.size > 1:
        from datetime import timedelta

        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)  # what NCCL takes where it is not told: every process its own
        # a process that has no stage left waits for the slowest one
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo", timeout=timedelta(hours=24), device_id=device if cuda else None
        )


def leave(group: Group) -> None:
    """Undo `join`."""
    if group.size > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
