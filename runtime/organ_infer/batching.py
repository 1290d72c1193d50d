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
from .bundle.manifest import Input
from .errors import ImageError
from .images.types import Slice, SliceReaders

try:
    from ._reading import read as _read_plain
except ImportError:  # built where zlib was not found, or not on POSIX
    _read_plain = None  # type: ignore[assignment]

__all__ = ["Batch", "batches", "pack_slices", "read_ahead", "read_batches"]

Path = str | os.PathLike[str]
Words = tuple[str, ...] | str
Read = Callable[[list[Path], Callable[[], bool]], Iterator["Batch"]]


@dataclass(frozen=True)
class Batch:
    """packed: float32 (M, 1, S, S), the slices that could be read. words: for each of the N names what was said of
    it, the warnings of a slice or the error of what is none. last: no other batch of the same files follows."""

    names: list[str]
    packed: NDArray[np.float32]
    words: list[Words]
    last: bool = True


class _Filling:
    """A batch that is being filled, slice by slice."""

    def __init__(self, size: int, how: Input) -> None:
        self._how = how
        self._names: list[str] = []
        self._words: list[Words] = []
        self._packed, self._slices = np.empty((size, 1, how.size, how.size), np.float32), 0

    @property
    def full(self) -> bool:
        return len(self._names) == len(self._packed)

    def add(self, name: str, found: Slice | str | NDArray[np.float32]) -> None:
        """found: a slice, the error in its place, or one that is packed already, float32 (1, S, S)."""
        self._names.append(name)
        if isinstance(found, str):
            self._words.append(found)
            return
        if isinstance(found, Slice):
            pack_slices([found.pixels], self._how, self._packed[self._slices : self._slices + 1])
        else:
            self._packed[self._slices] = found
        self._words.append(found.warnings if isinstance(found, Slice) else ())
        self._slices += 1

    def batch(self, last: bool) -> Batch:
        return Batch(self._names, self._packed[: self._slices], self._words, last)


def read_batches(
    paths: Iterable[Path],
    stopped: Callable[[], bool] = lambda: False,
    *,
    size: int,
    how: Input,
    load: Callable[[str], SliceReaders],
    turn: Callable[[Slice], Slice],
    plain: int,
    threads: int,
) -> Iterator[Batch]:
    """Every slice of some files read, and packed at once: no more than one decoded picture is held.

    stopped: asked before each slice that is not read in C; True ends it there. size: slices a batch, and paths, at
    most. load: the slices of a file. turn: what is done to each, or ImageError. plain: of up to how many pixels the
    common files may be read in C, as they are stored. threads: for those.
    """
    names = [os.fsdecode(path) for path in paths]
    done = b""
    if plain and _read_plain is not None:
        packed, done = _read_plain(
            names, how.size, mean=how.mean, std=how.std, pixel_limit=plain, threads=threads
        )
        if all(done):
            yield Batch(names, packed, [()] * len(names))
            return
    filling = _Filling(size, how)
    for i, path in enumerate(names):
        for name, found in [(path, packed[i])] if done and done[i] else _slices(path, load, turn, stopped):
            if filling.full:
                yield filling.batch(last=False)
                filling = _Filling(size, how)
            filling.add(name, found)
        if stopped():
            return
    yield filling.batch(last=True)


def _slices(
    path: str,
    load: Callable[[str], SliceReaders],
    turn: Callable[[Slice], Slice],
    stopped: Callable[[], bool],
) -> Iterator[tuple[str, Slice | str]]:
    """Each slice of a file, or the error in its place."""
    try:
        for name, read in load(path):
            if stopped():
                return
            try:
                yield name, turn(read())
            except ImageError as e:
                yield name, str(e)
    except ImageError as e:
        yield path, str(e)


def pack_slices(slices: Sequence[NDArray[Any]], how: Input, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Slices of one dtype into `out`, float32 (N, 1, S, S)."""
    window = how.window if slices[0].dtype == np.int16 else None
    return pack(slices, how.size, mean=how.mean, std=how.std, window=window, out=out)


def batches(paths: Iterable[Path], size: int) -> Iterator[list[Path]]:
    """The paths, `size` at a time; no more are taken than are asked for."""
    left = iter(paths)
    while batch := list(islice(left, size)):
        yield batch


class _Ahead:
    """The batches of some paths, each read in a thread that ends with it: nothing is left waiting, whatever becomes
    of the caller."""

    def __init__(self, paths: Sequence[Path], size: int, read: Read) -> None:
        self._stop = False
        self._ended = False
        self._source = self._batches(paths, size, read)
        self._found: Batch | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def _batches(self, paths: Sequence[Path], size: int, read: Read) -> Generator[Batch, None, None]:
        taken = 0
        for some in batches(paths, size):
            if self._stop:  # read returned early: the batches behind it are not begun
                return
            taken += len(some)
            for batch in read(some, lambda: self._stop):
                self._ended = batch.last and taken >= len(paths)
                yield batch

    def start(self) -> None:
        """Begin with the next one, where one is left."""
        if not self._ended:
            thread = threading.Thread(target=self._run, name="organ_infer reading")
            with contextlib.suppress(RuntimeError):  # no more threads: it is read when it is asked for
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        try:
            self._found = next(self._source, None)
        except BaseException as e:
            self._error = e

    def batch(self) -> Batch | None:
        """The next one. Raises what reading raised."""
        if self._thread is None:
            self._run()
        self._wait()
        if self._error is not None:
            raise self._error
        found, self._found = self._found, None
        return found

    def stop(self) -> None:
        """End it, before its next slice."""
        self._stop = True
        self._wait()
        with contextlib.suppress(ValueError):  # in a fork, the thread that was at work on it is not there
            self._source.close()

    def _wait(self) -> None:
        thread, self._thread = self._thread, None
        if (
            thread is not None and thread is not threading.current_thread()
        ):  # which may come by, collecting garbage
            thread.join()


def read_ahead(paths: Sequence[Path], size: int, read: Read) -> Generator[Batch, None, None]:
    """The batches of `paths` in order, the next one being read while the caller works on one. Closing it, or an
    exception, ends the reading."""
    ahead = _Ahead(paths, size, read)
    try:
        while batch := ahead.batch():
            ahead.start()
            yield batch
    finally:
        ahead.stop()
