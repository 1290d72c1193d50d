"""The page's sentences and the form of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from train import augment
from train.recipes import ReferenceRecipe
from train.recipes.reference import LEARNING_RATE
from train.report.measures import Reliability, accuracy_interval
from train.report.published import DATASET_TITLES, PUBLISHED, STUDY, STUDY_DATASET
from train.report.run import Row, Run, Stage
from train.stages import MEMBERS, STAGES, epoch_cap

UNDEFINED = "–"
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def number(value: float | None, digits: int = 3) -> str:
    """A metric with three decimals; what is undefined is a dash."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def grouped(value: float | None) -> str:
    """A count with its thousands set apart."""
    return UNDEFINED if value is None else f"{int(value):,}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return UNDEFINED
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def subject(stage: str) -> str:
    """A stage as the subject of a sentence."""
    if stage in MEMBERS:
        return stage.replace("resnet", "ResNet-")
    return "The ensemble" if stage == "ensemble" else f"The {stage} network"


def headline(run: Run, split: Any) -> dict[str, str]:
    """The outcome in plain words: a line, and what is to be known beside it."""
    best = run.best
    title = DATASET_TITLES.get(split.flag, split.flag)
    if run.smoke:
        return {
            "line": "A smoke run: nothing here is a result",
            "text": f"Its stages ran on a few batches of {title}, to prove that the line holds from data to report. "
            "No figure below says anything about a network.",
        }
    if best is None:
        return {"line": f"{title}: no stage is measured yet", "text": "What is known so far stands below."}
    val, _ = best.value("val", "accuracy")
    test, spread = best.value("test", "accuracy")
    chosen = f"{subject(best.name)} is the best stage on validation, at {number(val)}"
    if test is None:
        return {
            "line": f"{title}: {best.name} leads on validation",
            "text": f"{chosen}. Test has not been looked at yet.",
        }
    spread_text = (
        f" (mean of {len(best.rows)} seeds, standard deviation {number(spread)})"
        if spread is not None
        else ""
    )
    interval = accuracy_interval(best.shown.confusion("test")) if spread is None else None
    interval_text = f" (95 % interval {number(interval[0])} to {number(interval[1])})" if interval else ""
    return {
        "line": f"{subject(best.name)} is right on {percent(test)} of the test slices",
        "text": f"It is the best stage on validation, at {number(val)}. Test was looked at once, at the end, and never chosen by: accuracy {number(test)}"
        f"{spread_text}{interval_text}.{_beside(test, split)}",
    }


def _beside(test: float, split: Any) -> str:
    """How the outcome stands to what is published of the same data set and size."""
    if split.size != 28:
        return ""
    if split.flag == STUDY_DATASET:
        return f" The study’s ensemble reached {number(STUDY['ensemble']['test'][0])}."
    known = PUBLISHED.get(split.flag)
    if not known:
        return ""
    gap = test - known[0].accuracy
    return (
        f" That is {number(abs(gap))} {'above' if gap >= 0 else 'below'} the {number(known[0].accuracy)} published "
        "for the official network at 28 pixels."
    )


def key_figures(best: Stage | None) -> list[dict[str, Any]]:
    """The few numbers set large under the headline."""
    if best is None:
        return []
    wanted = (
        ("validation accuracy", "val", "accuracy"),
        ("test accuracy", "test", "accuracy"),
        ("test AUC", "test", "auc"),
        ("test, sides merged", "test", "side_merged"),
        ("test ECE", "test", "ece"),
    )
    return [
        {"label": label, "split": split, "value": value, "spread": spread}
        for label, split, metric in wanted
        for value, spread in [best.value(split, metric)]
    ]


def origin(stage: Stage) -> str:
    """Where a stage's starting weights came from; the ensemble trains nothing of its own."""
    weights = stage.shown.entry.get("weights")
    if weights not in (None, "none"):
        return str(weights)
    return (
        "those of its members" if stage.name == "ensemble" else "none: drawn at random, trained from scratch"
    )


def facts(stage: Stage, run: Run) -> list[tuple[str, str]]:
    """What was trained, for how long and from where, as pairs."""
    entry, rows = stage.shown.entry, stage.rows
    several = len(rows) > 1
    epochs = [row.entry.get("epochs") for row in rows]
    best_epochs = [row.entry.get("best_epoch") for row in rows]
    pairs = [
        ("network", str(entry.get("network") or UNDEFINED)),
        ("parameters", grouped(entry.get("parameters"))),
        ("starting weights", origin(stage)),
        ("trained in", str(entry.get("precision") or UNDEFINED)),
        ("stops", stopping(stage, run)),
        ("augmented", augmented(stage)),
        ("epochs", ", ".join(map(grouped, epochs))),
        ("best epoch", ", ".join(map(grouped, best_epochs))),
        ("seconds", ", ".join(duration(row.entry.get("seconds")) for row in rows)),
        ("seconds an epoch", ", ".join(duration(row.entry.get("seconds_per_epoch")) for row in rows)),
        ("seeds" if several else "seed", ", ".join(grouped(row.seed) for row in rows)),
    ]
    return [(name, text) for name, text in pairs if set(text) - set(UNDEFINED + ", ")]


def augmented(stage: Stage) -> str:
    row = STAGES.get(stage.name)
    return UNDEFINED if row is None or row.recipe is None else row.recipe.augmentation


def stopping(stage: Stage, run: Run) -> str:
    """When a stage stops, and which weights it keeps."""
    row = STAGES.get(stage.name)
    if row is None or row.network is None:
        return UNDEFINED
    caps = (run.results.get("settings") or {}).get("max_epochs") or {}
    most = epoch_cap(row, caps, smoke=run.smoke)
    if row.patience is None:
        return f"after {most} epochs, keeping the last weights"
    return (
        f"after {row.patience} epochs without a better validation accuracy, and after {most} at most, keeping the best"
        " weights"
    )


def training(run: Run) -> list[tuple[str, str]]:
    """How the stages of the reference study are trained, as pairs; empty if none of them was."""
    names = {stage.name for stage in run.stages}
    if not any(isinstance(STAGES[name].recipe, ReferenceRecipe) for name in names & set(STAGES)):
        return []
    batch = (run.results.get("settings") or {}).get("batch_size")
    least, most = (f"{100 * share:.0f} %" for share in augment.ERASE_AREA)
    low, high = augment.ERASE_RATIO
    return [
        ("optimizer", f"Adam, learning rate {LEARNING_RATE:g}, constant"),
        ("batch size", grouped(batch)),
        ("loss", "cross-entropy"),
        (
            "augmentation, where a stage has it",
            f"each slice, with probability {augment.PROBABILITY:g} each: rotation by up to {augment.DEGREES:g} degrees,"
            f" erasing of {least} to {most} of the area at an aspect ratio of {low:g} to {high:g}, perspective distortion"
            f" {augment.DISTORTION:g}",
        ),
        (
            "sampling",
            "rotation and perspective are composed into one warp with one bilinear look-up; outside the slice is gray 0.5",
        ),
    ]


def record(run: Run, split: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """What it takes to know where the figures come from, in groups of pairs."""
    results = run.results
    dataset = results.get("dataset") or {}
    seconds = [row.entry.get("seconds") for stage in run.stages for row in stage.rows]
    spent = sum(value for value in seconds if value is not None)
    data = [
        (
            "data set",
            f"{DATASET_TITLES.get(split.flag, split.flag)}, {split.view}, {split.size} × {split.size} pixels",
        ),
        ("MD5", str(dataset.get("md5") or split.md5)),
        ("seeds", ", ".join(map(str, run.seeds)) or UNDEFINED),
        ("device", text_of(results.get("device"))),
        ("time, all stages", duration(spent) if run.stages else UNDEFINED),
    ]
    weights = [(stage.name, origin(stage)) for stage in run.stages]
    groups = [
        ("Run", data),
        ("Starting weights", weights),
        ("Settings", pairs_of(results.get("settings"))),
        ("Versions", pairs_of(results.get("versions"))),
    ]
    return [(name, pairs) for name, pairs in groups if pairs]


def pairs_of(value: Any) -> list[tuple[str, str]]:
    return (
        [(str(key).replace("_", " "), text_of(v)) for key, v in value.items()]
        if isinstance(value, dict)
        else []
    )


def text_of(value: Any) -> str:
    """A value of results.json as a reader would write it."""
    if value is None or value in ("", [], {}):
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text_of(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    return str(value)


def chart_alt(run: Run) -> str:
    stages = [
        f"{stage.name}: "
        + ", ".join(f"{SPLIT_NAMES[s]} {number(stage.value(s, 'accuracy')[0])}" for s in SPLIT_NAMES)
        for stage in run.stages
    ]
    return "Accuracy by stage. " + "; ".join(stages) + "."


def confusion_alt(name: str, split: str, matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Says what the eye looks for: how much is on the diagonal, and the commonest confusion."""
    text = f"Confusion matrix of {name} on {SPLIT_NAMES[split]}: {np.trace(matrix):,} of {matrix.sum():,} slices right"
    off = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    if off.any():
        i, j = np.unravel_index(off.argmax(), off.shape)
        text += f"; most often {classes[i]} was taken for {classes[j]}, {off[i, j]:,} times"
    return text + "."


def curves_alt(name: str, rows: Sequence[Row]) -> str:
    last = [row.history[-1] for row in rows]
    losses = ", ".join(f"{line.get('val_loss', float('nan')):.3f}" for line in last)
    accuracies = ", ".join(f"{line.get('val_accuracy', float('nan')):.3f}" for line in last)
    return f"Loss and accuracy of {name} by epoch. At the end, validation loss {losses} and accuracy {accuracies}."


def reliability_alt(name: str, points: dict[str, Reliability]) -> str:
    gaps = [
        f"on {SPLIT_NAMES[split]} the widest gap is {np.abs(p.accuracy - p.confidence).max():.2f}"
        for split, p in points.items()
    ]
    return f"Reliability diagram of {name}: " + "; ".join(gaps) + "."
