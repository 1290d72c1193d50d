"""python -m train.edge.ablate: measure what each ingredient of the edge network's recipe contributes.

The baseline is a former recipe without erasing and intensity changes. Each variant adds one ingredient to the baseline
or removes one. The last three are that recipe, the same with images of no organ, and the one in use. All are trained
for 8 epochs on three quarters of the training split. They are measured on the other quarter, on validation as stored,
flipped front to back and corrupted (the third severity of each of MedMNIST-C's corruptions), and with --scans on the
crops of two real scans. The quarter is held out in groups that look like scans, another one for each seed (cross-validation),
or in chains (`train.edge.chains`). Test is never used. Finished variants are not trained again: rerun the command to
continue, or run it several times in parallel with --only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.bundle import WINDOW
from export.console import run_command
from export.machine import machine_failure
from export.temperature import fit_temperature
from train import fit, parallel, record
from train.arguments import names, positive
from train.config import TrainConfig
from train.corruptions import CORRUPTIONS, corrupt
from train.data import Data, load_data
from train.datasets import DATASETS
from train.devices import choose_device, device_line
from train.edge.chains import chains, folds, held_out, pseudo_scans
from train.edge.scans import SCANS, ScanCrops, scan_crops
from train.errors import RunError
from train.recipes import EDGE_RECIPE, EdgeRecipe
from train.stages import STAGES

BASELINE = EdgeRecipe(erase=0.0, intensity=0.0)
VARIANTS = {
    "reference": BASELINE,
    "no cutting": replace(BASELINE, cutmix=0.0),
    "no mirroring": replace(BASELINE, flip_front_back=0.0),
    "no shifts": replace(BASELINE, shift=0),
    "no averaged weights": replace(BASELINE, ema_decay=None),
    "no label smoothing": replace(BASELINE, smoothing=0.0),
    "with erasing": replace(BASELINE, erase=0.5),
    "with mixing": replace(BASELINE, mixup=0.5),
    "with rotation and scale": replace(BASELINE, affine=1.0),
    "with another window": replace(BASELINE, intensity=0.3),
    "with noise": replace(BASELINE, noise=0.05),
    "the recipe": EdgeRecipe(),
    "with negatives": replace(EdgeRecipe(), negatives=0.15),
    "the recipe in use": EDGE_RECIPE,
}
SCORES = {
    "held_out": "held out",
    "val": "validation",
    "val_mirrored": "validation mirrored",
    "val_corrupted": "validation corrupted",
}
# with --scans, the mean over margins and ways to resample
SCAN_SCORES = {scan: f"{scan} scan" for scan in SCANS}
HOLD_OUT = ("scans", "chains")
FOLDS = 4
# the temperature that is best on the held-out slices, which is right for other scans than those of training
OTHER_SCORES = {"temperature": "temperature"}
# severity of the corruptions, and number of validation slices that are corrupted
SEVERITY, CORRUPTED = 3, 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit code: 0 done, 1 a training failed, 2 usage or data, 130 interrupted.
    """
    return run_command("ablate", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command. Returns the exit code."""
    options = _parser().parse_args(arguments)
    variants = options.only or tuple(VARIANTS)
    try:
        if unknown := [name for name in variants if name not in VARIANTS]:
            raise RunError(
                f"--only: unknown variant {unknown[0]!r}; choose from {', '.join(VARIANTS)}"
            )
        parallel.limit_threads()
        whole = load_data(options.dataset, directory=options.data_dir)
        scans: list[ScanCrops] = []
        if options.scans:
            scans = scan_crops(options.scans, whole.classes, whole.size, WINDOW)
        groups = _groups(whole, options.hold_out)
        device = choose_device("auto")
        print(device_line(device, "auto"), flush=True)
        for seed in range(1, options.seeds + 1):
            data, holdout = split(whole, _held_out(groups, options.hold_out, seed))
            for name in variants:
                measure_variant(
                    name,
                    VARIANTS[name],
                    seed,
                    data,
                    holdout,
                    options.epochs,
                    options.out,
                    device,
                    hold_out=options.hold_out,
                    scans=scans,
                )
    except RunError as e:
        print(f"ablate: error: {e}", file=sys.stderr)
        return e.exit_code
    except Exception as e:
        if (reason := machine_failure(e)) is None:
            raise
        print(
            f"ablate: error: {reason}; free memory or disk space, and rerun the same command to resume",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            "ablate: stopped; rerun the same command to continue from the last finished epoch",
            file=sys.stderr,
        )
        return 130
    print(table(options.out, variants, options.seeds, scans=bool(options.scans)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.edge.ablate",
        description="Measure what each ingredient of the edge network's recipe contributes.",
        epilog=f"variants: {', '.join(VARIANTS)}",
    )
    add = parser.add_argument
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
        default=Path("runs/ablation"),
        metavar="DIR",
        help="directory for all output (default: runs/ablation)",
    )
    add("--seeds", type=positive, default=3, metavar="K", help="seeds per variant (default: 3)")
    add("--epochs", type=positive, default=8, metavar="N", help="epochs per variant (default: 8)")
    add(
        "--hold-out",
        choices=HOLD_OUT,
        default="scans",
        help="held out are groups of slices that look like scans, another quarter of them for each seed, or chains of"
        " similar slices (default: scans)",
    )
    add(
        "--scans",
        type=Path,
        metavar="DIR",
        help="measure on two real scans too: directory of TotalSegmentator's example files in totalsegmentator/",
    )
    add(
        "--only",
        type=names,
        metavar="LIST",
        help="variants to train, separated by commas (default: all, listed below)",
    )
    return parser


def _groups(data: Data, hold_out: str) -> np.ndarray:
    """Return the number of each training slice's chain or pseudo-scan, int64 (N,)."""
    group = pseudo_scans if hold_out == "scans" else chains
    return group(data.images["train"], data.labels["train"])


def _held_out(groups: np.ndarray, hold_out: str, seed: int) -> np.ndarray:
    """Return whether each training slice is held out, bool (N,): a fold per seed, or always the same chains."""
    if hold_out == "chains":
        return held_out(groups)
    mask: np.ndarray = folds(groups, FOLDS) == (seed - 1) % FOLDS
    return mask


def split(data: Data, is_held_out: np.ndarray) -> tuple[Data, Data]:
    """Split the training slices.

    Args:
        data: a whole data set.
        is_held_out: by training slice, bool (N,).

    Returns:
        The data with the other training slices, and the data with the held-out ones as training split.
    """
    return _with_train_slices(data, ~is_held_out), _with_train_slices(data, is_held_out)


def _with_train_slices(data: Data, mask: np.ndarray) -> Data:
    """Return the data with the training slices of a mask, bool (N,)."""
    return replace(
        data,
        images=data.images | {"train": data.images["train"][mask]},
        labels=data.labels | {"train": data.labels["train"][mask]},
    )


def measure_variant(
    name: str,
    recipe: EdgeRecipe,
    seed: int,
    data: Data,
    holdout: Data,
    epochs: int,
    out: Path,
    device: torch.device,
    *,
    hold_out: str = "chains",
    scans: Sequence[ScanCrops] = (),
) -> dict[str, float]:
    """Train a variant with a seed and measure it, unless its scores exist.

    Args:
        name: of the variant, for its directory and its output lines.
        recipe: of the variant.
        seed: of the training.
        data: the data to train and validate on.
        holdout: the data whose training split was held out.
        epochs: number of epochs.
        out: directory of the ablation.
        device: where the network is trained.
        hold_out: how the held-out slices were chosen, one of HOLD_OUT.
        scans: crops of real scans, to measure the network on.

    Returns:
        Accuracies, 0 to 1, by the keys of SCORES and with crops of SCAN_SCORES, and those of OTHER_SCORES.

    Raises:
        RunError: the existing scores are of another recipe, data set or number of epochs.
    """
    directory = out / name.replace(" ", "_") / f"seed-{seed}"
    file = directory / "scores.json"
    about = {"data_md5": data.md5, "epochs": epochs, "method": recipe.stored_settings()}
    if hold_out == "scans":
        about["hold_out"] = hold_out
    if file.exists():
        stored: dict[str, float] = record.read_json(file)
        for name, key in (("recipe", "method"), ("data set", "data_md5")):
            if stored.get(key) != about[key]:
                raise RunError(f"{file}: of another {name}; use another --out")
        if stored.get("hold_out", "chains") != hold_out:
            raise RunError(
                f"{file}: holds scores with --hold-out {stored.get('hold_out', 'chains')}, but this command has"
                f" --hold-out {hold_out}; use another --out"
            )
        if scans and not set(SCAN_SCORES) <= set(stored):
            raise RunError(f"{file}: holds scores without --scans; use another --out")
        if not set(OTHER_SCORES) <= set(stored):
            raise RunError(f"{file}: of an earlier version; use another --out")
        if stored.get("epochs") != epochs:
            raise RunError(
                f"{file}: holds scores with --epochs {stored.get('epochs')}, but this command has --epochs {epochs};"
                " use another --out"
            )
        return stored

    def report(line: str) -> None:
        print(f"{name}, {line}", flush=True)

    config = TrainConfig(seed, 128, epochs, "none")
    stage = STAGES["edge"]
    if not recipe.reoriented:
        stage = replace(stage, network="edge")
    checkpoint = fit.fit(stage, data, config, device, directory, recipe=recipe, report=report)
    network = fit.network_of(checkpoint).to(device)

    def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
        return float((fit.evaluate(network, images).argmax(1) == labels).mean())

    val, labels = data.network_images("val"), data.labels["val"]
    rows = np.linspace(0, len(labels) - 1, min(CORRUPTED, len(labels))).round().astype(int)
    held_out_logits = fit.evaluate(network, holdout.network_images("train"))  # (N, classes)
    scores = {
        "held_out": float((held_out_logits.argmax(1) == holdout.labels["train"]).mean()),
        "val": accuracy(val, labels),
        "val_mirrored": accuracy(np.ascontiguousarray(val[:, :, ::-1]), labels),
    }
    corrupted = [accuracy(corrupt(val[rows], c, SEVERITY), labels[rows]) for c in CORRUPTIONS]
    scores["val_corrupted"] = float(np.mean(corrupted))
    for scan in {crops.scan for crops in scans}:
        scores[scan] = float(
            np.mean(
                [
                    (packed_logits(network, c.images).argmax(1) == c.labels).mean()
                    for c in scans
                    if c.scan == scan
                ]
            )
        )
    scores["temperature"] = fit_temperature([held_out_logits], holdout.labels["train"])
    record.write_json(file, about | scores)
    report(f"seed {seed}: " + ", ".join(f"{key} {value}" for key, value in scores.items()))
    return scores


@torch.no_grad()
def packed_logits(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Run a network in evaluation mode on normalized slices, float32 (N, 1, S, S). Returns float32 (N, classes)."""
    device = next(network.parameters()).device
    logits: np.ndarray = network.eval()(torch.from_numpy(images).to(device)).cpu().numpy()
    return logits


def table(out: Path, variants: Sequence[str], seeds: int, *, scans: bool = False) -> str:
    """Format mean and standard deviation over the seeds as a Markdown table.

    Args:
        out: directory of the ablation.
        variants: their names, one row each.
        seeds: number of seeds, counted from 1.
        scans: whether they were measured on scans.
    """
    columns = SCORES | (SCAN_SCORES if scans else {}) | OTHER_SCORES
    lines = [f"| variant | {' | '.join(columns.values())} |", "|---" * (1 + len(columns)) + "|"]
    for name in variants:
        files = [
            out / name.replace(" ", "_") / f"seed-{k}" / "scores.json" for k in range(1, seeds + 1)
        ]
        rows = [record.read_json(file) for file in files]
        cells = [_cell([row[key] for row in rows]) for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
