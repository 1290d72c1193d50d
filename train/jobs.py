"""The jobs of a run: each stage with each seed, its settings and its directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config import TrainConfig
from train.errors import RunError
from train.options import TrainOptions
from train.stages import STAGES, Stage, epoch_cap


@dataclass(frozen=True)
class Job:
    """One stage with one seed.

    Args:
        stage: a row of `train.stages`.
        config: the settings of the stage with this seed.
        directory: for the stage's files.
    """

    stage: Stage
    config: TrainConfig
    directory: Path

    @property
    def label(self) -> str:
        """What lines about the job begin with: the stage, and one of several seeds."""
        several = self.directory.name != self.stage.name
        return f"{self.stage.name} #{self.config.seed}" if several else self.stage.name


def epoch_caps(values: Sequence[str]) -> dict[str, int]:
    """Parse --max-epochs.

    Args:
        values: each `N` or `STAGE=N`, or several separated by commas.

    Returns:
        The most epochs by stage; the key `all` applies to every other stage.

    Raises:
        RunError: an entry is neither, or names no stage.
    """
    caps = {}
    for text in (part for value in values for part in value.split(",")):
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise RunError(
                f"--max-epochs: expected N or STAGE=N with N of at least 1, found {text!r}"
            )
        if name and name not in STAGES:
            raise RunError(f"--max-epochs: unknown stage {name!r}; choose from {', '.join(STAGES)}")
        caps[name or "all"] = int(number)
    return dict(sorted(caps.items()))


def plan_jobs(
    stages: Sequence[Stage], options: TrainOptions, caps: dict[str, int], directory: Path
) -> list[Job]:
    """Plan the jobs of a run.

    Args:
        stages: in the order to run.
        options: of the command line.
        caps: as `epoch_caps` returns them.
        directory: of the run; each stage has a directory in it, and each of several seeds one below that.

    Returns:
        One job per stage and seed, the seeds of a stage in a row.
    """
    jobs = []
    for stage in stages:
        cap = epoch_cap(stage, caps, smoke=options.smoke)
        for seed in range(options.seed, options.seed + options.seeds):
            config = TrainConfig(
                seed=seed,
                batch_size=options.batch_size,
                max_epochs=cap,
                weights="none" if options.smoke else options.weights,
                weights_dir=options.weights_dir,
                smoke=options.smoke,
                amp=options.amp,
            )
            stage_dir = directory / stage.name
            jobs.append(
                Job(stage, config, stage_dir if options.seeds == 1 else stage_dir / f"seed-{seed}")
            )
    return jobs


def member_of(job: Job, name: str) -> Path:
    """Return the directory of an average's member.

    Args:
        job: of the average.
        name: of the member's stage.

    Returns:
        The average's directory with the member's name in place of the average's: STAGE or STAGE/seed-N.
    """
    parts = job.directory.parts
    return Path(
        *(
            name if part == job.stage.name and i >= len(parts) - 2 else part
            for i, part in enumerate(parts)
        )
    )
