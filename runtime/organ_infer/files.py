"""Files that others may have written or may be reading: safe open flags, checksums, directories that appear whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["open_flags", "partial_directory", "sha256_of"]


def open_flags(access: int, *names: str) -> int:
    """Flags for `os.open`.

    Args:
        access: The flags that every platform has, such as `os.O_RDONLY`.
        names: Further flags by name, such as "O_NOFOLLOW". A flag that this platform lacks is left out.

    Returns:
        All flags combined.
    """
    flags = access
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file.

    Args:
        path: The file. It is read in pieces.

    Returns:
        64 lower-case hexadecimal digits, as in manifest.json.

    Raises:
        OSError: The file cannot be read.
    """
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def partial_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`, in which to build a directory that has to appear whole.

    Rename it to `target` as the last step of the block. It is removed when the block ends and it is still there.

    Args:
        target: The final path. Its parent must exist.

    Yields:
        The path of an empty directory, `.NAME.RANDOM.partial`, that only this user can enter.

    Raises:
        OSError: The directory cannot be created.
    """
    # Imported here because most programs build no directory and start sooner without these modules.
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
