"""Batches of files as a network's input: plain 8-bit gray PNG in C, anything else by `images`, one batch ahead."""

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._packing import pack
from .errors import ImageError
from .images import PIXEL_LIMIT, Slice
from .manifest import Input

try:
    from ._reading import read as _read_plain
except ImportError:  # built where zlib was not found, or not on POSIX
    _read_plain = None  # type: ignore[assignment]

__all__ = ["Batch", "batches", "pack_slices", "read_ahead", "read_batch"]

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Batch:
    """packed: float32 (M, 1, S, S), the files that could be read. words: for each of the N names what was said of
    it, the warnings of a slice or the error of a file without one."""

    names: list[str]
    packed: NDArray[np.float32]
    words: list[tuple[str, ...] | str]


def read_batch(
    paths: Iterable[Path],
    stopped: Callable[[], bool] = lambda: False,
    *,
    how: Input,
    load: Callable[[str], Slice],
    plain: bool,
    pixel_limit: int,
    threads: int,
) -> Batch:
    """Every file read, and packed at once: no more than one decoded picture is held.

    stopped: asked before each file that is not read in C; True ends the batch there. load: a file's slice, or
    ImageError. plain: slices are taken as stored, so that the common ones may be read in C. threads: for those.
    """
    names = [os.fsdecode(path) for path in paths]
    if plain and _read_plain is not None:
        packed, done = _read_plain(
            names,
            how.size,
            mean=how.mean,
            std=how.std,
            pixel_limit=int(min(pixel_limit, PIXEL_LIMIT)),
            threads=threads,
        )
    else:
        packed, done = np.empty((len(names), 1, how.size, how.size), np.float32), bytes(len(names))
    words: list[tuple[str, ...] | str] = []
    for i, name in enumerate(names):
        if done[i]:
            words.append(())
        elif stopped():
            break
        else:
            try:
                piece = load(name)
            except ImageError as e:
                words.append(str(e))
            else:
                pack_slices([piece.pixels], how, packed[i : i + 1])
                words.append(piece.warnings)
    whole = [isinstance(said, tuple) for said in words]
    return Batch(names, packed if all(whole) else packed[: len(whole)][whole], words)


def pack_slices(slices: Sequence[NDArray[Any]], how: Input, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Slices of one dtype into `out`, float32 (N, 1, S, S)."""
    window = how.window if slices[0].dtype == np.int16 else None
    return pack(slices, how.size, mean=how.mean, std=how.std, window=window, out=out)


def batches(paths: Iterable[Path], size: int) -> Iterator[list[Path]]:
    """The paths, `size` at a time; no more are taken than are asked for."""
    left = iter(paths)
    while batch := list(islice(left, size)):
        yield batch


class _Reading:
    """One batch, read in a thread that ends with it: nothing is left waiting, whatever becomes of the caller."""

    def __init__(self, read: Callable[[list[Path], Callable[[], bool]], Batch], paths: list[Path]) -> None:
        self._read, self._paths = read, paths
        self._stop = False
        self._found: Batch | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="organ_infer reading")
        with contextlib.suppress(RuntimeError):  # no more threads: it is read when it is asked for
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        try:
            self._found = self._read(self._paths, lambda: self._stop)
        except BaseException as e:
            self._error = e

    def batch(self) -> Batch:
        """Raises what reading raised."""
        self._wait()
        if self._error is not None:
            raise self._error
        # Not found: it was not started, or this is a fork of the process in which it was.
        return self._found or self._read(self._paths, lambda: False)

    def stop(self) -> None:
        """End it, before its next file."""
        self._stop = True
        self._wait()

    def _wait(self) -> None:
        thread = self._thread
        if (
            thread is not None and thread is not threading.current_thread()
        ):  # which may come by, collecting garbage
            thread.join()


def read_ahead(
    paths: Sequence[Path], size: int, read: Callable[[list[Path], Callable[[], bool]], Batch]
) -> Generator[Batch, None, None]:
    """The batches of `paths` in order, the next one being read while the caller works on one. Closing it, or an
    exception, ends the reading."""
    reading: _Reading | None = None
    try:
        for some in batches(paths, size):
            found = reading.batch() if reading else None
            reading = _Reading(read, some)
            if found:
                reading.start()
                yield found
        if reading:
            yield reading.batch()
    finally:
        if reading:
            reading.stop()
