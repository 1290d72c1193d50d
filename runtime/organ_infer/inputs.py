"""What the command's paths stand for: files, directories, patterns, and lists of them, in order."""

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from .arguments import Options, UsageError

__all__ = ["Found", "find", "images_below"]

BLOCK = 1 << 16  # bytes of a list read at once
NAME_LIMIT = 1 << 16  # bytes of one path in a list


@dataclass(frozen=True)
class Found:
    """A path to classify, or with `error` one that stands for nothing."""

    path: str
    error: str | None = None
    nothing: bool = False  # no image is there at all, as in an empty directory


def find(options: Options) -> Iterator[Found]:
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


def _argument(path: str, recursive: bool) -> Iterator[Found]:
    """A path of the command line; what exists is never a pattern."""
    if not glob.has_magic(path) or os.path.lexists(path) or _is_slice(path):
        yield from _one(path, recursive)
        return
    names = sorted(glob.iglob(path), key=os.fsencode)  # no **, which follows links round in circles
    for name in names:
        yield from _one(name, recursive)
    if not names:
        yield Found(path, "no file matches this pattern", nothing=True)


def _is_slice(path: str) -> bool:
    from .images import split_frame

    return split_frame(path)[1] is not None


def _one(path: str, recursive: bool) -> Iterator[Found]:
    if not os.path.isdir(path):
        yield Found(path)
        return
    empty = True
    for found in images_below(path, recursive):
        empty = False
        yield found
    if empty:
        advice = "" if recursive else " (--recursive looks below it)"
        yield Found(path, f"no image in this directory{advice}", nothing=True)


def images_below(path: str, recursive: bool) -> Iterator[Found]:
    """The images of a directory by suffix, in byte order of their paths below it; nothing hidden, no linked
    directory followed. A directory that cannot be listed comes back with an error in its place."""
    from .images import SUFFIXES

    names: list[tuple[bytes, str, bool]] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                folder = entry.is_dir(follow_symlinks=False)
                if folder and recursive:
                    names.append((os.fsencode(entry.name) + b"/", entry.name, True))
                elif not entry.is_dir() and entry.name.lower().endswith(SUFFIXES):
                    names.append((os.fsencode(entry.name), entry.name, False))
    except OSError as e:
        yield Found(path, f"cannot be listed ({e.strerror})")
        return
    names.sort()
    for _, name, folder in names:
        joined = os.path.join(path, name)
        if folder:
            yield from images_below(joined, recursive)
        else:
            yield Found(joined)


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
