"""The image files of a directory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from .registry import SUFFIXES

__all__ = ["Candidate", "images_below"]


@dataclass(frozen=True)
class Candidate:
    """A path to classify.

    Attributes:
        error: Why the path names no image, or None.
        empty: Whether the path names no image at all, as an empty directory does.
    """

    path: str
    error: str | None = None
    empty: bool = False


def images_below(directory: str, recursive: bool) -> Iterator[Candidate]:
    """The files of a directory whose suffix is in the format table, in byte order of their paths.

    Hidden files are skipped, and linked directories are not followed. A directory that cannot be listed comes back as a
    Candidate with an error.
    """
    names: list[tuple[bytes, str, bool]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder and recursive:
                    names.append((os.fsencode(entry.name) + b"/", entry.name, True))
                elif not entry.is_dir() and entry.name.lower().endswith(SUFFIXES):
                    names.append((os.fsencode(entry.name), entry.name, False))
    except OSError as e:
        yield Candidate(directory, f"cannot be listed ({e.strerror})")
        return
    names.sort()
    for _, name, is_folder in names:
        path = os.path.join(directory, name)
        if is_folder:
            yield from images_below(path, recursive)
        else:
            yield Candidate(path)
