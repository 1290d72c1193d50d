"""The directory of an audit: results.jsonl, to which every scan is added as it ends, and what a rerun reads from it."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..errors import InputError, OrganInferError, file_reason, one_line
from ..files import created_directory, flush_file, open_flags
from ..locks import Lock
from ..names import escape_path
from .records import (
    Record,
    RunIdentity,
    StoredPicture,
    read_record,
    record_line,
    stored_pictures,
)

__all__ = ["OUTPUTS", "RESULTS", "AuditDirectory", "audit_directory"]

RESULTS = "results.jsonl"
# Written when the run ends.
OUTPUTS = ("findings.csv", "organs.csv", "report.html")
# Of results.jsonl.
FORMAT = 1
_BEGINNING = '{"row": "audit", '


class AuditDirectory:
    """The open directory of an audit. Create it with `audit_directory`.

    Attributes:
        path: The directory.
        busy: Whether a line is being written, which a signal must not break.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.busy = False
        self._descriptor = descriptor
        # bytes of complete lines
        self._complete_bytes = 0
        # key -> record, and where its line is: start, size
        self._records: dict[str, Record] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def get(self, key: str) -> Record | None:
        """Return the last record with a key, without pictures."""
        return self._records.get(key)

    def add(self, record: Record) -> None:
        """Add the line of a record, and flush it.

        Raises:
            OrganInferError: The file cannot be written. It ends with the last complete line.
        """
        self.add_line(record_line(record))

    def add_line(self, line: str) -> Record:
        """Add a line of `record_line`, and return its record without pictures."""
        start = self._complete_bytes
        self._write(line)
        # Read, so that a rerun writes the same digits.
        record = read_record(json.loads(line))
        self._remember(record, start, self._complete_bytes - start)
        return record

    def pictures(self, key: str) -> list[list[StoredPicture]]:
        """Read the pictures of a scan again, those of each finding."""
        start, size = self._places[key]
        return stored_pictures(self._read(start, size).decode("utf-8"))

    def discard(self) -> None:
        """Nothing to remove: a finished scan stays."""

    def partial_note(self) -> str:
        """Return the end of the message of a signal."""
        return f"; finished scans are in {self._shown}, and the same command continues"

    # What `audit_directory` calls.

    def load(self, identity: RunIdentity, fresh: bool) -> None:
        """Read the lines of earlier runs, and remove a torn last line. With `fresh`, begin anew.

        Raises:
            InputError: The earlier runs had other options, or a line is damaged.
        """
        beginning = self._read(0, len(_BEGINNING))
        # Only the beginning of a first line is no result yet.
        if beginning and not _BEGINNING.encode().startswith(beginning):
            raise InputError(
                f"{self._shown}: {RESULTS} is not of organ-infer audit; choose another directory"
            )
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(self._descriptor, "rb", closefd=False) as file:
            if not fresh and (first := file.readline()).endswith(b"\n"):
                self._check_identity(first, identity)
                self._complete_bytes = len(first)
                self._read_lines(file)
        self._truncate()
        if not self._complete_bytes:
            row = {"row": "audit", "format": FORMAT, **asdict(identity)}
            self._write(json.dumps(row, ensure_ascii=False) + "\n")

    @property
    def _shown(self) -> str:
        return escape_path(self.path, one_line=True)

    def _check_identity(self, line: bytes, identity: RunIdentity) -> None:
        try:
            row = json.loads(line)
            format_ = row["format"]
            earlier = RunIdentity(**{each.name: row[each.name] for each in fields(RunIdentity)})
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(
                f"{self._shown}: line 1 of {RESULTS} is damaged; choose another directory, or start over with --fresh"
            ) from e
        difference = identity.difference(earlier)
        if format_ != FORMAT:
            difference = f"format {format_} of {RESULTS}, now {FORMAT}"
        if difference is not None:
            raise InputError(
                f"{self._shown}: started with {difference}; choose another directory, or start over with --fresh"
            )

    def _read_lines(self, file: Any) -> None:
        for number, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                # The last run was killed while it wrote.
                return
            try:
                record = read_record(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise InputError(
                    f"{self._shown}: line {number} of {RESULTS} is damaged; remove the line, or start over with --fresh"
                ) from e
            self._remember(record, self._complete_bytes, len(line))
            self._complete_bytes += len(line)

    def _remember(self, record: Record, start: int, size: int) -> None:
        self._records[record.key] = record
        self._places[record.key] = start, size

    def _truncate(self) -> None:
        os.ftruncate(self._descriptor, self._complete_bytes)

    def _read(self, start: int, size: int) -> bytes:
        os.lseek(self._descriptor, start, os.SEEK_SET)
        with open(self._descriptor, "rb", closefd=False) as file:
            return file.read(size)

    def _write(self, line: str) -> None:
        data = memoryview(line.encode("utf-8"))
        self.busy = True
        try:
            os.lseek(self._descriptor, self._complete_bytes, os.SEEK_SET)
            offset = 0
            while offset < len(data):
                offset += os.write(self._descriptor, data[offset:])
            flush_file(self._descriptor)
            self._complete_bytes += len(data)
        except OSError as e:
            with contextlib.suppress(OSError):
                self._truncate()
            raise OrganInferError(
                f"{escape_path(self.path / RESULTS, one_line=True)}: cannot be written ({file_reason(e)});"
                " the same command continues"
            ) from e
        finally:
            self.busy = False


@contextlib.contextmanager
def audit_directory(
    path: Path, identity: RunIdentity, *, fresh: bool = False
) -> Iterator[AuditDirectory]:
    """Open the directory of an audit for this process alone, and create it if necessary.

    Args:
        path: The directory.
        identity: Of this run. Results of other models, options and versions are refused.
        fresh: Whether to forget the results of earlier runs.

    Yields:
        The directory, with the results of earlier runs.

    Raises:
        InputError: If the directory cannot be used, another process uses it, or it has other results.
    """
    shown = escape_path(path, one_line=True)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(f"{shown}: not a directory; pass a directory for the results")
    _refuse_other_files(path, shown)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(created_directory(path))
            lock = Lock(path / ".lock")
            acquired = lock.acquire()
        except (OSError, ValueError) as e:
            raise InputError(f"{shown}: cannot be written ({file_reason(e)})") from e
        if not acquired:
            raise InputError(
                f"{shown}: another organ-infer audit is writing into this directory{_remedy(lock)}"
            )
        stack.callback(lock.release)
        try:
            access = os.O_RDWR | os.O_CREAT
            flags = open_flags(access, "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
            descriptor = os.open(path / RESULTS, flags, 0o666)
        except (OSError, ValueError) as e:
            raise InputError(f"{shown}: cannot be written ({file_reason(e)})") from e
        stack.callback(os.close, descriptor)
        directory = AuditDirectory(path, descriptor)
        try:
            directory.load(identity, fresh)
        except OSError as e:
            raise InputError(
                f"{shown}: {RESULTS} cannot be read ({one_line(file_reason(e))})"
            ) from e
        yield directory


def _refuse_other_files(path: Path, shown: str) -> None:
    """Refuse to replace files that no audit has written."""
    with contextlib.suppress(OSError, ValueError):
        if os.path.getsize(path / RESULTS):
            return
    names = [name for name in OUTPUTS if os.path.lexists(path / name)]
    if names:
        raise InputError(f"{shown}: contains {names[0]} but no {RESULTS}; choose another directory")


def _remedy(lock: Lock) -> str:
    """Return the end of the message that another process holds the lock: which one, and what to do."""
    if not lock.is_marked:
        return "; wait for it, or choose another one"
    owner = lock.owner()
    marker = escape_path(lock.marker, one_line=True)
    return f"{f' ({owner})' if owner else ''}; wait for it, or remove {marker} if it was killed"
