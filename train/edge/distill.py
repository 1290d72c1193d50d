"""python -m train.edge.distill: train one edge network on the answers of a run's edge networks.

The student is trained on the whole training split with its stage's recipe (`train.edge.distillation`). It is measured on
validation as stored, flipped front to back and corrupted, and with --scans on the crops of two real scans. Test is
never used. `python -m train.edge.ablate --network NAME --only distilled` holds slices out, with teachers that have not
seen them either.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from export.bundle import WINDOW
from export.console import run_command
from export.machine import machine_failure
from train import parallel, record
from train.arguments import names, positive
from train.checkpoint import Checkpoint, read_checkpoint
from train.data import Data, load_data
from train.datasets import DATASETS
from train.devices import choose_device, device_line
from train.edge import ablate
from train.edge.distillation import WEIGHT, Distillation
from train.edge.scans import ScanCrops, scan_crops
from train.errors import RunError
from train.recipes import EdgeRecipe
from train.stages import STAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit code: 0 done, 1 a training failed, 2 usage or data, 130 interrupted.
    """
    return run_command("distill", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command. Returns the exit code."""
    options = _parser().parse_args(arguments)
    stage = STAGES[options.network]
    try:
        parallel.limit_threads()
        data = load_data(options.dataset, directory=options.data_dir)
        checkpoints = read_teachers(options.teachers, options.members, data)
        scans: list[ScanCrops] = []
        if options.scans:
            scans = scan_crops(options.scans, data.classes, data.size, WINDOW)
        device = choose_device("auto")
        print(device_line(device, "auto"), flush=True)
        own = stage.recipe_for(data.recipe_view)
        assert isinstance(own, EdgeRecipe)
        recipe = Distillation.from_checkpoints(own, checkpoints, device, options.weight)
        directory = options.out / options.network / f"seed-{options.seed}"
        epochs = options.epochs or stage.max_epochs
        checkpoint = ablate.train_network(
            "distilled", stage, recipe, options.seed, data, epochs, directory, device
        )
        network = ablate.network_on(checkpoint, device)
        scores = ablate.score([network], data, None, scans)
        record.write_json(directory / "scores.json", {"method": recipe.stored_settings()} | scores)
        print("distilled, " + ", ".join(f"{key} {value}" for key, value in scores.items()))
    except RunError as e:
        print(f"distill: error: {e}", file=sys.stderr)
        return e.exit_code
    except Exception as e:
        if (reason := machine_failure(e)) is None:
            raise
        print(
            f"distill: error: {reason}; free memory or disk space, and rerun the same command to resume",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            "distill: stopped; rerun the same command to continue from the last finished epoch",
            file=sys.stderr,
        )
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.edge.distill",
        description="Train one edge network on the answers of a run's edge networks.",
    )
    add = parser.add_argument
    add(
        "--teachers",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of a run's data set, such as runs/ensemble/organamnist",
    )
    add(
        "--members",
        type=names,
        default=ablate.SINGLE,
        metavar="LIST",
        help=f"stages in it that teach, separated by commas (default: {','.join(ablate.SINGLE)})",
    )
    add(
        "--network",
        choices=ablate.SINGLE,
        default="edge_deep",
        metavar="NAME",
        help=f"stage to train: {', '.join(ablate.SINGLE)} (default: edge_deep)",
    )
    add(
        "--dataset",
        default="organamnist",
        metavar="NAME",
        help=f"data set: {', '.join(DATASETS)} (default: organamnist)",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="directory of the data set's file, downloaded if the directory is empty (default: medmnist's own folder)",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs/distilled"),
        metavar="DIR",
        help="directory for all output (default: runs/distilled)",
    )
    add("--seed", type=positive, default=1, metavar="N", help="seed of the training (default: 1)")
    add("--epochs", type=positive, metavar="N", help="epochs (default: those of the stage, 32)")
    add(
        "--weight",
        type=_share,
        default=WEIGHT,
        metavar="W",
        help=f"share of the teachers in the loss, 0 to 1 (default: {WEIGHT})",
    )
    add(
        "--scans",
        type=Path,
        metavar="DIR",
        help="measure on two real scans too: directory of TotalSegmentator's example files in totalsegmentator/",
    )
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, found {text}")
    return value


def read_teachers(directory: Path, members: Sequence[str], data: Data) -> list[Checkpoint]:
    """Read the finished checkpoints of a run's stages.

    Args:
        directory: of the run's data set.
        members: names of the stages.
        data: the data set that the student is trained on.

    Raises:
        RunError: a checkpoint is missing or not finished, of an average, or of other data.
    """
    checkpoints = []
    for member in members:
        path = directory / member / "checkpoint.pt"
        if not path.exists():
            raise RunError(
                f"{path}: no such file; --teachers must be a run with the stage {member}"
            )
        checkpoint = read_checkpoint(path)
        facts = checkpoint.facts
        if not checkpoint.finished:
            raise RunError(f"{path}: not finished; continue that run first")
        # its splits are those of the student, so that no teacher has seen validation or test
        if (facts.data_md5, facts.size) != (data.md5, data.size):
            raise RunError(f"{path}: trained on other data; use teachers of this data set and size")
        checkpoints.append(checkpoint)
    return checkpoints


if __name__ == "__main__":
    sys.exit(main())
