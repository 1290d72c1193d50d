"""Tells failures of the machine, such as a full disk or too little memory, from those of a network or of its conversion.

A failure of the machine passes, so nothing may be concluded from it: the command ends, and the next run tries again.
"""

from __future__ import annotations

import os
from pathlib import Path

# Of libraries that replace the operating system's error by one of their own: onnx, onnxruntime, PyTorch, and the C++
# standard library.
TEXTS = (
    "no space left on device",
    "disk quota exceeded",
    "too many open files",
    "permission denied",
    "read-only file system",
    "input/output error",
    "stale file handle",
    "cannot allocate memory",
    "can't allocate memory",
    "failed to allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "resource temporarily unavailable",
    "can't start new thread",
)


def machine_failure(error: BaseException) -> str | None:
    """Return one line on the failure of the machine that an error reports or was caused by.

    Args:
        error: The error, with its causes.

    Returns:
        The operating system's text, "out of memory", or the line with one of TEXTS. None for any other error.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if isinstance(link, MemoryError):
            return "out of memory"
        if isinstance(link, OSError) and link.errno is not None:
            name = f"{link.filename}: " if link.filename else ""
            return f"{name}{link.strerror}"
        for line in str(link).splitlines():
            if any(text in line.lower() for text in TEXTS):
                return " ".join(line.split())[:200]
    return None


def check_space(directory: str | os.PathLike[str], size: int) -> None:
    """Check that a directory holds a further file, by writing and removing it.

    Args:
        directory: An existing directory.
        size: Of the file, bytes.

    Raises:
        OSError: It does not.
    """
    probe = Path(directory, ".space")
    try:
        with probe.open("wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        e.filename = e.filename or os.fspath(directory)
        raise
    finally:
        probe.unlink(missing_ok=True)
