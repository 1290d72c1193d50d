"""python -m train.edge.ablate: measure what each ingredient of the edge network's recipe contributes.

The baseline is a former recipe without erasing and intensity changes. Each variant adds one ingredient to the baseline
or removes one. The last three are that recipe, the same with images of no organ, and the one in use. All are trained
for 8 epochs on three quarters of the training split. They are measured on the other quarter, on validation as stored,
flipped front to back and corrupted (the third severity of each of MedMNIST-C's corruptions), and with --scans on the
crops of two real scans. The quarter is held out in groups that look like scans, another one for each seed (cross-validation),
or in chains (`train.chains`). Test is never used. Finished variants are not trained again: rerun the command to
continue, or run it several times in parallel with --only, --first-seed and --folds. --table then prints the scores of all.

With --network, the variants are of a stage's own recipe, each with one ingredient less or more (CHANGES), and the
network is the stage's: `edge`, `edge_wide`, `edge_deep`, or the average of the three, `edge_ensemble`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.bundle import WINDOW
from export.console import run_command
from export.machine import machine_failure
from export.temperature import fit_temperature
from train import fit, parallel, record
from train.arguments import names, positive
from train.chains import chains, folds, held_out, pseudo_scans
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.corruptions import CORRUPTIONS, corrupt
from train.data import Data, load_data
from train.datasets import DATASETS
from train.devices import choose_device, device_line
from train.edge.distillation import Distillation
from train.edge.scans import SCANS, ScanCrops, scan_crops
from train.ensemble import mean_probabilities
from train.errors import RunError
from train.recipes import EDGE_RECIPE, EdgeRecipe, Recipe
from train.stages import STAGES, Stage

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
IN_USE = "the recipe in use"
# Each field of the recipe in use left out, and others added. A variant that changes nothing in a stage's recipe is none
# of that stage: only edge_deep has noise, and only edge_wide has blur.
CHANGES: dict[str, Mapping[str, Any]] = {
    IN_USE: {},
    "no CutMix": {"cutmix": 0.0},
    "no flips": {"flip_front_back": 0.0},
    "no pixel shifts": {"shift": 0},
    "no averaging": {"ema_decay": None},
    "no smoothing": {"smoothing": 0.0},
    "no erasing": {"erase": 0.0},
    "no window": {"intensity": 0.0},
    "no contrast": {"contrast": None},
    "no negatives": {"negatives": None},
    "no orientations": {"reoriented": None, "orientation_weight": None},
    "no noise": {"noise": 0.0},
    "no blur": {"blur": None},
    "with streaks": {"streaks": 0.3},
    "with thick slices": {"thick_slices": 0.3},
    "with zoom": {"zoom": 0.15},
    "with blur": {"blur": 1.0},
}
# the recipe in use, with the average of the three networks as teacher; only with --network, for one network
DISTILLED = "distilled"
ENSEMBLE = "edge_ensemble"
SINGLE = STAGES[ENSEMBLE].members
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


def recipes(network: str | None) -> dict[str, dict[str, EdgeRecipe]]:
    """Return the variants of a network: for each, the recipes by stage.

    Args:
        network: of a stage, as given with --network; None for the small network and both kinds of variants.
    """
    if network is None:
        own = {"edge": EDGE_RECIPE}
        variants = {name: {"edge": recipe} for name, recipe in VARIANTS.items()}
    else:
        stages = SINGLE if network == ENSEMBLE else (network,)
        own, variants = {stage: _recipe_of(stage) for stage in stages}, {}
    for name, change in CHANGES.items():
        changed = {stage: replace(recipe, **change) for stage, recipe in own.items()}
        if name not in variants and (changed != own or name == IN_USE):
            variants[name] = changed
    return variants


def _recipe_of(stage: str) -> EdgeRecipe:
    recipe = STAGES[stage].recipe
    assert isinstance(recipe, EdgeRecipe)
    return recipe


def run_name(seed: int, fold: int | None) -> str:
    """Return the name of a run's directory. `fold` is None, or seed k's own fold, if that is what is held out."""
    own = fold is None or fold == _own_fold(seed)
    return f"seed-{seed}" if own else f"seed-{seed}-fold-{fold}"


def _own_fold(seed: int) -> int:
    return (seed - 1) % FOLDS + 1


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command. Returns the exit code."""
    options = _parser().parse_args(arguments)
    out = options.out / options.network if options.network else options.out
    try:
        variants = _chosen_variants(options.only, options.network)
        if options.table:
            print(table(out, options.only or all_names(options.network)))
            return 0
        if options.folds and options.hold_out != "scans":
            raise RunError("--folds: chains are not held out in folds; use --hold-out scans")
        parallel.limit_threads()
        whole = load_data(options.dataset, directory=options.data_dir)
        scans: list[ScanCrops] = []
        if options.scans:
            scans = scan_crops(options.scans, whole.classes, whole.size, WINDOW)
        groups = _groups(whole, options.hold_out)
        device = choose_device("auto")
        print(device_line(device, "auto"), flush=True)
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        runs = [(seed, fold) for seed in seeds for fold in options.folds or (None,)]
        recipe: Recipe | Mapping[str, EdgeRecipe]
        for seed, fold in runs:
            data, holdout = split(whole, _held_out(groups, options.hold_out, seed, fold))
            for name in variants:
                if name == DISTILLED:
                    recipe = _distillation(
                        options.network, seed, fold, data, options.epochs, options.out, device
                    )
                else:
                    recipe = _recipe(options.network, name)
                measure_variant(
                    name,
                    recipe,
                    seed,
                    data,
                    holdout,
                    options.epochs,
                    options.out,
                    device,
                    hold_out=options.hold_out,
                    scans=scans,
                    network=options.network,
                    fold=fold,
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
    names_of_runs = [run_name(seed, fold) for seed, fold in runs]
    print(table(out, variants, names_of_runs, scans=bool(options.scans)))
    return 0


def _recipe(network: str | None, name: str) -> Recipe | Mapping[str, EdgeRecipe]:
    """Return a variant's recipe, or for an average of networks one for each stage."""
    by_stage = recipes(network)[name]
    return by_stage if len(by_stage) > 1 else next(iter(by_stage.values()))


def _distillation(
    network: str,
    seed: int,
    fold: int | None,
    data: Data,
    epochs: int,
    out: Path,
    device: torch.device,
) -> Distillation:
    """Return the recipe in use with teachers that trained on the same slices. They are trained unless they exist."""
    run = f"{IN_USE.replace(' ', '_')}/{run_name(seed, fold)}"
    teachers = []
    for stage, recipe in recipes(ENSEMBLE)[IN_USE].items():
        directory = out / stage / run
        label = f"{IN_USE}, {stage}"
        teachers.append(
            train_network(label, STAGES[stage], recipe, seed, data, epochs, directory, device)
        )
    return Distillation.from_checkpoints(_recipe_of(network), teachers, device)


def all_names(network: str | None) -> tuple[str, ...]:
    """Return the names of all variants of a network."""
    single = network in SINGLE
    return (*recipes(network), DISTILLED) if single else tuple(recipes(network))


def _chosen_variants(only: Sequence[str] | None, network: str | None) -> Sequence[str]:
    """Return the variants to train: by default, those of the former recipe, or with --network those of the stage's."""
    if not only:
        return tuple(VARIANTS) if network is None else all_names(network)
    known = all_names(network)
    if unknown := [name for name in only if name not in known]:
        raise RunError(f"--only: unknown variant {unknown[0]!r}; choose from {', '.join(known)}")
    return only


def _fold_numbers(text: str) -> tuple[int, ...]:
    """Parse a value of --folds."""
    numbers = tuple(int(number) for number in text.split(","))
    if not set(numbers) <= set(range(1, FOLDS + 1)):
        raise argparse.ArgumentTypeError(
            f"expected 1 to {FOLDS}, separated by commas, found {text}"
        )
    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.edge.ablate",
        description="Measure what each ingredient of the edge network's recipe contributes.",
        epilog=f"variants: {', '.join(VARIANTS)}; with --only or --network: {', '.join(CHANGES)};"
        f" with --network of one network: {DISTILLED}",
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
    add("--first-seed", type=positive, default=1, metavar="N", help="the first seed (default: 1)")
    add(
        "--folds",
        type=_fold_numbers,
        metavar="LIST",
        help=f"folds to hold out with each seed, 1 to {FOLDS}, separated by commas (default: another one for each seed)",
    )
    add(
        "--network",
        choices=(*SINGLE, ENSEMBLE),
        metavar="NAME",
        help=f"train variants of this stage: {', '.join(SINGLE)}, or {ENSEMBLE} for the average of the three; their"
        " directory is NAME in --out (default: the network of edge, with variants of a former recipe)",
    )
    add(
        "--table",
        action="store_true",
        help="train nothing; print the scores of all finished runs in --out, of whichever process",
    )
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
        help="variants to train, separated by commas (default: all of the first list below, or with --network all of the"
        " second)",
    )
    return parser


def _groups(data: Data, hold_out: str) -> np.ndarray:
    """Return the number of each training slice's chain or pseudo-scan, int64 (N,)."""
    group = pseudo_scans if hold_out == "scans" else chains
    return group(data.images["train"], data.labels["train"])


def _held_out(groups: np.ndarray, hold_out: str, seed: int, fold: int | None = None) -> np.ndarray:
    """Return whether each training slice is held out, bool (N,): those of a fold, or always the same chains."""
    if hold_out == "chains":
        return held_out(groups)
    mask: np.ndarray = folds(groups, FOLDS) == (fold or _own_fold(seed)) - 1
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
    recipe: Recipe | Mapping[str, EdgeRecipe],
    seed: int,
    data: Data,
    holdout: Data,
    epochs: int,
    out: Path,
    device: torch.device,
    *,
    hold_out: str = "chains",
    scans: Sequence[ScanCrops] = (),
    network: str | None = None,
    fold: int | None = None,
) -> dict[str, float]:
    """Train a variant with a seed and measure it, unless its scores exist.

    Args:
        name: of the variant, for its directory and its output lines.
        recipe: of the variant; for an average of networks one for each stage.
        seed: of the training.
        data: the data to train and validate on.
        holdout: the data whose training split was held out.
        epochs: number of epochs.
        out: directory of the ablation.
        device: where the network is trained.
        hold_out: how the held-out slices were chosen, one of HOLD_OUT.
        scans: crops of real scans, to measure the network on.
        network: the stage whose network is trained, as given with --network; None for the small one.
        fold: the number of the held-out fold; None for the seed's own.

    Returns:
        Accuracies, 0 to 1, by the keys of SCORES and with crops of SCAN_SCORES, and those of OTHER_SCORES.

    Raises:
        RunError: the existing scores are of another recipe, data set or number of epochs.
    """
    run = f"{name.replace(' ', '_')}/{run_name(seed, fold)}"
    file = (out / network if network else out) / run / "scores.json"
    members = recipe if isinstance(recipe, Mapping) else {network or "edge": recipe}
    settings = {stage: member.stored_settings() for stage, member in members.items()}
    method: dict[str, Any] = settings if len(settings) > 1 else next(iter(settings.values()))
    about = {"data_md5": data.md5, "epochs": epochs, "method": method}
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

    networks = []
    for member, its_recipe in members.items():
        stage = STAGES[member]
        if network is None and isinstance(its_recipe, EdgeRecipe) and not its_recipe.reoriented:
            stage = replace(stage, network="edge")
        label = name if len(members) == 1 else f"{name}, {member}"
        directory = (out / member if network else out) / run
        checkpoint = train_network(label, stage, its_recipe, seed, data, epochs, directory, device)
        networks.append(network_on(checkpoint, device))
    scores = score(networks, data, holdout, scans)
    record.write_json(file, about | scores)
    values = ", ".join(f"{key} {value}" for key, value in scores.items())
    print(f"{name}, {run_name(seed, fold).replace('-', ' ')}: {values}", flush=True)
    return scores


def train_network(
    label: str,
    stage: Stage,
    recipe: Recipe,
    seed: int,
    data: Data,
    epochs: int,
    directory: Path,
    device: torch.device,
) -> Checkpoint:
    """Train a network, unless its finished checkpoint exists.

    Args:
        label: what the output lines begin with.
        stage: for the network.
        recipe: how it is trained.
        seed: of the training.
        data: the data to train and validate on.
        epochs: number of epochs.
        directory: for the checkpoint.
        device: where the network is trained.
    """

    def report(line: str) -> None:
        print(f"{label}, {line}", flush=True)

    config = TrainConfig(seed, 128, epochs, "none")
    return fit.fit(stage, data, config, device, directory, recipe=recipe, report=report)


def network_on(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """Build the network of a checkpoint on a device."""
    return fit.network_of(checkpoint).to(device)


def score(
    networks: Sequence[nn.Module],
    data: Data,
    holdout: Data | None,
    scans: Sequence[ScanCrops] = (),
) -> dict[str, float]:
    """Measure a network, or the mean probability of several.

    Args:
        networks: on their device.
        data: for its validation split.
        holdout: the data whose training split was held out; None for none.
        scans: crops of real scans.

    Returns:
        See `measure_variant`. Without `holdout`, the scores of the held-out slices are missing.
    """

    def answers(logits: Sequence[np.ndarray]) -> np.ndarray:
        if len(logits) == 1:
            return logits[0]
        return mean_probabilities([fit.probabilities(z) for z in logits])

    def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
        logits = [fit.evaluate(network, images) for network in networks]
        return float((answers(logits).argmax(1) == labels).mean())

    scores: dict[str, float] = {}
    if holdout is not None:
        images, held_out_labels = holdout.network_images("train"), holdout.labels["train"]
        held_out_logits = [fit.evaluate(network, images) for network in networks]
        scores["held_out"] = float((answers(held_out_logits).argmax(1) == held_out_labels).mean())
    val, labels = data.network_images("val"), data.labels["val"]
    rows = np.linspace(0, len(labels) - 1, min(CORRUPTED, len(labels))).round().astype(int)
    scores["val"] = accuracy(val, labels)
    scores["val_mirrored"] = accuracy(np.ascontiguousarray(val[:, :, ::-1]), labels)
    corrupted = [accuracy(corrupt(val[rows], c, SEVERITY), labels[rows]) for c in CORRUPTIONS]
    scores["val_corrupted"] = float(np.mean(corrupted))
    for scan in {crops.scan: None for crops in scans}:
        of_scan = [
            (answers([packed_logits(n, c.images) for n in networks]).argmax(1) == c.labels).mean()
            for c in scans
            if c.scan == scan
        ]
        scores[scan] = float(np.mean(of_scan))
    if holdout is not None:
        scores["temperature"] = fit_temperature(held_out_logits, held_out_labels)
    return scores


@torch.no_grad()
def packed_logits(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Run a network in evaluation mode on normalized slices, float32 (N, 1, S, S). Returns float32 (N, classes)."""
    device = next(network.parameters()).device
    logits: np.ndarray = network.eval()(torch.from_numpy(images).to(device)).cpu().numpy()
    return logits


def table(
    out: Path, variants: Sequence[str], runs: Sequence[str] | None = None, *, scans: bool = False
) -> str:
    """Format mean and standard deviation over runs as a Markdown table.

    Args:
        out: directory of the ablation, or of the network in it.
        variants: their names, one row each.
        runs: names of their directories, see `run_name`. None for all finished ones: variants without any have no row, and
            a column counts the runs.
        scans: whether they were measured on scans; found out if `runs` is None.

    Raises:
        RunError: there are no finished runs, or they cannot be compared.
    """
    rows = {}
    for name in variants:
        directory = out / name.replace(" ", "_")
        files = (
            sorted(directory.glob("seed-*/scores.json"))
            if runs is None
            else [directory / run / "scores.json" for run in runs]
        )
        if files:
            rows[name] = [record.read_json(file) for file in files]
        for file, row in zip(files, rows.get(name, []), strict=True):
            if not set(SCORES | OTHER_SCORES) <= set(row):
                raise RunError(f"{file}: of an earlier version; use another --out")
    if runs is None:
        ways = {(row["epochs"], row.get("hold_out")) for scored in rows.values() for row in scored}
        if len(ways) != 1:
            found = "runs with different --epochs or --hold-out" if ways else "no finished runs"
            raise RunError(f"{out}: {found}; use another --out")
        scans = all(set(SCAN_SCORES) <= set(row) for scored in rows.values() for row in scored)
    columns = SCORES | (SCAN_SCORES if scans else {}) | OTHER_SCORES
    counted = ["runs"] if runs is None else []
    titles = ["variant", *counted, *columns.values()]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, scored in rows.items():
        cells = [_cell([row[key] for row in scored]) for key in columns]
        count = [str(len(scored))] if runs is None else []
        lines.append(f"| {' | '.join([name, *count, *cells])} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
