"""The options of `python -m train.all`, as one typed value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    """What the command line asks for; `python -m train.all --help` describes each option.

    Args:
        dataset: a row of `train.datasets.DATASETS`, or `folder:PATH` or `npz:FILE` for a data set of the user.
        split: shares of train, val and test, separated by commas.
        plan: whether the run only prints what it would do.
        stages: stage names; None runs every listed stage.
        max_epochs: the values of --max-epochs as given, each `N` or `STAGE=N`, or several separated by commas.
        precision: variants to try for the bundle.
    """

    dataset: str = "organsmnist"
    data_dir: Path | None = None
    split: str | None = None
    group_by: str | None = None
    pairs: Path | None = None
    orientation: str | None = None
    out: Path = Path("runs")
    stages: tuple[str, ...] | None = None
    device: str = "auto"
    amp: str = "auto"
    size: int = 28
    resample_from: int | None = None
    resample: str = "area"
    seed: int = 1
    seeds: int = 1
    batch_size: int = 128
    max_epochs: tuple[str, ...] = ()
    weights: str = "imagenet"
    weights_dir: Path | None = None
    precision: tuple[str, ...] = ("int8", "fp32", "fp16")
    temperature: float | None = None
    fast_member: str | None = None
    parallel: str = "stages"
    deterministic: bool = False
    smoke: bool = False
    fresh: bool = False
    plan: bool = False
    tensorboard: Path | None = None


def option_name(setting: str) -> str:
    """Return the option of a recorded setting: `--max-epochs` of `max_epochs`."""
    return f"--{setting.replace('_', '-')}"


def option_text(setting: str, value: object) -> str:
    """Return a recorded setting as it is written on the command line.

    Args:
        setting: a key of `settings` in results.json, such as `max_epochs`.
        value: its value.

    Returns:
        Such as `--batch-size 64` or `no --max-epochs`.
    """
    option = option_name(setting)
    if value is True:
        return option
    if value is None or value is False or value == {}:
        return f"no {option}"
    if isinstance(value, dict):
        values = (f"{n}" if name == "all" else f"{name}={n}" for name, n in value.items())
        return f"{option} {','.join(values)}"
    return f"{option} {value}"
