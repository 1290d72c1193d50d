"""Checks on TIFF tags for files that Pillow decodes as something else, or refuses without the reason."""

import io
import json
import math
import re
import struct
from typing import Any

from ..errors import ImageError

__all__ = ["check_page", "check_stack", "page_offsets", "starting_at", "unsupported_type"]

_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC = 256, 257, 258, 262
_DESCRIPTION, _SAMPLES, _PLANAR, _SAMPLE_FORMAT = 270, 277, 284, 339
_SEPARATE_PLANES = 2
# Pillow's texts for a sound file of a type that it does not decode
_UNSUPPORTED = ("unknown pixel mode", "unknown data organization")
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}


def unsupported_type(data: bytes, reason: str) -> str | None:
    """Name the pixel type of the first page of a TIFF that Pillow cannot open.

    Args:
        data: The file.
        reason: What Pillow raised.

    Returns:
        A message such as `unsupported pixel type: 64-bit float; save gray of 8 or 16 bits`, or None if the
        file is damaged.
    """
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if _is_big(data) else data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    try:
        tags.load(file)
    except Exception:
        # tags of a damaged file raise almost anything
        return None
    if _has_separate_planes(tags):
        return _unsupported_type(tags, "separate planes of ")
    return _unsupported_type(tags) if reason in _UNSUPPORTED else None


def page_offsets(data: bytes) -> list[int]:
    """List where the pages of a TIFF begin, as far as the chain of pages can be followed."""
    order = "<" if data[:2] == b"II" else ">"
    count_format, tag_bytes, link, header = (
        ("Q", 20, "Q", 8) if _is_big(data) else ("H", 12, "I", 4)
    )
    offsets: list[int] = []
    seen = {0}
    try:
        (offset,) = struct.unpack_from(order + link, data, header)
        while offset not in seen:
            seen.add(offset)
            (tags,) = struct.unpack_from(order + count_format, data, offset)
            offsets.append(offset)
            end = offset + struct.calcsize(count_format) + tags * tag_bytes
            (offset,) = struct.unpack_from(order + link, data, end)
    except struct.error:
        pass
    return offsets


def starting_at(data: bytes, offset: int) -> bytes:
    """Return the TIFF with the page at `offset` as its first page."""
    order = "<" if data[:2] == b"II" else ">"
    if _is_big(data):
        return data[:8] + struct.pack(order + "Q", offset) + data[16:]
    return data[:4] + struct.pack(order + "I", offset) + data[8:]


def check_page(tags: Any) -> None:
    """Refuse a page that Pillow decodes wrongly.

    Args:
        tags: Pillow's `tag_v2` of the page.

    Raises:
        ImageError: If its planes are stored separately with more than 8 bits: Pillow mixes up their bytes.
    """
    if _has_separate_planes(tags) and max(_numbers(tags.get(_BITS, 1))) > 8:
        raise ImageError(f"TIFF: {_unsupported_type(tags, 'separate planes of ')}")


def check_stack(tags: Any, pages: int) -> None:
    """Refuse a file whose first page stands for a stack: ImageJ and tifffile can write several slices as one page.

    Args:
        tags: Pillow's `tag_v2` of the first page.
        pages: The pages of the file.

    Raises:
        ImageError: If the description of the first page declares more slices than the file has pages.
    """
    declared = _declared_slices(tags.get(_DESCRIPTION), tags)
    if declared > pages:
        raise ImageError(
            f"TIFF: the description declares {declared:,} slices, found {pages:,} pages; save one page per slice"
        )


def _is_big(data: bytes) -> bool:
    return data[2:4] in (b"+\0", b"\0+")


def _has_separate_planes(tags: Any) -> bool:
    return bool(tags.get(_PLANAR) == _SEPARATE_PLANES and tags.get(_SAMPLES, 1) > 1)


def _declared_slices(description: Any, tags: Any) -> int:
    if not isinstance(description, str):
        return 1
    if description.startswith("ImageJ="):
        match = re.search(r"^images=(\d{1,9})\s*$", description, re.MULTILINE)
        return int(match[1]) if match else 1
    if description.startswith('{"shape":'):
        try:
            shape = [int(length) for length in json.loads(description)["shape"]]
        except (KeyError, TypeError, ValueError):
            return 1
        pixels = int(tags.get(_WIDTH, 1)) * int(tags.get(_LENGTH, 1)) * int(tags.get(_SAMPLES, 1))
        return math.prod(shape) // max(pixels, 1)
    return 1


def _unsupported_type(tags: Any, prefix: str = "") -> str:
    bits = max(_numbers(tags.get(_BITS, 1)))
    kind = _KINDS.get(max(_numbers(tags.get(_SAMPLE_FORMAT, 1))), "unknown")
    samples = tags.get(_SAMPLES, 1)
    channels = f", {samples} channels" if samples != 1 else ""
    inverted = ", 0 as white" if tags.get(_PHOTOMETRIC) == 0 else ""
    return f"unsupported pixel type: {prefix}{bits}-bit {kind}{channels}{inverted}; save gray of 8 or 16 bits"


def _numbers(value: Any) -> list[int]:
    values = value if isinstance(value, tuple) else (value,)
    return [number for number in values if isinstance(number, int)] or [0]
