"""The format table, and the only functions that open image files (docs/guides/formats.md).

A file is read once, within a limit, and the checked bytes are the decoded bytes. The slices of a stack
are read one at a time. Every failure is an ImageError of one line.
"""

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import BinaryIO

from ..errors import ImageError, OrganInferError, one_line
from ..files import open_flags
from . import truncation
from .boxes import Box, cut_box, split_box
from .scan_formats import SCAN_HEAD_BYTES, scan_title
from .types import DEFAULT_LIMITS, SIGNATURE_BYTES, Format, Limits, Slice, SliceReaders, Source

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "UNKNOWN_FORMAT",
    "decode_slices",
    "decoder_errors",
    "has_known_content",
    "open_regular_file",
    "open_slices",
    "split_selector",
]

# Files of any other format are never decoded, because decoders of some formats run programs.
FORMATS: tuple[Format, ...] = (
    Format(
        name="PNG",
        title="PNG",
        signatures=((0, b"\x89PNG\r\n\x1a\n"),),
        suffixes=(".png",),
        reader="pillow:read_frames",
        plugin="Png",
        is_complete=truncation.png_is_complete,
    ),
    Format(
        name="JPEG",
        title="JPEG",
        signatures=((0, b"\xff\xd8\xff"),),
        suffixes=(".jpg", ".jpeg"),
        reader="pillow:read_frames",
        plugin="Jpeg",
    ),
    Format(
        name="DICOM",
        title="DICOM",
        signatures=((128, b"DICM"),),
        suffixes=(".dcm",),
        reader="dicom:read_dicom",
    ),
    Format(
        name=".npy",
        title=".npy",
        signatures=((0, b"\x93NUMPY"),),
        suffixes=(".npy",),
        reader="arrays:read_npy",
    ),
    Format(
        name=".npz",
        title=".npz",
        signatures=((0, b"PK\3\4"),),
        suffixes=(".npz",),
        reader="arrays:read_npz",
    ),
    Format(
        name="TIFF",
        title="TIFF",
        signatures=tuple((0, magic) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
        suffixes=(".tif", ".tiff"),
        reader="pillow:read_frames",
        plugin="Tiff",
        is_complete=truncation.tiff_is_complete,
    ),
    Format(
        name="BMP",
        title="BMP",
        signatures=((0, b"BM"),),
        suffixes=(".bmp",),
        reader="pillow:read_frames",
        plugin="Bmp",
    ),
    Format(
        name="GIF",
        title="GIF",
        signatures=((0, b"GIF8"),),
        suffixes=(".gif",),
        reader="pillow:read_frames",
        plugin="Gif",
        is_complete=truncation.gif_is_complete,
    ),
    Format(
        name="PPM",
        title="PNM",
        signatures=tuple((0, b"P%d" % kind) for kind in range(1, 7)),
        suffixes=(".pbm", ".pgm", ".ppm", ".pnm"),
        reader="pillow:read_frames",
        plugin="Ppm",
        is_complete=truncation.pnm_is_complete,
    ),
    Format(
        name="WEBP",
        title="WebP",
        signatures=((8, b"WEBP"),),
        suffixes=(".webp",),
        reader="pillow:read_frames",
        plugin="WebP",
    ),
    Format(
        name="JPEG2000",
        title="JPEG 2000",
        signatures=((0, b"\0\0\0\x0cjP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51")),
        suffixes=(".jp2", ".j2k"),
        reader="pillow:read_frames",
        plugin="Jpeg2K",
        is_complete=truncation.jpeg2000_is_complete,
    ),
)

# The beginning of the message about a file of no format in FORMATS.
UNKNOWN_FORMAT = "unknown image format"
SUFFIXES = tuple(suffix for row in FORMATS for suffix in row.suffixes)


def open_slices(path: str, limits: Limits = DEFAULT_LIMITS) -> SliceReaders:
    """Yield the slices of a file, in order.

    Args:
        path: A file of a format in FORMATS, or `file#selector` for one of its slices. `[x0:x1,y0:y1]` after it
            cuts a box out of each slice.
        limits: The most that may be read.

    Yields:
        (name, read) per slice. Call `read` before taking the next pair. The name of a file's only slice
        is `path`. The slices of a stack are named `path#0`, `path#1`, ... and those of an .npz
        `path#array#0`.

    Raises:
        ImageError: If the file or the slice cannot be read. `read` raises it too.
    """
    name, selector = split_selector(path)
    chosen, box = split_box(selector or "")
    with open_regular_file(name, limits.file_bytes) as (file, size):
        for suffix, read in _slice_readers(file, size, limits, chosen or None):
            if box is None:
                yield name + suffix, read
            else:
                yield f"{name}{suffix}{box}", partial(_read_box, read, box)


def _read_box(read: Callable[[], Slice], box: Box) -> Slice:
    return cut_box(read(), box)


def decode_slices(
    data: bytes, limits: Limits = DEFAULT_LIMITS, selector: str | None = None
) -> SliceReaders:
    """Yield the slices of a file's bytes, as `open_slices` does. The names lack the path.

    Args:
        data: The file's content.
        limits: The most that may be read.
        selector: The slice to read (the text after `#` in its name), or None for all.
    """
    return _slice_readers(io.BytesIO(data), len(data), limits, selector)


def has_known_content(path: str) -> bool:
    """Whether a file's first bytes name a format beyond doubt: two letters do not, and a ZIP may hold anything."""
    try:
        with open_regular_file(path, sys.maxsize) as (file, _):
            head = file.read(SIGNATURE_BYTES) or b""
    except ImageError:
        return False
    return any(
        head[offset : offset + len(magic)] == magic
        for row in FORMATS
        if row.name != ".npz"
        for offset, magic in row.signatures
        if len(magic) > 2
    )


def split_selector(path: str) -> tuple[str, str | None]:
    """Split `a.tif#3` into (`a.tif`, `3`), if `a.tif` is a file and `a.tif#3` does not exist.

    A box at the end, as in `a.tif#3[0:9,2:7]` or `a.png[0:9,2:7]`, is a part of the selector.

    Returns:
        The file's path and the selector, or `path` and None.
    """
    if path.endswith("]") and not os.path.lexists(path):
        before, box = split_box(path)
        if box is not None:
            name, selector = split_selector(before)
            if selector is not None or os.path.isfile(before):
                return name, f"{selector or ''}{box}"
    end = len(path)
    if "#" in path and not os.path.lexists(path):
        while (end := path.rfind("#", 0, end)) > 0:
            if os.path.isfile(path[:end]):
                return path[:end], path[end + 1 :]
    return path, None


def _slice_readers(file: BinaryIO, size: int, limits: Limits, selector: str | None) -> SliceReaders:
    # read() returns None for a file of /proc that would block
    head = file.read(SIGNATURE_BYTES) or b""
    if not head:
        raise ImageError("the file is empty")
    row = next((row for row in FORMATS if row.matches(head)), None)
    if row is None:
        if title := scan_title(head + (file.read(SCAN_HEAD_BYTES) or b"")):
            raise ImageError(
                f"{title}: a whole scan or mask, not a slice; pass the scan with its mask to organ-infer volume"
            )
        raise ImageError(f"{UNKNOWN_FORMAT}; supported: {', '.join(row.title for row in FORMATS)}")
    file.seek(0)
    with decoder_errors(row.name):
        module, _, function = row.reader.partition(":")
        reader: Callable[[Source], SliceReaders] = getattr(
            import_module(f".{module}", __package__), function
        )
        for suffix, read in reader(Source(file, size, row, limits, selector)):
            yield suffix, partial(_read, row.name, read)


def _read(name: str, read: Callable[[], Slice]) -> Slice:
    with decoder_errors(name):
        return read()


@contextmanager
def decoder_errors(name: str) -> Iterator[None]:
    """Convert any exception of a decoder to ImageError. Decoders of hostile bytes raise almost anything."""
    try:
        yield
    except OrganInferError:
        raise
    except MemoryError as e:
        raise ImageError(f"{name}: not enough memory to decode it") from e
    except Exception as e:
        raise ImageError(f"{name}: damaged or not supported ({one_line(e)[:200]})") from e


@contextmanager
def open_regular_file(path: str, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file without blocking, and give it with its size. Nothing else is opened."""
    flags = open_flags(os.O_RDONLY, "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY")
    try:
        # before opening: opening alone can act on a device
        _regular_file_size(os.stat(path))
        with open(os.open(path, flags), "rb") as file:
            size = _regular_file_size(os.fstat(file.fileno()))
            if size > limit:
                raise ImageError(
                    f"{size:,} bytes: too large, at most {limit:,} are read;"
                    " raise the limit with --file-limit or file_limit="
                )
            yield file, size
    except FileNotFoundError as e:
        raise ImageError("no such file") from e
    except (OSError, ValueError) as e:
        # ValueError: a NUL in the path
        raise ImageError(f"cannot be read ({getattr(e, 'strerror', None) or one_line(e)})") from e


def _regular_file_size(status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a special file"
        raise ImageError(f"{kind}, not an image")
    return status.st_size
