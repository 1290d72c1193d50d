"""Checks that an image file is complete.

They exist for the formats for which Pillow decodes a truncated file, without an error, as a smaller or
partly black image.
"""

import struct
import zlib

from ..errors import ImageError
from .types import Format

__all__ = [
    "check_complete",
    "gif_is_complete",
    "jpeg2000_is_complete",
    "png_is_complete",
    "pnm_is_complete",
    "tiff_is_complete",
]

# channels by color type
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: first column, first row, and the steps between columns and rows of each pass
_PNG_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# bytes given to zlib, and taken from it, at a time
_BLOCK = 1 << 16
# by version: struct code of the tag count, bytes per tag, struct code of an offset, and where the
# offset of the first page is stored
_TIFF = {42: ("H", 12, "I", 4), 43: ("Q", 20, "Q", 8)}
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B
_JP2_CODE, _J2K_START, _J2K_END = b"jp2c", b"\xff\x4f", b"\xff\xd9"


def check_complete(data: bytes, row: Format) -> None:
    """Refuse a truncated file.

    Args:
        data: The file's bytes.
        row: Its format.

    Raises:
        ImageError: If the end is missing.
    """
    if row.is_complete is None:
        return
    try:
        complete = row.is_complete(data)
    except (IndexError, KeyError, struct.error, zlib.error):
        complete = False
    if not complete:
        raise ImageError(f"{row.name}: the end of the file is missing; it is truncated or damaged")


def png_is_complete(data: bytes) -> bool:
    """Return whether each frame's stream is complete and has exactly the rows that the header declares.

    Args:
        data: A PNG file whose chunks were verified.
    """
    width, height, depth, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _PNG_CHANNELS[kind]
    frames = [_FrameStream(_png_row_bytes(width, height, bits, interlaced))]
    view, offset, has_palette, name = memoryview(data), 8, kind != 3, b""
    # bytes after IEND do not belong to the image
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, offset)
        has_palette = has_palette or name == b"PLTE"
        if name == b"IDAT":
            frames[0].feed(view[offset + 8 : offset + 8 + length])
        elif name == b"fcTL" and frames[0].started:
            # an fcTL before IDAT describes the first frame, any other starts a new one
            width, height = struct.unpack_from(">II", data, offset + 12)
            frames.append(_FrameStream(_png_row_bytes(width, height, bits, interlaced)))
        elif name == b"fdAT":
            frames[-1].feed(view[offset + 12 : offset + 8 + length])
        offset += 12 + length
    return has_palette and all(frame.complete for frame in frames)


def _png_row_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """Return the bytes of a frame's rows, each with its filter byte. `bits` is per pixel."""
    total = 0
    for x, y, dx, dy in _PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = len(range(x, width, dx)), len(range(y, height, dy))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total


class _FrameStream:
    """Inflates a frame's rows and counts their bytes, without storing them."""

    def __init__(self, size: int) -> None:
        self._missing, self._inflating, self.started = size, zlib.decompressobj(), False

    def feed(self, data: memoryview) -> None:
        self.started = True
        for start in range(0, len(data), _BLOCK):
            tail: bytes | memoryview = data[start : start + _BLOCK]
            while self._missing >= 0 and not self._inflating.eof:
                inflated = len(self._inflating.decompress(tail, _BLOCK))
                self._missing -= inflated
                tail = self._inflating.unconsumed_tail
                if not tail and inflated < _BLOCK:
                    break

    @property
    def complete(self) -> bool:
        """Whether the stream ended, with exactly the expected bytes."""
        return self._missing == 0 and self._inflating.eof


def tiff_is_complete(data: bytes) -> bool:
    """Return whether every page in the chain has all its tags."""
    order = "<" if data[:2] == b"II" else ">"
    count, tag, link, first = _TIFF[struct.unpack_from(order + "H", data, 2)[0]]
    seen = {0}
    (offset,) = struct.unpack_from(order + link, data, first)
    while offset not in seen:
        seen.add(offset)
        (tags,) = struct.unpack_from(order + count, data, offset)
        (offset,) = struct.unpack_from(
            order + link, data, offset + struct.calcsize(count) + tags * tag
        )
    return True


def gif_is_complete(data: bytes) -> bool:
    """Return whether the blocks reach the trailer."""

    def palette_bytes(flags: int) -> int:
        return 6 << (flags & 7) if flags & 0x80 else 0

    offset = 13 + palette_bytes(data[10])
    while (kind := data[offset]) != _GIF_END:
        if kind not in (_GIF_EXTENSION, _GIF_IMAGE):
            return False
        offset += 2 if kind == _GIF_EXTENSION else 11 + palette_bytes(data[offset + 9])
        while data[offset]:
            offset += data[offset] + 1
        offset += 1
    return True


def pnm_is_complete(data: bytes) -> bool:
    """Return whether pixels in ASCII digits end in white space. The last number could be cut otherwise."""
    return data[:2] not in (b"P2", b"P3") or data[-1:].isspace()


def jpeg2000_is_complete(data: bytes) -> bool:
    """Return whether the codestream has its end marker."""
    if data[:2] == _J2K_START:
        return data.rstrip(b"\0").endswith(_J2K_END)
    offset = 0
    while True:
        size, kind = struct.unpack_from(">I4s", data, offset)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, offset + 8)
        end = offset + size if size else len(data)
        if kind == _JP2_CODE:
            return end <= len(data) and data[end - 2 : end] == _J2K_END
        if end <= offset:
            return False
        offset = end
