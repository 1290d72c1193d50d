"""The image files of a directory."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from .registry import SUFFIXES, has_known_content

__all__ = ["Candidate", "Skipped", "images_below"]


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
        on_skipped: Called with each file that is no image, and with `recursive` each linked directory.
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
                        on_skipped(entry.path, Skipped.LINK)
                elif entry.name.lower().endswith(SUFFIXES) or has_known_content(entry.path):
                    names.append((os.fsencode(entry.name), entry.name, False))
                else:
                    on_skipped(entry.path, Skipped.FILE)
    except OSError as e:
        yield Candidate(directory, f"cannot be listed ({e.strerror})")
        return
    names.sort()
    for _, name, is_directory in names:
        path = os.path.join(directory, name)
        yield path if is_directory else Candidate(path)
