"""Directories that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_directory"]


@contextlib.contextmanager
def atomic_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Create a directory that appears at `target` when the block ends, with all its files on the disk.

    The files are written in a hidden directory beside `target`, which is renamed at the end. If the block raises, the
    hidden directory is removed and `target` stays as it was.

    Args:
        target: The final path. Missing parent directories are created. An empty directory there is replaced.
        replace: Also replace a directory that is not empty. Other processes then see the old directory, the new one
            or, for a moment, none.

    Yields:
        The hidden directory, to write into.

    Raises:
        OSError: A directory cannot be created, or `target` cannot be replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = _hidden_beside(target)
    try:
        building.chmod(0o755)
        yield building
        _flush(building)
        if replace and target.exists():
            _replace(building, target)
        else:
            if target.exists():
                target.rmdir()
            os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _hidden_beside(target: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))


def _flush(directory: Path) -> None:
    """Flush the files of a directory and of its subdirectories to the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def _replace(new: Path, target: Path) -> None:
    old = _hidden_beside(target)
    os.replace(target, old / target.name)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
