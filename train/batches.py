"""Splits an epoch's order into batches."""

from __future__ import annotations

import torch
from torch import Tensor


def split_order(order: Tensor, size: int, at_least: int) -> list[Tensor]:
    """Split the order of an epoch into batches.

    Args:
        order: indices of slices, int64 (N,).
        size: slices per batch.
        at_least: slices that batch normalization needs; a smaller last batch joins the one before it.

    Returns:
        Indices by batch, int64 each.
    """
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) < at_least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
