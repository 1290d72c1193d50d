"""Writes rows to standard output, or to a file that appears under its name only when it is complete."""

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from ..errors import file_reason
from ..files import NAME_BYTES, flush_directory, flush_file, lock_file, open_flags
from ..names import escape_path

__all__ = ["ClosedPipe", "OutputError", "RowBuffer", "Writer"]

# Characters of rows that are written together.
BUFFER_SIZE = 1 << 14
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputError(Exception):
    """The results cannot be written."""


class ClosedPipe(Exception):
    """The program that read standard output has ended."""


class Writer:
    """Writes to standard output, or to FILE.partial, which `finish` renames to FILE.

    After a failed write, a file is truncated to its last complete line. FILE.partial is locked while it is
    written. FILE keeps its permissions, and stays a link if it is one.

    Attributes:
        replaces: Whether there is a file that is not empty in FILE's place.
        busy: Whether a write is in progress. A signal then waits for the end of the line.
        needs_reader: Whether the reader of standard output is needed. If not, what it does not read is lost.

    Raises:
        OutputError: The output cannot be opened or written.
        ClosedPipe: The reader of standard output has closed it.
    """

    def __init__(self, output: str | None) -> None:
        self.output = output
        self.replaces = False
        self.busy = False
        self.needs_reader = True
        self._finished = False
        # Bytes of complete lines in the output.
        self._complete_bytes = 0
        self._descriptor = 1
        if output is None:
            return
        try:
            # The file that a symbolic link points to is replaced, not the link.
            self._target = os.path.realpath(output)
            self.partial = _partial_path(self._target)
            mode = self._existing_mode()
            self._descriptor = self._open_partial()
            if mode is not None:
                # Some file systems keep no permissions.
                with contextlib.suppress(OSError):
                    os.chmod(self.partial, mode)
        except (OSError, ValueError) as e:
            raise self._error(e) from e

    @property
    def is_terminal(self) -> bool:
        """Whether the results go to a terminal."""
        return self.output is None and os.isatty(self._descriptor)

    def _existing_mode(self) -> int | None:
        """The permissions of the file that will be replaced."""
        assert self.output is not None
        try:
            status = os.stat(self.output)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise OutputError(
                f"--output {escape_path(self.output, one_line=True)}: exists and is not a regular file; choose another path"
            )
        self.replaces = status.st_size > 0
        return stat.S_IMODE(status.st_mode)

    def _open_partial(self) -> int:
        """Open FILE.partial for this process alone, and empty it."""
        assert self.output is not None
        access = os.O_WRONLY | os.O_CREAT
        flags = open_flags(access, "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
        while True:
            descriptor = os.open(self.partial, flags, 0o666)
            try:
                # Some file systems have no locks. Results can be written there all the same.
                if lock_file(descriptor) is False:
                    raise OutputError(
                        f"--output {escape_path(self.output, one_line=True)}: another organ-infer is writing this file;"
                        " choose another path"
                    )
                # Another run may have renamed this file to FILE before the lock was free.
                if _is_file(descriptor, self.partial):
                    os.ftruncate(descriptor, 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def write(self, lines: str | bytes) -> None:
        """Write complete lines, or a whole binary file."""
        data = memoryview(lines.encode("utf-8") if isinstance(lines, str) else lines)
        self.busy = True
        try:
            offset = 0
            while offset < len(data):
                offset += os.write(self._descriptor, data[offset:])
            self._complete_bytes += offset
        except BrokenPipeError as e:
            if self.needs_reader:
                raise ClosedPipe from e
            self._descriptor = os.open(os.devnull, os.O_WRONLY)
        except OSError as e:
            if self.output is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._complete_bytes)
            raise self._error(e) from e
        finally:
            self.busy = False

    def finish(self) -> None:
        """Flush FILE.partial to the disk and rename it to FILE."""
        if self.output is None:
            return
        try:
            flush_file(self._descriptor)
            # Renamed while it is locked, and closed after that: no other run can write into it.
            os.replace(self.partial, self._target)
            self._finished = True
            os.close(self._descriptor)
        except OSError as e:
            raise self._error(e) from e
        flush_directory(Path(self._target).parent)

    def discard(self) -> None:
        """Remove FILE.partial if it is empty."""
        if self.output is not None and not self._complete_bytes and not self._finished:
            with contextlib.suppress(OSError):
                os.unlink(self.partial)

    def partial_note(self) -> str:
        """Return the end of an error message: the path of the results that FILE will not contain."""
        if self.output is None or not self._complete_bytes or self._finished:
            return ""
        return f"; results so far are in {escape_path(self.partial, one_line=True)}"

    def _error(self, error: Exception) -> OutputError:
        target = (
            "standard output"
            if self.output is None
            else f"--output {escape_path(self.output, one_line=True)}"
        )
        reason = file_reason(error)
        note = self.partial_note() if getattr(error, "errno", 0) in _FULL_DISK else ""
        return OutputError(f"{target}: cannot be written ({reason}){note}")


def _partial_path(target: str) -> str:
    """FILE.partial, or a shorter name if that one would be too long for a file system."""
    directory, name = os.path.split(target)
    if len(os.fsencode(name)) + len(".partial") > NAME_BYTES:
        name = f".organ-infer-{zlib.crc32(os.fsencode(name)):08x}"
    return os.path.join(directory, f"{name}.partial")


def _is_file(descriptor: int, path: str) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


class RowBuffer:
    """Collects rows, so that many are written together.

    Args:
        writer: Takes the rows.
        header: Written before the first row. A header alone is not a result.
        delay: Seconds after which rows are written even if they are few.
        before_write: Called before rows are written to a terminal, to clear what is drawn there.
    """

    def __init__(
        self,
        writer: Writer,
        header: str,
        delay: float,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = writer
        self._before_write = before_write if writer.is_terminal else lambda: None
        self._header = self._pending = header
        self._delay = delay
        self._last_write = monotonic()

    def add(self, row: str) -> bool:
        """Add a row. Returns whether rows were written."""
        self._pending += row
        if len(self._pending) < BUFFER_SIZE and monotonic() - self._last_write < self._delay:
            return False
        # The buffer is emptied first: an error in the write must not write the same rows again.
        rows, self._pending, self._last_write = self._pending, "", monotonic()
        self._before_write()
        self._writer.write(rows)
        return True

    def flush(self) -> None:
        """Write the pending rows."""
        self._before_write()
        self._writer.write(self._pending)

    def flush_results(self) -> None:
        """Write the pending rows, unless only the header is pending."""
        if self._pending != self._header:
            self.flush()
