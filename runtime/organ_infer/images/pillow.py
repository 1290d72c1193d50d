"""What Pillow decodes, as gray: 16 bits stay 16 bits, color becomes luma, alpha lies on black."""

import io
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from ..errors import ImageError, one_line
from .truncation import check_complete
from .types import Format, Slice, SliceReaders, Source, check_size, numbered

__all__ = ["read_frames", "slice_of_image"]

Pixels = NDArray[Any]

CHROMA = 10  # mean distance between a pixel's largest and smallest of red, green and blue from which it is in color
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
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_TILE, _TIFF_SIGN = 258, 262, (322, 323), 339
_PNG_GRAY_ALPHA_16, _PNG_RGBA_8 = b"\x10\4", b"\x08\6"  # depth and color type


def read_frames(source: Source) -> SliceReaders:
    """The frames of a picture. Verified first, then opened again and loaded: loading alone passes over some damaged
    checksums. Raises ImageError, or what Pillow raises."""
    row, limit, data = source.format, source.limits.pixels, source.read_all()
    name = row.name
    with _open_image(data, row, limit) as image:
        image.verify()
    check_complete(data, row)
    deep_alpha = name == "PNG" and data[24:26] == _PNG_GRAY_ALPHA_16
    with _open_image(_as_bytes(data) if deep_alpha else data, row, limit) as image:
        count = getattr(image, "n_frames", 1)
        if name == "PNG" and count > data.count(b"fcTL") + 1:
            raise ImageError(f"PNG: it says that it has {count:,} frames, and has not: truncated or damaged")
        if deep_alpha and count > 1:
            raise ImageError("PNG: frames of 16-bit gray with alpha are not read: save them one by one")

        def read(i: int) -> Slice:
            if i != image.tell():
                image.seek(i)
            check_size(*image.size, limit)
            width, height = (_tag(image, tag) for tag in _TIFF_TILE)
            if width and height:
                check_size(width, height, limit)
            notes: list[str] = []
            deep, number = _deep(image, name, data), 1
            if name == "TIFF":  # Pillow turns these as it loads them, and forgets how
                number = _orientation(image, notes)
            image.load()  # before any other's EXIF is asked for, which loads a PNG and passes over what breaks then
            if name != "TIFF":
                number = _orientation(image, notes)
            if deep_alpha:
                pixels = _deep_on_black(np.asarray(image), notes)
            else:
                pixels = _gray(image, name, deep, notes, data[24] if name == "PNG" else 8)
            return _turned(pixels, number, notes, turned=name == "TIFF")

        if count == 1 and source.selector is None:
            yield "", lambda: read(0)
        else:
            yield from numbered(count, read, source.selector)


def slice_of_image(image: Image.Image) -> Slice:
    """A Pillow image as a slice. Raises ImageError, or what Pillow raises where it cannot be loaded."""
    notes: list[str] = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"frame {image.tell()} of {frames} alone")
    depth = _packed_bits(image)
    clear = image.info.get("transparency")
    if image.mode == "L" and isinstance(clear, int) and clear < 16 and not getattr(image, "tile", None):
        notes.append("its transparent gray was taken as of 8 bits: open the file anew, or give its path")
    image.load()
    number = _orientation(image, notes)  # of a TIFF none: Pillow turned it
    return _turned(_gray(image, "image", False, notes, depth), number, notes)


def _open_image(data: bytes, row: Format, limit: int) -> ImageFile.ImageFile:
    """As Image.open, but with our own limit instead of Pillow's, which is global."""
    name = row.name
    import_module(f"PIL.{row.plugin}ImagePlugin")
    try:
        image = Image.OPEN[name][0](io.BytesIO(data), "")
    except SyntaxError as e:
        raise ImageError(f"{name}: damaged, its header cannot be read") from e
    check_size(*image.size, limit)
    if name == "PNG" and not image.tile:
        raise ImageError("PNG: no pixels in it")
    return image


def _deep(image: ImageFile.ImageFile, name: str, data: bytes) -> bool:
    """Whether the file has more than 8 bits a channel; asked before it is loaded."""
    if name == "PNG":
        return data[24] == 16
    if name == "TIFF":
        return (_tag(image, _TIFF_BITS) or 1) > 8
    if name == "JPEG2000":
        at = data.find(b"\xff\x4f\xff\x51")  # the size marker, 42 bytes before the first channel's depth
        return data[at + 42] & 0x7F > 7
    args = image.tile[0][3] if name == "PPM" and image.tile else None
    return isinstance(args, tuple) and args[1] > 255


def _packed_bits(image: Image.Image) -> int:
    """Bits a pixel of gray, as the file of an image that is not loaded yet has them."""
    args = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return int(raw[2:]) if raw in ("L;2", "L;4") else 8


def _as_bytes(data: bytes) -> bytes:
    """A PNG of 16-bit gray and alpha, of which Pillow would keep 8 bits, as one of RGBA: the same bytes a pixel."""
    import zlib

    head = data[12:24] + _PNG_RGBA_8 + data[26:29]
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


def _deep_on_black(pixels: Pixels, notes: list[str]) -> Pixels:
    """pixels: uint8 (H, W, 4), gray and alpha in two bytes each -> uint16 (H, W)."""
    notes.append("alpha composited on black")
    wide: Pixels = np.ascontiguousarray(pixels).view(">u2").astype(np.uint32)
    return ((wide[..., 0] * wide[..., 1] + 32_767) // 65_535).astype(np.uint16)


def _gray(image: Any, name: str, deep: bool, notes: list[str], depth: int) -> Pixels:
    """deep: whether the file has more than 8 bits a channel; depth: bits a pixel of gray in the file."""
    mode = image.mode
    clear = image.info.get("transparency")
    if deep and not mode.startswith("I"):
        if clear is not None:
            raise ImageError(
                f"{name}: 16-bit color with a transparent color is not read: save it as 16-bit gray"
            )
        notes.append("16-bit color or alpha read at 8 bits")
    if mode == "L" and _tag(image, _TIFF_SIGN) == 2:
        raise ImageError("TIFF: signed 8-bit pixels are not read: save 16 bits")
    if mode in ("1", "L"):
        pixels = np.asarray(image.convert("L"))
        if isinstance(clear, int):  # in the file's own depth; of one bit as 1 or, by later Pillow, as 255
            clear = min(clear, 1) * 255 if mode == "1" else clear * (255 // ((1 << depth) - 1))
            return _on_black(pixels, clear, notes)
        return pixels
    if mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
        if _tag(image, _TIFF_PHOTOMETRIC) == 0:
            notes.append("inverted: the file says that 0 is white")
            pixels = np.uint16(65_535) - pixels
        if _tag(image, _TIFF_BITS) == 12:
            pixels = np.rint(pixels * (65_535 / 4095)).astype(np.uint16)
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
    notes.append(f"converted from {'palette' if mode in ('P', 'PA') else 'color'} to gray")
    if image.mode == "RGBA":
        notes.append("alpha composited on black")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    if np.ptp(np.asarray(image), axis=2).mean() >= CHROMA:
        notes.append("implausible: in color, and a CT slice is gray")
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


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        number = image.getexif().get(_EXIF_ORIENTATION, 1)
        return number if number in _TURNS else 1
    except Exception as e:  # EXIF is free-form; the pixels are whole
        notes.append(f"unreadable EXIF ignored ({one_line(e)[:80]})")
        return 1


def _turned(pixels: Pixels, number: int, notes: list[str], *, turned: bool = False) -> Slice:
    if number != 1:
        notes.append(f"turned as its EXIF orientation {number} says")
        pixels = pixels if turned else _TURNS[number](pixels)
    return Slice(pixels, tuple(notes))
