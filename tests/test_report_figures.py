"""The report's charts, as matplotlib holds them: which numbers are drawn, where, and whether they can be read."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tests.support.result_rows import split_metrics, stage_result
from train.report import figures
from train.report.measures import Reliability
from train.report.run import Row, Run, Stage
from train.results_format import MeanStd, Results, StageSummary

CLASSES = ("kidney-left", "kidney-right", "liver")
# unbalanced, not symmetric: the first class is taken for the second, never the other way
MATRIX = np.array([[40, 60, 0], [0, 9, 1], [2, 0, 2]])
NAMES = {"train": "train", "val": "validation", "test": "test"}


def row(
    name: str, seed: int = 1, *, epochs: int = 0, best: int | None = None, **accuracy: float
) -> Row:
    """A stage with a seed; its history falls and rises by numbers of its own."""
    scores = {split: split_metrics(accuracy=value) for split, value in accuracy.items()}
    made = Row(Path("/nowhere"), stage_result(name, seed, best_epoch=best, **scores), CLASSES)
    columns = {"train_loss": 2.0, "val_loss": 3.0, "train_accuracy": 0.3, "val_accuracy": 0.2}
    made.__dict__["history"] = [
        {"epoch": float(epoch)}
        | {key: start + seed / 100 + epoch / 1000 for key, start in columns.items()}
        for epoch in range(1, epochs + 1)
    ]
    return made


def run_of(*stages: Stage) -> Run:
    return Run(Path("/nowhere"), Results(), stages, ())


def lines_of(axes: Any, split: str) -> list[Any]:
    """The lines in a split's color, in the order in which they were drawn."""
    color = {"train": "#7b828c", "val": "#0072b2", "test": "#d55e00"}[split]
    return [
        line for line in axes.lines if to_hex(line.get_color()) == color and len(line.get_xdata())
    ]


def points(line: Any) -> list[tuple[float, float]]:
    return list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def assert_legible(figure: Figure) -> None:
    """Nothing is cut off, texts of a kind do not overlap, and none is smaller than 6 points."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    whole = figure.bbox.padded(1.5)
    for axes in figure.axes:
        texts = [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            seen = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [label for tick in seen for label in (tick.label1, tick.label2)]
        boxes = []
        for text in [text for text in texts if text.get_text() and text.get_visible()]:
            box = text.get_window_extent(renderer)
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1, text.get_text()
            assert whole.y0 <= box.y0 and box.y1 <= whole.y1, text.get_text()
            assert text.get_fontsize() >= 6
            if not text.get_rotation() % 90:
                boxes.append((text.get_text(), box))
        for i, (name, box) in enumerate(boxes):
            for other, second in boxes[i + 1 :]:
                assert not box.padded(-2).overlaps(second.padded(-2)), (name, other)
    panels = [axes.get_window_extent(renderer) for axes in figure.axes]
    for i, panel in enumerate(panels):
        assert panel.width > 40 and panel.height > 40
        assert (
            whole.x0 <= panel.x0
            and panel.x1 <= whole.x1
            and whole.y0 <= panel.y0
            and panel.y1 <= whole.y1
        )
        assert not any(panel.padded(-1).overlaps(other.padded(-1)) for other in panels[i + 1 :])
    for legend in [
        *figure.legends,
        *(axes.get_legend() for axes in figure.axes if axes.get_legend()),
    ]:
        box = legend.get_window_extent(renderer)
        assert (
            whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        )
    for legend in figure.legends:
        assert not any(
            legend.get_window_extent(renderer).padded(-2).overlaps(panel) for panel in panels
        )


# accuracy by stage

STAGES = (
    Stage("base", (row("base", train=0.81, val=0.72, test=0.63),)),
    Stage("resnet50", (row("resnet50", train=0.92, val=0.83, test=0.74),)),
    Stage("ensemble", (row("ensemble", train=0.95, val=0.86, test=0.77),)),
)


@pytest.mark.parametrize(
    ("split", "joined", "alone"),
    [("train", [0.81, 0.95], 0.92), ("val", [0.72, 0.86], 0.83), ("test", [0.63, 0.77], 0.74)],
)
def test_stages_are_joined_and_members_of_the_ensemble_stand_alone(split, joined, alone):
    with figures.drawing():
        (axes,) = figures.accuracy_by_stage(run_of(*STAGES), with_study=False).axes
    rungs, members = lines_of(axes, split)
    assert points(rungs) == [(0, joined[0]), (2, joined[1])] and rungs.get_label() == NAMES[split]
    assert points(members) == [(1, alone)]
    assert members.get_linestyle() == "None" and members.get_markerfacecolor() == "none"
    assert (
        rungs.get_marker() == members.get_marker() == {"train": "s", "val": "o", "test": "^"}[split]
    )
    assert [text.get_text() for text in axes.get_xticklabels()] == ["base", "resnet50", "ensemble"]
    assert list(axes.get_xticks()) == [0, 1, 2]
    assert axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > 2


def test_each_split_has_a_color_and_a_marker_of_its_own():
    assert len(set(figures.COLORS.values())) == len(set(figures.MARKERS.values())) == 3
    assert figures.LABELS == NAMES


def test_the_reference_studys_accuracies_are_dashed_in_the_color_of_their_split():
    with figures.drawing():
        figure = figures.accuracy_by_stage(run_of(*STAGES), with_study=True)
    (axes,) = figure.axes
    # Table 10 of the reference study: base and ensemble; of resnet50 it has no row
    for split, base, ensemble in (
        ("train", 0.774, 0.956),
        ("val", 0.817, 0.924),
        ("test", 0.680, 0.811),
    ):
        study = lines_of(axes, split)[2]
        assert points(study) == [(0, base), (2, ensemble)] and study.get_linestyle() == "--"
        assert (
            study.get_markerfacecolor() == "none"
            and lines_of(axes, split)[0].get_linestyle() == "-"
        )
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["train", "validation", "test", "reference study"]
    assert_legible(figure)


def test_without_the_study_nothing_is_dashed():
    with figures.drawing():
        figure = figures.accuracy_by_stage(run_of(*STAGES), with_study=False)
    assert all(line.get_linestyle() != "--" for line in figure.axes[0].lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "train",
        "validation",
        "test",
    ]


def test_a_split_that_is_not_measured_leaves_a_gap():
    stages = (STAGES[0], Stage("big", (row("big", train=0.9),)), STAGES[2])
    with figures.drawing():
        (axes,) = figures.accuracy_by_stage(run_of(*stages), with_study=False).axes
    values = [value for _, value in points(lines_of(axes, "test")[0])]
    assert values[0] == 0.63 and math.isnan(values[1]) and values[2] == 0.77


def test_bars_of_several_seeds_are_one_standard_deviation():
    seeds = (
        row("base", 1, train=0.8, val=0.7, test=0.6),
        row("base", 2, train=0.9, val=0.8, test=0.8),
    )
    with figures.drawing():
        (axes,) = figures.accuracy_by_stage(
            run_of(Stage("base", seeds), STAGES[1]), with_study=False
        ).axes
    assert len(axes.containers) == 3
    for container, mean, deviation in zip(
        axes.containers,
        (0.85, 0.75, 0.7),
        (0.5**0.5 / 10, 0.5**0.5 / 10, 0.5**0.5 / 5),
        strict=True,
    ):
        (bars,) = container[2]
        first, second = (segment[:, 1] for segment in bars.get_segments())
        assert first == pytest.approx([mean - deviation, mean + deviation])
        assert second[0] == second[1]  # one seed has no spread
    with figures.drawing():
        (axes,) = figures.accuracy_by_stage(run_of(*STAGES), with_study=False).axes
    assert not axes.containers


def test_the_chart_of_a_whole_ladder_and_of_one_stage_can_be_read():
    names = ("base", "early_stopping", "big", "augmentation", "batch_norm")
    names += ("resnet50", "resnet101", "resnet152", "ensemble", "edge")
    ladder = [Stage(name, (row(name, train=0.9, val=0.8, test=0.7),)) for name in names]
    with figures.drawing():
        for stages in (ladder, ladder[:1]):
            figure = figures.accuracy_by_stage(run_of(*stages), with_study=True)
            assert_legible(figure)
            assert figure.get_size_inches()[0] == pytest.approx(4.6)
            low, high = figure.axes[0].get_xlim()
            assert low < 0 and high > len(stages) - 1 and high - low < len(stages) + 0.5


# curves


def test_curves_draw_each_column_of_the_history_under_its_name():
    with figures.drawing():
        figure = figures.curves([row("big", epochs=4, best=3)])
        assert_legible(figure)
    loss, accuracy = figure.axes
    assert (loss.get_title(loc="left"), accuracy.get_title(loc="left")) == ("loss", "accuracy")
    assert loss.get_position().y0 > accuracy.get_position().y1
    expected = {
        (loss, "train"): 2.01,
        (loss, "val"): 3.01,
        (accuracy, "train"): 0.31,
        (accuracy, "val"): 0.21,
    }
    for (axes, split), start in expected.items():
        (line,) = lines_of(axes, split)
        assert points(line) == [(e, pytest.approx(start + e / 1000)) for e in (1, 2, 3, 4)]
        assert (
            line.get_label() == NAMES[split]
            and line.get_marker() == {"train": "s", "val": "o"}[split]
        )
    assert accuracy.get_xlabel() == "epoch" and loss.get_xlabel() == ""
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "validation"]
    colors = [to_hex(line.get_color()) for line in figure.legends[0].get_lines()]
    assert colors == ["#7b828c", "#0072b2"]


def test_the_kept_epoch_is_marked_in_both_panels():
    with figures.drawing():
        figure = figures.curves([row("big", epochs=4, best=3)])
    for axes in figure.axes:
        (kept,) = [line for line in axes.lines if to_hex(line.get_color()) == figures.MUTED]
        assert list(kept.get_xdata()) == [3, 3] and kept.get_linestyle() == "--"


def test_the_epochs_of_the_axis_are_whole_numbers():
    with figures.drawing():
        figure = figures.curves([row("big", epochs=2, best=1)])
    figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in figure.axes[1].get_xticks())


def test_several_seeds_are_lines_of_their_own_without_a_kept_epoch():
    rows = [row("big", seed, epochs=3, best=2) for seed in (1, 2)]
    with figures.drawing():
        figure = figures.curves(rows)
        alone = figures.curves(rows[:1])
    for axes, single in zip(figure.axes, alone.axes, strict=True):
        assert len(axes.lines) == 4
        for split in ("train", "val"):
            first, second = lines_of(axes, split)
            assert second.get_ydata()[0] - first.get_ydata()[0] == pytest.approx(0.01)
            (thick,) = lines_of(single, split)
            assert first.get_linewidth() < thick.get_linewidth() and first.get_alpha() < 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "validation"]


@pytest.mark.parametrize(("epochs", "marked"), [(30, True), (31, False)])
def test_epochs_are_marked_while_they_can_be_told_apart(epochs, marked):
    with figures.drawing():
        figure = figures.curves([row("big", epochs=epochs, best=1)])
    (line,) = lines_of(figure.axes[0], "val")
    assert (line.get_marker() == "o") == marked and len(line.get_xdata()) == epochs


def test_a_column_that_an_older_run_does_not_have_is_left_out():
    made = row("big", epochs=2, best=1)
    for line in made.history:
        del line["val_loss"]
    with figures.drawing():
        figure = figures.curves([made])
    assert np.isnan(lines_of(figure.axes[0], "val")[0].get_ydata()).all()
    assert not np.isnan(lines_of(figure.axes[0], "train")[0].get_ydata()).any()


# confusion


def test_the_matrix_has_true_classes_in_rows_from_the_top_and_predicted_ones_in_columns():
    with figures.drawing():
        figure = figures.confusion(MATRIX, CLASSES)
        assert_legible(figure)
    (axes,) = figure.axes
    places = {
        (text.get_position()[1] // 1, text.get_position()[0] // 1): text for text in axes.texts
    }
    assert {place: int(text.get_text()) for place, text in places.items()} == {
        (0, 0): 40,
        (0, 1): 60,
        (1, 1): 9,
        (1, 2): 1,
        (2, 0): 2,
        (2, 2): 2,
    }
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 3), (3, 0))
    for ticks, labels in (
        (axes.get_xticks(), axes.get_xticklabels()),
        (axes.get_yticks(), axes.get_yticklabels()),
    ):
        assert list(ticks) == [0.5, 1.5, 2.5] and [text.get_text() for text in labels] == list(
            CLASSES
        )
    said, true = sorted(figure.texts, key=lambda text: -text.get_position()[1])
    assert (said.get_text(), true.get_text()) == ("predicted →", "true ↓")


def test_the_matrix_is_shaded_by_the_root_of_the_share_of_the_true_class():
    with figures.drawing():
        (axes,) = figures.confusion(MATRIX, CLASSES).axes
    shades = {(patch.get_y(), patch.get_x()): patch.get_alpha() for patch in axes.patches}
    shares = {(0, 0): 0.4, (0, 1): 0.6, (1, 1): 0.9, (1, 2): 0.1, (2, 0): 0.5, (2, 2): 0.5}
    assert shades == {
        place: pytest.approx(0.95 * share**0.5, abs=6e-4) for place, share in shares.items()
    }
    assert all((patch.get_width(), patch.get_height()) == (1, 1) for patch in axes.patches)
    assert {to_hex(patch.get_facecolor()) for patch in axes.patches} == {figures.FILL}


def luminance(color: Any) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.6, 0.63, 0.8, 1.0])
def test_the_numbers_of_the_matrix_stand_out_from_their_squares(share):
    count = round(1000 * share)
    with figures.drawing():
        (axes,) = figures.confusion(np.array([[count, 1000 - count], [0, 1]]), ("a", "b")).axes
    (square,) = [patch for patch in axes.patches if patch.get_xy() == (0, 0)]
    (text,) = [
        text for text in axes.texts if text.get_position()[0] < 1 and text.get_position()[1] < 1
    ]
    fill, alpha = np.array(to_rgb(square.get_facecolor())), square.get_alpha()
    background = luminance(fill * alpha + (1 - alpha))
    ink = luminance(text.get_color())
    contrast = (max(background, ink) + 0.05) / (min(background, ink) + 0.05)
    assert contrast > 3


@pytest.mark.parametrize(("classes", "largest"), [(11, 99_999), (20, 999)])
def test_large_counts_and_those_of_many_classes_fill_their_squares(classes, largest):
    matrix = np.random.default_rng(0).integers(largest // 2, largest, (classes, classes))
    with figures.drawing():
        figure = figures.confusion(matrix, [f"class-{i}" for i in range(classes)])
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        (axes,) = figure.axes
        square = axes.get_window_extent(renderer).width / classes
        widths = [text.get_window_extent(renderer).width for text in axes.texts]
    assert 0.8 * square < max(widths) <= square + 0.5  # texts are drawn on whole pixels


@pytest.mark.parametrize("classes", [11, 60, 300])
def test_long_names_of_many_classes_stay_in_the_figure_and_do_not_overlap(classes):
    names = [f"{i:03} {'a name of a class as long as it may be' * 2}"[:60] for i in range(classes)]
    with figures.drawing():
        figure = figures.confusion(np.eye(classes, dtype=int), names)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        (axes,) = figure.axes
        rows = [label.get_window_extent(renderer) for label in axes.get_yticklabels()]
    assert min(box.x0 for box in rows) >= 0
    tops = sorted(box.y0 for box in rows)
    assert min(np.diff(tops)) >= 0.8 * rows[0].height - 1


@pytest.mark.parametrize("matrix", [np.zeros((2, 2), int), np.array([[0, 0], [3, 1]])])
def test_classes_without_slices_leave_their_row_empty(matrix):
    with figures.drawing():
        (axes,) = figures.confusion(matrix, ("a", "b")).axes
    assert len(axes.texts) == len(axes.patches) == np.count_nonzero(matrix)
    assert all(patch.get_y() == 1 for patch in axes.patches)


# reliability

POINTS = {
    "val": Reliability(np.array([0.4, 0.9]), np.array([0.2, 0.95]), np.array([1, 3])),
    "test": Reliability(np.array([0.5]), np.array([0.7]), np.array([8])),
}


def test_reliability_is_the_share_right_over_the_probability_and_the_share_of_slices_below():
    with figures.drawing():
        figure = figures.reliability_diagram(POINTS)
        assert_legible(figure)
    upper, lower = figure.axes
    assert (upper.get_title(loc="left"), lower.get_title(loc="left")) == (
        "share right",
        "share of the slices",
    )
    assert points(lines_of(upper, "val")[0]) == [(0.4, 0.2), (0.9, 0.95)]
    assert points(lines_of(upper, "test")[0]) == [(0.5, 0.7)]
    assert points(lines_of(lower, "val")[0]) == [(0.4, 0.25), (0.9, 0.75)]
    assert points(lines_of(lower, "test")[0]) == [(0.5, 1.0)]
    (perfect,) = [line for line in upper.lines if line.get_label() == "perfect"]
    assert points(perfect) == [(0, 0), (1, 1)] and perfect.get_linestyle() == "--"
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == ["perfect", "validation", "test"]
    assert lower.get_xlabel() == "mean top probability of the bin"
    assert upper.get_position().y0 > lower.get_position().y1


def test_the_reliability_diagram_shows_all_of_0_to_1_and_counts_from_0():
    with figures.drawing():
        upper, lower = figures.reliability_diagram(POINTS).axes
    for low, high in (upper.get_xlim(), upper.get_ylim(), lower.get_xlim()):
        assert low == 0 and 1 < high < 1.1
    assert lower.get_ylim()[0] == 0 and lower.get_ylim()[1] >= 1


# contact sheet


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (1, 1), (4, 1), (5, 2), (12, 3)])
def test_the_contact_sheet_shows_each_slice_over_its_caption(count, rows):
    images = [np.full((8, 8), 20 * i, np.uint8) for i in range(count)]
    with figures.drawing():
        figure = figures.contact_sheet(images, [f"caption {i}" for i in range(count)])
        assert_legible(figure)
    assert len(figure.axes) == 4 * rows
    for i, axes in enumerate(figure.axes):
        assert not axes.axison
        if i >= count:
            assert not axes.images and not axes.texts
            continue
        (image,), (text,) = axes.images, axes.texts
        assert np.array_equal(image.get_array(), images[i]) and text.get_text() == f"caption {i}"
        assert image.get_clim() == (0, 255) and image.get_cmap().name == "gray"
        assert text.get_position()[1] < 0 and text.get_transform() == axes.transAxes
        assert (text.get_ha(), text.get_va(), text.get_position()[0]) == ("center", "top", 0.5)


# files


def test_names_stand_in_the_ladders_order_and_unknown_ones_last():
    assert figures.by_ladder(["other", "edge", "base", "ensemble", "big"]) == [
        "base",
        "big",
        "ensemble",
        "edge",
        "other",
    ]


def simple() -> Figure:
    figure = Figure(figsize=(4.6, 3.0))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=figures.COLORS["val"])
    axes.set_title("a title", color=figures.INK)
    return figure


def test_an_svg_is_the_same_every_time_and_has_ids_of_its_own():
    with figures.drawing():
        first, again = figures.to_svg(simple(), "one"), figures.to_svg(simple(), "one")
        other = figures.to_svg(simple(), "two")
    assert first == again != other
    clips = [set(re.findall(r'clipPath id="([^"]+)"', text)) for text in (first, other)]
    assert clips[0] and not clips[0] & clips[1]
    assert (
        "<dc:date>" not in first
        and "Matplotlib" not in first.partition("<defs>")[0].partition("<svg")[2]
    )
    assert ">a title</text>" in first  # text, not outlines


def test_an_svg_has_no_background_of_its_own():
    with figures.drawing():
        svg = figures.to_svg(simple(), "one")
    patch = svg[svg.index('id="patch_1"') :].partition("</g>")[0]
    assert "fill: none" in patch or "opacity: 0" in patch


def test_a_png_is_on_white_and_large_enough_to_print():
    with figures.drawing():
        content, fine = figures.to_png(simple()), figures.to_png(simple(), dpi=100)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (736, 480) and picture.info.get("Software") is None
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    with Image.open(io.BytesIO(fine)) as picture:
        assert picture.size == (460, 300)


@pytest.fixture(scope="module")
def inlined() -> str:
    with figures.drawing():
        return figures.inline(figures.to_svg(simple(), "one"), 'says <a> & "b"')


def test_a_figure_for_the_page_scales_to_its_width_and_is_named(inlined):
    head = inlined[: inlined.index('px">') + 4]
    # 4.6 inches of 72 points, each 4/3 pixels of a style sheet
    assert head == (
        '<svg role="img" aria-label="says &lt;a> &amp; &quot;b&quot;" viewBox="0 0 331.2 216" '
        'style="max-width:442px">'
    )
    assert inlined.rstrip().endswith("</svg>") and inlined.count("<svg") == 1


def test_a_figure_for_the_page_takes_colors_and_font_from_the_style_sheet(inlined):
    assert "var(--series-val)" in inlined and "var(--ink)" in inlined and "var(--sans)" in inlined
    for color in (*figures.COLORS.values(), figures.INK, figures.MUTED, figures.GRID, figures.FILL):
        assert color not in inlined
    assert "DejaVu" not in inlined
    style = (Path(figures.__file__).parent / "style.css").read_text()
    for variable in (*figures.VARIABLES.values(), "sans"):
        assert f"--{variable}:" in style, variable


def test_a_figure_for_the_page_leaves_out_what_only_a_file_needs(inlined):
    for tag in (
        "<?xml",
        "<!DOCTYPE",
        "<metadata",
        "<style",
        "<!--",
        "<g id=",
        "<g/>",
        "\n\n",
        "rotate(-0 ",
    ):
        assert tag not in inlined, tag
    assert inlined.count("<g") == inlined.count("</g>")


def test_an_svg_without_size_is_shown_at_the_usual_one():
    found = figures.inline("<svg><g/></svg>", "none")
    assert 'viewBox="0 0 331 331"' in found and "max-width:440px" in found


def test_drawing_puts_the_callers_settings_back():
    before = dict(matplotlib.rcParams)
    with figures.drawing():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
        assert matplotlib.rcParams["text.parse_math"] is False  # a class may hold a dollar sign
        assert (
            not matplotlib.rcParams["axes.spines.top"]
            and not matplotlib.rcParams["axes.spines.right"]
        )
        assert (
            not matplotlib.rcParams["legend.frameon"]
            and matplotlib.rcParams["axes.axisbelow"] is True
        )
        assert matplotlib.rcParams["axes.grid"]
    assert dict(matplotlib.rcParams) == before


def test_the_grid_of_the_stages_is_horizontal_alone_and_the_matrix_has_none():
    with figures.drawing():
        (chart,) = figures.accuracy_by_stage(run_of(*STAGES), with_study=False).axes
        (matrix,) = figures.confusion(MATRIX, CLASSES).axes
    assert not any(line.get_visible() for line in chart.get_xgridlines())
    assert any(line.get_visible() for line in chart.get_ygridlines())
    assert not any(
        line.get_visible() for line in (*matrix.get_xgridlines(), *matrix.get_ygridlines())
    )
    assert all(spine.get_visible() for spine in matrix.spines.values())


def test_a_summary_gives_the_means_of_the_chart():
    summary = StageSummary("base", [1, 2], val={"accuracy": MeanStd(0.5, 0.25)})
    rows = (
        row("base", 1, train=0.8, val=0.7, test=0.6),
        row("base", 2, train=0.9, val=0.8, test=0.8),
    )
    with figures.drawing():
        (axes,) = figures.accuracy_by_stage(
            run_of(Stage("base", rows, summary)), with_study=False
        ).axes
    assert points(lines_of(axes, "val")[0]) == [(0, 0.5)]
    (bars,) = axes.containers[1][2]
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.25, 0.75])


# the look of the figures: change it here when it is changed on purpose

DASHED, DOTTED = (0, (3, 2)), (0, (2, 2))


def look(line: Any) -> tuple[float, float]:
    """Width of a line and size of its markers, in points."""
    return line.get_linewidth(), line.get_markersize()


def dashes(line: Any) -> tuple[float, tuple[float, ...]]:
    offset, lengths = line._unscaled_dash_pattern
    return offset, tuple(lengths)


def title(axes: Any) -> tuple[float, float, str]:
    """Size, distance from the panel and color of a title."""
    pad = axes.titleOffsetTrans.get_matrix()[1, 2] * 72 / axes.get_figure().dpi
    text = axes._left_title
    return text.get_fontsize(), pytest.approx(pad), to_hex(text.get_color())


def ticks(axes: Any) -> set[float]:
    return {
        tick.tick1line.get_markersize()
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
    }


def test_the_look_of_the_chart_of_stages():
    seeds = (
        row("base", 1, train=0.8, val=0.7, test=0.6),
        row("base", 2, train=0.9, val=0.8, test=0.8),
    )
    with figures.drawing():
        figure = figures.accuracy_by_stage(
            run_of(Stage("base", seeds), *STAGES[1:]), with_study=True
        )
    (axes,) = figure.axes
    rungs, members, study = (
        lines_of(axes, "val")[0],
        lines_of(axes, "val")[1],
        lines_of(axes, "val")[-1],
    )
    assert (look(rungs), look(study)) == ((1.8, 5), (1, 3.5))
    assert members.get_markersize() == 4.5
    (named,) = [line for line in axes.lines if line.get_label() == "reference study"]
    assert dashes(study) == dashes(named) == DASHED and look(named)[0] == 1
    assert len(named.get_xdata()) == 0
    for container in axes.containers:
        _, caps, (bars,) = container.lines
        assert {cap.get_markersize() for cap in caps} == {5} and bars.get_linewidth()[0] == 1
    assert tuple(figure.get_size_inches()) == (4.6, 3.45) and ticks(axes) == {0}
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {35}
    legend = figure.legends[0]
    assert (legend._ncols, legend.handlelength, legend.columnspacing) == (4, 1.6, 1.2)
    assert axes.get_xlim() == pytest.approx((-0.4, 2.4))
    with figures.drawing():
        (alone,) = figures.accuracy_by_stage(run_of(STAGES[0]), with_study=False).axes
    assert alone.get_xlim() == pytest.approx((-0.4, 0.4))


def test_the_look_of_the_curves():
    rows = [row("big", seed, epochs=3, best=2) for seed in (1, 2)]
    with figures.drawing():
        several, alone = figures.curves(rows), figures.curves(rows[:1])
    for axes in alone.axes:
        (line,), (kept,) = (
            lines_of(axes, "val"),
            [line for line in axes.lines if len(set(line.get_xdata())) == 1],
        )
        assert look(line) == (1.7, 3)
        assert (kept.get_linewidth(), dashes(kept)) == (0.9, DOTTED)
        assert title(axes) == (9, 5, figures.INK) and ticks(axes) == {0}
    for axes in several.axes:
        assert {look(line) for line in axes.lines} == {(1, 2)}
        assert {line.get_alpha() for line in axes.lines} == {0.75}
    assert tuple(alone.get_size_inches()) == (4.6, 4.3)
    assert alone.axes[0].get_xlim() == alone.axes[1].get_xlim()
    assert (alone.legends[0]._ncols, alone.legends[0].handlelength) == (2, 1.6)


def test_the_look_of_the_matrix():
    with figures.drawing():
        figure = figures.confusion(MATRIX, CLASSES)
    (axes,) = figure.axes
    assert {text.get_fontsize() for text in axes.texts} == {8.0}
    assert all(patch.get_linewidth() == 0 and not patch.get_clip_on() for patch in axes.patches)
    assert {
        label.get_fontsize() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    } == {8}
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {90}
    tick = axes.xaxis.get_major_ticks()[0]
    assert tick.label2.get_visible() and not tick.label1.get_visible() and ticks(axes) == {0}
    assert tick.tick2line.get_visible() and not tick.tick1line.get_visible() and tick.get_pad() == 3
    assert {text.get_fontsize() for text in figure.texts} == {7.5}
    assert tuple(figure.get_size_inches()) == (4.6, 4.6) and axes.get_aspect() == 1


@pytest.mark.parametrize(("share", "color"), [((0.75 / 0.95) ** 2, figures.INK), (0.63, "white")])
def test_numbers_turn_white_on_squares_darker_than_three_quarters(share, color):
    count = round(1e6 * share)
    with figures.drawing():
        (axes,) = figures.confusion(np.array([[count, 1_000_000 - count], [0, 1]]), ("a", "b")).axes
    (text,) = [text for text in axes.texts if text.get_text() == str(count)]
    assert to_hex(text.get_color()) == to_hex(color)


def test_the_look_of_the_reliability_diagram():
    with figures.drawing():
        figure = figures.reliability_diagram(POINTS)
    upper, lower = figure.axes
    (perfect,) = [line for line in upper.lines if line.get_label() == "perfect"]
    assert (perfect.get_linewidth(), dashes(perfect)) == (0.9, DOTTED)
    assert look(lines_of(upper, "val")[0]) == (1.6, 4.5) and look(lines_of(lower, "val")[0]) == (
        1.2,
        3.5,
    )
    assert (title(upper), title(lower)) == ((9, 5, figures.INK), (9, 4, figures.INK))
    assert ticks(upper) == ticks(lower) == {0}
    assert not any(tick.label1.get_visible() for tick in upper.xaxis.get_major_ticks())
    assert tuple(figure.get_size_inches()) == (4.6, 4.6) and upper.get_legend().handlelength == 1.6
    assert upper.get_xlim() == upper.get_ylim() == (0, 1.02)


def test_the_look_of_the_contact_sheet():
    with figures.drawing():
        figure = figures.contact_sheet([np.zeros((8, 8), np.uint8)] * 5, ["a\nb"] * 5)
    assert tuple(figure.get_size_inches()) == pytest.approx((6.0, 3.9))
    (text,) = figure.axes[0].texts
    assert text.get_fontsize() == 6.5
    place = figure.subplotpars
    assert (place.left, place.right, place.top, place.bottom) == (
        0.01,
        0.99,
        0.99,
        pytest.approx(0.104),
    )
    # slices beside each other are closer than slices over each other, between which their captions stand
    assert (place.wspace, place.hspace) == (0.06, 0.36)


def test_the_look_of_all_figures():
    with figures.drawing():
        found = {
            key: matplotlib.rcParams[key]
            for key in ("font.size", "legend.fontsize", "axes.linewidth", "grid.linewidth")
        }
    assert found == {
        "font.size": 8.5,
        "legend.fontsize": 8.5,
        "axes.linewidth": 0.8,
        "grid.linewidth": 0.6,
    }
