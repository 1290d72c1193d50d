"""The image files that paths, directories and patterns name."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from ..errors import InputError
from ..names import path_text
from .registry import SUFFIXES, has_known_content, split_selector
from .scan_formats import SCAN_SUFFIXES

__all__ = ["Candidate", "Skipped", "expand_path", "expand_pattern", "find_images", "images_below"]


@dataclass(frozen=True)
class Candidate:
    """A path to classify, or the reason why there is none.

    Attributes:
        path: As given, or below a given directory.
        error: Why the path cannot be classified, or None.
        empty: Whether the error is that there is no image, as in an empty directory.
    """

    path: str
    error: str | None = None
    empty: bool = False


class Skipped(Enum):
    """Why an entry of a directory is passed over. The value names it in a message."""

    FILE = "(files that are no images)"
    SCAN = "(scans or masks)"
    LINK = "(links to directories)"


def images_below(
    directory: str,
    recursive: bool,
    on_skipped: Callable[[str, Skipped], None] = lambda path, kind: None,
) -> Iterator[Candidate]:
    """Yield the images of a directory in byte order of their paths.

    An image is a file whose suffix is in the format table. Other files, such as those that a PACS exports
    without a suffix, are images if their first bytes name a format. Hidden files are left out, and linked
    directories are not followed, so links that form a circle end no search. A directory that cannot be
    listed gives a Candidate with an error.

    Args:
        directory: Its path.
        recursive: Whether to list directories below it too.
        on_skipped: Called with each file that is no image, such as a scan, and with `recursive` each linked directory.
    """
    # Not by recursion: directories can be nested deeper than Python's calls.
    levels = [_entries(directory, recursive, on_skipped)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif isinstance(entry, Candidate):
            yield entry
        else:
            levels.append(_entries(entry, recursive, on_skipped))


def _entries(
    directory: str, recursive: bool, on_skipped: Callable[[str, Skipped], None]
) -> Iterator[Candidate | str]:
    """Yield the images of one directory and, with `recursive`, the paths of its directories."""
    names: list[tuple[bytes, str, bool]] = []
    skipped: list[tuple[bytes, str, Skipped]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory and recursive:
                    names.append((os.fsencode(entry.name) + b"/", entry.name, True))
                elif is_directory:
                    continue
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    # Not entry.is_dir(), which raises for a link to itself.
                    if recursive:
                        skipped.append((os.fsencode(entry.name), entry.path, Skipped.LINK))
                elif entry.name.lower().endswith(SUFFIXES) or has_known_content(entry.path):
                    names.append((os.fsencode(entry.name), entry.name, False))
                elif entry.name.lower().endswith(SCAN_SUFFIXES):
                    skipped.append((os.fsencode(entry.name), entry.path, Skipped.SCAN))
                else:
                    skipped.append((os.fsencode(entry.name), entry.path, Skipped.FILE))
    except OSError as e:
        yield Candidate(directory, f"cannot be listed ({e.strerror})")
        return
    for _, path, kind in sorted(skipped, key=lambda each: each[0]):
        on_skipped(path, kind)
    names.sort()
    for _, name, is_directory in names:
        path = os.path.join(directory, name)
        yield path if is_directory else Candidate(path)


def find_images(
    paths: str | bytes | os.PathLike[str] | Iterable[str | bytes | os.PathLike[str]],
    *,
    recursive: bool = False,
) -> list[str]:
    """List image files as the command does, for `OrganClassifier.predict_paths`.

    Args:
        paths: One or more files, directories and patterns. The images of a directory are its files of a known
            suffix, and those without one whose first bytes name a format. They come in byte order. The name of
            an existing file or directory is not taken for a pattern, nor is `file#3`, a slice of a stack.
        recursive: Whether to list directories below a directory, too. Linked directories are not followed.

    Returns:
        The paths. A file that is given stays even if it does not exist, so that `predict_paths` reports it.

    Raises:
        InputError: If a path has the wrong type, a pattern matches no file, or a directory has no image or cannot
            be listed.
    """
    try:
        given = [paths] if isinstance(paths, (str, bytes, os.PathLike)) else list(paths)
    except TypeError as e:
        raise InputError(
            f"paths: expected a path or a sequence of paths, found {type(paths).__name__}"
        ) from e
    found: list[str] = []
    for i, path in enumerate(given):
        for candidate in expand_pattern(path_text(path, f"paths[{i}]"), recursive):
            if candidate.error is not None:
                raise InputError(f"{candidate.path}: {candidate.error}")
            found.append(candidate.path)
    return found


def expand_pattern(
    path: str,
    recursive: bool,
    on_skipped: Callable[[str, Skipped], None] = lambda path, kind: None,
) -> Iterator[Candidate]:
    """Yield what a path or pattern names. The name of an existing file is not a pattern."""
    if not glob.has_magic(path) or os.path.lexists(path) or split_selector(path)[1] is not None:
        yield from expand_path(path, recursive, on_skipped)
        return
    # Without recursive patterns (**), which follow links in circles.
    names = sorted(glob.iglob(_with_literal_directories(path)), key=os.fsencode)
    for name in names:
        yield from expand_path(name, recursive, on_skipped)
    if not names:
        yield Candidate(path, "no file matches this pattern", empty=True)


def _with_literal_directories(pattern: str) -> str:
    """Escape the leading directories of a pattern that exist by that very name, such as `set [1]`."""
    head, tail = pattern, ""
    while head and not os.path.isdir(head):
        head, _, name = head.rpartition("/")
        tail = f"/{name}{tail}"
    return glob.escape(head) + tail if head else pattern


def expand_path(
    path: str,
    recursive: bool,
    on_skipped: Callable[[str, Skipped], None] = lambda path, kind: None,
) -> Iterator[Candidate]:
    """Yield a file, or the images of a directory."""
    if not os.path.isdir(path):
        yield Candidate(path)
        return
    is_empty, has_scans = True, False

    def skip(skipped: str, kind: Skipped) -> None:
        nonlocal has_scans
        has_scans |= kind is Skipped.SCAN
        on_skipped(skipped, kind)

    for candidate in images_below(path, recursive, skip):
        is_empty = False
        yield candidate
    if is_empty:
        advice = "" if recursive else "; use --recursive to include subdirectories"
        if has_scans:
            advice = ", but scans or masks; pass a scan with its mask to organ-infer volume"
        yield Candidate(path, f"no image in this directory{advice}", empty=True)
