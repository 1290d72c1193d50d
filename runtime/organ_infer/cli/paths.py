"""What the command's paths stand for: files, directories, patterns, and lists of them, in order."""

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import BinaryIO

from ..images.discovery import Candidate, images_below
from ..images.registry import split_selector
from .arguments import Options, UsageError

__all__ = ["find"]

BLOCK = 1 << 16  # bytes of a list read at once
NAME_LIMIT = 1 << 16  # bytes of one path in a list


def find(options: Options) -> Iterator[Candidate]:
    """Every image the options name: first the paths, then the list. A directory or pattern without an image comes
    back with an `error` and `path` as given. Raises UsageError where a list cannot be read."""
    if options.files_from not in (None, "-"):
        _check_list(options.files_from)  # now: not after the paths before it were classified
    for path in options.paths:
        yield from _argument(path, options.recursive)
    if options.files_from is not None:
        for path in _listed(options.files_from, b"\0" if options.null else b"\n"):
            yield from _one(path, options.recursive)


def _check_list(source: str) -> None:
    """Raise UsageError where a list cannot be opened; a pipe is not opened here, for that would wait for its writer."""
    try:
        if not stat.S_ISFIFO(os.stat(source).st_mode):
            open(source, "rb").close()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise UsageError(
            f"--files-from: {source} cannot be read ({getattr(e, 'strerror', None) or e})"
        ) from e


def _argument(path: str, recursive: bool) -> Iterator[Candidate]:
    """A path of the command line; what exists is never a pattern."""
    if not glob.has_magic(path) or os.path.lexists(path) or _is_slice(path):
        yield from _one(path, recursive)
        return
    names = sorted(glob.iglob(path), key=os.fsencode)  # no **, which follows links round in circles
    for name in names:
        yield from _one(name, recursive)
    if not names:
        yield Candidate(path, "no file matches this pattern", empty=True)


def _is_slice(path: str) -> bool:
    return split_selector(path)[1] is not None


def _one(path: str, recursive: bool) -> Iterator[Candidate]:
    if not os.path.isdir(path):
        yield Candidate(path)
        return
    empty = True
    for found in images_below(path, recursive):
        empty = False
        yield found
    if empty:
        advice = "" if recursive else " (--recursive looks below it)"
        yield Candidate(path, f"no image in this directory{advice}", empty=True)


def _listed(source: str, end: bytes) -> Iterator[str]:
    try:
        with ExitStack() as stack:
            file: BinaryIO = sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
            for name in _pieces(iter(lambda: file.read1(BLOCK), b""), end):  # type: ignore[attr-defined]
                if end == b"\n":
                    name = name.removesuffix(b"\r")
                if name:
                    yield os.fsdecode(name)
    except (OSError, AttributeError) as e:  # AttributeError: standard input is closed
        where = "standard input" if source == "-" else source
        raise UsageError(
            f"--files-from: {where} cannot be read ({getattr(e, 'strerror', None) or 'closed'})"
        ) from e


def _pieces(blocks: Iterable[bytes], end: bytes) -> Iterator[bytes]:
    """The blocks cut at `end`, as they come."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(end)
        yield from whole
        if len(rest) > NAME_LIMIT:
            raise UsageError(
                f"--files-from: a path of more than {NAME_LIMIT:,} bytes (is -0 missing, or too much?)"
            )
    yield rest
