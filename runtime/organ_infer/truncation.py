"""Is a picture's file all there? Asked where Pillow does not: it takes what is left of some for a smaller picture."""

import struct
from collections.abc import Callable

from .errors import ImageError

__all__ = ["check_end"]

# count of tags, bytes of a tag, where the next page is; and where the first one is named
_TIFF = {42: ("H", 12, "I", 4), 43: ("Q", 20, "Q", 8)}
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B
_JP2_CODE, _J2K_START, _J2K_END = b"jp2c", b"\xff\x4f", b"\xff\xd9"


def check_end(data: bytes, name: str) -> None:
    """data: a file of Pillow's format `name`. Raises ImageError where its end is missing."""
    check = _CHECKS.get(name)
    if check is not None:
        try:
            whole = check(data)
        except (IndexError, struct.error):
            whole = False
        if not whole:
            raise ImageError(f"{name}: truncated or damaged, its end is missing")


def _tiff(data: bytes) -> bool:
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


def _gif(data: bytes) -> bool:
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


def _pnm(data: bytes) -> bool:
    """In digits: white space behind the last number, which could be the first part of one."""
    return data[:2] not in (b"P2", b"P3") or data[-1:].isspace()


def _jpeg2000(data: bytes) -> bool:
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


_CHECKS: dict[str, Callable[[bytes], bool]] = {"TIFF": _tiff, "GIF": _gif, "PPM": _pnm, "JPEG2000": _jpeg2000}
