"""Versions of installed distributions, read from the names of their .dist-info directories.

importlib.metadata gives the same versions, but importing it takes longer than starting Python.
"""

import os
import sys

__all__ = ["installed_version"]


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution.

    Args:
        name: The name of the distribution, such as `onnxruntime-gpu`.

    Returns:
        The version of the first one on sys.path, or None if it is not installed.
    """
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
