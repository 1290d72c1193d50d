"""Which distributions are installed, by the names of their .dist-info directories. importlib.metadata says the same,
but importing it takes longer than starting Python."""

import os
import sys

__all__ = ["installed_version"]


def installed_version(name: str) -> str | None:
    """The version of the distribution `name`, the first on sys.path, or None."""
    start, end = name.replace("-", "_") + "-", ".dist-info"
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            if entry.endswith(end) and entry.lower().startswith(start):
                return entry[len(start) : -len(end)]
    return None
