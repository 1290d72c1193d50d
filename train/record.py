"""The files of a run: JSON, history.csv, checkpoints, and the lock on their directory.

Every file appears whole or not at all: it is written under another name in the same directory, flushed to the disk and
renamed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from organ_infer.files import created_directory, flush_directory, flush_file
from organ_infer.locks import Lock
from train.errors import DamagedFile, RunError

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "learning_rate",
)

# levels of directories above a missing file to look into, and files to name
LEVELS, LISTED = 3, 4


def atomic_save(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file that appears whole or not at all.

    Args:
        path: of the file. Missing directories are created.
        save: called with a temporary file in the same directory, open for writing bytes.

    Raises:
        OSError: the disk is full or the directory is read-only. `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=".partial", dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            save(file)
            file.flush()
            flush_file(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        # some file systems keep no permissions
        with contextlib.suppress(OSError):
            os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_directory(path.parent)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, whole or not at all."""
    content = data.encode() if isinstance(data, str) else data
    atomic_save(path, lambda file: file.write(content))


def sweep_partials(directory: Path) -> None:
    """Remove the temporary files of killed writers in `directory` and below. Call it only under the run's lock."""
    for partial in list(directory.rglob(".*.partial")):
        # a bundle is written as a directory
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all.

    Raises:
        ValueError: `value` holds NaN or an infinity; undefined values must be None.
    """
    atomic_write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run. Raises DamagedFile if it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # RecursionError: thousands of brackets
    except (ValueError, RecursionError) as e:
        raise DamagedFile(
            f"{path}: not valid JSON ({e}); move it away or start over with --fresh"
        ) from e


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file of a run.

    Args:
        path: of the file.

    Returns:
        The arrays by name; an empty dictionary if there is no such file.

    Raises:
        DamagedFile: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return {}
    # numpy, zipfile and zlib raise many kinds of errors for a damaged file
    except Exception as e:
        raise DamagedFile(
            f"{path}: cannot be read ({_reason(e)}); rerun the command that trained the stage"
        ) from e


def read_history(path: Path) -> list[dict[str, float]]:
    """Read a history.csv.

    Args:
        path: of the file.

    Returns:
        A row per epoch, NaN for an empty cell; an empty list if there is no such file.

    Raises:
        DamagedFile: the file cannot be read, or is not a history.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [
                {key: float(value) if value else math.nan for key, value in row.items() if key}
                for row in reader
            ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as e:
        raise DamagedFile(
            f"{path}: cannot be read ({_reason(e)}); rerun the command that trained the stage"
        ) from e
    needed = {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    if not rows or any(not needed <= row.keys() for row in rows):
        raise DamagedFile(
            f"{path}: not the history of a stage; rerun the command that trained the stage"
        )
    return rows


def note(line: str) -> None:
    """Print a note about a file of the run on standard error."""
    print(f"train: note: {line}", file=sys.stderr, flush=True)


def set_aside(path: Path, problem: RunError) -> None:
    """Rename a damaged file that will be rebuilt, and report it."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    note(f"{str(problem).partition(';')[0]}; rebuilt from the checkpoints, the old file is {aside}")


def _reason(error: Exception) -> str:
    """Return the reason of an error in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write history.csv.

    Args:
        path: of the file.
        rows: a row per epoch with the columns `HISTORY_COLUMNS`. Losses are in nats; the seconds are those of training
            and validation.
    """
    atomic_write(path, history_text(rows))


def history_text(rows: list[dict[str, float]]) -> str:
    """Return the content of history.csv, see `write_history`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a checkpoint of tensors and plain values, readable with `weights_only=True`.

    Raises:
        OSError: as `atomic_save`.
    """
    import torch

    def save(file: BinaryIO) -> None:
        recording = _ErrorRecordingFile(file)
        try:
            torch.save(state, cast(BinaryIO, recording))
        except RuntimeError:
            # torch replaces the OSError of a full disk by an error of its own
            if recording.error:
                raise recording.error from None
            raise

    atomic_save(path, save)


class _ErrorRecordingFile:
    """A file that records the OSError of a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self.file.flush()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU. Runs no code from the file.

    Raises:
        RunError: there is no such file, or it is not a checkpoint of this program.
    """
    import torch

    from export.machine import machine_failure

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError) as e:
        raise RunError(f"{path}: no such checkpoint; {_checkpoints_near(path)}") from e
    except OSError as e:
        raise RunError(
            f"{path}: cannot be read ({e.strerror or e}); check the path and its permissions"
        ) from e
    # torch raises many kinds of errors for a damaged file
    except Exception as e:
        # a file that cannot be read now is not damaged
        if reason := machine_failure(e):
            raise RunError(
                f"{path}: cannot be read ({reason}); solve this and rerun the same command"
            ) from e
        raise RunError(
            f"{path}: not a readable checkpoint ({type(e).__name__}); remove it to train the stage again, or"
            " start over with --fresh"
        ) from e
    if not isinstance(state, dict) or "network" not in state:
        raise RunError(
            f"{path}: not a checkpoint of this program, it has no 'network' entry; use another file"
        )
    return state


def _checkpoints_near(path: Path) -> str:
    """Name the checkpoints near a path that names none, such as those of several seeds, as what to do."""
    folder = path
    depth = 1
    # at most a mistyped run and stage above the file
    while not folder.is_dir() and folder != folder.parent and depth <= LEVELS:
        folder, depth = folder.parent, depth + 1
    names = relative_names(folder, "checkpoint.pt", depth)
    return f"{folder} has {names}" if names else "check the path"


def relative_names(folder: Path, name: str, depth: int) -> str:
    """List the files of a name in the directories below one, relative to it.

    Args:
        folder: the directory.
        name: of the files.
        depth: levels of directories to look into.

    Returns:
        The first ones, separated by commas; empty if there are none.
    """
    files = [
        path.relative_to(folder).as_posix()
        for level in range(depth + 1)
        for path in sorted(folder.glob("*/" * level + name))
    ]
    more = f" and {len(files) - LISTED} more" if len(files) > LISTED else ""
    return ", ".join(files[:LISTED]) + more


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run's directory, which is created. The lock ends with the process.

    A run that writes nothing leaves no new directory behind.

    On a file system without locks, such as some network ones, a file marks the directory as in use. A killed process
    leaves that file behind, so a note on standard error names it.

    Raises:
        RunError: another run holds the lock, or the directory cannot be written to.
    """
    lock = Lock(directory / ".lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(created_directory(directory))
            acquired = lock.acquire()
        except OSError as e:
            raise RunError(
                f"{directory}: cannot be written ({e.strerror}); choose another --out"
            ) from e
        if not acquired:
            raise RunError(f"{directory}: another run is using it{_remedy(lock)}")
        stack.callback(lock.release)
        if lock.is_marked:
            note(
                f"{directory}: this file system has no locks; {lock.marker} marks the directory as in"
                " use, remove it if a run on another computer is killed"
            )
        yield


def _remedy(lock: Lock) -> str:
    """Return the end of the message that another run holds a lock: its process, and what to do."""
    if not lock.is_marked:
        return "; wait for it, or choose another --out"
    owner = lock.owner()
    return f"{f' ({owner})' if owner else ''}; wait for it, or remove {lock.marker} if that run was killed"
