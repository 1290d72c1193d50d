"""What is to be run: each stage with each seed, its recipe and its directory."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from train import fit
from train.errors import RunError
from train.stages import STAGES, Stage, epoch_cap


@dataclass(frozen=True)
class Job:
    """One stage with one seed, and the directory it writes to."""

    stage: Stage
    recipe: fit.Recipe
    directory: Path


def epoch_caps(given: list[str]) -> dict[str, int]:
    """--max-epochs as {stage or "all": N}."""
    caps = {}
    for text in (part for entry in given for part in entry.split(",")):
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise RunError(f"--max-epochs takes N or STAGE=N with N from 1 on, found {text!r}")
        if name and name not in STAGES:
            raise RunError(f"--max-epochs: unknown stage {name!r}; choose from {', '.join(STAGES)}")
        caps[name or "all"] = int(number)
    return dict(sorted(caps.items()))


def plan(
    stages: list[Stage], options: argparse.Namespace, caps: dict[str, int], directory: Path
) -> list[Job]:
    """The jobs of `stages`, in their order, a stage's seeds after each other."""
    jobs = []
    for stage in stages:
        cap = epoch_cap(stage, caps, smoke=options.smoke)
        for seed in range(options.seed, options.seed + options.seeds):
            recipe = fit.Recipe(
                seed=seed,
                batch_size=options.batch_size,
                max_epochs=cap,
                weights="none" if options.smoke else options.weights,
                weights_dir=options.weights_dir,
                smoke=options.smoke,
                amp=options.amp,
            )
            place = directory / stage.name
            jobs.append(Job(stage, recipe, place if options.seeds == 1 else place / f"seed-{seed}"))
    return jobs


def member_of(job: Job, name: str) -> Path:
    """The directory of an ensemble's member, beside the ensemble's own."""
    parts = job.directory.parts
    return Path(
        *(name if part == job.stage.name and i >= len(parts) - 2 else part for i, part in enumerate(parts))
    )
