"""The ladder as rows: what each stage adds to the one before, and nothing else about it; and past it, `edge`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from train.errors import RunError

SMOKE_EPOCHS = 2


@dataclass(frozen=True)
class Stage:
    """One rung. `network` names a row of `train.networks.NETWORKS`; None is an average of `members`, which
    are trained before it."""

    name: str
    network: str | None
    augmented: bool = False
    patience: int | None = 5  # epochs without a better validation accuracy; None runs all of max_epochs
    max_epochs: int = 100
    pretrained: bool = False  # starts from ImageNet weights, unless --weights none
    members: tuple[str, ...] = ()
    method: str = "study"  # or "edge", the recipe of train.edge


LADDER = (
    Stage("base", "small", patience=None, max_epochs=5),
    Stage("early_stopping", "small"),
    Stage("big", "big"),
    Stage("augmentation", "big", augmented=True),
    Stage("batch_norm", "big_batch_norm", augmented=True),
    Stage("resnet50", "resnet50", augmented=True, pretrained=True),
    Stage("resnet101", "resnet101", augmented=True, pretrained=True),
    Stage("resnet152", "resnet152", augmented=True, pretrained=True),
    Stage("ensemble", None, members=("batch_norm", "resnet50", "resnet101", "resnet152")),
    Stage("edge", "edge", method="edge", patience=None, max_epochs=24),
)

STAGES = {stage.name: stage for stage in LADDER}

# the rungs that a user names; members come with them
RUNGS = ("base", "early_stopping", "big", "augmentation", "batch_norm", "ensemble", "edge")


def epoch_cap(stage: Stage, caps: Mapping[str, int], *, smoke: bool) -> int:
    """At most so many epochs: `caps` is --max-epochs by stage, `ensemble` for its ResNets, or `all`."""
    asked = caps.get(stage.name)
    if asked is None and stage.pretrained and stage.name in STAGES["ensemble"].members:
        asked = caps.get("ensemble")
    default = SMOKE_EPOCHS if smoke else stage.max_epochs
    return min(stage.max_epochs, asked or caps.get("all") or default)


def chosen_stages(names: list[str]) -> list[Stage]:
    """The stages to run for the names given with --stages, in the ladder's order, members before what needs them.

    Raises RunError for a name that is no stage.
    """
    wanted = set()
    for name in names:
        if name not in STAGES:
            raise RunError(f"unknown stage {name!r}; choose from {', '.join(STAGES)}")
        wanted.update((name, *STAGES[name].members))
    return [stage for stage in LADDER if stage.name in wanted]
