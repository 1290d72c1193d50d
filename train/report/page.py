"""Collects what the page shows and fills the template; the only module that knows both."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from train.data import Data
from train.report import figures, measures, pictures, wording
from train.report.published import (
    DATASET_TITLES,
    PUBLISHED,
    SCANS,
    STUDY_CITATION,
    STUDY_DATASET,
    STUDY_METRICS,
    STUDY_NAME,
)
from train.report.published import study_values as study_of
from train.report.run import SPLITS, Run, Stage, Unfinished
from train.results_format import RobustnessEntry
from train.stages import MEMBERS, STAGES

# slices per class
SAMPLES = 4
# pictures per split
MISTAKES = 12

# splits that no network is trained on
EVALUATED: tuple[str, ...] = ("val", "test")

# the content of files beside the page, by name
Files = dict[str, bytes | str]


def render(run: Run, split: Data) -> tuple[str, Files]:
    """Render the report.

    Args:
        run: what the directory holds.
        split: the data set, with the images and labels of its splits.

    Returns:
        The page as HTML, and the figures beside it by file name.
    """
    files: Files = {}
    with figures.drawing():
        context = _outcome(run, split, files) | _tables(run, split) | _details(run, split, files)
    return _environment().get_template("page.html.jinja").render(context), files


def _outcome(run: Run, split: Data, files: Files) -> dict[str, Any]:
    """What the head of the page shows, and what every section refers to."""
    return {
        "run": run,
        "split": split,
        "title": DATASET_TITLES.get(split.flag, split.flag),
        "smoke": run.smoke,
        "splits": SPLITS,
        "best": run.best,
        "headline": wording.headline(run, split),
        "key_figures": wording.key_figures(run.best),
        "chart": _stage_chart(run, split, files),
        "with_study": split.flag == STUDY_DATASET,
        "study_name": STUDY_NAME,
        "study_citation": STUDY_CITATION,
        "with_members": any(stage.name in MEMBERS for stage in run.stages),
        "not_run": [name for name in STAGES if name not in {stage.name for stage in run.stages}],
        "scans": SCANS.get(split.flag),
    }


def _tables(run: Run, split: Data) -> dict[str, Any]:
    """The tables over all stages, and those that need no stage."""
    return {
        "scores": _metric_table(run, split, STUDY_METRICS, with_study=True),
        "more_scores": _metric_table(run, split, ("auc", "ece", "side_merged"), with_study=False),
        "seed_rows": [row for stage in run.stages for row in stage.rows]
        if len(run.seeds) > 1
        else [],
        "calibration_rows": _calibration_rows(run),
        "test_rows": _test_rows(run),
        "published": PUBLISHED.get(split.flag, ()),
        "data_rows": _data_rows(run, split),
        "robustness": _robustness(run),
    }


def _details(run: Run, split: Data, files: Files) -> dict[str, Any]:
    """What the page shows of the best stage and of each stage, and how the run was made."""
    return {
        "training": wording.training(run),
        "stages": [_stage_section(stage, run, split, files) for stage in run.stages],
        "unfinished": [_unfinished_section(stage, files) for stage in run.unfinished],
        "per_class": _per_class(run.best, split),
        "mistakes": _mistakes(run.best, split, files),
        "reliability": _reliability(run.best, split, files),
        "record": wording.record(run, split),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "grouped": wording.grouped,
        "duration": wording.duration,
        "anchor": anchor,
    }
    return environment


def anchor(name: str) -> str:
    """Turn a stage's name into a part of a file name or of an address on the page."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "stage"


def _add(files: Files, name: str, figure: Figure, alt: str, *, png: bool = False) -> Markup:
    """Add a figure to the files, and return it for the page."""
    svg = figures.to_svg(figure, name)
    files[f"{name}.svg"] = svg
    if png:
        files[f"{name}.png"] = figures.to_png(figure)
    # matplotlib built it, and escapes what it is given
    return Markup(figures.inline(svg, alt))


def _stage_chart(run: Run, split: Data, files: Files) -> Markup | None:
    if not run.stages:
        return None
    figure = figures.accuracy_by_stage(run, with_study=split.flag == STUDY_DATASET)
    return _add(files, "accuracy_by_stage", figure, wording.chart_alt(run), png=True)


def _metric_table(
    run: Run, split: Data, metrics: tuple[str, ...], *, with_study: bool
) -> dict[str, Any]:
    """Rows of cells, split by split; under a stage the reference study's values, if it has any."""
    rows = []
    for stage in run.stages:
        cells = [(name, *stage.value(name, metric)) for name in SPLITS for metric in metrics]
        study = [study_of(split.flag, stage.name, name) for name in SPLITS] if with_study else []
        rows.append(
            {
                "name": stage.name,
                "member": stage.name in MEMBERS,
                "best": run.best is not None and stage.name == run.best.name,
                "cells": cells,
                "study": [
                    (name, value)
                    for name, values in zip(SPLITS, study, strict=True)
                    for value in (values or (None,) * len(metrics))
                ]
                if any(study)
                else [],
            }
        )
    return {"metrics": metrics, "rows": rows}


def _calibration_rows(run: Run) -> list[dict[str, Any]]:
    """The temperature of each stage, and ECE before and after it; empty if no stage has one."""
    rows = [
        {
            "name": stage.name,
            "best": run.best is not None and stage.name == run.best.name,
            "temperature": ", ".join(wording.number(row.temperature) for row in stage.rows),
            "cells": [
                (name, metric, *stage.value(name, metric))
                for name in ("val", "test")
                for metric in ("ece", "ece_calibrated")
            ],
        }
        for stage in run.stages
    ]
    return (
        rows
        if any(row.temperature is not None for stage in run.stages for row in stage.rows)
        else []
    )


def _test_rows(run: Run) -> list[dict[str, Any]]:
    """Test accuracy of each stage with its interval, and the counts behind it."""
    rows = []
    for stage in run.stages:
        matrix = stage.shown.confusion("test")
        accuracy, deviation = stage.value("test", "accuracy")
        rows.append(
            {
                "name": stage.name,
                "best": run.best is not None and stage.name == run.best.name,
                "accuracy": accuracy,
                "deviation": deviation,
                "interval": measures.accuracy_interval(matrix),
                "right": None if matrix is None else int(np.trace(matrix)),
                "slices": None if matrix is None else int(matrix.sum()),
            }
        )
    return rows


def _data_rows(run: Run, split: Data) -> dict[str, Any]:
    """Counts of every class by split, with sample slices of train."""
    # those of the whole file, of which a smoke run uses only a part
    recorded = run.dataset.counts
    classes = len(split.classes)
    counts = {
        name: np.asarray(recorded.get(name) or np.bincount(split.labels[name], minlength=classes))
        for name in SPLITS
    }
    rows = []
    for i, label in enumerate(split.classes):
        chosen = pictures.samples(split.labels["train"], i, SAMPLES)
        rows.append(
            {
                "label": label,
                "samples": [pictures.data_uri(split.images["train"][k]) for k in chosen],
                "counts": [
                    (name, int(counts[name][i]), counts[name][i] / counts[name].max())
                    for name in SPLITS
                ],
            }
        )
    return {"rows": rows, "totals": [(name, int(counts[name].sum())) for name in SPLITS]}


def _stage_section(stage: Stage, run: Run, split: Data, files: Files) -> dict[str, Any]:
    shown, name = stage.shown, anchor(stage.name)
    trained = [row for row in stage.rows if row.history]
    matrices = []
    for part in ("train", "val"):
        matrix = shown.confusion(part)
        if matrix is None:
            continue
        figure = figures.confusion(matrix, split.classes)
        alt = wording.confusion_alt(stage.name, part, matrix, split.classes)
        matrices.append(
            (part, int(matrix.sum()), _add(files, f"{name}_confusion_{part}", figure, alt))
        )
    return {
        "name": stage.name,
        "about": STAGES[stage.name].title if stage.name in STAGES else "",
        "facts": wording.facts(stage, run),
        "seed": shown.seed if len(stage.rows) > 1 else None,
        "curves": _add(
            files,
            f"{name}_curves",
            figures.curves(trained),
            wording.curves_alt(stage.name, trained),
        )
        if trained
        else None,
        "matrices": matrices,
    }


def _unfinished_section(stage: Unfinished, files: Files) -> dict[str, Any]:
    curves = None
    if stage.history:
        figure = figures.curves([stage])
        curves = _add(
            files, f"{anchor(stage.name)}_curves", figure, wording.curves_alt(stage.name, [stage])
        )
    return {"name": stage.name, "epochs": len(stage.history), "curves": curves}


def _per_class(best: Stage | None, split: Data) -> list[dict[str, Any]]:
    if best is None:
        return []
    tables = {part: best.shown.confusion(part) for part in EVALUATED}
    columns = {
        part: measures.per_class(matrix) for part, matrix in tables.items() if matrix is not None
    }
    unknown = {"precision": None, "recall": None, "f1": None, "support": None}
    return [
        {
            "label": label,
            "values": [(part, columns[part][i] if part in columns else unknown) for part in tables],
        }
        for i, label in enumerate(split.classes)
    ]


def _mistakes(
    best: Stage | None, split: Data, files: Files
) -> dict[str, list[dict[str, Any]]] | None:
    """Pictures of the most confident mistakes by split; None if no probabilities were kept."""
    probabilities = best.shown.probabilities if best else {}
    by_split = {
        part: measures.confident_mistakes(probabilities[part], split.labels[part], MISTAKES)
        for part in EVALUATED
        if part in probabilities
    }
    for part, mistakes in by_split.items():
        if mistakes:
            images = [split.images[part][m.index] for m in mistakes]
            sheet = figures.contact_sheet(images, [_caption(m, split.classes) for m in mistakes])
            files[f"mistakes_{part}.png"] = figures.to_png(sheet, dpi=120)
    return {
        part: [_mistake(m, part, split) for m in mistakes] for part, mistakes in by_split.items()
    } or None


def _caption(mistake: measures.Mistake, classes: Sequence[str]) -> str:
    """The text under a mistake on the contact sheet."""
    return (
        f"{classes[mistake.predicted]} {wording.number(mistake.probability)}\n"
        f"true: {classes[mistake.true]}, no. {mistake.index}"
    )


def _mistake(mistake: measures.Mistake, part: str, split: Data) -> dict[str, Any]:
    """A mistake as the page shows it."""
    return {
        "image": pictures.data_uri(split.images[part][mistake.index]),
        "index": mistake.index,
        "true": split.classes[mistake.true],
        "predicted": split.classes[mistake.predicted],
        "probability": mistake.probability,
    }


def _robustness(run: Run) -> list[dict[str, Any]]:
    """Tables of the corrupted slices: one pair per split and number of slices, test and more slices first."""
    names = figures.by_ladder(list(dict.fromkeys(entry.name for entry in run.robustness)))
    by_slices: dict[tuple[str, int], list[RobustnessEntry]] = {}
    for entry in sorted(run.robustness, key=lambda entry: names.index(entry.name)):
        by_slices.setdefault((entry.split, entry.slices), []).append(entry)
    order = sorted(by_slices, key=lambda key: (key[0] != "test", -key[1]))
    return [
        {
            "split": part,
            "slices": slices,
            "of": by_slices[part, slices][0].split_slices,
            "entries": by_slices[part, slices],
            "corruptions": _by_corruption(by_slices[part, slices]),
        }
        for part, slices in order
    ]


def _by_corruption(entries: list[RobustnessEntry]) -> list[tuple[str, list[float]]]:
    """The mean accuracy over severities of each entry, by corruption."""
    return [
        (name.replace("_", " "), [statistics.fmean(entry.accuracy[name]) for entry in entries])
        for name in entries[0].accuracy
    ]


def _reliability(best: Stage | None, split: Data, files: Files) -> Markup | None:
    probabilities = best.shown.probabilities if best else {}
    points = {
        part: measures.reliability(probabilities[part], split.labels[part])
        for part in EVALUATED
        if part in probabilities and len(probabilities[part])
    }
    if best is None or not points:
        return None
    alt = wording.reliability_alt(best.name, points)
    return _add(files, "reliability", figures.reliability_diagram(points), alt, png=True)
