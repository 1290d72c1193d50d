"""Checkpoints of finished stages, for tests that train nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.checkpoint import Checkpoint, StageFacts, StageSettings


def finished_checkpoint(
    stage: str = "base",
    network: str = "small",
    *,
    seconds: Sequence[float] = (1.0,),
    best_epoch: int = 1,
    parameters: int = 1,
    precision: str | None = "fp32",
    method: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A stage whose epochs took `seconds`, without weights; the recipe's settings are `method`."""
    settings = StageSettings(64, len(seconds), method or {"learning_rate": 1e-3}, precision)
    facts = StageFacts(
        stage=stage,
        network=network,
        dataset="organamnist",
        classes=["liver", "spleen"],
        size=28,
        stored=28,
        resample="area",
        data_md5="0123",
        seed=1,
        weights="none",
        smoke=False,
        parameters=parameters,
        settings=settings,
    )
    return Checkpoint(facts, {}, best_epoch, [{"seconds": value} for value in seconds])
