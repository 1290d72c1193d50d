"""The image files of a directory."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .registry import SUFFIXES, has_known_content

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


def images_below(
    directory: str, recursive: bool, on_skipped: Callable[[str], None] = lambda path: None
) -> Iterator[Candidate]:
    """Yield the images of a directory in byte order of their paths.

    An image is a file whose suffix is in the format table. Other files, such as those that a PACS exports
    without a suffix, are images if their first bytes name a format. Hidden files are left out, and linked
    directories are not followed. A directory that cannot be listed gives a Candidate with an error.

    Args:
        directory: Its path.
        recursive: Whether to list directories below it too.
        on_skipped: Called with each file that is no image, and with `recursive` each linked directory.
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
                elif entry.is_dir():
                    if recursive:
                        on_skipped(entry.path)
                elif entry.name.lower().endswith(SUFFIXES) or has_known_content(entry.path):
                    names.append((os.fsencode(entry.name), entry.name, False))
                else:
                    on_skipped(entry.path)
    except OSError as e:
        yield Candidate(directory, f"cannot be listed ({e.strerror})")
        return
    names.sort()
    for _, name, is_directory in names:
        path = os.path.join(directory, name)
        if is_directory:
            yield from images_below(path, recursive, on_skipped)
        else:
            yield Candidate(path)
