"""Locks between processes, also on file systems that have none."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from .files import lock_file, open_flags

__all__ = ["Lock"]

# to lock a file that another process removes at the same time
ATTEMPTS = 100


class Lock:
    """The lock of a file. The system ends it with the process.

    A file system without locks, such as some network ones, gets a marker file instead, which a killed process leaves
    behind. The marker of a process of this computer that has ended is removed by the next one.

    Args:
        path: of the file to lock. It is created, and removed when the lock is given back.

    Attributes:
        marker: the path of the marker file.
        is_marked: whether the marker file is in use in place of a lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marker = path.with_name(f"{path.name}.owner")
        self.is_marked = False
        self._descriptor = -1

    def acquire(self) -> bool:
        """Take the lock without waiting. Returns False if another process has it.

        Raises:
            OSError: the file cannot be created.
        """
        flags = open_flags(os.O_RDWR | os.O_CREAT, "O_CLOEXEC", "O_BINARY")
        for attempt in range(ATTEMPTS):
            descriptor = os.open(self.path, flags, 0o666)
            locked = lock_file(descriptor)
            # a file system that numbers its files anew with each question must not hang the run
            if locked and (self._is_at_path(descriptor) or attempt == ATTEMPTS - 1):
                self._descriptor = descriptor
                return True
            os.close(descriptor)
            # if locked, the former owner removed the file after it was opened here
            if not locked:
                break
        self.is_marked = locked is None
        if not self.is_marked:
            return False
        # without locks the file itself means nothing
        self._remove(self.path)
        return self._mark() or (self._is_stale() and self._mark_again())

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            # while the lock is held, so that nobody loses a lock on this file
            self._remove(self.path)
            os.close(self._descriptor)
            self._descriptor = -1
        elif self.is_marked:
            self.marker.unlink(missing_ok=True)

    def _is_at_path(self, descriptor: int) -> bool:
        """Return whether an open file is still the one at `path`."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except OSError:
            return False

    @staticmethod
    def _remove(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()

    def owner(self) -> str:
        """Return who has the lock, as in "process 123 on HOST"; an empty text if it is not known."""
        number, _, host = self._marked().partition(" ")
        return f"process {number} on {host}" if number.isdecimal() and host else ""

    def _mark(self) -> bool:
        """Create the marker file. Returns False if there is one."""
        try:
            descriptor = os.open(self.marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {socket.gethostname()}\n")
        return True

    def _mark_again(self) -> bool:
        self.marker.unlink(missing_ok=True)
        return self._mark()

    def _marked(self) -> str:
        try:
            return self.marker.read_text(encoding="utf-8", errors="replace").strip()[:200]
        except OSError:
            return ""

    def _is_stale(self) -> bool:
        """Return whether the marker is of a process of this computer that has ended."""
        number, _, host = self._marked().partition(" ")
        # on Windows signal 0 is not a question
        if os.name != "posix" or host != socket.gethostname() or not number.isdecimal():
            return False
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False
        return False
