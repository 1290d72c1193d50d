"""A report's page as a reader finds it: parsed from the HTML alone."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image


class Page(HTMLParser):
    """The elements of a page, its text, and its tables by the label of their region."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.spans: dict[str, list[list[int]]] = {}
        self.marked: dict[str, list[list[str]]] = {}  # rows of the best stage
        self.bold: dict[str, list[int]] = {}  # places of bold cells in their rows
        self.pairs: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {
            "h1": [],
            "h2": [],
            "h3": [],
            "p": [],
            "figcaption": [],
            "li": [],
        }
        self.images: list[tuple[str, np.ndarray]] = []
        self.text = ""
        self._region = ""
        self._cell = False
        self._open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if attributes.get("role") == "region":
            self._region = attributes["aria-label"] or ""
        if tag == "tr":
            self.rows.append([])
            self.tables.setdefault(self._region, []).append(self.rows[-1])
            self.spans.setdefault(self._region, []).append([])
            if "best" in (attributes.get("class") or "").split():
                self.marked.setdefault(self._region, []).append(self.rows[-1])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")
            self.spans[self._region][-1].append(int(attributes.get("colspan") or 1))
            if "bold" in (attributes.get("class") or "").split():
                self.bold.setdefault(self._region, []).append(len(self.rows[-1]) - 1)
        if tag in self.texts:
            self.texts[tag].append("")
            self._open.append(tag)
        if tag == "dt":
            self.pairs.append(("", ""))
        if tag in ("dt", "dd"):
            self._open.append(tag)
        if tag == "img":
            self.images.append((attributes.get("alt") or "", decoded(attributes["src"] or "")))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data
        for tag in self._open:
            if tag == "dt":
                self.pairs[-1] = (self.pairs[-1][0] + data, self.pairs[-1][1])
            elif tag == "dd":
                self.pairs[-1] = (self.pairs[-1][0], self.pairs[-1][1] + data)
            else:
                self.texts[tag][-1] += data

    def rows_of(self, name: str) -> list[list[str]]:
        """The rows of all tables whose first cell is `name`."""
        return [row for row in self.rows if row and row[0].removesuffix("chosen") == name]

    def table(self, label: str) -> list[list[str]]:
        """The rows of one table, in order, that of its head included."""
        return self.tables[label]

    def row(self, label: str, name: str) -> list[str]:
        """The cells behind the first of the only row of a table that begins with `name`."""
        (found,) = [row[1:] for row in self.tables[label] if row[0].removesuffix("chosen") == name]
        return found

    def drawings(self) -> list[str]:
        """What the page's figures are called for those who cannot see them."""
        return [attributes["aria-label"] or "" for tag, attributes in self.elements if tag == "svg"]


def decoded(address: str) -> np.ndarray:
    """The pixels of a PNG in a data address."""
    assert address.startswith("data:image/png;base64,"), address[:40]
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        return np.asarray(picture)
