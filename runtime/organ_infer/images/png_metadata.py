"""PNG text and color profiles, which are dropped before Pillow decodes: it refuses a file for a large one."""

import struct

__all__ = ["without_metadata"]

_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# Pillow finds a PNG's orientation in chunk eXIf and in these texts.
_ORIENTATION_KEYS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0", b"Raw profile type xmp\0")
_ORIENTATION_LIMIT = 1 << 16  # bytes


def without_metadata(data: bytes) -> bytes:
    """Drop the chunks that no pixel depends on.

    Args:
        data: A PNG, possibly damaged.

    Returns:
        The file without text and color profile, except short texts that can hold an orientation. A file
        that ends early is returned up to its end.
    """
    if not any(name in data for name in _METADATA):
        return data
    parts = [data[:8]]
    offset = 8
    while offset + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if name not in _METADATA or _has_orientation(data[offset + 8 : end - 4]):
            parts.append(data[offset:end])
        offset = end
    parts.append(data[offset:])
    return b"".join(parts)


def _has_orientation(content: bytes) -> bool:
    return len(content) <= _ORIENTATION_LIMIT and content.startswith(_ORIENTATION_KEYS)
