"""The page of predictions: one HTML file without other files and outside addresses. Its only script is in the page."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..evaluation.types import Evaluation
from ..page.parts import count_text, head, list_rows, path_span, script_tag, table, text, tiles
from .evaluation_section import evaluation_section
from .rows import Row, Rows
from .script import SCRIPT
from .style import STYLE

__all__ = ["ReportInfo", "page_parts"]

TITLE = "Predicted organs"
LEGEND = (
    "Orange parts of a picture raise the probability of its label, blue parts lower it. Both describe the model, not the"
    " patient."
)
# Choices of the filter by state: state -> its name.
STATES = {
    "uncertain": "uncertain",
    "failed": "failed",
    "warned": "with warnings",
    "wrong": "wrong",
    "correct": "correct",
    "unlabeled": "without a label",
}
ORDERS = {
    "least": "least certain",
    "most": "most certain",
    "name": "label",
    "path": "path",
    "input": "input",
}


@dataclass(frozen=True)
class ReportInfo:
    """What identifies the run.

    Attributes:
        command: The command that ran.
        version: Of organ-infer.
        model: Name of the model.
        sha256: Of the bundle's manifest, which lists all other files.
        dataset: The data set that the model was trained on.
        view: The plane of its slices.
        tta: Whether test-time augmentation was used.
        min_probability: The threshold of uncertain slices, or None.
    """

    command: str
    version: str
    model: str
    sha256: str
    dataset: str
    view: str
    tta: bool
    min_probability: float | None


def page_parts(
    rows: Rows,
    pictures: Mapping[str, str],
    info: ReportInfo,
    evaluation: Evaluation | None = None,
    mistake_paths: Mapping[int, str] | None = None,
    overlays: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Yield the parts of the page.

    Args:
        rows: The collected results.
        pictures: Path -> data address of its thumbnail. A row without one has no picture.
        info: What identifies the run.
        evaluation: If the slices have labels.
        mistake_paths: Index of a mistake of the evaluation -> its path.
        overlays: Path -> data address of the map of what its answer depends on. None without `--explain`.
    """
    kept = rows.kept()
    shown = [*kept, *rows.failures]
    yield head(TITLE, STYLE, SCRIPT)
    yield "<body>\n<main>\n"
    yield _summary(rows, info, evaluation)
    if evaluation is not None:
        yield from evaluation_section(evaluation, pictures, mistake_paths or {})
    yield _counts(rows, evaluation)
    yield f'<section aria-labelledby="slices">\n<h2 id="slices">Slices</h2>\n{_notices(rows, kept)}'
    if overlays is not None:
        yield f'<p class="note">{LEGEND}</p>\n'
    yield _controls(rows, shown, evaluation)
    yield '<ol class="rows" id="rows" tabindex="0" aria-labelledby="slices">\n'
    for row in shown:
        overlay = overlays.get(row.path) if overlays else None
        yield _row(row, pictures.get(row.path), overlay, evaluation is not None)
    yield "</ol>\n</section>\n"
    yield _run(info)
    yield f"</main>\n{script_tag(SCRIPT)}</body>\n</html>\n"


def _summary(rows: Rows, info: ReportInfo, evaluation: Evaluation | None) -> str:
    figures = {"slices classified": f"{rows.classified:,}"}
    if evaluation is not None:
        figures["accuracy"] = f"{evaluation.accuracy:.4f}"
    if info.min_probability is not None:
        figures["uncertain"] = f"{rows.uncertain:,}"
    figures["with warnings"] = f"{rows.warned:,}"
    figures["failed"] = f"{rows.failed:,}"
    return f"""<header>
<p class="kicker">organ-infer</p>
<h1>{TITLE}</h1>
<p class="lede">The answers of the model {text(info.model)} for {text(info.view)} CT slices. Each slice shows the three most
probable labels.</p>
{tiles(figures)}
<p class="disclaimer">Research software, not a medical device.</p>
</header>
"""


def _counts(rows: Rows, evaluation: Evaluation | None) -> str:
    if not rows.names:
        return ""
    largest = max(rows.names.values())
    true = {each.label: each.slices for each in evaluation.per_class} if evaluation else {}
    names = sorted({*rows.names, *(label for label in true if true[label])})
    heads = ["<th>label</th>", f'<th class="n">{"predicted" if true else "slices"}</th>']
    if true:
        heads.append('<th class="n">labeled</th>')
    body = (
        f'<tr><td>{text(name)}</td><td class="n">{rows.names[name]:,}</td>'
        + (f'<td class="n">{true.get(name, 0):,}</td>' if true else "")
        + f"<td>{_bar(rows.names[name] / largest)}</td></tr>"
        for name in names
    )
    return (
        '<section aria-labelledby="counts">\n<h2 id="counts">Counts by label</h2>\n<div class="counts">'
        + table([*heads, "<th></th>"], body, "Counts by label")
        + "</div></section>\n"
    )


def _bar(share: float) -> str:
    return f'<span class="bar w{round(100 * share)}"></span>'


def _notices(rows: Rows, kept: list[Row]) -> str:
    notices = []
    if len(kept) < rows.classified:
        notices.append(
            f"The page has the least certain {len(kept):,} of {count_text(rows.classified, 'slice')}."
            " The figures above are about all of them."
        )
    if len(rows.failures) < rows.failed:
        notices.append(
            f"The page has the first {len(rows.failures):,} of {rows.failed:,} failed images."
        )
    if not kept:
        notices.append("No image was classified.")
    return "".join(f'<p class="notice">{notice}</p>\n' for notice in notices)


# Filters. They are hidden until the script shows them.


def _controls(rows: Rows, shown: list[Row], evaluation: Evaluation | None) -> str:
    states = {state for row in shown for state in _states(row, evaluation is not None)}
    names = sorted({row.top[0][0] for row in shown if row.top})
    fields = [_select("name", "label", {"": "all", **{name: name for name in names}})]
    if evaluation is not None:
        truths = sorted({row.truth for row in shown if row.truth})
        fields.append(_select("truth", "true label", {"": "all", **dict.fromkeys(truths)}))
    present = {state: name for state, name in STATES.items() if state in states}
    fields.append(_select("state", "show", {"": "all", **present}))
    fields.append(
        '<div><label for="f-low">probability from, to</label><div class="range">'
        + "".join(
            f'<input id="f-{name}" type="number" min="0" max="1" step="0.001" placeholder="{value}"'
            f' aria-label="probability {word}">'
            for name, value, word in (("low", 0, "from"), ("high", 1, "to"))
        )
        + "</div></div>"
    )
    fields.append(
        '<div><label for="f-text">path contains</label><input id="f-text" type="search"></div>'
    )
    orders = {**ORDERS, **({"mistakes": "confident mistakes"} if "wrong" in states else {})}
    fields.append(_select("sort", "order", orders))
    fields.append('<div><button id="reset" type="button">Reset filters</button></div>')
    return (
        '<div class="controls" id="controls" role="group" aria-label="Filters" hidden>\n'
        + "\n".join(fields)
        + '\n<p class="shown" id="shown" role="status"></p></div>\n'
        '<p class="note keys" id="keys" hidden>Keys in the list: <kbd>j</kbd> and <kbd>k</kbd> or the arrows go to the'
        " next and previous slice, <kbd>Enter</kbd> enlarges it.</p>\n"
    )


def _select(name: str, label: str, choices: Mapping[str, str | None]) -> str:
    options = "".join(
        f'<option value="{text(value)}">{text(shown or value)}</option>'
        for value, shown in choices.items()
    )
    return (
        f'<div><label for="f-{name}">{label}</label><select id="f-{name}">{options}</select></div>'
    )


# Rows.


def _states(row: Row, has_labels: bool) -> Iterable[str]:
    if row.error is not None:
        yield "failed"
        return
    if row.is_uncertain:
        yield "uncertain"
    if row.warnings:
        yield "warned"
    if row.is_correct is not None:
        yield "correct" if row.is_correct else "wrong"
    elif has_labels:
        yield "unlabeled"


def _row(row: Row, picture: str | None, overlay: str | None, has_labels: bool) -> str:
    data = f'data-i="{row.number}" data-s="{" ".join(_states(row, has_labels))}"'
    if row.top:
        data += f' data-n="{text(row.top[0][0])}" data-p="{row.top[0][1]:.6g}"'
    if row.truth is not None:
        data += f' data-t="{text(row.truth)}"'
    return (
        f'<li class="row" tabindex="-1" {data}>{_picture(picture, overlay)}'
        f'<div class="answer">{_answer(row)}</div>'
        f'<div class="about"><p>{path_span(row.path)}</p>{_facts(row)}</div></li>\n'
    )


def _picture(picture: str | None, overlay: str | None) -> str:
    """Return the thumbnail, with the map on it if there is one."""
    if picture is None:
        return '<div class="thumb none">no picture</div>'
    # A PNG is a slice of few pixels, which are shown as squares.
    kind = ' class="small"' if picture.startswith("data:image/png") else ""
    # The script adds the pictures after the page is there. Thousands of them would delay it.
    heat = f'<img class="heat" src="{overlay}" alt="">' if overlay else ""
    return f'<div class="thumb"><noscript><img{kind} src="{picture}" alt="">{heat}</noscript></div>'


def _answer(row: Row) -> str:
    if row.error is not None:
        return '<p class="differs">failed</p>'
    (name, probability), *others = row.top
    badge = ' <span class="badge">uncertain</span>' if row.is_uncertain else ""
    following = ", ".join(f"{text(other)} {value:.3f}" for other, value in others)
    return (
        f'<p class="label">{text(name)}{badge}<span>{probability:.3f}</span></p>{_bar(probability)}'
        f'<p class="next">{following}</p>{_truth(row)}'
    )


def _truth(row: Row) -> str:
    if row.is_correct is None:
        # A label that the model does not have.
        return "" if row.truth is None else f'<p class="truth">labeled {text(row.truth)}</p>'
    if row.is_correct:
        return '<p class="truth same">correct</p>'
    return f'<p class="truth differs">wrong, labeled {text(row.truth)}</p>'


def _facts(row: Row) -> str:
    """Return what else is known about a slice, one line each."""
    lines = [f"Warning: {warning}" for warning in row.warnings]
    if row.error is not None:
        lines.append(row.error)
    return "".join(f'<p class="warn">{text(line)}</p>' for line in lines)


def _run(info: ReportInfo) -> str:
    threshold = (
        {} if info.min_probability is None else {"uncertain below": f"{info.min_probability:g}"}
    )
    rows = {
        "command": f"<code>{text(info.command)}</code>",
        "organ-infer": text(info.version),
        "model": f"{text(info.model)}, {text(info.view)} slices, trained on {text(info.dataset)}",
        "manifest": f"<code>sha256 {text(info.sha256)}</code>",
        "test-time augmentation": "on" if info.tta else "off",
        **threshold,
    }
    return f"<footer>\n<h2>This run</h2>\n{list_rows(rows)}\n</footer>\n"
