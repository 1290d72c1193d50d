"""Slices as pictures in a page: gray, small, and as data addresses."""

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["data_address", "gray", "png"]


def gray(pixels: NDArray[Any], window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Convert a slice to gray, as the model scales it.

    Args:
        pixels: uint8 or uint16 gray, or int16 HU, (H, W).
        window: Level and width in HU, for int16.

    Returns:
        uint8 (H, W).
    """
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    low, width = 0.0, 65_535.0
    if pixels.dtype == np.int16 and window is not None:
        level, width = window
        low = level - width / 2
    scaled = (pixels.astype(np.float32) - low) * (255 / width)
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a gray picture, uint8 (H, W). Written here, because Pillow takes three times as long for a thumbnail."""
    height, width = pixels.shape
    # Each row begins with its filter, here the difference from the row above.
    rows = np.full((height, width + 1), 2, np.uint8)
    rows[:, 1:] = pixels
    rows[1:, 1:] -= pixels[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def data_address(data: bytes) -> str:
    """Return the address of a PNG or JPEG that is in the page itself."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
