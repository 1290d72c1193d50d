"""Files that other processes may write or read: open flags, checksums, and directories that appear whole."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

__all__ = [
    "atomic_directory",
    "atomic_file",
    "created_directory",
    "flush_directory",
    "flush_file",
    "lock_file",
    "open_flags",
    "partial_directory",
    "sha256_of",
]

# Bytes of a file name on the usual file systems.
NAME_BYTES = 255
_NO_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def open_flags(access: int, *names: str) -> int:
    """Combine flags for `os.open`.

    Args:
        access: The flags that every platform has, such as `os.O_RDONLY`.
        names: Further flags by name, such as "O_NOFOLLOW". A flag that this platform does not have is omitted.

    Returns:
        All flags combined.
    """
    flags = access
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file.

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


def flush_file(descriptor: int) -> None:
    """Flush an open file to the disk. A file system that cannot flush is accepted, because the file is complete.

    Args:
        descriptor: Of the file.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in _NO_FLUSH:
            raise


def flush_directory(directory: str | os.PathLike[str]) -> None:
    """Flush the names in a directory to the disk, so that a renamed file survives a power cut, if the system can."""
    # The files are complete. Some file systems open or flush no directories.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock_file(descriptor: int) -> bool | None:
    """Lock an open file for this process, without waiting. The lock ends when the file is closed.

    Args:
        descriptor: Of the file.

    Returns:
        True if the file is locked now, False if another process has locked it. None if there are no locks: some
        network file systems have none, and neither has Windows.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def partial_directory(target: Path) -> Iterator[Path]:
    """Create a temporary directory beside `target`, in which to build a directory that has to appear whole.

    Rename it to `target` as the last step of the block. If it still exists when the block ends, it is removed.

    Args:
        target: The final path. Its parent must exist.

    Yields:
        The path of an empty directory, `.NAME.RANDOM.partial`, that only this user can enter. A long NAME is left out.

    Raises:
        OSError: The directory cannot be created.
    """
    # Imported here because most programs build no directory and start sooner without these modules.
    import shutil
    import tempfile

    # The random part has 8 characters.
    long = len(os.fsencode(target.name)) + len("..12345678.partial") > NAME_BYTES
    prefix = "." if long else f".{target.name}."
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def created_directory(directory: Path) -> Iterator[None]:
    """Create a directory for a block, and remove it again if the block leaves nothing in it.

    Args:
        directory: The directory. Missing parent directories are created and removed alike. What existed before stays.

    Raises:
        OSError: A directory cannot be created.
    """
    missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        # A directory with something in it cannot be removed, and neither can those above it.
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[TextIO]:
    """Open a text file that appears at `target` when the block ends, with all its content on the disk.

    It is written in a hidden directory beside `target` and renamed at the end. If the block raises, `target` is
    unchanged.

    Args:
        target: The final path. Its parent must exist. A file there is replaced, and its permissions stay.

    Yields:
        The file, in UTF-8. Line breaks are written as they are.

    Raises:
        OSError: The file cannot be written.
    """
    with partial_directory(target) as folder:
        path = folder / target.name
        with open(path, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            flush_file(file.fileno())
        # Some file systems keep no permissions, and mostly there is no file yet.
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(path, target)
    flush_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Create a directory that appears at `target` when the block ends, with all its files on the disk.

    The files are written in a hidden directory beside `target`, which is renamed at the end. If the block raises, the
    hidden directory is removed, `target` is unchanged, and no new parent directory remains.

    Args:
        target: The final path. Missing parent directories are created. An empty directory there is replaced.
        replace: Also replace a directory that is not empty. Other processes then see the old directory, the new one
            or, for a moment, none.

    Yields:
        The hidden directory, to write into.

    Raises:
        OSError: A directory cannot be created, or `target` cannot be replaced.
    """
    with created_directory(target.parent), partial_directory(target) as building:
        # Some file systems keep no permissions.
        with contextlib.suppress(OSError):
            building.chmod(0o755)
        yield building
        _flush(building)
        if replace and target.exists():
            _replace(building, target)
        else:
            if target.exists():
                target.rmdir()
            os.replace(building, target)


def _flush(directory: Path) -> None:
    """Flush the files of a directory and of its subdirectories to the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                flush_file(file.fileno())


def _replace(new: Path, target: Path) -> None:
    with partial_directory(target) as folder:
        old = folder / target.name
        os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            os.replace(old, target)
            raise
