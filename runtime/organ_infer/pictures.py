"""What Pillow decodes, as gray: 16 bits stay 16 bits, colour becomes luma, alpha lies on black."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError

from .errors import ImageError, one_line
from .images import Slice, check_size

__all__ = ["read_picture", "slice_of"]

Pixels = NDArray[Any]

# EXIF orientation -> the pixels as they should be seen
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.T,
    6: lambda p: p.T[:, ::-1],
    7: lambda p: p.T[::-1, ::-1],
    8: lambda p: p.T[::-1],
}
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SIGN = 258, 262, 339


def read_picture(data: bytes, name: str, limit: int) -> Slice:
    """Decode one picture of Pillow's format `name`. Verified first, then opened again and loaded: loading alone
    passes over some damaged checksums. Raises ImageError, or what Pillow raises."""
    try:
        opened = Image.open(io.BytesIO(data), formats=[name])
    except UnidentifiedImageError as e:
        raise ImageError(f"{name}: damaged, its header cannot be read") from e
    with opened as image:
        check_size(*image.size, limit)
        image.verify()
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        check_size(*image.size, limit)
        image.load()
        return slice_of(image, name, data)


def slice_of(image: Image.Image, name: str = "image", data: bytes = b"") -> Slice:
    """A loaded Pillow image as a slice; `data` is the file it came from. Raises ImageError."""
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    depth = data[24] if name == "PNG" else 8
    if depth == 16 and not image.mode.startswith("I"):
        if "transparency" in image.info:
            raise ImageError(
                "PNG: 16-bit colour with a transparent colour is not read: save it as 16-bit gray"
            )
        notes.append("16-bit colour or alpha read at 8 bits")
    pixels = _gray(image, name, depth, notes)
    return Slice(_turned(image, pixels, notes), tuple(notes))


def _gray(image: Image.Image, name: str, depth: int, notes: list[str]) -> Pixels:
    mode = image.mode
    clear = image.info.get("transparency")
    if mode in ("1", "L"):
        pixels = np.asarray(image.convert("L"))
        scale = (
            255 // ((1 << depth) - 1) if mode == "L" and depth < 8 else 1
        )  # tRNS counts in the file's own depth
        return _on_black(pixels, clear * scale, notes) if isinstance(clear, int) else pixels
    if mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
        if _tag(image, _TIFF_PHOTOMETRIC) == 0:
            notes.append("inverted: the file says that 0 is white")
            pixels = np.uint16(65_535) - pixels
        return _on_black(pixels, clear, notes) if isinstance(clear, int) else pixels
    if mode == "I":
        return _integers(image, name)
    if mode in ("LA", "La"):
        notes.append("alpha composited on black")
        gray, alpha = image.split()
        return np.asarray(ImageChops.multiply(gray, alpha) if mode == "LA" else gray)
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if mode == "PA" or clear is not None else "RGB")
    elif mode == "RGB" and clear is not None:
        image = image.convert("RGBA")
    elif mode in ("CMYK", "YCbCr", "RGBX", "RGBa"):
        image = image.convert("RGBA" if mode == "RGBa" else "RGB")
    if image.mode not in ("RGB", "RGBA"):
        raise ImageError(f"{name}: pixels of mode {mode} are not read: save it as gray of 8 or 16 bits")
    notes.append(f"converted from {'palette' if mode in ('P', 'PA') else 'colour'} to gray")
    if image.mode == "RGBA":
        notes.append("alpha composited on black")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return np.asarray(image.convert("L"))  # ITU-R 601 luma


def _integers(image: Image.Image, name: str) -> Pixels:
    """Mode I holds 32 bits a pixel: 16 of a PNG or PNM, signed 16 of a TIFF, or really 32."""
    wide = np.asarray(image)
    if _tag(image, _TIFF_SIGN) == 2 and _tag(image, _TIFF_BITS) == 16:
        return wide.astype(np.int16)
    if name in ("PNG", "PPM") and wide.min() >= 0 and wide.max() <= 65_535:
        return wide.astype(np.uint16)
    raise ImageError(f"{name}: 32-bit pixels are not read, for their range is not known: save 8 or 16 bits")


def _tag(image: Image.Image, number: int) -> int | None:
    value = getattr(image, "tag_v2", {}).get(number)
    if isinstance(value, tuple):
        value = value[0] if value else None
    return int(value) if isinstance(value, int) else None


def _on_black(pixels: Pixels, clear: int, notes: list[str]) -> Pixels:
    """One gray value is transparent: on black it is black."""
    notes.append("alpha composited on black")
    return np.where(pixels == clear, pixels.dtype.type(0), pixels)


def _turned(image: Image.Image, pixels: Pixels, notes: list[str]) -> Pixels:
    try:
        number = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as e:  # EXIF is free-form; the pixels are whole
        notes.append(f"unreadable EXIF ignored ({one_line(e)[:80]})")
        return pixels
    if number not in _TURNS:
        return pixels
    notes.append(f"turned as its EXIF orientation {number} says")
    return _TURNS[number](pixels)
