"""Types that the readers of all formats share: a slice, the limits, the open file, and checks on sizes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from numpy.typing import NDArray

from ..errors import ImageError, short_repr
from .orientation import Orientation

__all__ = [
    "DEFAULT_LIMITS",
    "DTYPES",
    "FILE_LIMIT",
    "PIXEL_LIMIT",
    "SIGNATURE_BYTES",
    "VOLUME_ADVICE",
    "VOLUME_SIDE",
    "Format",
    "Limits",
    "Slice",
    "SliceReaders",
    "Source",
    "array_problem",
    "check_size",
    "numbered",
]

# bytes
FILE_LIMIT = 1 << 28
# pixels; Pillow's own limit, a quarter of a gigabyte of 24-bit pixels
PIXEL_LIMIT = 89_478_485
# pixels
SIDE_LIMIT = 65_535
# pixels; the slices of a volume (X, Y, Z) are square and larger than a crop around one organ
VOLUME_SIDE = 128
# What to do with the array of a whole scan. It has no affine, so open_volume cannot read it.
VOLUME_ADVICE = "for a whole scan with its mask, Volume(hu, affine, source) to predict_volume"
DTYPES = ("uint8", "uint16", "int16")
# The bytes of a file that identify its format. DICOM's signature ends last: 4 bytes at offset 128.
SIGNATURE_BYTES = 132


@dataclass(frozen=True)
class Slice:
    """A decoded slice.

    Attributes:
        pixels: uint8 or uint16 gray, or int16 Hounsfield units, (H, W).
        warnings: Every conversion, and anything suspicious.
        orientation: Orientation of `pixels`, if the file states it.
        field: Height and width in millimeters, if the file states them.
    """

    pixels: NDArray[Any]
    warnings: tuple[str, ...] = ()
    orientation: Orientation | None = None
    field: tuple[float, float] | None = None


class Limits(NamedTuple):
    """What is read.

    Attributes:
        pixels: The most pixels per slice.
        file_bytes: The most bytes per file, and of what it decompresses to.
        any_modality: Whether DICOM of other modalities than CT is read.
        plane: The plane of the model's slices. It only decides what a message advises.
    """

    pixels: int = PIXEL_LIMIT
    file_bytes: int = FILE_LIMIT
    any_modality: bool = False
    plane: str | None = None


DEFAULT_LIMITS = Limits()

# (suffix of the slice's name, function that reads it), in order
SliceReaders = Iterator[tuple[str, Callable[[], Slice]]]


class Format(NamedTuple):
    """One row of the format table.

    Attributes:
        name: The name in messages. For Pillow's formats it is Pillow's name.
        title: The usual spelling.
        signatures: Pairs of an offset and the bytes at it. A file of the format has one of them.
        suffixes: Files in a directory are read if their names end in one of these.
        reader: `module:function` in this package, imported on first use. The function takes a Source.
        plugin: Pillow's plugin, `PIL.<plugin>ImagePlugin`, if Pillow decodes the format.
        is_complete: Returns whether a file is complete, for formats for which Pillow does not check that.
    """

    name: str
    title: str
    signatures: tuple[tuple[int, bytes], ...]
    suffixes: tuple[str, ...]
    reader: str
    plugin: str = ""
    is_complete: Callable[[bytes], bool] | None = None

    def matches(self, head: bytes) -> bool:
        """Return whether `head`, the first SIGNATURE_BYTES of a file, has one of the signatures."""
        return any(head[offset : offset + len(magic)] == magic for offset, magic in self.signatures)


class Source(NamedTuple):
    """An open file, as given to a format's reader.

    Attributes:
        file: Open for reading, at its start.
        size: Bytes.
        format: The file's row of the format table.
        limits: The most that may be read.
        selector: The slice to read (the text after `#` in its name), or None for all.
    """

    file: BinaryIO
    size: int
    format: Format
    limits: Limits
    selector: str | None

    def read_all(self) -> bytes:
        """Return the file's bytes.

        Raises:
            ImageError: If there are more or fewer than `size`.
        """
        data = self.file.read(self.size + 1)
        if len(data) != self.size:
            raise ImageError("the file changed while it was read")
        return data


def numbered(count: int, read: Callable[[int], Slice], selector: str | None) -> SliceReaders:
    """Yield the slices of a stack, named `#0` to `#count-1`, or only the selected one.

    Args:
        count: Slices in the stack.
        read: Takes an index and returns the slice.
        selector: An index as text, or None for all.

    Raises:
        ImageError: If the stack is empty or has no such slice.
    """
    if count < 1:
        raise ImageError("the file contains no slices")
    if selector is None:
        for i in range(count):
            yield f"#{i}", partial(read, i)
        return
    if not (
        selector.isascii() and selector.isdigit() and len(selector) < 10 and int(selector) < count
    ):
        available = "only #0" if count == 1 else f"#0 to #{count - 1}"
        raise ImageError(f"no slice {short_repr(selector)}; the file contains {available}")
    yield f"#{selector}", partial(read, int(selector))


def array_problem(shape: tuple[int, ...]) -> str | None:
    """Tell why an array is neither a slice nor a stack, although it has two or three axes.

    Args:
        shape: (H, W) or (N, H, W), without a last axis of 1.

    Returns:
        What the array looks like and what to pass instead, or None for a slice or a stack.
    """
    if len(shape) == 3 and shape[2] in (3, 4):
        return "looks like color; convert it to gray (H, W)"
    if len(shape) == 3 and shape[2] == 2:
        return "looks like gray with alpha; pass array[..., 0]"
    if len(shape) == 3 and shape[0] == shape[1] != shape[2] and shape[0] >= VOLUME_SIDE:
        return (
            "looks like a volume (X, Y, Z); pass crops around one organ, (N, H, W) or (H, W),"
            f" or {VOLUME_ADVICE}"
        )
    if 1 in shape[-2:]:
        return "is one pixel wide, no slice; pass slices (H, W) or (N, H, W), not labels"
    return None


def check_size(width: int, height: int, limit: int) -> None:
    """Refuse an image that is empty or too large, before it is decoded.

    Args:
        width: Pixels.
        height: Pixels.
        limit: Pixels per image. The limit per side is always 65,535.

    Raises:
        ImageError: With the size and the limit.
    """
    if width < 1 or height < 1:
        raise ImageError(f"{width} x {height} pixels: the image is empty")
    if max(width, height) > SIDE_LIMIT:
        raise ImageError(
            f"{width} x {height} pixels: too large, at most {SIDE_LIMIT:,} pixels per side are read"
        )
    if width * height > limit:
        raise ImageError(
            f"{width} x {height} pixels: too large, at most {limit:,} pixels are read;"
            " raise the limit with --pixel-limit or pixel_limit="
        )
