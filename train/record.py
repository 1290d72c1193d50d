"""What a run leaves behind: results.json, history.csv, checkpoints, and the lock on their directory.

Every file appears whole or not at all: it is written beside its place, flushed to the disk and renamed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from train.errors import RunError

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "learning_rate",
)


def atomic_save(path: Path, save: Callable[[BinaryIO], None]) -> None:
    """Call `save(file)` on a temporary file beside `path`, flush it to the disk, rename it to `path`.

    Raises OSError where the disk is full or the directory read-only; `path` is then as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must survive a power cut
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, whole or not at all."""
    content = data.encode() if isinstance(data, str) else data
    atomic_save(path, lambda file: file.write(content) and None)


def sweep_partials(directory: Path) -> None:
    """Remove what killed writers left in `directory` and below; only under the run's lock."""
    for partial in list(directory.rglob(".*.partial")):
        if partial.is_dir() and not partial.is_symlink():  # a bundle that was being made
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; NaN and infinities raise ValueError, what is undefined must be None."""
    atomic_write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of this run; RunError names the file where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise RunError(f"{path} is not valid JSON ({e}); move it away or start over with --fresh") from e


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write one row an epoch, columns `HISTORY_COLUMNS`; seconds of training and validation, losses in nats."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a checkpoint of tensors and plain values, readable with `weights_only=True`."""
    import torch

    def save(file: BinaryIO) -> None:
        watched = _Watched(file)
        try:
            torch.save(state, watched)
        except RuntimeError:  # torch hides a full disk behind an error of its own
            if watched.error:
                raise watched.error from None
            raise

    atomic_save(path, save)


class _Watched:
    """A file that remembers what the system said when a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self.file.flush()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; RunError names a file that is no checkpoint. Runs no code from the file."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as e:
        raise RunError(f"no checkpoint at {path}") from e
    except Exception as e:  # torch raises many kinds for a damaged file
        raise RunError(
            f"{path} is not a readable checkpoint ({type(e).__name__}); start over with --fresh"
        ) from e
    if not isinstance(state, dict) or "network" not in state:
        raise RunError(f"{path} is not a checkpoint of this program: it has no 'network' entry")
    return state


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run's directory; it dies with the process. RunError where another run holds it.

    On a file system without flock, as some network ones, filelock falls back to a lock file, which a killed process
    leaves behind; a note on standard error names it.
    """
    from filelock import FileLock, Timeout

    path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lock.acquire(timeout=0)
        if any("flock" in str(warning.message) for warning in caught):
            print(
                f"train: note: {directory} is on a file system without flock, so that a killed run leaves its lock behind;"
                f" remove {path} then",
                file=sys.stderr,
                flush=True,
            )
    except NotImplementedError as e:  # older versions of filelock have no fallback
        raise RunError(f"{directory} is on a file system without flock; choose another --out") from e
    except Timeout as e:
        raise RunError(f"another run is using {directory}; wait for it, or choose another --out") from e
    except OSError as e:
        raise RunError(f"cannot write to {directory}: {e.strerror}; choose another --out") from e
    try:
        yield
    finally:
        lock.release()
