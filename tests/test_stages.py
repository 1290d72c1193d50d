"""The published ladder, how long each stage trains at most, and which jobs a command line gives."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from train.all import parse_arguments
from train.config import TrainConfig
from train.errors import RunError
from train.jobs import Job, epoch_caps, member_of, plan_jobs
from train.recipes import EdgeRecipe, ReferenceRecipe
from train.report import figures, wording
from train.stages import LADDER, LISTED, MEMBERS, STAGES, Stage, chosen_stages, epoch_cap

# docs/guides/training.md, "How the stages are trained": (network, recipe, patience, epochs at most,
# from ImageNet weights)
PLAIN, AUGMENTED = ReferenceRecipe(augmented=False), ReferenceRecipe(augmented=True)
EDGE = EdgeRecipe(contrast=0.4, negatives=0.15, reoriented=0.2, orientation_weight=0.4)
PUBLISHED = {
    "base": ("small", PLAIN, None, 5, False),
    "early_stopping": ("small", PLAIN, 5, 100, False),
    "big": ("big", PLAIN, 5, 100, False),
    "augmentation": ("big", AUGMENTED, 5, 100, False),
    "batch_norm": ("big_batch_norm", AUGMENTED, 5, 100, False),
    "resnet50": ("resnet50", AUGMENTED, 5, 100, True),
    "resnet101": ("resnet101", AUGMENTED, 5, 100, True),
    "resnet152": ("resnet152", AUGMENTED, 5, 100, True),
    "edge": ("edge_orientation", EDGE, None, 32, False),
    "edge_wide": ("edge_wide", replace(EDGE, blur=1), None, 32, False),
    "edge_deep": ("edge_deep", replace(EDGE, noise=0.05), None, 32, False),
}


def test_the_ladder_is_the_published_one():
    rows = {
        s.name: (s.network, s.recipe, s.patience, s.max_epochs, s.pretrained)
        for s in LADDER
        if not s.members
    }
    assert rows == PUBLISHED and all(not STAGES[name].members for name in PUBLISHED)
    ensemble = STAGES["ensemble"]
    assert ensemble.network is None and not ensemble.pretrained and ensemble.recipe is None
    assert ensemble.members == ("batch_norm", "resnet50", "resnet101", "resnet152")
    assert STAGES["edge_ensemble"].members == ("edge", "edge_wide", "edge_deep")
    names = list(PUBLISHED)
    assert [s.name for s in LADDER] == [*names[:-3], "ensemble", *names[-3:], "edge_ensemble"]
    assert LISTED == (
        "base",
        "early_stopping",
        "big",
        "augmentation",
        "batch_norm",
        "ensemble",
        "edge",
    )


def test_what_the_rows_say_beside_their_training():
    """What was asked of names before: which stages users name, and which are measured on corrupted slices."""
    assert MEMBERS == ("resnet50", "resnet101", "resnet152", "edge_wide")
    assert [s.name for s in LADDER if s.robustness] == [
        "ensemble",
        "edge",
        "edge_deep",
        "edge_ensemble",
    ]
    assert [s.name for s in LADDER if s.card] == ["edge", "edge_deep"]
    assert all(s.title.endswith(".") for s in LADDER)


def test_a_stage_without_a_network_has_no_recipe():
    with pytest.raises(ValueError, match="stage ensemble trains no network of its own"):
        STAGES["ensemble"].recipe_for("axial")


def test_the_documentation_names_every_listed_stage():
    text = (ROOT / "README.md").read_text()
    assert all(f"\n| `{name}` | " in text for name in LISTED)


def caps(*given, stage, smoke=False):
    return epoch_cap(STAGES[stage], epoch_caps(list(given)), smoke=smoke)


def test_without_a_cap_a_stage_trains_as_long_as_published():
    assert {name: caps(stage=name) for name in PUBLISHED} == {
        name: row[3] for name, row in PUBLISHED.items()
    }


def test_a_smoke_run_trains_two_epochs_unless_told():
    assert all(caps(stage=name, smoke=True) == 2 for name in STAGES)
    assert caps("3", stage="big", smoke=True) == 3
    assert caps("base=1", stage="big", smoke=True) == 2


@pytest.mark.parametrize(
    ("given", "stage", "expected"),
    [
        (["7"], "big", 7),
        (["7"], "base", 5),  # a cap never lengthens a stage
        (["200"], "big", 100),
        (["big=9"], "big", 9),
        (["big=9"], "early_stopping", 100),
        (["7", "big=9"], "big", 9),
        (["7,big=9"], "edge", 7),
        # the ensemble's cap is for its ResNets
        (["ensemble=4"], "resnet50", 4),
        (["ensemble=4"], "resnet152", 4),
        (["ensemble=4"], "batch_norm", 100),
        (["ensemble=4", "resnet50=6"], "resnet50", 6),
        (["ensemble=4", "3"], "resnet101", 4),
    ],
)
def test_caps_by_stage_come_before_the_one_for_all(given, stage, expected):
    assert caps(*given, stage=stage) == expected


def test_caps_are_read_as_written():
    assert epoch_caps([]) == {}
    read = epoch_caps(["resnet50=2,3", "big=10"])
    assert read == {"all": 3, "big": 10, "resnet50": 2} and list(read) == sorted(read)
    assert epoch_caps(["big=1", "big=2"]) == {"big": 2}


@pytest.mark.parametrize("text", ["0", "-1", "x", "big=", "big=0", "1.5", ""])
def test_a_cap_that_is_no_count_is_refused(text):
    with pytest.raises(
        RunError, match=f"--max-epochs: expected N or STAGE=N with N of at least 1, found {text!r}"
    ):
        epoch_caps([text])


def test_a_cap_of_no_stage_is_refused():
    with pytest.raises(
        RunError, match="--max-epochs: unknown stage 'all'; choose from base, early_stopping"
    ):
        epoch_caps(["all=3"])


OUT = Path("runs") / "organamnist"


def jobs(*arguments):
    options = parse_arguments(list(arguments))
    return plan_jobs(chosen_stages(["base", "edge"]), options, epoch_caps(options.max_epochs), OUT)


def test_every_stage_is_a_job_with_the_documented_defaults():
    """docs/guides/training.md: batches of 128, seed 1, ImageNet weights, --amp auto."""
    config = TrainConfig(1, 128, 5, "imagenet", weights_dir=None, smoke=False, amp="auto")
    assert jobs() == [
        Job(STAGES["base"], config, OUT / "base"),
        Job(STAGES["edge"], dataclasses.replace(config, max_epochs=32), OUT / "edge"),
    ]


def test_a_stages_seeds_follow_each_other_in_directories_of_their_own():
    found = [
        (job.stage.name, job.config.seed, job.directory)
        for job in jobs("--seed", "4", "--seeds", "2")
    ]
    assert found == [
        ("base", 4, OUT / "base" / "seed-4"),
        ("base", 5, OUT / "base" / "seed-5"),
        ("edge", 4, OUT / "edge" / "seed-4"),
        ("edge", 5, OUT / "edge" / "seed-5"),
    ]


def test_options_reach_the_configuration():
    chosen = [
        "--batch-size",
        "64",
        "--max-epochs",
        "edge=3",
        "--weights",
        "none",
        "--weights-dir",
        "w",
        "--amp",
        "fp16",
    ]
    base, edge = (job.config for job in jobs(*chosen))
    assert base == TrainConfig(1, 64, 5, "none", weights_dir=Path("w"), smoke=False, amp="fp16")
    assert edge == dataclasses.replace(base, max_epochs=3)


def test_a_smoke_run_starts_from_scratch():
    assert [job.config for job in jobs("--smoke")] == [
        TrainConfig(1, 128, 2, "none", smoke=True)
    ] * 2


@pytest.mark.parametrize(
    ("directory", "member"),
    [
        ("runs/a/ensemble", "runs/a/big"),
        ("runs/a/ensemble/seed-3", "runs/a/big/seed-3"),
        # a directory above that has the stage's name is another
        ("ensemble/runs/ensemble", "ensemble/runs/big"),
        ("ensemble/runs/ensemble/seed-3", "ensemble/runs/big/seed-3"),
    ],
)
def test_a_member_lies_beside_its_ensemble_with_the_same_seed(directory, member):
    job = Job(STAGES["ensemble"], TrainConfig(3, 1, 1, "none"), Path(directory))
    assert member_of(job, "big") == Path(member)


def test_the_rungs_bring_every_stage():
    assert chosen_stages([*LISTED, "edge_ensemble"]) == list(LADDER)
    assert [stage.name for stage in chosen_stages(["edge"])] == ["edge"]


def test_a_stage_that_is_none_is_named():
    with pytest.raises(
        RunError, match=r"^--stages: unknown stage 'huge'; choose from base, early_stopping, "
    ):
        chosen_stages(["base", "huge"])


def test_a_new_stage_is_one_row(monkeypatch):
    """Command line, number of epochs and report follow from the row."""
    row = Stage("tiny", "small", ReferenceRecipe(augmented=True), "A made-up stage.", max_epochs=9)
    monkeypatch.setitem(STAGES, row.name, row)
    assert chosen_stages(["tiny", "base"]) == [STAGES["base"], row]
    assert caps("tiny=2", stage="tiny") == 2 and caps("99", stage="tiny") == 9
    assert wording.augmented(SimpleNamespace(name="tiny")) == "yes"
    assert figures.by_ladder(["tiny", "edge"]) == ["edge", "tiny"]


def test_the_cap_of_a_new_average_is_for_its_members_that_are_not_listed(monkeypatch):
    hidden = Stage("hidden", "small", ReferenceRecipe(), listed=False)
    average = Stage("pair", None, members=("big", "hidden"))
    for row in (hidden, average):
        monkeypatch.setitem(STAGES, row.name, row)
    assert caps("pair=3", stage="hidden") == 3 and caps("pair=3", stage="big") == 100
    assert caps("ensemble=3", stage="hidden") == 100
    assert chosen_stages(["pair"]) == [STAGES["big"], hidden, average]
