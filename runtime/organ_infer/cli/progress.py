"""Messages on standard error, and a progress bar if it is a terminal."""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import printable, shorten

__all__ = ["Messages", "duration", "encodable", "library_messages"]

# Seconds between two drawings of the bar.
INTERVAL = 0.1
# Characters of a message. A path has 4,096 bytes at most, of which each can be escaped.
LINE_LIMIT = 1 << 15
# Columns that must be left beside the text for a bar: ten characters and "[] ".
BAR_COLUMNS = 13
_SECONDS = {"s": 1, "min": 60}
# Characters of the shortest text about a stage.
MIN_STAGE = 12


class Messages:
    """Writes messages to standard error, one per line, and clears the progress bar before each.

    If standard error is closed or full, messages are lost and the command continues.

    Attributes:
        quiet: Whether everything but errors is omitted.
        terminal: Whether standard error is a terminal.
        bar: Whether standard error can show a progress bar.
    """

    def __init__(self) -> None:
        self.quiet = False
        self.terminal = sys.stderr is not None and _is_terminal()
        self.bar = self.terminal and os.environ.get("TERM") != "dumb"
        # Characters of the bar that is on the screen.
        self._bar_width = 0
        self._last_drawn = self._started = self._progress_started = time.monotonic()

    def error(self, text: str) -> None:
        """Write an error, also with --quiet."""
        self._line(f"error: {text}")

    def warning(self, text: str) -> None:
        """Write a warning, unless --quiet is given."""
        self.status(f"warning: {text}")

    def note(self, text: str) -> None:
        """Write a note, unless --quiet is given."""
        self.status(f"note: {text}")

    def status(self, text: str) -> None:
        """Write how the run ended, unless --quiet is given."""
        if not self.quiet:
            self._line(text)

    def block(self, title: str, lines: Iterable[str]) -> None:
        """Write a title and lines below it, unless --quiet is given."""
        if not self.quiet:
            self._line(title)
            for line in lines:
                self._write(f"{printable(line)}\n")

    @property
    def seconds(self) -> float:
        """How long the command has been running."""
        return time.monotonic() - self._started

    def leave_screen_to_pager(self) -> None:
        """Draw no bar if results go through a pipe: the program behind it may be a pager on the same terminal."""
        if _stdout_is_pipe():
            self.bar = False

    def start_progress(self) -> None:
        """Begin to measure the rate and the time left. Opening the model does not count."""
        self._last_drawn = self._progress_started = time.monotonic()

    def stage(self, text: str) -> None:
        """Show what the command is doing, in the place of the progress bar."""
        if self.bar and not self.quiet:
            columns = _columns() - 1
            self._draw(
                shorten(printable(text), max(columns, MIN_STAGE))[: max(columns, 0)], columns
            )

    def progress(
        self, done: int, failed: int, total: int | None, noun: str = "images", per: str = "s"
    ) -> None:
        """Draw the progress bar, unless the last drawing is less than INTERVAL old.

        Args:
            done: Images so far, including the failed ones.
            failed: Images that could not be classified.
            total: The number of images, or None if it is not known.
            noun: What is counted, if not images.
            per: The time of the rate, `s` or `min`.
        """
        if not self.bar or self.quiet:
            return
        now = time.monotonic()
        if now - self._last_drawn < INTERVAL:
            return
        self._last_drawn = now
        columns = _columns() - 1
        seconds = now - self._progress_started
        self._draw(bar_text(done, failed, total, seconds, columns, noun, per), columns)

    def _draw(self, text: str, columns: int) -> None:
        """Draw a text over the one before."""
        self._write("\r" + text + " " * max(0, min(self._bar_width, columns) - len(text)))
        self._bar_width = len(text)

    def end(self) -> None:
        """Clear the progress bar."""
        if self._bar_width:
            self._write("\r" + " " * min(self._bar_width, _columns() - 1) + "\r")
            self._bar_width = 0

    def _line(self, text: str) -> None:
        self.end()
        self._write(f"organ-infer: {shorten(printable(text), LINE_LIMIT)}\n")

    def _write(self, text: str) -> None:
        if sys.stderr is None:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            buffer = getattr(sys.stderr, "buffer", None)
            if buffer is None:
                # A program has put another object there, such as io.StringIO.
                sys.stderr.write(encodable(text, sys.stderr))
            else:
                # UTF-8 whatever the locale, as in the results.
                sys.stderr.flush()
                buffer.write(text.encode("utf-8"))
                buffer.flush()


def encodable(text: str, file: Any) -> str:
    """Escape what the encoding of a text file lacks, such as the letters of a name in an ASCII locale."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def library_messages(messages: Messages) -> Iterator[None]:
    """Show the library's logged warnings, and silence those of Pillow and onnxruntime.

    Their warnings are for programmers. The previous settings are restored when the context ends.
    """
    import logging
    import warnings

    from ..engine import ort

    class WarningHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.warning(record.getMessage())

    logger, handler = logging.getLogger("organ_infer"), WarningHandler(logging.WARNING)
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    ort.silent = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
        ort.silent = False


def bar_text(
    done: int,
    failed: int,
    total: int | None,
    seconds: float,
    columns: int,
    noun: str = "images",
    per: str = "s",
) -> str:
    """Format the progress bar in at most `columns` characters. If that is too few, only the count is shown."""
    count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
    rate = f"{done * _SECONDS[per] / seconds:,.0f}/{per}" if seconds > 0 else ""
    left = ""
    if total is not None and 0 < done < total and seconds > 0:
        left = f"{duration((total - done) * seconds / done)} left"
    parts = [count, noun, rate, left, f"{failed:,} failed" if failed else ""]
    text = " ".join(part for part in parts if part)
    if total and columns - len(text) >= BAR_COLUMNS:
        width = min(30, columns - len(text) - 3)
        filled = width * min(done, total) // total
        text = f"[{'#' * filled}{'.' * (width - filled)}] {text}"
    return (text if len(text) <= columns else count)[: max(columns, 0)]


def duration(seconds: float, digits: int = 0) -> str:
    """Format a time as `7 s`, `3 min 12 s` or `2 h 5 min`. `digits` are those after the point below a minute."""
    text = f"{seconds:.{digits}f}"
    if float(text) < 60:
        return f"{text} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _stdout_is_pipe() -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(1).st_mode)
    except OSError:
        # Standard output is closed.
        return False


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        # Another object than a file, or a closed one.
        return False


def _columns() -> int:
    """The width of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80
