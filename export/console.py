"""Standard output and standard error of the commands: printing never ends a command.

A training run takes hours. It goes on if its terminal is closed, if the disk behind standard output is full, or if the
encoding there has no character for a name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

# what the commands print that ASCII does not have
_ASCII = {"–": "-", "±": "+-", "…": "..."}


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """In a `with` block, ignore errors of writing to standard output and standard error.

    What cannot be written is lost. A character that the encoding does not have is replaced or escaped.
    """
    _open_standard_descriptors()
    previous = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Forgiving(stream)) for stream in previous)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = previous
        for stream in previous:
            _empty(stream)


def run_command(name: str, run: Callable[[], int]) -> int:
    """Run a command with forgiving output. Ctrl-C ends it with one line.

    Args:
        name: Of the command, for the line.
        run: Returns the exit code.

    Returns:
        The exit code, 130 after Ctrl-C.
    """
    with forgiving_output():
        try:
            return run()
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT


def run_bundle_command(run: Callable[[], None], *errors: type[Exception]) -> int:
    """Run a command of `export` on a finished bundle. What stops it is one line on standard error.

    Args:
        run: Raises one of `errors`, OrganInferError, OSError or ImportError if nothing can be done.
        errors: The command's own exceptions, whose messages are one line.

    Returns:
        The exit code: 0 done, 2 nothing could be done, 130 after Ctrl-C.
    """

    def guarded() -> int:
        from organ_infer import OrganInferError

        expected: tuple[type[Exception], ...] = (OrganInferError, *errors)
        try:
            run()
        except expected as e:
            reason = str(e)
        except OSError as e:
            reason = f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror or e)
        except ImportError as e:
            reason = f"{e.name}: not installed; run pip install -e '.[train,cpu]'"
        else:
            return 0
        print(f"export: error: {reason}", file=sys.stderr)
        return 2

    return run_command("export", guarded)


class _Forgiving:
    """A text stream whose write and flush raise no errors. Everything else is the stream's own."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            cast(Any, self._stream).write(text)
        except UnicodeEncodeError:
            with contextlib.suppress(Exception):
                cast(Any, self._stream).write(_encodable(text, cast(Any, self._stream).encoding))
        # AttributeError: Python sets a stream to None if it was closed when the program started
        except (OSError, ValueError, AttributeError):
            pass
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            cast(Any, self._stream).flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _encodable(text: str, encoding: str | None) -> str:
    """Return the text with replacements for the characters that an encoding does not have."""
    encoding = encoding or "ascii"
    for character, replacement in _ASCII.items():
        text = text.replace(character, replacement)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _open_standard_descriptors() -> None:
    """Open the standard descriptors that were closed when the program started.

    Otherwise the next file that is opened gets the number of standard output or standard error, and what a library
    prints there goes into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                # the lowest free number
                os.open(os.devnull, os.O_RDWR)


def _empty(stream: TextIO | None) -> None:
    """Flush a stream. If that fails, discard what is left, because Python's own flush at exit would end in code 120."""
    try:
        cast(Any, stream).flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, cast(Any, stream).fileno())
            os.close(null)
