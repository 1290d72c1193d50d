"""The evaluation in the page: metrics, classes, confusion matrix, reliability diagram, mistakes."""

from collections.abc import Iterator, Mapping

from ..evaluation.calibration import ECE_BINS
from ..evaluation.text import interval_text, metric_text
from ..evaluation.types import Evaluation, Mistake
from ..page.parts import count_text, list_rows, path_span, table, text

__all__ = ["evaluation_section"]

# Of more classes, the matrix has no room: the most frequent confusions are listed.
MATRIX_CLASSES = 40
CONFUSIONS = 50
# The diagram, in units of its view box: the square of the plot, and the strip with the slices of each bin.
LEFT, TOP, SIDE, STRIP = 34, 8, 260, 36


def evaluation_section(
    evaluation: Evaluation, pictures: Mapping[str, str], mistake_paths: Mapping[int, str]
) -> Iterator[str]:
    """Yield the section.

    Args:
        evaluation: Of the slices with labels.
        pictures: Path -> data address of its picture.
        mistake_paths: Index of a mistake -> its path.
    """
    yield '<section aria-labelledby="evaluation">\n<h2 id="evaluation">Evaluation</h2>\n'
    yield f"<p>{_scope(evaluation)}</p>\n"
    yield '<div class="evaluation">\n<div><h3>Metrics</h3>\n'
    yield _metrics(evaluation)
    yield "<h3>Classes</h3>\n"
    yield _classes(evaluation)
    yield "</div>\n<div><h3>Reliability</h3>\n"
    yield _reliability(evaluation)
    yield "</div>\n</div>\n<h3>Confusions</h3>\n"
    yield _confusions(evaluation)
    yield from _mistakes(evaluation, pictures, mistake_paths)
    yield "</section>\n"


def _scope(evaluation: Evaluation) -> str:
    parts = [f"{count_text(evaluation.slices, 'slice')} with a label"]
    if evaluation.unlabeled:
        parts.append(f"{evaluation.unlabeled:,} left out because they have no label")
    if evaluation.unknown_labels:
        names = ", ".join(
            f"{text(name)} ({count:,})" for name, count in evaluation.unknown_labels.items()
        )
        parts.append(f"left out because the model does not have their label: {names}")
    return "; ".join(parts) + "."


def _metrics(evaluation: Evaluation) -> str:
    weighted = "<small>weighted by the slices of the classes</small>"
    interval = interval_text(evaluation).removeprefix(", ")
    return list_rows(
        {
            "accuracy": f"{evaluation.accuracy:.4f} <small>{interval}</small>",
            "precision": f"{evaluation.precision:.4f} {weighted}",
            "recall": f"{evaluation.recall:.4f} {weighted}",
            "F1": f"{evaluation.f1:.4f} {weighted}",
            "ECE": f"{evaluation.ece:.4f} <small>expected calibration error, {ECE_BINS} bins</small>",
        }
    )


def _classes(evaluation: Evaluation) -> str:
    heads = [
        "<th>class</th>",
        *(
            f'<th class="n">{name}</th>'
            for name in ("slices", "predicted", "precision", "recall", "F1")
        ),
    ]
    rows = (
        f'<tr><td>{text(row.label)}</td><td class="n">{row.slices:,}</td><td class="n">{row.predicted:,}</td>'
        + "".join(
            f'<td class="n">{metric_text(value)}</td>'
            for value in (row.precision, row.recall, row.f1)
        )
        + "</tr>"
        for row in evaluation.per_class
    )
    return table(heads, rows, "Metrics by class")


# Confusions.


def _confusions(evaluation: Evaluation) -> str:
    if len(evaluation.classes) > MATRIX_CLASSES:
        return _frequent_confusions(evaluation)
    heads = [
        "<th>true class</th>",
        *(f'<th scope="col"><span>{text(label)}</span></th>' for label in evaluation.classes),
    ]
    rows = (
        f'<tr><th scope="row">{text(label)}</th>{_cells(counts, i)}</tr>'
        for i, (label, counts) in enumerate(
            zip(evaluation.classes, evaluation.confusion, strict=True)
        )
    )
    return (
        '<p class="note">Rows are true classes, columns predicted classes. The shade is the share of the row.</p>\n'
        f'<div class="matrix">{table(heads, rows, "Confusion matrix")}</div>'
    )


def _cells(counts: tuple[int, ...], i: int) -> str:
    total = sum(counts)
    cells = []
    for j, count in enumerate(counts):
        kind = "zero"
        if count:
            # Nine shades; even a single mistake has the first.
            shade = max(1, min(9, round(9 * count / total)))
            kind = f"{'hit' if i == j else 'miss'}{shade}"
        cells.append(f'<td class="{kind}">{f"{count:,}" if count else "·"}</td>')
    return "".join(cells)


def _frequent_confusions(evaluation: Evaluation) -> str:
    pairs = sorted(
        (-count, i, j)
        for i, counts in enumerate(evaluation.confusion)
        for j, count in enumerate(counts)
        if count and i != j
    )
    rows = (
        f"<tr><td>{text(evaluation.classes[i])}</td><td>{text(evaluation.classes[j])}</td>"
        f'<td class="n">{-count:,}</td></tr>'
        for count, i, j in pairs[:CONFUSIONS]
    )
    heads = ["<th>true class</th>", "<th>predicted</th>", '<th class="n">slices</th>']
    return f'<div class="matrix">{table(heads, rows, "Most frequent confusions")}</div>'


# Reliability.


def _reliability(evaluation: Evaluation) -> str:
    """Return the diagram: the accuracy of each bin of the probability, and the number of its slices."""
    bins = evaluation.reliability
    width = SIDE / len(bins)
    largest = max(each.slices for each in bins)
    bottom = TOP + SIDE
    shapes = []
    for i, each in enumerate(bins):
        if each.accuracy is None or each.confidence is None:
            continue
        x = LEFT + i * width
        title = (
            f"<title>probability {each.lower:.2f} to {each.upper:.2f}: {count_text(each.slices, 'slice')},"
            f" mean probability {each.confidence:.3f}, accuracy {each.accuracy:.3f}</title>"
        )
        # A bin with one slice is visible, too.
        share = max(STRIP * each.slices / largest, 1)
        shapes.append(
            f"<g>{title}"
            + _rect("accuracy", x, bottom - SIDE * each.accuracy, width, SIDE * each.accuracy)
            + f'<line class="confidence" x1="{x + 0.5:.1f}" x2="{x + width - 0.5:.1f}"'
            f' y1="{bottom - SIDE * each.confidence:.1f}" y2="{bottom - SIDE * each.confidence:.1f}"/>'
            + _rect("share", x, bottom + 24 + STRIP - share, width, share)
            + "</g>"
        )
    ticks = "".join(
        f'<text x="{LEFT + SIDE * value:g}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>'
        f'<text x="{LEFT - 6}" y="{bottom - SIDE * value + 4:g}" text-anchor="end">{value:g}</text>'
        for value in (0, 0.5, 1)
    )
    height = bottom + STRIP + 46
    return f"""<svg class="diagram" viewBox="0 0 {LEFT + SIDE + 12} {height}" role="img" aria-label="Reliability diagram. The expected calibration error is {evaluation.ece:.4f}.">
<rect class="axis" x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>{"".join(shapes)}
<line class="ideal" x1="{LEFT}" y1="{bottom}" x2="{LEFT + SIDE}" y2="{TOP}"/>{ticks}
<text x="{LEFT + SIDE / 2:g}" y="{bottom + STRIP + 40}" text-anchor="middle">probability; below: slices per bin</text>
</svg>
<p class="note">Bars: the accuracy of the slices whose highest probability is in this bin. Marks: their mean probability. A bar
that ends below its mark is too confident.</p>
"""


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x + 0.5:.1f}" y="{y:.1f}" width="{width - 1:.1f}"'
        f' height="{height:.1f}"/>'
    )


# Mistakes.


def _mistakes(
    evaluation: Evaluation, pictures: Mapping[str, str], mistake_paths: Mapping[int, str]
) -> Iterator[str]:
    yield "<h3>Most confident mistakes</h3>\n"
    if not evaluation.mistakes:
        yield "<p>None.</p>\n"
        return
    yield '<div class="pictures">\n'
    for mistake in evaluation.mistakes:
        path = mistake_paths.get(mistake.index, "")
        yield _figure(mistake, path, pictures.get(path))
    yield "</div>\n"


def _figure(mistake: Mistake, path: str, picture: str | None) -> str:
    image = (
        '<div class="thumb none">no picture</div>'
        if picture is None
        else f'<img src="{picture}" alt="" loading="lazy">'
    )
    return (
        f'<figure>{image}<figcaption><b class="differs">{text(mistake.predicted)}'
        f" {mistake.probability:.3f}</b><b>labeled {text(mistake.label)}</b>{path_span(path)}</figcaption></figure>\n"
    )
