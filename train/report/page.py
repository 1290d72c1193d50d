"""Renders the page: collects its content and fills the template page.html.jinja."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from organ_infer.names import escape_path
from train.bundled import describe_bundle
from train.data import Data
from train.report import figures, measures, pictures, wording
from train.report.mpl import Figure
from train.report.published import (
    DATASET_TITLES,
    PUBLISHED,
    SCANS,
    STUDY_CITATION,
    STUDY_DATASET,
    STUDY_METRICS,
    STUDY_NAME,
    study_values,
)
from train.report.run import SPLITS, Run, Stage, Unfinished
from train.results_format import RobustnessEntry
from train.stages import DEFAULT, MEMBERS, STAGES

# slices per class
SAMPLES = 4
# pictures per split
MISTAKES = 12

# splits that no network is trained on
EVALUATED: tuple[str, ...] = ("val", "test")


class Files(dict[str, bytes | str]):
    """The content of files beside the page, by name.

    Attributes:
        figures: that they show, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, Figure] = {}


def render(run: Run, data: Data) -> tuple[str, Files]:
    """Render the report.

    Args:
        run: the run.
        data: its data set.

    Returns:
        The page as HTML, and the figures beside it by file name.
    """
    files = Files()
    with figures.drawing():
        context = _outcome(run, data, files) | _tables(run, data) | _details(run, data, files)
    return _environment().get_template("page.html.jinja").render(context), files


def _outcome(run: Run, data: Data, files: Files) -> dict[str, Any]:
    """Return the content of the page's head, and what every section refers to."""
    return {
        "run": run,
        "data": data,
        "title": DATASET_TITLES.get(data.flag, data.flag),
        "own_path": escape_path(data.own.path, one_line=True) if data.own else "",
        "smoke": run.smoke,
        "splits": SPLITS,
        "best": run.best,
        "headline": wording.headline(run, data),
        "bundle": describe_bundle(run.results, *run.bundle) if run.bundle else [],
        "key_figures": wording.key_figures(run.best),
        "chart": _stage_chart(run, data, files),
        "with_study": data.flag == STUDY_DATASET,
        "study_name": STUDY_NAME,
        "study_citation": STUDY_CITATION,
        "with_members": any(stage.name in MEMBERS for stage in run.stages),
        "not_run": [
            name
            for name in STAGES
            if name in DEFAULT and name not in {stage.name for stage in run.stages}
        ],
        "scans": SCANS.get(data.flag),
    }


def _tables(run: Run, data: Data) -> dict[str, Any]:
    """Return the tables over all stages, and those that need no stage."""
    return {
        "scores": _metric_table(run, data, STUDY_METRICS, with_study=True),
        "more_scores": _metric_table(run, data, ("auc", "ece", "side_merged"), with_study=False),
        "seed_rows": [row for stage in run.stages for row in stage.rows]
        if len(run.seeds) > 1
        else [],
        "calibration_rows": _calibration_rows(run),
        "rejected_temperatures": wording.rejected_temperatures(run),
        "test_rows": _test_rows(run),
        "published": PUBLISHED.get(data.flag, ()),
        "data_rows": _data_rows(run, data),
        "robustness": _robustness(run),
    }


def _details(run: Run, data: Data, files: Files) -> dict[str, Any]:
    """Return the sections about the best stage and about each stage, and the provenance of the run."""
    return {
        "training": wording.training(run),
        "stages": [_stage_section(stage, run, data, files) for stage in run.stages],
        "unfinished": [_unfinished_section(stage, files) for stage in run.unfinished],
        "per_class": _per_class(run.best, data),
        "mistakes": _mistakes(run.best, data, files),
        "reliability": _reliability(run.best, data, files),
        "record": wording.record(run, data),
    }


@cache
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
    """Convert a stage's name to a part of a file name or of an anchor on the page."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "stage"


def _add(files: Files, name: str, figure: Figure, alt: str, *, png: bool = False) -> Markup:
    """Add a figure to the files, and return it for the page."""
    svg = figures.to_svg(figure, name)
    files[f"{name}.svg"] = svg
    files.figures[name] = figure
    if png:
        files[f"{name}.png"] = figures.to_png(figure)
    # safe without escaping: matplotlib wrote this SVG and escapes its texts
    return Markup(figures.inline(svg, alt))


def _stage_chart(run: Run, data: Data, files: Files) -> Markup | None:
    if not run.stages:
        return None
    figure = figures.accuracy_by_stage(run, with_study=data.flag == STUDY_DATASET)
    return _add(files, "accuracy_by_stage", figure, wording.chart_alt(run), png=True)


def _metric_table(
    run: Run, data: Data, metrics: tuple[str, ...], *, with_study: bool
) -> dict[str, Any]:
    """Return a row per stage, with a cell per split and metric, and the reference study's values if it has any."""
    rows = []
    for stage in run.stages:
        cells = [(split, *stage.value(split, metric)) for split in SPLITS for metric in metrics]
        study = (
            [study_values(data.flag, stage.name, split) for split in SPLITS] if with_study else []
        )
        rows.append(
            {
                "name": stage.name,
                "member": stage.name in MEMBERS,
                "best": run.best is not None and stage.name == run.best.name,
                "cells": cells,
                "study": [
                    (split, value)
                    for split, values in zip(SPLITS, study, strict=True)
                    for value in (values or (None,) * len(metrics))
                ]
                if any(study)
                else [],
            }
        )
    return {"metrics": metrics, "rows": rows}


def _calibration_rows(run: Run) -> list[dict[str, Any]]:
    """Return the temperature of each stage, and ECE before and after calibration; empty if no stage has one."""
    rows = [
        {
            "name": stage.name,
            "best": run.best is not None and stage.name == run.best.name,
            "temperature": ", ".join(wording.number(row.temperature) for row in stage.rows),
            "cells": [
                (split, metric, *stage.value(split, metric))
                for split in ("val", "test")
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
    """Return the test accuracy of each stage with its interval, and the number of slices."""
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


def _data_rows(run: Run, data: Data) -> dict[str, Any]:
    """Return the number of slices of each class by split, with sample slices of train."""
    # counts of the whole file, because a smoke run uses only a part of it
    recorded = run.dataset.counts
    classes = len(data.classes)
    counts = {
        split: np.asarray(recorded.get(split) or np.bincount(data.labels[split], minlength=classes))
        for split in SPLITS
    }
    rows = []
    for i, label in enumerate(data.classes):
        indices = pictures.samples(data.labels["train"], i, SAMPLES)
        rows.append(
            {
                "label": label,
                "samples": [pictures.data_uri(data.images["train"][k]) for k in indices],
                "counts": [
                    (split, int(counts[split][i]), counts[split][i] / counts[split].max())
                    for split in SPLITS
                ],
            }
        )
    return {"rows": rows, "totals": [(split, int(counts[split].sum())) for split in SPLITS]}


def _stage_section(stage: Stage, run: Run, data: Data, files: Files) -> dict[str, Any]:
    shown, name = stage.shown, anchor(stage.name)
    trained = [row for row in stage.rows if row.history]
    matrices = []
    for split in ("train", "val"):
        matrix = shown.confusion(split)
        if matrix is None:
            continue
        figure = figures.confusion(matrix, data.classes)
        alt = wording.confusion_alt(stage.name, split, matrix, data.classes)
        matrices.append(
            (split, int(matrix.sum()), _add(files, f"{name}_confusion_{split}", figure, alt))
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


def _per_class(best: Stage | None, data: Data) -> list[dict[str, Any]]:
    if best is None:
        return []
    tables = {split: best.shown.confusion(split) for split in EVALUATED}
    columns = {
        split: measures.per_class(matrix) for split, matrix in tables.items() if matrix is not None
    }
    unknown = {"precision": None, "recall": None, "f1": None, "support": None}
    return [
        {
            "label": label,
            "values": [
                (split, columns[split][i] if split in columns else unknown) for split in tables
            ],
        }
        for i, label in enumerate(data.classes)
    ]


def _mistakes(
    best: Stage | None, data: Data, files: Files
) -> dict[str, list[dict[str, Any]]] | None:
    """Return pictures of the most confident mistakes by split; None without probabilities."""
    probabilities = best.shown.probabilities if best else {}
    by_split = {
        split: measures.confident_mistakes(probabilities[split], data.labels[split], MISTAKES)
        for split in EVALUATED
        if split in probabilities
    }
    for split, mistakes in by_split.items():
        if mistakes:
            images = [data.images[split][m.index] for m in mistakes]
            sheet = figures.contact_sheet(images, [_caption(m, data.classes) for m in mistakes])
            files[f"mistakes_{split}.png"] = figures.to_png(sheet, dpi=120)
            files.figures[f"mistakes_{split}"] = sheet
    return {
        split: [_mistake(m, split, data) for m in mistakes] for split, mistakes in by_split.items()
    } or None


def _caption(mistake: measures.Mistake, classes: Sequence[str]) -> str:
    """Return the text under a mistake on the contact sheet."""
    return (
        f"{classes[mistake.predicted]} {wording.number(mistake.probability)}\n"
        f"true: {classes[mistake.true]}, no. {mistake.index}"
    )


def _mistake(mistake: measures.Mistake, split: str, data: Data) -> dict[str, Any]:
    """Return a mistake as the template takes it."""
    return {
        "image": pictures.data_uri(data.images[split][mistake.index]),
        "index": mistake.index,
        "true": data.classes[mistake.true],
        "predicted": data.classes[mistake.predicted],
        "probability": mistake.probability,
    }


def _robustness(run: Run) -> list[dict[str, Any]]:
    """Return the robustness tables, two per split and number of slices: test first, then more slices first."""
    names = figures.by_ladder(list(dict.fromkeys(entry.name for entry in run.robustness)))
    by_slices: dict[tuple[str, int], list[RobustnessEntry]] = {}
    for entry in sorted(run.robustness, key=lambda entry: names.index(entry.name)):
        by_slices.setdefault((entry.split, entry.slices), []).append(entry)
    order = sorted(by_slices, key=lambda key: (key[0] != "test", -key[1]))
    return [
        {
            "split": split,
            "slices": slices,
            "of": by_slices[split, slices][0].split_slices,
            "entries": by_slices[split, slices],
            "corruptions": _by_corruption(by_slices[split, slices]),
        }
        for split, slices in order
    ]


def _by_corruption(entries: list[RobustnessEntry]) -> list[tuple[str, list[float]]]:
    """Return the mean accuracy over severities of each entry, by corruption."""
    return [
        (name.replace("_", " "), [statistics.fmean(entry.accuracy[name]) for entry in entries])
        for name in entries[0].accuracy
    ]


def _reliability(best: Stage | None, data: Data, files: Files) -> Markup | None:
    probabilities = best.shown.probabilities if best else {}
    points = {
        split: measures.reliability(probabilities[split], data.labels[split])
        for split in EVALUATED
        if split in probabilities and len(probabilities[split])
    }
    if best is None or not points:
        return None
    alt = wording.reliability_alt(best.name, points)
    return _add(files, "reliability", figures.reliability_diagram(points), alt, png=True)
