"""The ladder: the table of stages, one row each.

A stage is one row of the comparison: a network with its recipe, or an average of networks. Each stage of the reference
study adds one thing to the stage before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from train.errors import RunError
from train.recipes import EDGE_RECIPE, Recipe, ReferenceRecipe

SMOKE_EPOCHS = 2


@dataclass(frozen=True)
class Stage:
    """One stage: a network and its recipe, or the average of other stages.

    Args:
        name: on the command line, in file names and in results.
        network: a row of `train.networks.NETWORKS`; None for an average of `members`.
        recipe: how the network is trained; None for an average.
        title: one sentence for the report: what this stage adds.
        listed: whether the stage is trained by default; the others are trained by name, or as members of an average.
        robustness: whether a run measures the stage on corrupted slices.
        patience: epochs without a better validation accuracy before training stops; None trains all of `max_epochs`.
        max_epochs: epochs at most.
        pretrained: whether the network starts from ImageNet weights, unless `--weights none` is given.
        members: the stages that are averaged; they are trained first.
        card: what the model card calls the network; if empty, the card has no paragraph about its recipe.
    """

    name: str
    network: str | None
    recipe: Recipe | None = None
    title: str = ""
    listed: bool = True
    robustness: bool = False
    patience: int | None = 5
    max_epochs: int = 100
    pretrained: bool = False
    members: tuple[str, ...] = ()
    card: str = ""

    def recipe_for(self, view: str) -> Recipe:
        """Return the recipe for slices of a view: `axial`, `coronal` or `sagittal`."""
        if self.recipe is None:
            raise ValueError(f"stage {self.name} trains no network of its own")
        return self.recipe.for_view(view)


LADDER = (
    Stage(
        "base",
        "small",
        ReferenceRecipe(),
        "Two small convolutions, trained for a fixed number of epochs.",
        patience=None,
        max_epochs=5,
    ),
    Stage(
        "early_stopping",
        "small",
        ReferenceRecipe(),
        "The same network, stopped when validation no longer improves; the best weights are restored.",
    ),
    Stage("big", "big", ReferenceRecipe(), "More and larger filters, wider linear layers."),
    Stage(
        "augmentation",
        "big",
        ReferenceRecipe(augmented=True),
        "The same network on randomly rotated, partly erased and perspective-distorted slices.",
    ),
    Stage(
        "batch_norm",
        "big_batch_norm",
        ReferenceRecipe(augmented=True),
        "Batch normalization after every layer but the last.",
    ),
    Stage(
        "resnet50",
        "resnet50",
        ReferenceRecipe(augmented=True),
        "A member of the ensemble.",
        listed=False,
        pretrained=True,
    ),
    Stage(
        "resnet101",
        "resnet101",
        ReferenceRecipe(augmented=True),
        "A member of the ensemble.",
        listed=False,
        pretrained=True,
    ),
    Stage(
        "resnet152",
        "resnet152",
        ReferenceRecipe(augmented=True),
        "A member of the ensemble.",
        listed=False,
        pretrained=True,
    ),
    Stage(
        "ensemble",
        None,
        title="The mean of the softmax outputs of batch_norm and the three ResNets.",
        robustness=True,
        members=("batch_norm", "resnet50", "resnet101", "resnet152"),
    ),
    Stage(
        "edge",
        "edge_orientation",
        EDGE_RECIPE,
        "Beyond the reference study: one small network with its own recipe.",
        robustness=True,
        patience=None,
        max_epochs=32,
        card="A residual network",
    ),
    Stage(
        "edge_wide",
        "edge_wide",
        replace(EDGE_RECIPE, blur=1.0),
        "A wider network, trained on blurred slices, too.",
        listed=False,
        patience=None,
        max_epochs=32,
    ),
    Stage(
        "edge_deep",
        "edge_deep",
        replace(EDGE_RECIPE, noise=0.05),
        "A network of four blocks, trained with noise: the packaged model.",
        listed=False,
        robustness=True,
        patience=None,
        max_epochs=32,
        card="A residual network",
    ),
    Stage(
        "edge_ensemble",
        None,
        title="The mean of the softmax outputs of three small networks.",
        listed=False,
        robustness=True,
        members=("edge", "edge_wide", "edge_deep"),
    ),
)

STAGES = {stage.name: stage for stage in LADDER}

# the stages that are trained by default; members are trained with their average
LISTED = tuple(stage.name for stage in LADDER if stage.listed)
# the same with the members of averages
DEFAULT = frozenset({*LISTED, *(member for name in LISTED for member in STAGES[name].members)})
# the stages that are trained only for an average
MEMBERS = tuple(
    stage.name for stage in LADDER if not (stage.listed or stage.members or stage.robustness)
)


def epoch_cap(stage: Stage, caps: Mapping[str, int], *, smoke: bool) -> int:
    """Return the epochs that a stage trains at most.

    Args:
        stage: a row of the table.
        caps: --max-epochs by stage name, or `all`. The cap of an average applies to its members that are not listed.
        smoke: whether this is a smoke run.
    """
    cap = caps.get(stage.name)
    if cap is None and not stage.listed:
        averages = [other.name for other in STAGES.values() if stage.name in other.members]
        cap = next((caps[name] for name in averages if name in caps), None)
    default = SMOKE_EPOCHS if smoke else stage.max_epochs
    return min(stage.max_epochs, cap or caps.get("all") or default)


def chosen_stages(names: Sequence[str]) -> list[Stage]:
    """Return the stages to run.

    Args:
        names: of stages, as given with --stages.

    Returns:
        These stages and the members of their averages, in the ladder's order.

    Raises:
        RunError: a name is no stage.
    """
    with_members: set[str] = set()
    for name in names:
        if name not in STAGES:
            raise RunError(f"--stages: unknown stage {name!r}; choose from {', '.join(STAGES)}")
        with_members.update((name, *STAGES[name].members))
    return [stage for stage in STAGES.values() if stage.name in with_members]
