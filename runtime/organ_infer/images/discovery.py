"""The image files of a directory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from .registry import SUFFIXES

__all__ = ["Candidate", "images_below"]


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


def images_below(directory: str, recursive: bool) -> Iterator[Candidate]:
    """Yield the files of a directory whose suffix is in the format table, in byte order of their paths.

    Hidden files are skipped, and linked directories are not followed. A directory that cannot be listed
    gives a Candidate with an error.

    Args:
        directory: Its path.
        recursive: Whether to list directories below it too.
    """
    names: list[tuple[bytes, str, bool]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory and recursive:
                    names.append((os.fsencode(entry.name) + b"/", entry.name, True))
                elif not entry.is_dir() and entry.name.lower().endswith(SUFFIXES):
                    names.append((os.fsencode(entry.name), entry.name, False))
    except OSError as e:
        yield Candidate(directory, f"cannot be listed ({e.strerror})")
        return
    names.sort()
    for _, name, is_directory in names:
        path = os.path.join(directory, name)
        if is_directory:
            yield from images_below(path, recursive)
        else:
            yield Candidate(path)
