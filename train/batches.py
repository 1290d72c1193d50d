"""An epoch's order cut into batches."""

from __future__ import annotations

import torch
from torch import Tensor


def cut(order: Tensor, size: int, at_least: int) -> list[Tensor]:
    """The batches of an epoch; a last one too small to normalise over joins the one before it."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < at_least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
