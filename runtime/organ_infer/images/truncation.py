"""Whether the bytes of an image file reach the end that its format prescribes.

For the formats for which Pillow decodes a truncated file as a smaller or partly black image without an error.
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

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_PNG_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_BLOCK = 1 << 16  # bytes given to zlib, and taken from it, at a time
# count of tags, bytes of a tag, where the next page is; and where the first one is named
_TIFF = {42: ("H", 12, "I", 4), 43: ("Q", 20, "Q", 8)}
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B
_JP2_CODE, _J2K_START, _J2K_END = b"jp2c", b"\xff\x4f", b"\xff\xd9"


def check_complete(data: bytes, row: Format) -> None:
    """Raise ImageError if `data`, a file of the format `row`, ends early."""
    if row.is_complete is None:
        return
    try:
        complete = row.is_complete(data)
    except (IndexError, KeyError, struct.error, zlib.error):
        complete = False
    if not complete:
        raise ImageError(f"{row.name}: truncated or damaged, its end is missing")


def png_is_complete(data: bytes) -> bool:
    """Every frame's stream is whole and has its rows, no fewer and no more; data: with chunks that were verified."""
    width, height, depth, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _PNG_CHANNELS[kind]
    frames = [_Stream(_png_bytes(width, height, bits, interlaced))]
    whole, at, palette, name = memoryview(data), 8, kind != 3, b""
    while name != b"IEND":  # what lies behind it is no part of the picture
        length, name = struct.unpack_from(">I4s", data, at)
        palette = palette or name == b"PLTE"
        if name == b"IDAT":
            frames[0].take(whole[at + 8 : at + 8 + length])
        elif name == b"fcTL" and frames[0].begun:  # one before IDAT is of the first frame
            width, height = struct.unpack_from(">II", data, at + 12)
            frames.append(_Stream(_png_bytes(width, height, bits, interlaced)))
        elif name == b"fdAT":
            frames[-1].take(whole[at + 12 : at + 8 + length])
        at += 12 + length
    return palette and all(frame.whole for frame in frames)


def _png_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """Of a frame's rows, each with the byte that names its filter; bits: of a pixel."""
    found = 0
    for x, y, dx, dy in _PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = len(range(x, width, dx)), len(range(y, height, dy))
        found += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return found


class _Stream:
    """A frame's deflated rows as they come, counted and not kept."""

    def __init__(self, size: int) -> None:
        self._left, self._inflating, self.begun = size, zlib.decompressobj(), False

    def take(self, piece: memoryview) -> None:
        self.begun = True
        for at in range(0, len(piece), _BLOCK):
            rest: bytes | memoryview = piece[at : at + _BLOCK]
            while self._left >= 0 and not self._inflating.eof:
                found = len(self._inflating.decompress(rest, _BLOCK))
                self._left -= found
                rest = self._inflating.unconsumed_tail
                if not rest and found < _BLOCK:
                    break

    @property
    def whole(self) -> bool:
        """Whether it had exactly the rows it should, and ended as it should."""
        return self._left == 0 and self._inflating.eof


def tiff_is_complete(data: bytes) -> bool:
    """Every page in the chain has all its tags."""
    order = "<" if data[:2] == b"II" else ">"
    count, tag, link, first = _TIFF[struct.unpack_from(order + "H", data, 2)[0]]
    seen = {0}
    (at,) = struct.unpack_from(order + link, data, first)
    while at not in seen:
        seen.add(at)
        (tags,) = struct.unpack_from(order + count, data, at)
        (at,) = struct.unpack_from(order + link, data, at + struct.calcsize(count) + tags * tag)
    return True


def gif_is_complete(data: bytes) -> bool:
    """Blocks up to the one that says that it is the last."""

    def palette(flags: int) -> int:
        return 6 << (flags & 7) if flags & 0x80 else 0

    at = 13 + palette(data[10])
    while (kind := data[at]) != _GIF_END:
        if kind not in (_GIF_EXTENSION, _GIF_IMAGE):
            return False
        at += 2 if kind == _GIF_EXTENSION else 11 + palette(data[at + 9])
        while data[at]:
            at += data[at] + 1
        at += 1
    return True


def pnm_is_complete(data: bytes) -> bool:
    """In digits: white space behind the last number, which could be the first part of one."""
    return data[:2] not in (b"P2", b"P3") or data[-1:].isspace()


def jpeg2000_is_complete(data: bytes) -> bool:
    """The code ends in its own mark."""
    if data[:2] == _J2K_START:
        return data.rstrip(b"\0").endswith(_J2K_END)
    at = 0
    while True:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        end = at + size if size else len(data)
        if kind == _JP2_CODE:
            return end <= len(data) and data[end - 2 : end] == _J2K_END
        if end <= at:
            return False
        at = end
