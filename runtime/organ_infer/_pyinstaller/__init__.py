"""Tells PyInstaller where the hook is that adds what it does not find itself (docs/deploy/frozen.md).

PyInstaller calls `hook_directories` by the entry point `pyinstaller40`.
"""

import os

__all__ = ["hook_directories"]


def hook_directories() -> list[str]:
    """Return the directories of PyInstaller hooks."""
    return [os.path.dirname(__file__)]
