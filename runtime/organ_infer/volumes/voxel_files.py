"""Voxels of a file: decompressed in blocks, within what the header declares."""

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, OrganInferError
from ..images.registry import open_regular_file
from .grid import Shape

__all__ = ["FILE_LIMIT", "Header", "Voxels", "blocks", "read_header_bytes", "reader_errors"]

_GZIP = b"\x1f\x8b"
# bytes of a file: as many voxels as are read, of 8 bytes
FILE_LIMIT = 1 << 33
# bytes of voxels read at a time
BLOCK = 1 << 22
# deflate compresses at most 1,032 times (https://zlib.net/zlib_tech.html)
MOST_DEFLATED = 1_032
# bytes behind the voxels that are still read, so that a damaged checksum at the end is found
TAIL = 1 << 16


@dataclass(frozen=True)
class Voxels:
    """Where the voxels of a file are.

    Attributes:
        path: The file, which need not be the header's.
        start: Bytes of the file before them, or before the compressed stream.
        compression: "", "gzip", "zlib" or "bzip2".
        skip: Bytes of the decompressed stream before them.
    """

    path: str
    start: int
    compression: str = ""
    skip: int = 0


@dataclass(frozen=True)
class Header:
    """The header of a NIfTI, NRRD or MetaImage file.

    Attributes:
        title: The format's usual spelling.
        shape: (X, Y, Z). The index x changes fastest in the file.
        affine: float64 (4, 4), from indices to LPS millimeters.
        dtype: Of the voxels, with the file's byte order.
        voxels: Where they are.
        slope: Stored values times `slope` plus `intercept` are the values.
        intercept: See `slope`.
        structures: Number -> name of the structures of a mask, if the file names them.
        warnings: Anything suspicious.
    """

    title: str
    shape: Shape
    affine: NDArray[np.float64]
    dtype: "np.dtype[Any]"
    voxels: Voxels
    slope: float = 1.0
    intercept: float = 0.0
    structures: Mapping[int, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]


def blocks(header: Header, into: NDArray[Any] | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the stored values in blocks.

    Args:
        header: The file's header.
        into: Array (voxels,) of the header's dtype in native byte order that receives the values, or None
            for one block that is used again.

    Yields:
        The index of the block's first voxel, and the values, in native byte order.

    Raises:
        ImageError: If the file is truncated or damaged.
    """
    size = header.dtype.itemsize
    step = max(1, BLOCK // size)
    buffer = np.empty(min(step, header.count), header.dtype.newbyteorder("="))
    with _open_voxels(header) as stream:
        for start in range(0, header.count, step):
            stop = min(start + step, header.count)
            values: Any = buffer[: stop - start] if into is None else into[start:stop]
            _fill(stream, memoryview(values).cast("B"), start * size, header.count * size)
            if not header.dtype.isnative:
                values.byteswap(inplace=True)
            yield start, values
        stream.read(TAIL)


def _fill(stream: BinaryIO, view: memoryview, before: int, declared: int) -> None:
    filled = 0
    while filled < len(view):
        # gzip's end of file in the middle of a block raises EOFError
        count = stream.readinto(view[filled:]) or 0  # type: ignore[attr-defined]
        if not count:
            raise _truncated(before + filled, declared)
        filled += count


def _truncated(found: int, declared: int) -> ImageError:
    return ImageError(
        f"the header declares {declared:,} bytes of voxels, found {found:,};"
        " the file is truncated or damaged, copy it again"
    )


@contextmanager
def _open_voxels(header: Header) -> Iterator[BinaryIO]:
    voxels, declared = header.voxels, header.count * header.dtype.itemsize
    with open_regular_file(voxels.path, FILE_LIMIT) as (file, size):
        stored = max(0, size - voxels.start)
        if voxels.compression == "" and stored < declared:
            raise _truncated(stored, declared)
        if voxels.compression in ("gzip", "zlib") and stored * MOST_DEFLATED < declared:
            raise ImageError(
                f"the header declares {declared:,} bytes of voxels, more than {stored:,} compressed bytes can hold;"
                " the file is truncated or damaged, copy it again"
            )
        file.seek(voxels.start)
        with _damaged_streams():
            stream = _decompressed(file, voxels.compression)
            _skip(stream, voxels.skip)
            yield stream


@contextmanager
def _damaged_streams() -> Iterator[None]:
    """Convert the errors of damaged compressed streams to ImageError."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except EOFError as e:
        raise ImageError(
            "the compressed data end too early; the file is truncated, copy it again"
        ) from e
    # zlib.error, OSError, isal's error, which has another base class
    except Exception as e:
        raise ImageError("the compressed data are damaged; copy the file again") from e


@contextmanager
def reader_errors(title: str) -> Iterator[None]:
    """Convert any exception of a reader to ImageError, without the words of the library that raised it."""
    try:
        yield
    except OrganInferError:
        raise
    except MemoryError as e:
        raise ImageError(f"{title}: not enough memory to read it; crop the scan") from e
    except Exception as e:
        raise ImageError(
            f"{title}: damaged or not supported; copy the file again, or export it again from its source"
        ) from e


def _decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    if compression == "gzip":
        return _gunzip(file)
    if compression == "zlib":
        return cast(BinaryIO, io.BufferedReader(_Inflated(file)))
    if compression == "bzip2":
        return cast(BinaryIO, bz2.BZ2File(file))
    return file


def _gunzip(file: BinaryIO) -> BinaryIO:
    """Return the decompressed stream, read with isal if it is installed (extra `volume`)."""
    try:
        open_gzip: Any = import_module("isal.igzip").IGzipFile
    except ImportError:
        open_gzip = gzip.GzipFile
    stream: BinaryIO = open_gzip(fileobj=file)
    return stream


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0:
        data = stream.read(min(count, BLOCK))
        if not data:
            raise EOFError
        count -= len(data)


class _Inflated(io.RawIOBase):
    """A zlib stream, decompressed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._stream = file, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._stream.eof:
            data = self._stream.unconsumed_tail or self._file.read(1 << 16)
            if not data:
                raise EOFError
            if inflated := self._stream.decompress(data, len(buffer)):
                buffer[: len(inflated)] = inflated
                return len(inflated)
        return 0


def read_header_bytes(path: str, count: int) -> tuple[bytes, bool]:
    """Return the first bytes of a file, decompressed if it is gzip.

    Returns:
        Up to `count` bytes, and whether the file is gzip.
    """
    with open_regular_file(path, FILE_LIMIT) as (file, _):
        head = file.read(2) or b""
        file.seek(0)
        if head != _GZIP:
            return file.read(count) or b"", False
        with _damaged_streams():
            return _gunzip(file).read(count), True
