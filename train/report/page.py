"""Gathers what the page shows and fills the template; the only module that knows both."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from train.report import figures, measures, pictures, wording
from train.report.published import (
    DATASET_TITLES,
    PUBLISHED,
    SCANS,
    STUDY_DATASET,
    STUDY_METRICS,
)
from train.report.published import study_values as study_of
from train.report.run import SPLITS, Row, Run, Stage
from train.stages import MEMBERS, STAGES

SAMPLES = 4  # slices a class
MISTAKES = 12  # pictures a split


def render(run: Run, split: Any) -> tuple[str, dict[str, bytes | str]]:
    """The page, and the figures beside it by file name."""
    files: dict[str, bytes | str] = {}
    best = run.best
    with figures.drawing():
        context = {
            "run": run,
            "split": split,
            "title": DATASET_TITLES.get(split.flag, split.flag),
            "smoke": run.smoke,
            "splits": SPLITS,
            "best": best,
            "headline": wording.headline(run, split),
            "key_figures": wording.key_figures(best),
            "chart": _stage_chart(run, split, files),
            "scores": _metric_table(run, split, STUDY_METRICS, with_study=True),
            "more_scores": _metric_table(run, split, ("auc", "ece", "side_merged"), with_study=False),
            "seed_rows": [row for stage in run.stages for row in stage.rows] if len(run.seeds) > 1 else [],
            "calibration_rows": _calibration_rows(run),
            "test_rows": _test_rows(run),
            "published": PUBLISHED.get(split.flag, ()),
            "with_study": split.flag == STUDY_DATASET,
            "with_members": any(stage.name in MEMBERS for stage in run.stages),
            "data_rows": _data_rows(run, split),
            "training": wording.training(run),
            "stages": [_stage_section(stage, run, split, files) for stage in run.stages],
            "unfinished": [_unfinished_section(row, files) for row in run.unfinished],
            "not_run": [name for name in STAGES if name not in {s.name for s in run.stages}],
            "per_class": _per_class(best, split),
            "mistakes": _mistakes(best, split, files),
            "reliability": _reliability(best, split, files),
            "robustness": _robustness(run),
            "record": wording.record(run, split),
            "scans": SCANS.get(split.flag),
        }
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
    return environment.get_template("page.html.jinja").render(context), files


def anchor(name: str) -> str:
    """A stage's name as part of a file name or of an address on the page."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "stage"


def _add(files: dict[str, bytes | str], name: str, figure: Figure, alt: str, *, png: bool = False) -> Markup:
    """Keep a figure as a file, and return it for the page."""
    svg = figures.to_svg(figure, name)
    files[f"{name}.svg"] = svg
    if png:
        files[f"{name}.png"] = figures.to_png(figure)
    return Markup(figures.inline(svg, alt))  # built by matplotlib, which escapes what it is given


def _stage_chart(run: Run, split: Any, files: dict[str, bytes | str]) -> Markup | None:
    if not run.stages:
        return None
    figure = figures.accuracy_by_stage(run, with_study=split.flag == STUDY_DATASET)
    return _add(files, "accuracy_by_stage", figure, wording.chart_alt(run), png=True)


def _metric_table(run: Run, split: Any, metrics: tuple[str, ...], *, with_study: bool) -> dict[str, Any]:
    """Rows of cells, split by split; under a stage the study's values where there are any."""
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
    """The temperature of each stage and ECE before and after it; empty where no stage has one."""
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
    return rows if any(row.temperature is not None for stage in run.stages for row in stage.rows) else []


def _test_rows(run: Run) -> list[dict[str, Any]]:
    rows = []
    for stage in run.stages:
        matrix = stage.shown.confusion("test")
        accuracy, spread = stage.value("test", "accuracy")
        rows.append(
            {
                "name": stage.name,
                "best": run.best is not None and stage.name == run.best.name,
                "accuracy": accuracy,
                "spread": spread,
                "interval": measures.accuracy_interval(matrix),
                "right": None if matrix is None else int(np.trace(matrix)),
                "slices": None if matrix is None else int(matrix.sum()),
            }
        )
    return rows


def _data_rows(run: Run, split: Any) -> dict[str, Any]:
    """Counts of every class by split, with sample slices of train."""
    recorded = (run.results.get("dataset") or {}).get("counts") or {}
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
                    (name, int(counts[name][i]), counts[name][i] / counts[name].max()) for name in SPLITS
                ],
            }
        )
    return {"rows": rows, "totals": [(name, int(counts[name].sum())) for name in SPLITS]}


def _stage_section(stage: Stage, run: Run, split: Any, files: dict[str, bytes | str]) -> dict[str, Any]:
    shown, name = stage.shown, anchor(stage.name)
    trained = [row for row in stage.rows if row.history]
    matrices = []
    for part in ("train", "val"):
        matrix = shown.confusion(part)
        if matrix is None:
            continue
        figure = figures.confusion(matrix, split.classes)
        alt = wording.confusion_alt(stage.name, part, matrix, split.classes)
        matrices.append((part, int(matrix.sum()), _add(files, f"{name}_confusion_{part}", figure, alt)))
    return {
        "name": stage.name,
        "about": STAGES[stage.name].title if stage.name in STAGES else "",
        "facts": wording.facts(stage, run),
        "seed": shown.seed if len(stage.rows) > 1 else None,
        "curves": _add(
            files, f"{name}_curves", figures.curves(trained), wording.curves_alt(stage.name, trained)
        )
        if trained
        else None,
        "matrices": matrices,
    }


def _unfinished_section(row: Row, files: dict[str, bytes | str]) -> dict[str, Any]:
    curves = None
    if row.history:
        figure = figures.curves([row])
        curves = _add(files, f"{anchor(row.name)}_curves", figure, wording.curves_alt(row.name, [row]))
    return {"name": row.name, "epochs": len(row.history), "curves": curves}


def _per_class(best: Stage | None, split: Any) -> list[dict[str, Any]]:
    if best is None:
        return []
    tables = {part: best.shown.confusion(part) for part in ("val", "test")}
    columns = {part: measures.per_class(matrix) for part, matrix in tables.items() if matrix is not None}
    unknown = {"precision": None, "recall": None, "f1": None, "support": None}
    return [
        {
            "label": label,
            "values": [(part, columns[part][i] if part in columns else unknown) for part in tables],
        }
        for i, label in enumerate(split.classes)
    ]


def _mistakes(best: Stage | None, split: Any, files: dict[str, bytes | str]) -> dict[str, Any] | None:
    """Pictures of the most confident mistakes by split; None where no probabilities were kept."""
    probabilities = best.shown.probabilities if best else {}
    found = {}
    for part in ("val", "test"):
        if part not in probabilities:
            continue
        rows = measures.confident_mistakes(probabilities[part], split.labels[part], MISTAKES)
        shown = [
            {
                "image": pictures.data_uri(split.images[part][m.index]),
                "index": m.index,
                "true": split.classes[m.true],
                "predicted": split.classes[m.predicted],
                "probability": m.probability,
            }
            for m in rows
        ]
        if shown:
            captions = [
                f"{m['predicted']} {wording.number(m['probability'])}\ntruly {m['true']}, no. {m['index']}"
                for m in shown
            ]
            sheet = figures.contact_sheet([split.images[part][m.index] for m in rows], captions)
            files[f"mistakes_{part}.png"] = figures.to_png(sheet, dpi=120)
        found[part] = shown
    return found or None


def _robustness(run: Run) -> list[dict[str, Any]]:
    """Tables of the corrupted slices: one pair for each split and number of slices, test and more slices first."""
    names = figures.by_ladder(list(dict.fromkeys(entry["name"] for entry in run.robustness)))
    entries = sorted(run.robustness, key=lambda entry: names.index(entry["name"]))
    kinds = {(entry["split"], entry["slices"]) for entry in entries}
    tables = []
    for part, slices in sorted(kinds, key=lambda kind: (kind[0] != "test", -kind[1])):
        same = [entry for entry in entries if (entry["split"], entry["slices"]) == (part, slices)]
        tables.append(
            {
                "split": part,
                "slices": slices,
                "of": same[0]["split_slices"],
                "entries": same,
                "corruptions": [
                    (name.replace("_", " "), [statistics.fmean(entry["accuracy"][name]) for entry in same])
                    for name in same[0]["accuracy"]
                ],
            }
        )
    return tables


def _reliability(best: Stage | None, split: Any, files: dict[str, bytes | str]) -> Markup | None:
    probabilities = best.shown.probabilities if best else {}
    points = {
        part: measures.reliability(probabilities[part], split.labels[part])
        for part in ("val", "test")
        if part in probabilities and len(probabilities[part])
    }
    if best is None or not points:
        return None
    alt = wording.reliability_alt(best.name, points)
    return _add(files, "reliability", figures.reliability_diagram(points), alt, png=True)
