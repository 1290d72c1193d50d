"""Files to slices: gray pixels of 8 or 16 bits, with a word on each conversion on the way (docs/formats.md).

Every failure is an ImageError of one line. A picture is read once, whole, within a limit; what is checked is what is
decoded. A file may hold many slices: they are read one at a time.
"""

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from numpy.typing import NDArray

from .errors import ImageError, one_line
from .orientation import Orientation

__all__ = [
    "DTYPES",
    "FILE_LIMIT",
    "HEAD",
    "PIXEL_LIMIT",
    "SUFFIXES",
    "Found",
    "Limits",
    "Slice",
    "Source",
    "check_size",
    "decode_slices",
    "numbered",
    "open_slices",
    "split_frame",
]

FILE_LIMIT = 1 << 28  # bytes
PIXEL_LIMIT = 89_478_485  # Pillow's own: a quarter of a gigabyte of 24-bit pixels
DTYPES = ("uint8", "uint16", "int16")
HEAD = 132  # bytes that name any of the formats; DICOM begins behind them


@dataclass(frozen=True)
class Slice:
    """pixels: uint8, uint16 or int16 (HU), (H, W); how they lie, where the file says so; what was done to them."""

    pixels: NDArray[Any]
    warnings: tuple[str, ...] = ()
    orientation: Orientation | None = None


class Limits(NamedTuple):
    """The most that is read: pixels of a slice; bytes of a file, and of what is compressed in it."""

    pixels: int = PIXEL_LIMIT
    file_bytes: int = FILE_LIMIT


LIMITS = Limits()


class Source(NamedTuple):
    """What a format's reader is given. pick: which of its slices, where one was asked for."""

    file: BinaryIO  # at its start
    size: int  # bytes
    format: str
    limits: Limits
    pick: str | None

    def whole(self) -> bytes:
        data = self.file.read(self.size + 1)
        if len(data) != self.size:
            raise ImageError("it changed while it was read")
        return data


Found = Iterator[tuple[str, Callable[[], Slice]]]


def open_slices(path: str, limits: Limits = LIMITS) -> Found:
    """(name, read) of each slice of a file, in order; `read` is to be called before the next is asked for.

    A file of one picture has one slice, by the name of `path`; one of many has `path#0`, `path#1`, ... (an .npz
    `path#array#0`). A path that is no file, but is one up to a `#`, names slices of that one. PNG, JPEG, TIFF, BMP, GIF,
    PNM, WebP, JPEG 2000, .npy, .npz and DICOM. Raises ImageError, and so does `read`.
    """
    name, pick = split_frame(path)
    with _opened(name, limits.file_bytes) as (file, size):
        for suffix, read in _slices(file, size, limits, pick):
            yield name + suffix, read


def decode_slices(data: bytes, limits: Limits = LIMITS, pick: str | None = None) -> Found:
    """The slices that a file's bytes hold, as `open_slices` gives them; the names without the path."""
    return _slices(io.BytesIO(data), len(data), limits, pick)


def split_frame(path: str) -> tuple[str, str | None]:
    """`a.tif#3` as `a.tif` and `3`, where the first is a file and the whole is nothing."""
    at = len(path)
    if "#" in path and not os.path.lexists(path):
        while (at := path.rfind("#", 0, at)) > 0:
            if os.path.isfile(path[:at]):
                return path[:at], path[at + 1 :]
    return path, None


def numbered(count: int, read: Callable[[int], Slice], pick: str | None) -> Found:
    """`#0` to `#count-1`, or the one that is picked."""
    if count < 1:
        raise ImageError("no slice in it")
    if pick is None:
        for i in range(count):
            yield f"#{i}", partial(read, i)
        return
    if not (pick.isascii() and pick.isdigit() and len(pick) < 10 and int(pick) < count):
        raise ImageError(
            f"no slice {pick!r} in it: it has {'#0 alone' if count == 1 else f'#0 to #{count - 1}'}"
        )
    yield f"#{pick}", partial(read, int(pick))


def _slices(file: BinaryIO, size: int, limits: Limits, pick: str | None) -> Found:
    head = file.read(HEAD) or b""  # None: a file of /proc that would have to be waited for
    if not head:
        raise ImageError("an empty file")
    found = [(name, reader) for at, magic, name, reader in _FORMATS if head[at : at + len(magic)] == magic]
    if not found:
        raise ImageError(
            "no image of a known format (PNG, JPEG, TIFF, BMP, GIF, PNM, WebP, JPEG 2000, .npy, .npz, DICOM)"
        )
    name, reader = found[0]
    file.seek(0)
    with _refusing(name):
        for suffix, read in reader(Source(file, size, name, limits, pick)):
            yield suffix, partial(_read, name, read)


def _read(name: str, read: Callable[[], Slice]) -> Slice:
    with _refusing(name):
        return read()


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever a decoder raises is an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as e:
        raise ImageError(f"{name}: not enough memory to decode it") from e
    except Exception as e:  # decoders of hostile bytes raise almost anything
        raise ImageError(f"{name}: damaged or not supported ({one_line(e)[:200]})") from e


def check_size(width: int, height: int, limit: int) -> None:
    """Refuse before decoding what is empty, too large, or longer than 65,535 on a side."""
    if width < 1 or height < 1:
        raise ImageError(f"{width} x {height} pixels: the image is empty")
    if width * height > limit or max(width, height) > 65_535:
        raise ImageError(
            f"{width} x {height} pixels: too large, at most {limit:,} pixels (--pixel-limit raises it) and"
            " 65,535 a side are read"
        )


@contextmanager
def _opened(path: str, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. Nothing else is opened, and nothing waited for."""
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    try:
        _check_kind(os.stat(path))  # first: opening alone can act on a device
        with open(os.open(path, flags), "rb") as file:
            size = _check_kind(os.fstat(file.fileno()))
            if size > limit:
                raise ImageError(
                    f"{size:,} bytes: too large, at most {limit:,} are read (--file-limit raises it)"
                )
            yield file, size
    except FileNotFoundError as e:
        raise ImageError("no such file") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise ImageError(f"cannot be read ({getattr(e, 'strerror', None) or one_line(e)})") from e


def _check_kind(found: os.stat_result) -> int:
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a special file"
        raise ImageError(f"{kind}, not an image")
    return found.st_size


def _picture(source: Source) -> Found:
    from .pictures import read_pictures

    return read_pictures(source)


def _dicom(source: Source) -> Found:
    from .dicom import read_dicom

    return read_dicom(source)


def _npy(source: Source) -> Found:
    from .arrays import read_npy

    return read_npy(source)


def _npz(source: Source) -> Found:
    from .arrays import read_npz

    return read_npz(source)


# offset, first bytes there, Pillow's name or our own, reader. What is not here is never opened: some formats run programs.
_FORMATS: tuple[tuple[int, bytes, str, Callable[[Source], Found]], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG", _picture),
    (0, b"\xff\xd8\xff", "JPEG", _picture),
    (128, b"DICM", "DICOM", _dicom),
    (0, b"\x93NUMPY", ".npy", _npy),
    (0, b"PK\3\4", ".npz", _npz),
    *((0, magic, "TIFF", _picture) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"BM", "BMP", _picture),
    (0, b"GIF8", "GIF", _picture),
    *((0, b"P%d" % kind, "PPM", _picture) for kind in range(1, 7)),
    (8, b"WEBP", "WEBP", _picture),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000", _picture),
    (0, b"\xff\x4f\xff\x51", "JPEG2000", _picture),
)

# of a directory's files, those with these endings are taken for images
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".pnm", ".webp"),
    *(".jp2", ".j2k", ".npy", ".npz", ".dcm"),
)
