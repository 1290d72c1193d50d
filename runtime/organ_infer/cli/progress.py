"""Messages, and a progress bar where standard error is a terminal."""

import contextlib
import os
import sys
import time

from ..errors import printable

__all__ = ["Messages"]

INTERVAL = 0.1  # seconds between two pictures of the bar


class Messages:
    """What goes to standard error: a line each, the bar out of the way. A standard error that is closed or full is
    no reason to stop."""

    def __init__(self) -> None:
        self.quiet = False
        self.bar = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = 0
        self._drawn = self._started = time.monotonic()

    def line(self, text: str) -> None:
        self._clear()
        self._put(f"organ-infer: {printable(text)}\n")

    def error(self, text: str) -> None:
        self.line(f"error: {text}")

    def note(self, text: str) -> None:
        """What --quiet leaves out."""
        if not self.quiet:
            self.line(text)

    def progress(self, done: int, failed: int, total: int | None) -> None:
        if not self.bar or self.quiet:
            return
        now = time.monotonic()
        if now - self._drawn < INTERVAL:
            return
        self._drawn = now
        columns = _columns() - 1
        text = bar_text(done, failed, total, now - self._started, columns)
        self._put("\r" + text + " " * max(0, min(self._shown, columns) - len(text)))
        self._shown = len(text)

    def end(self) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._shown:
            self._put("\r" + " " * min(self._shown, _columns() - 1) + "\r")
            self._shown = 0

    def _put(self, text: str) -> None:
        if sys.stderr is None:
            return
        with contextlib.suppress(OSError, ValueError):
            data = text.encode("utf-8", "surrogateescape")
            sys.stderr.flush()
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()


def bar_text(done: int, failed: int, total: int | None, seconds: float, columns: int) -> str:
    """The bar in at most `columns` characters: what does not fit is left out, the count last."""
    count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
    rate = f"{done / seconds:,.0f}/s" if seconds > 0 else ""
    parts = [count, "images", rate, f"{failed:,} failed" if failed else ""]
    text = " ".join(part for part in parts if part)
    if total and columns - len(text) >= 13:
        width = min(30, columns - len(text) - 3)
        full = width * min(done, total) // total
        text = f"[{'#' * full}{'.' * (width - full)}] {text}"
    return (text if len(text) <= columns else count)[: max(columns, 0)]


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80
