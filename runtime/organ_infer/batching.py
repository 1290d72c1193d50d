"""Reads files as batches of network input. The next batch is read while the current one is classified.

Plain 8-bit gray PNG files are read in C. All other files go through `images`.
"""

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
from .errors import ImageError, shorten
from .images.types import Slice, SliceReaders
from .names import path_text

try:
    from ._reading import read as _read_plain
except ImportError:
    # built without zlib, or not on POSIX
    _read_plain = None  # type: ignore[assignment]

__all__ = ["Batch", "pack_slices", "path_chunks", "read_ahead", "read_batches"]

Path = str | bytes | os.PathLike[str]
# characters of an error
ERROR_LIMIT = 2000
# the warnings of a slice that was read, or the error of one that was not
Outcome = tuple[str, ...] | str
# takes a chunk of paths, and a function that returns whether to stop
ReadChunk = Callable[[list[Path], Callable[[], bool]], Iterator["Batch"]]


@dataclass(frozen=True)
class Batch:
    """Slices as network input, with their names.

    Attributes:
        names: One per slice or failure, N in all.
        packed: float32 (M, 1, S, S), the slices that could be read, M <= N.
        outcomes: For each name, the slice's warnings (tuple) or the error (str).
        last: Whether this is the last batch of the same chunk of paths.
    """

    names: list[str]
    packed: NDArray[np.float32]
    outcomes: list[Outcome]
    last: bool = True


class _BatchBuilder:
    """Collects slices into one batch."""

    def __init__(self, batch_size: int, spec: Input) -> None:
        self._spec = spec
        self._names: list[str] = []
        self._outcomes: list[Outcome] = []
        self._packed = np.empty((batch_size, 1, spec.size, spec.size), np.float32)
        self._count = 0

    @property
    def full(self) -> bool:
        return len(self._names) == len(self._packed)

    def add(self, name: str, content: Slice | str | NDArray[np.float32]) -> None:
        """Add one slice. `content` is the slice, the packed slice (1, S, S), or the error."""
        self._names.append(name)
        if isinstance(content, str):
            self._outcomes.append(content)
            return
        if isinstance(content, Slice):
            pack_slices([content.pixels], self._spec, self._packed[self._count : self._count + 1])
        else:
            self._packed[self._count] = content
        self._outcomes.append(content.warnings if isinstance(content, Slice) else ())
        self._count += 1

    def build(self, last: bool) -> Batch:
        return Batch(self._names, self._packed[: self._count], self._outcomes, last)


def read_batches(
    paths: Iterable[Path],
    stopped: Callable[[], bool] = lambda: False,
    *,
    batch_size: int,
    spec: Input,
    load: Callable[[str], SliceReaders],
    prepare: Callable[[Slice], Slice],
    plain_pixel_limit: int,
    threads: int,
) -> Iterator[Batch]:
    """Read every slice of some files.

    Each slice is packed as soon as it is decoded, so only one decoded image is in memory.

    Args:
        paths: The files, at most `batch_size`.
        stopped: Called before each slice that is not read in C. Reading ends if it returns True.
        batch_size: Slices per batch, at most.
        spec: The manifest's description of the network's input.
        load: Opens a file and returns its slices. May raise ImageError.
        prepare: Applied to each slice before it is packed. May raise ImageError.
        plain_pixel_limit: Plain PNG files of up to this number of pixels are read in C, without `load`
            and `prepare`. 0 turns this off.
        threads: Threads for reading in C.

    Yields:
        Batches, in the order of `paths`.
    """
    names = [os.fsdecode(path) for path in paths]
    packed, done = _read_in_c(names, spec, plain_pixel_limit, threads)
    if done and all(done):
        yield Batch(names, packed, [()] * len(names))
        return
    builder = _BatchBuilder(batch_size, spec)
    for i, path in enumerate(names):
        contents = (
            [(path, packed[i])] if done and done[i] else _read_file(path, load, prepare, stopped)
        )
        for name, content in contents:
            if builder.full:
                yield builder.build(last=False)
                builder = _BatchBuilder(batch_size, spec)
            builder.add(name, content)
        if stopped():
            return
    yield builder.build(last=True)


def _read_in_c(
    names: list[str], spec: Input, pixel_limit: int, threads: int
) -> tuple[NDArray[np.float32], bytes]:
    """Return float32 (N, 1, S, S), and a byte per name: 1 if it was read. No bytes if none were tried."""
    if not pixel_limit or _read_plain is None:
        return np.empty((0, 1, spec.size, spec.size), np.float32), b""
    return _read_plain(
        names,
        spec.size,
        mean=spec.mean,
        std=spec.std,
        resample=spec.resample,
        pixel_limit=pixel_limit,
        threads=threads,
    )


def _read_file(
    path: str,
    load: Callable[[str], SliceReaders],
    prepare: Callable[[Slice], Slice],
    stopped: Callable[[], bool],
) -> Iterator[tuple[str, Slice | str]]:
    """Yield the name of each slice of a file, with the slice or the error."""
    try:
        for name, read in load(path):
            if stopped():
                return
            try:
                yield name, prepare(read())
            except ImageError as e:
                yield name, shorten(str(e), ERROR_LIMIT)
    except ImageError as e:
        yield path, shorten(str(e), ERROR_LIMIT)


def pack_slices(
    slices: Sequence[NDArray[Any]], spec: Input, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Resample and normalize slices into `out`.

    Args:
        slices: uint8, uint16 or int16 (HU) arrays (H, W), all of one dtype.
        spec: The manifest's description of the network's input.
        out: float32 (N, 1, S, S).

    Returns:
        `out`.
    """
    window = spec.window if slices[0].dtype == np.int16 else None
    return pack(
        slices,
        spec.size,
        mean=spec.mean,
        std=spec.std,
        window=window,
        resample=spec.resample,
        out=out,
    )


def path_chunks(paths: Iterable[Path], size: int) -> Iterator[list[Path]]:
    """Yield the paths in lists of up to `size`. No more paths are taken than are needed.

    Raises:
        InputError: If one of them is no path. The message names its position.
    """
    remaining = _checked(paths)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _checked(paths: Iterable[Path]) -> Iterator[Path]:
    for i, path in enumerate(paths):
        path_text(path, f"paths[{i}]")
        yield path


class _Prefetcher:
    """Reads the next batch in a thread.

    Each batch is read in a new thread, which ends with it. So no thread waits forever if the caller
    takes no more batches.
    """

    def __init__(self, paths: Sequence[Path], size: int, read: ReadChunk) -> None:
        self._stop = False
        self._ended = False
        self._source = self._batches(paths, size, read)
        self._batch: Batch | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def _batches(
        self, paths: Sequence[Path], size: int, read: ReadChunk
    ) -> Generator[Batch, None, None]:
        taken = 0
        for chunk in path_chunks(paths, size):
            # `read` returned early: do not begin the next chunk
            if self._stop:
                return
            taken += len(chunk)
            for batch in read(chunk, lambda: self._stop):
                self._ended = batch.last and taken >= len(paths)
                yield batch

    def start(self) -> None:
        """Start reading the next batch, if there is one."""
        if not self._ended:
            thread = threading.Thread(target=self._run, name="organ_infer reading")
            # No more threads can be started. The caller then reads the batch itself.
            with contextlib.suppress(RuntimeError, MemoryError):
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        try:
            self._batch = next(self._source, None)
        except BaseException as e:
            self._error = e

    def next_batch(self) -> Batch | None:
        """Return the next batch, or None after the last one. Raises what `read` raised."""
        if self._thread is None:
            self._run()
        self._wait()
        if self._error is not None:
            raise self._error
        batch, self._batch = self._batch, None
        return batch

    def stop(self) -> None:
        """End reading before the next slice."""
        self._stop = True
        self._wait()
        # ValueError: in a forked child the source is still marked as running in the parent's thread
        with contextlib.suppress(ValueError):
            self._source.close()

    def _wait(self) -> None:
        thread, self._thread = self._thread, None
        # garbage collection can call this in the reading thread itself
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def read_ahead(paths: Sequence[Path], size: int, read: ReadChunk) -> Generator[Batch, None, None]:
    """Read the next batch in a thread while the caller works on one.

    Closing the generator, or an exception, ends the reading.

    Args:
        paths: All paths.
        size: Paths per call of `read`.
        read: Yields the batches of a chunk of paths. Its second argument returns whether to stop.

    Yields:
        The batches, in order.
    """
    prefetcher = _Prefetcher(paths, size, read)
    try:
        while batch := prefetcher.next_batch():
            prefetcher.start()
            yield batch
    finally:
        prefetcher.stop()
