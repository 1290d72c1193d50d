"""Expands the paths on the command line, which are files, directories, patterns and lists, in order."""

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from ..images.discovery import Candidate, images_below
from ..images.registry import split_selector
from .arguments import Options, UsageError

if TYPE_CHECKING:
    from .progress import Messages

__all__ = ["find_candidates", "require_candidates"]

# Bytes of a list that are read together.
BLOCK = 1 << 16
# Bytes of one path in a list.
NAME_LIMIT = 1 << 16


def require_candidates(options: Options, messages: "Messages") -> Iterator[Candidate]:
    """Return the candidates of the options, of which at least one names an image.

    Raises:
        UsageError: There is no image at all, or a list cannot be read.
    """
    candidates = find_candidates(options)
    empty: list[Candidate] = []
    for candidate in candidates:
        if not candidate.empty:
            return chain(empty, [candidate], candidates)
        empty.append(candidate)
    for candidate in empty[:-1]:
        messages.error(f"{candidate.path}: {candidate.error}")
    last = f"{empty[-1].path}: {empty[-1].error}" if empty else "--files-from lists no path"
    raise UsageError(f"no image found: {last}")


def find_candidates(options: Options) -> Iterator[Candidate]:
    """Yield every image that the options name: first the paths, then the list.

    A directory or pattern without an image gives a candidate with an error and the path as given.

    Raises:
        UsageError: A list cannot be read.
    """
    if options.files_from not in (None, "-"):
        # Checked now, and not after the paths before the list have been classified.
        _check_list(options.files_from)
    for path in options.paths:
        yield from _expand_argument(path, options.recursive)
    if options.files_from is not None:
        for path in _read_list(options.files_from, b"\0" if options.null else b"\n"):
            yield from _expand_path(path, options.recursive)


def _check_list(source: str) -> None:
    """Raise UsageError if a list cannot be opened. A pipe is not opened, because that waits for its writer."""
    try:
        if not stat.S_ISFIFO(os.stat(source).st_mode):
            open(source, "rb").close()
    except (OSError, ValueError) as e:
        # ValueError: a NUL in the name.
        raise _unreadable_list(source, e) from e


def _unreadable_list(source: str, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"--files-from {source}: cannot be read ({reason})")


def _expand_argument(path: str, recursive: bool) -> Iterator[Candidate]:
    """Expand a path of the command line, which may be a pattern. The name of an existing file is not a pattern."""
    if not glob.has_magic(path) or os.path.lexists(path) or _selects_slice(path):
        yield from _expand_path(path, recursive)
        return
    # Without recursive patterns (**), which follow links in circles.
    names = sorted(glob.iglob(path), key=os.fsencode)
    for name in names:
        yield from _expand_path(name, recursive)
    if not names:
        yield Candidate(path, "no file matches this pattern", empty=True)


def _selects_slice(path: str) -> bool:
    return split_selector(path)[1] is not None


def _expand_path(path: str, recursive: bool) -> Iterator[Candidate]:
    """Yield a file, or the images of a directory."""
    if not os.path.isdir(path):
        yield Candidate(path)
        return
    is_empty = True
    for candidate in images_below(path, recursive):
        is_empty = False
        yield candidate
    if is_empty:
        advice = "" if recursive else "; use --recursive to include subdirectories"
        yield Candidate(path, f"no image in this directory{advice}", empty=True)


def _read_list(source: str, separator: bytes) -> Iterator[str]:
    """Yield the paths of a list, `-` for standard input. Empty paths are skipped."""
    if source == "-" and sys.stdin is None:
        raise UsageError("--files-from -: standard input is closed")
    try:
        with ExitStack() as stack:
            file: BinaryIO = (
                sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
            )
            blocks = iter(lambda: file.read1(BLOCK), b"")  # type: ignore[attr-defined]
            for name in _split_blocks(blocks, separator):
                if separator == b"\n":
                    name = name.removesuffix(b"\r")
                if name:
                    yield os.fsdecode(name)
    except OSError as e:
        raise _unreadable_list(source, e) from e


def _split_blocks(blocks: Iterable[bytes], separator: bytes) -> Iterator[bytes]:
    """Join the blocks and split them at the separator, as they arrive."""
    rest = b""
    for block in blocks:
        *names, rest = (rest + block).split(separator)
        yield from names
        if len(rest) > NAME_LIMIT:
            raise UsageError(
                f"--files-from: a path has more than {NAME_LIMIT:,} bytes; check whether the list needs -0"
            )
    yield rest
