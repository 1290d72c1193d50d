"""The page's sentences, and the format of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train import augment
from train.bundled import mean_over
from train.data import Data
from train.recipes import ReferenceRecipe
from train.recipes.reference import LEARNING_RATE
from train.report.measures import Reliability, accuracy_interval
from train.report.published import DATASET_TITLES, PUBLISHED, STUDY, STUDY_DATASET, STUDY_NAME
from train.report.run import Row, Run, Stage, Unfinished
from train.stages import MEMBERS, STAGES, epoch_cap

UNDEFINED = "–"
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def number(value: float | None, digits: int = 3) -> str:
    """Format a metric, by default with three decimals; None is a dash."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def grouped(value: float | None) -> str:
    """Format a count with commas between thousands; None is a dash."""
    return UNDEFINED if value is None else f"{int(value):,}"


def percent(value: float) -> str:
    """Format a share, 0 to 1, as a percentage."""
    return f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """Format seconds as seconds, minutes or hours; None is a dash."""
    if seconds is None:
        return UNDEFINED
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def subject(stage: str) -> str:
    """Name a stage as the subject of a sentence: `The ensemble`."""
    if stage in MEMBERS:
        return stage.replace("resnet", "ResNet-")
    is_average = stage in STAGES and STAGES[stage].members
    return f"The {stage}" if is_average else f"The {stage} network"


def headline(run: Run, data: Data) -> dict[str, str]:
    """State the outcome of a run.

    Args:
        run: the run.
        data: the data set.

    Returns:
        `line`, the title of the page, and `text`, the paragraph under it.
    """
    best = run.best
    title = DATASET_TITLES.get(data.flag, data.flag)
    if run.smoke:
        return {
            "line": "Smoke run: nothing here is a result",
            "text": f"Its stages ran on a few batches of {title}, to check the pipeline from data to report. "
            "No figure below says anything about a network.",
        }
    if best is None:
        return {
            "line": f"{title}: no stage is measured yet",
            "text": "The page shows what is known so far.",
        }
    val, _ = best.value("val", "accuracy")
    test, deviation = best.value("test", "accuracy")
    if test is None:
        return {
            "line": f"{title}: {best.name} leads on validation",
            "text": f"{subject(best.name)} is the best stage on validation, with accuracy {number(val)}{over_seeds(best)}. "
            "Test has not been evaluated yet.",
        }
    return {
        "line": f"{subject(best.name)} is right on {percent(test)} of the test slices",
        "text": f"It is the best stage on validation, with accuracy {number(val)}{over_seeds(best)}. Test was evaluated once, after"
        f" every choice was made: accuracy {number(test)}{_uncertainty(best, deviation)}.{_compared(test, data)}",
    }


def over_seeds(stage: Stage) -> str:
    """Mark a value as a mean over seeds, with a space before it; empty for a single seed."""
    return f" {mean_over(len(stage.rows))}" if len(stage.rows) > 1 else ""


def _uncertainty(best: Stage, deviation: float | None) -> str:
    """State the deviation over seeds, or the interval of a single seed, in parentheses."""
    if deviation is not None:
        return f"{over_seeds(best)} (standard deviation {number(deviation)})"
    interval = accuracy_interval(best.shown.confusion("test"))
    return f" (95 % interval {number(interval[0])} to {number(interval[1])})" if interval else ""


def _compared(test: float, data: Data) -> str:
    """Compare the outcome with published results on the same data set and size."""
    if data.size != 28:
        return ""
    if data.flag == STUDY_DATASET:
        reached = number(STUDY["ensemble"]["test"][0])
        return f" The ensemble of {STUDY_NAME} reached {reached}."
    published = PUBLISHED.get(data.flag)
    if not published:
        return ""
    gap = test - published[0].accuracy
    return (
        f" That is {number(abs(gap))} {'above' if gap >= 0 else 'below'} the {number(published[0].accuracy)} published "
        "for the official network at 28 pixels."
    )


def key_figures(best: Stage | None) -> list[dict[str, Any]]:
    """Return the numbers in large type under the headline."""
    if best is None:
        return []
    figures = (
        ("validation accuracy", "val", "accuracy"),
        ("test accuracy", "test", "accuracy"),
        ("test AUC", "test", "auc"),
        ("test, left-right merged", "test", "side_merged"),
        ("test ECE", "test", "ece"),
    )
    return [
        {"label": label, "split": split, "value": value, "deviation": deviation}
        for label, split, metric in figures
        for value, deviation in [best.value(split, metric)]
    ]


def origin(stage: Stage) -> str:
    """State the source of a stage's starting weights."""
    weights = stage.shown.result.weights
    if weights != "none":
        return weights
    return (
        "those of its members" if stage.name == "ensemble" else "none: random, trained from scratch"
    )


def facts(stage: Stage, run: Run) -> list[tuple[str, str]]:
    """Describe a stage's training as pairs of name and text. Values of several seeds are separated by commas."""
    shown, results = stage.shown.result, [row.result for row in stage.rows]
    pairs = [
        ("network", shown.network or UNDEFINED),
        ("parameters", grouped(shown.parameters)),
        ("starting weights", origin(stage)),
        ("training precision", shown.precision or UNDEFINED),
        ("stops", stopping(stage, run)),
        ("augmented", augmented(stage)),
        ("epochs", ", ".join(grouped(result.epochs) for result in results)),
        ("kept epoch", ", ".join(grouped(result.best_epoch) for result in results)),
        ("time", ", ".join(duration(result.seconds) for result in results)),
        ("time per epoch", ", ".join(duration(result.seconds_per_epoch) for result in results)),
        (
            "seeds" if len(results) > 1 else "seed",
            ", ".join(grouped(result.seed) for result in results),
        ),
    ]
    return [(name, text) for name, text in pairs if set(text) - set(UNDEFINED + ", ")]


def augmented(stage: Stage) -> str:
    """State whether a stage trains on augmented slices."""
    row = STAGES.get(stage.name)
    return UNDEFINED if row is None or row.recipe is None else row.recipe.augmentation


def stopping(stage: Stage, run: Run) -> str:
    """State when the training of a stage stops, and which weights it gets."""
    row = STAGES.get(stage.name)
    if row is None or row.network is None:
        return UNDEFINED
    recorded = run.results.settings.get("max_epochs")
    caps = recorded if isinstance(recorded, dict) else {}
    most = epoch_cap(row, caps, smoke=run.smoke)
    if row.patience is None:
        return f"after {most} epochs, keeping the last weights"
    return (
        f"after {row.patience} epochs without a better validation accuracy, at the latest after {most}, keeping the"
        " best weights"
    )


def training(run: Run) -> list[tuple[str, str]]:
    """Return the hyperparameters of the reference study's stages as pairs; empty if none of them was trained."""
    names = {stage.name for stage in run.stages}
    if not any(isinstance(STAGES[name].recipe, ReferenceRecipe) for name in names & set(STAGES)):
        return []
    batch = run.results.settings.get("batch_size")
    least, most = (f"{100 * share:.0f} %" for share in augment.ERASE_AREA)
    low, high = augment.ERASE_RATIO
    return [
        ("optimizer", f"Adam, learning rate {LEARNING_RATE:g}, constant"),
        ("batch size", text_of(batch)),
        ("loss", "cross-entropy"),
        (
            "augmentation, if the stage augments",
            f"per slice, with probability {augment.PROBABILITY:g} each: rotation by up to {augment.DEGREES:g} degrees,"
            f" erasing of {least} to {most} of the area at an aspect ratio of {low:g} to {high:g}, perspective distortion"
            f" {augment.DISTORTION:g}",
        ),
        (
            "sampling",
            "rotation and perspective are one warp with one bilinear interpolation; outside the slice is gray 0.5",
        ),
    ]


def rejected_temperatures(run: Run) -> list[str]:
    """Return a sentence for each fitted temperature that is not used, with the reason."""
    return [
        f"{row.name}{f', seed {row.seed}' if len(stage.rows) > 1 else ''}: the fitted temperature is rejected, and 1 is"
        f" used instead: {calibration.rejected}."
        for stage in run.stages
        for row in stage.rows
        if (calibration := row.result.calibration) and calibration.rejected
    ]


def record(run: Run, data: Data) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the provenance of the figures, in groups of pairs: run, weights, settings and versions."""
    results = run.results
    seconds = sum(row.result.seconds for stage in run.stages for row in stage.rows)
    view = "orientation unknown" if data.view == "unknown" else data.view
    run_pairs = [
        (
            "data set",
            f"{DATASET_TITLES.get(data.flag, data.flag)}, {view}, {data.size} × {data.size} pixels",
        ),
        ("MD5", run.dataset.md5 or data.md5),
        ("seeds", ", ".join(map(str, run.seeds)) or UNDEFINED),
        ("device", text_of(results.device)),
        ("time, all stages", duration(seconds) if run.stages else UNDEFINED),
    ]
    weights = [(stage.name, origin(stage)) for stage in run.stages]
    groups = [
        ("Run", run_pairs),
        ("Starting weights", weights),
        ("Settings", pairs_of(results.settings)),
        ("Versions", pairs_of(results.versions)),
    ]
    return [(name, pairs) for name, pairs in groups if pairs]


def pairs_of(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Format an object of results.json as pairs of texts."""
    return [(key.replace("_", " "), text_of(value)) for key, value in values.items()]


def text_of(value: object) -> str:
    """Format a value of results.json."""
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
    """Describe the chart of stages for readers without images: its accuracies."""
    stages = [
        f"{stage.name}: "
        + ", ".join(
            f"{SPLIT_NAMES[s]} {number(stage.value(s, 'accuracy')[0])}" for s in SPLIT_NAMES
        )
        for stage in run.stages
    ]
    return "Accuracy by stage. " + "; ".join(stages) + "."


def confusion_alt(name: str, split: str, matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Describe a confusion matrix for readers without images: the correct slices and the most frequent confusion."""
    text = f"Confusion matrix of {name} on {SPLIT_NAMES[split]}: {np.trace(matrix):,} of {matrix.sum():,} slices right"
    errors = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    if errors.any():
        i, j = np.unravel_index(errors.argmax(), errors.shape)
        text += f"; most often {classes[i]} was predicted as {classes[j]}, {errors[i, j]:,} times"
    return text + "."


def curves_alt(name: str, rows: Sequence[Row | Unfinished]) -> str:
    """Describe the curves of a stage for readers without images: their last values on validation."""
    last = [row.history[-1] for row in rows]
    losses = ", ".join(f"{line.get('val_loss', float('nan')):.3f}" for line in last)
    accuracies = ", ".join(f"{line.get('val_accuracy', float('nan')):.3f}" for line in last)
    return f"Loss and accuracy of {name} by epoch. At the end, validation loss {losses} and accuracy {accuracies}."


def reliability_alt(name: str, points: dict[str, Reliability]) -> str:
    """Describe the reliability diagram for readers without images: its widest gaps."""
    gaps = [
        f"on {SPLIT_NAMES[split]} the widest gap is {np.abs(p.accuracy - p.confidence).max():.2f}"
        for split, p in points.items()
    ]
    return f"Reliability diagram of {name}: " + "; ".join(gaps) + "."
