"""Parts of a page: one HTML file that needs no other file and no outside address."""

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping

from ..errors import printable
from ..names import escape_path

__all__ = ["count_text", "head", "list_rows", "path_span", "script_tag", "table", "text", "tiles"]


def text(value: object) -> str:
    """Return any text for HTML: on one line, printable, with <, > and quotes escaped."""
    return html.escape(printable(str(value)))


def path_span(path: str) -> str:
    """Return an element with the name of a file, escaped as in every other output."""
    return f'<span class="path">{html.escape(escape_path(path, one_line=True))}</span>'


def count_text(number: int, noun: str) -> str:
    """Return a number and its noun, such as `1 scan` or `2 scans`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def head(title: str, style: str, script: str | None = None) -> str:
    """Return the page up to its body.

    The policy allows the style and the script of these texts alone, and pictures in the page.

    Args:
        title: Of the page, as text.
        style: All of its CSS. Elements cannot have styles of their own.
        script: The text in `script_tag`, or None if the page runs none.
    """
    scripts = "" if script is None else f" script-src 'sha256-{_digest(script)}';"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}';{scripts}"
        " base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{text(title)}</title>
<style>{style}</style>
</head>
"""


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def script_tag(script: str) -> str:
    """Return the element of the page's script."""
    return f"<script>{script}</script>\n"


def tiles(figures: Mapping[str, str]) -> str:
    """Return the large figures at the top of a page.

    Args:
        figures: Name -> value, both as HTML.
    """
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items()
    )
    return f'<dl class="tiles">{items}</dl>'


def list_rows(rows: Mapping[str, str]) -> str:
    """Return a list of names with values, such as what identifies a run.

    Args:
        rows: Name -> value, both as HTML.
    """
    pairs = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
    return f'<dl class="run">{pairs}</dl>'


def table(head_cells: Iterable[str], rows: Iterable[str], label: str) -> str:
    """Return a table that scrolls sideways on a narrow screen.

    Args:
        head_cells: The cells of its head, as HTML elements.
        rows: Its rows, as HTML elements.
        label: What it shows, for screen readers.
    """
    return (
        f'<div class="scroll" role="region" aria-label="{html.escape(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{''.join(head_cells)}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    )
