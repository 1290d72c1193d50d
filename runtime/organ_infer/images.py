"""Files to slices: gray pixels of 8 or 16 bits, with a word on each conversion on the way.

Every failure is an ImageError of one line. A file is read once, whole, within a limit; what is checked is what is
decoded.
"""

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError, one_line
from .orientation import Orientation

__all__ = ["FILE_LIMIT", "PIXEL_LIMIT", "SUFFIXES", "Slice", "decode", "read_image"]

FILE_LIMIT = 1 << 28  # bytes
PIXEL_LIMIT = 89_478_485  # Pillow's own: a quarter of a gigabyte of 24-bit pixels
DTYPES = ("uint8", "uint16", "int16")


@dataclass(frozen=True)
class Slice:
    """pixels: uint8, uint16 or int16 (HU), (H, W); how they lie, where the file says so; what was done to them."""

    pixels: NDArray[Any]
    warnings: tuple[str, ...] = ()
    orientation: Orientation | None = None


def read_image(
    path: str | os.PathLike[str], *, file_limit: int = FILE_LIMIT, pixel_limit: int = PIXEL_LIMIT
) -> Slice:
    """Read a PNG, JPEG, TIFF, BMP, GIF, PNM, WebP, JPEG 2000, .npy or DICOM file. Raises ImageError."""
    return decode(_read(path, file_limit), pixel_limit=pixel_limit)


def decode(data: bytes, *, pixel_limit: int = PIXEL_LIMIT) -> Slice:
    """The slice that a file's bytes hold, whatever its name. Raises ImageError."""
    if not data:
        raise ImageError("an empty file")
    found = [
        (name, read) for offset, magic, name, read in _FORMATS if data[offset : offset + len(magic)] == magic
    ]
    if not found:
        raise ImageError(
            "no image of a known format (PNG, JPEG, TIFF, BMP, GIF, PNM, WebP, JPEG 2000, .npy, DICOM)"
        )
    name, read = found[0]
    try:
        return read(data, name, pixel_limit)
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
            f"{width} x {height} pixels: too large, at most {limit:,} pixels and 65,535 a side are read"
        )


def _read(path: str | os.PathLike[str], limit: int) -> bytes:
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    try:
        found = os.stat(path)  # first: opening alone can act on a device
        if not stat.S_ISREG(found.st_mode):
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a special file"
            raise ImageError(f"{kind}, not an image")
        if found.st_size > limit:
            raise ImageError(f"{found.st_size:,} bytes: too large, at most {limit:,} are read")
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError("a special file, not an image")
            data = file.read(limit + 1)
    except FileNotFoundError as e:
        raise ImageError("no such file") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise ImageError(f"cannot be read ({getattr(e, 'strerror', None) or one_line(e)})") from e
    if len(data) > limit:
        raise ImageError(f"more than {limit:,} bytes: too large")
    return data


def _picture(data: bytes, name: str, limit: int) -> Slice:
    from .pictures import read_picture

    return read_picture(data, name, limit)


def _dicom(data: bytes, name: str, limit: int) -> Slice:
    from .dicom import read_dicom

    return read_dicom(data, limit)


def _npy(data: bytes, name: str, limit: int) -> Slice:
    """A NumPy array of one slice; never a pickle. The header is held against the bytes before any are taken."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    headers: dict[tuple[int, int], Callable[[Any], Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in headers:
        raise ImageError(f".npy: version {version} is not read, save with numpy.save")
    shape, _, dtype = headers[version](file)
    if dtype.name not in DTYPES or len(shape) != 2:
        raise ImageError(f".npy: one slice (H, W) of {', '.join(DTYPES)} expected, found {dtype} {shape}")
    check_size(shape[1], shape[0], limit)
    if len(data) - file.tell() != shape[0] * shape[1] * dtype.itemsize:
        raise ImageError(
            f".npy: {len(data) - file.tell():,} bytes of pixels for {dtype} {shape}: truncated or damaged"
        )
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    return Slice(np.ascontiguousarray(array, dtype.newbyteorder("=")))


# offset, first bytes there, Pillow's name or our own, reader. What is not here is never opened: some formats run programs.
_FORMATS: tuple[tuple[int, bytes, str, Callable[[bytes, str, int], Slice]], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG", _picture),
    (0, b"\xff\xd8\xff", "JPEG", _picture),
    (128, b"DICM", "DICOM", _dicom),
    (0, b"\x93NUMPY", ".npy", _npy),
    (0, b"II*\0", "TIFF", _picture),
    (0, b"MM\0*", "TIFF", _picture),
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
    *(".jp2", ".j2k", ".npy", ".dcm"),
)
