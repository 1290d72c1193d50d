"""The charts of the report, drawn with matplotlib, and their SVG for a page in light or dark mode.

Each function returns a Figure about 4.6 inches wide. At that width its text is still legible on a phone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from organ_infer.errors import shorten
from train.report.measures import Reliability
from train.report.mpl import Axes, Figure, Rectangle, matplotlib
from train.report.published import STUDY
from train.report.run import SPLITS, Row, Run, Unfinished
from train.stages import MEMBERS, STAGES

# Okabe and Ito's blue and vermilion, and a gray: distinct for any color vision, and in gray by their markers.
INK, MUTED, GRID, FILL = "#1c1f23", "#5b626d", "#dcd9d1", "#0b6aa6"
COLORS = {"train": "#7b828c", "val": "#0072b2", "test": "#d55e00"}
MARKERS = {"train": "s", "val": "o", "test": "^"}
LABELS = {"train": "train", "val": "validation", "test": "test"}
# On the page each color is replaced by a variable of the style sheet, which differs in dark mode and print.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", FILL: "fill"} | {
    color: f"series-{split}" for split, color in COLORS.items()
}
# inches
WIDTH = 4.6
# characters of a class's name beside a confusion matrix
LABEL_LIMIT = 15


@contextmanager
def drawing() -> Iterator[None]:
    """Apply settings for all figures in a `with` block, and restore the caller's settings after it.

    What is not set here is matplotlib's default, not the choice of the user's matplotlibrc, which may ask for LaTeX.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "text.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def accuracy_by_stage(run: Run, *, with_study: bool) -> Figure:
    """Plot train, validation and test accuracy of every stage.

    Args:
        run: a run with at least one stage. Members of the ensemble are markers without a line. Several seeds have error
            bars.
        with_study: also plot the accuracies of the reference study, dashed.
    """
    stages = run.stages
    figure = Figure(figsize=(WIDTH, 3.45))
    axes = figure.add_axes((0.105, 0.21, 0.875, 0.69))
    for split in SPLITS:
        _accuracy(axes, run, split, with_study=with_study)
    if with_study:
        axes.plot([], [], color=MUTED, lw=1, ls=(0, (3, 2)), label="reference study")
    axes.set_xticks(
        range(len(stages)),
        [stage.name for stage in stages],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_xlim(-0.4, max(len(stages) - 0.6, 0.4))
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)
    figure.legend(
        loc="upper left", bbox_to_anchor=(0.085, 1.0), ncols=4, handlelength=1.6, columnspacing=1.2
    )
    return figure


def _accuracy(axes: Axes, run: Run, split: str, *, with_study: bool) -> None:
    """Plot the accuracy of every stage on one split."""
    stages, color, marker = run.stages, COLORS[split], MARKERS[split]
    joined = [i for i, stage in enumerate(stages) if stage.name not in MEMBERS]
    members = [i for i in range(len(stages)) if i not in joined]
    means, deviations = zip(*(stage.value(split, "accuracy") for stage in stages), strict=True)
    y = np.array([math.nan if mean is None else mean for mean in means])
    axes.plot(joined, y[joined], color=color, marker=marker, ms=5, lw=1.8, label=LABELS[split])
    axes.plot(members, y[members], ls="", color=color, marker=marker, ms=4.5, mfc="none")
    if any(deviation is not None for deviation in deviations):
        bars = [deviation or 0.0 for deviation in deviations]
        axes.errorbar(range(len(stages)), y, yerr=bars, fmt="none", ecolor=color, capsize=2.5, lw=1)
    if with_study:
        known = [i for i in joined if stages[i].name in STUDY]
        study = [STUDY[stages[i].name][split][0] for i in known]
        axes.plot(
            known, study, color=color, marker=marker, ms=3.5, lw=1, ls=(0, (3, 2)), mfc="none"
        )


def curves(rows: Sequence[Row | Unfinished]) -> Figure:
    """Plot loss and, below it, accuracy by epoch.

    Args:
        rows: the seeds of a stage. Several seeds are thin lines. A single seed has a vertical line at its best epoch.
    """
    figure = Figure(figsize=(WIDTH, 4.3))
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.115, right=0.985, top=0.94, bottom=0.095, hspace=0.2)
    for axes, metric in ((loss, "loss"), (accuracy, "accuracy")):
        for split in ("train", "val"):
            for row in rows:
                _curve(axes, row, f"{split}_{metric}", split, thin=len(rows) > 1)
        axes.tick_params(length=0)
        axes.set_title(metric, loc="left", fontsize=9, color=INK, pad=5)
    best_epoch = rows[0].best_epoch if len(rows) == 1 else None
    if best_epoch is not None:
        for axes in (loss, accuracy):
            axes.axvline(best_epoch, color=MUTED, lw=0.9, ls=(0, (2, 2)))
    accuracy.set_xlabel("epoch")
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = loss.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(),
        unique.keys(),
        loc="upper right",
        bbox_to_anchor=(1.0, 1.015),
        ncols=2,
        handlelength=1.6,
    )
    return figure


def _curve(axes: Axes, row: Row | Unfinished, column: str, split: str, *, thin: bool) -> None:
    epochs = [line["epoch"] for line in row.history]
    values = [line.get(column, math.nan) for line in row.history]
    style: dict[str, Any] = {"lw": 1, "alpha": 0.75, "ms": 2} if thin else {"lw": 1.7, "ms": 3}
    marker = MARKERS[split] if len(epochs) <= 30 else None
    axes.plot(epochs, values, color=COLORS[split], marker=marker, label=LABELS[split], **style)


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix, shaded by the square root of the share of the row.

    Args:
        matrix: int (classes, classes) counts, rows true, columns predicted.
        classes: the names of the classes, in the matrix's order.
    """
    n = len(matrix)
    figure = Figure(figsize=(WIDTH, WIDTH))
    axes = figure.add_axes((0.215, 0.005, 0.78, 0.78))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    digits = max(len(str(matrix.max(initial=0))), 3)
    # the width of a digit is 0.64 of the font size
    size = min(8.0, WIDTH * 72 * 0.78 / n / (0.66 * digits))
    for i, j in np.argwhere(matrix > 0):
        # the square root makes rare confusions visible
        shade = round(0.95 * math.sqrt(shares[i, j]), 3)
        axes.add_patch(Rectangle((j, i), 1, 1, fc=FILL, alpha=shade, lw=0, clip_on=False))
        color = "white" if shade > 0.75 else INK
        axes.text(
            j + 0.5, i + 0.52, str(matrix[i, j]), ha="center", va="center", size=size, color=color
        )
    axes.set(xlim=(0, n), ylim=(n, 0), aspect="equal")
    labels = [shorten(label, LABEL_LIMIT) for label in classes]
    axes.set_xticks(np.arange(n) + 0.5, labels, rotation=90, color=INK)
    axes.set_yticks(np.arange(n) + 0.5, labels, color=INK)
    # many labels do not overlap, although they can only be read when the figure is enlarged
    label_size = min(8.0, 0.9 * WIDTH * 72 * 0.78 / n)
    axes.tick_params(
        length=0,
        top=True,
        labeltop=True,
        bottom=False,
        labelbottom=False,
        pad=3,
        labelsize=label_size,
    )
    axes.spines[:].set_visible(True)
    axes.grid(visible=False)
    figure.text(0.2, 0.80, "predicted →", ha="right", va="bottom", size=7.5, color=MUTED)
    figure.text(0.2, 0.775, "true ↓", ha="right", va="bottom", size=7.5, color=MUTED)
    return figure


def reliability_diagram(points: dict[str, Reliability]) -> Figure:
    """Plot accuracy against the mean top probability by bin, and below it the share of the slices by bin.

    Args:
        points: by split.
    """
    figure = Figure(figsize=(WIDTH, 4.6))
    upper = figure.add_axes((0.12, 0.33, 0.865, 0.60))
    lower = figure.add_axes((0.12, 0.09, 0.865, 0.18), sharex=upper)
    upper.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (2, 2)), label="perfect")
    for split, p in points.items():
        color, marker = COLORS[split], MARKERS[split]
        upper.plot(
            p.confidence,
            p.accuracy,
            color=color,
            marker=marker,
            ms=4.5,
            lw=1.6,
            label=LABELS[split],
        )
        lower.plot(
            p.confidence, p.counts / p.counts.sum(), color=color, marker=marker, ms=3.5, lw=1.2
        )
    upper.set(xlim=(0, 1.02), ylim=(0, 1.02))
    upper.set_title("share right", loc="left", fontsize=9, color=INK, pad=5)
    upper.tick_params(length=0, labelbottom=False)
    lower.set_title("share of the slices", loc="left", fontsize=9, color=INK, pad=4)
    lower.set_ylim(bottom=0)
    lower.set_xlabel("mean top probability of the bin")
    lower.tick_params(length=0)
    upper.legend(loc="upper left", handlelength=1.6)
    return figure


def contact_sheet(
    images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 4
) -> Figure:
    """Draw slices with a caption under each, as one picture for use outside the page.

    Args:
        images: uint8 (S, S).
        captions: one per image.
        columns: slices per row.
    """
    rows = max(math.ceil(len(images) / columns), 1)
    figure = Figure(figsize=(1.5 * columns, 1.95 * rows))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(
        left=0.01, right=0.99, top=0.99, bottom=0.13 / rows * 1.6, wspace=0.06, hspace=0.36
    )
    for axes in grid:
        axes.set_axis_off()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", size=6.5)
    return figure


def by_ladder(names: Sequence[str]) -> list[str]:
    """Sort names of stages in the ladder's order, unknown names last."""
    order = {name: i for i, name in enumerate(STAGES)}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def to_svg(figure: Figure, name: str) -> str:
    """Convert a figure to a standalone SVG. `name` makes its ids differ from those of other figures on a page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return text.getvalue()


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """Convert a figure to a PNG on white."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def inline(svg: str, alt: str) -> str:
    """Adapt an SVG of `to_svg` to the page: no fixed size, and colors and font of the style sheet.

    Args:
        svg: as `to_svg` returns it.
        alt: the text alternative.

    Returns:
        The SVG element.
    """
    body = svg[svg.index("<svg") :]
    attributes, body = body[: body.index(">")], body[body.index(">") + 1 :]
    view_box = re.search(r'viewBox="([^"]*)"', attributes)
    width = re.search(r'width="([\d.]+)pt"', attributes)
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL
    )
    body = re.sub(r"<defs>\s*</defs>", "", body)
    # ids of groups repeat in every figure, and nothing refers to them
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"'?DejaVu Sans'?(?:, [^;\"]*)?", "var(--sans)", body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var(--{variable})")
    # rotations by zero, and empty groups
    body = re.sub(r' transform="rotate\(-?0 [^"]*"|<g/>', "", body)
    body = re.sub(r"\n\s*", "\n", body)
    body = re.sub(r"\n+", "\n", body)
    alt = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    pixels = float(width[1]) * 4 / 3 if width else 440
    return (
        f'<svg role="img" aria-label="{alt}" viewBox="{view_box[1] if view_box else "0 0 331 331"}" '
        f'style="max-width:{pixels:.0f}px">{body}'
    )
