"""Reads gray slices from image files with Pillow, and from Pillow images.

16 bits stay 16 bits, color becomes luma, and alpha is composited on black.
"""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from ..errors import ImageError, one_line
from . import tiff
from .png_metadata import without_metadata
from .truncation import check_complete
from .types import Format, Slice, SliceReaders, Source, check_size, numbered

__all__ = ["read_frames", "slice_of_image"]

Pixels = NDArray[Any]

# Mean distance between a pixel's largest and smallest of red, green and blue (0 to 255). An image that
# reaches it counts as color.
CHROMA = 10
# EXIF orientation to the function that gives the pixels as they are displayed
_EXIF_TRANSFORMS: dict[int, Callable[[Pixels], Pixels]] = {
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
# bytes copied in all to read the pages of a TIFF one by one
PAGE_COPY_LIMIT = 1 << 33
# depth and color type
_PNG_GRAY_ALPHA_16, _PNG_RGBA_8 = b"\x10\4", b"\x08\6"


class _UnsupportedPage(ImageError):
    """A sound page of a pixel type that Pillow does not decode."""


class _OpenImage(NamedTuple):
    """An image file that Pillow decodes frame by frame.

    Attributes:
        image: Opened by Pillow.
        data: The file's bytes.
        name: The format's name, as Pillow has it.
        pixel_limit: Pixels per frame.
        gray_alpha_16: Whether it is a PNG of 16-bit gray with alpha, opened as 8-bit RGBA.
    """

    image: ImageFile.ImageFile
    data: bytes
    name: str
    pixel_limit: int
    gray_alpha_16: bool


def read_frames(source: Source) -> SliceReaders:
    """Yield the frames of an image file.

    The file is verified first, then opened again and loaded. Loading alone ignores some wrong checksums.

    Raises:
        ImageError: If the file cannot be read as slices. Pillow's own exceptions pass through.
    """
    data = source.read_all()
    if source.format.name == "PNG":
        data = without_metadata(data)
    try:
        opened, count = _open_frames(data, source)
    except _UnsupportedPage:
        pages = tiff.page_offsets(data)
        # each page is opened on its own, from a copy of the file
        if len(pages) < 2 or len(pages) * len(data) > PAGE_COPY_LIMIT:
            raise
        yield from numbered(
            len(pages), lambda index: _read_page(data, pages[index], source), source.selector
        )
        return
    with opened.image:
        if count == 1 and source.selector is None:
            yield "", lambda: _read_frame(opened, 0)
        else:
            yield from numbered(count, lambda index: _read_frame(opened, index), source.selector)


def _open_frames(data: bytes, source: Source) -> tuple[_OpenImage, int]:
    """Verify a file, and open it again. Return it with the number of its frames."""
    row, pixel_limit = source.format, source.limits.pixels
    with _strict_pillow(), _open_image(data, row, pixel_limit) as image:
        image.verify()
    check_complete(data, row)
    gray_alpha_16 = row.name == "PNG" and data[24:26] == _PNG_GRAY_ALPHA_16
    image = _open_image(_as_rgba(data) if gray_alpha_16 else data, row, pixel_limit)
    opened = _OpenImage(image, data, row.name, pixel_limit, gray_alpha_16)
    try:
        with _strict_pillow():
            return opened, _frame_count(opened)
    except BaseException:
        image.close()
        raise


def _read_page(data: bytes, offset: int, source: Source) -> Slice:
    """Read one page of a TIFF of which another page is not supported."""
    alone = tiff.starting_at(data, offset)
    with _open_image(alone, source.format, source.limits.pixels) as image:
        return _read_frame(_OpenImage(image, alone, "TIFF", source.limits.pixels, False), 0)


def slice_of_image(image: Image.Image) -> Slice:
    """Convert a Pillow image, at its current frame.

    Raises:
        ImageError: If its pixels cannot be used. Pillow's own exceptions pass through.
    """
    warnings: list[str] = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        warnings.append(f"only frame {image.tell()} of {frames} was used")
    gray_bits = _packed_bits(image)
    transparent = image.info.get("transparency")
    is_loaded = not getattr(image, "tile", None)
    if image.mode == "L" and isinstance(transparent, int) and transparent < 16 and is_loaded:
        warnings.append("transparent gray value read as 8-bit; reopen the image, or pass its path")
    image.load()
    # a TIFF has none left, because Pillow applies it while loading
    exif_orientation = _exif_orientation(image, warnings)
    pixels = _gray(image, "image", False, warnings, gray_bits)
    return _reoriented(pixels, exif_orientation, warnings)


class _Switch:
    """How many threads decode while the host program's LOAD_TRUNCATED_IMAGES is off."""

    lock = threading.Lock()
    users = 0


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Let Pillow refuse truncated images in this block, even if the host program set LOAD_TRUNCATED_IMAGES.

    That switch is global. If it is set, it is off until the last thread that decodes here is done.
    """
    with _Switch.lock:
        switched = ImageFile.LOAD_TRUNCATED_IMAGES or _Switch.users > 0
        if switched:
            _Switch.users += 1
            ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        if switched:
            with _Switch.lock:
                _Switch.users -= 1
                ImageFile.LOAD_TRUNCATED_IMAGES = _Switch.users == 0


def _open_image(data: bytes, row: Format, pixel_limit: int) -> ImageFile.ImageFile:
    """Open as `Image.open` does, but with our own limit. Pillow's limit is global."""
    name = row.name
    import_module(f"PIL.{row.plugin}ImagePlugin")
    try:
        image = Image.OPEN[name][0](io.BytesIO(data), "")
    except SyntaxError as e:
        if name == "TIFF" and (problem := tiff.unsupported_type(data, str(e))):
            raise _UnsupportedPage(f"TIFF: {problem}") from e
        raise ImageError(f"{name}: the header is damaged") from e
    check_size(*image.size, pixel_limit)
    if name == "PNG" and not image.tile:
        raise ImageError("PNG: no pixel data")
    return image


def _as_rgba(data: bytes) -> bytes:
    """Relabel a PNG of 16-bit gray with alpha as 8-bit RGBA, which has as many bytes per pixel.

    Pillow would keep only 8 of the 16 bits.
    """
    import zlib

    header = data[12:24] + _PNG_RGBA_8 + data[26:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def _frame_count(opened: _OpenImage) -> int:
    try:
        count: int = getattr(opened.image, "n_frames", 1)
    except SyntaxError as e:
        # the first page was opened, a later one cannot be
        raise _UnsupportedPage(f"{opened.name}: {one_line(e)}") from e
    if opened.name == "TIFF":
        tiff.check_stack(getattr(opened.image, "tag_v2", {}), count)
    if opened.name == "PNG" and count > opened.data.count(b"fcTL") + 1:
        raise ImageError(
            f"PNG: header declares {count:,} frames, but they are missing; the file is truncated or damaged"
        )
    if opened.gray_alpha_16 and count > 1:
        raise ImageError(
            "PNG: several frames of 16-bit gray with alpha are not supported; save each frame as a file"
        )
    return count


def _read_frame(opened: _OpenImage, index: int) -> Slice:
    with _strict_pillow():
        return _decode_frame(opened, index)


def _decode_frame(opened: _OpenImage, index: int) -> Slice:
    image, data, name, pixel_limit, gray_alpha_16 = opened
    if index != image.tell():
        image.seek(index)
    check_size(*image.size, pixel_limit)
    width, height = (_tag(image, tag) for tag in _TIFF_TILE)
    if width and height:
        check_size(width, height, pixel_limit)
    warnings: list[str] = []
    is_deep, exif_orientation = _is_deep(image, name, data), 1
    # Pillow applies a TIFF's orientation while loading, and forgets it
    if name == "TIFF":
        tiff.check_page(getattr(image, "tag_v2", {}))
        exif_orientation = _exif_orientation(image, warnings)
    # before the EXIF of other formats is read, which loads a PNG and ignores errors in the rest of it
    image.load()
    if name != "TIFF":
        exif_orientation = _exif_orientation(image, warnings)
    if gray_alpha_16:
        pixels = _gray_alpha_16_on_black(np.asarray(image), warnings)
    else:
        pixels = _gray(image, name, is_deep, warnings, data[24] if name == "PNG" else 8)
    return _reoriented(pixels, exif_orientation, warnings, applied=name == "TIFF")


def _is_deep(image: ImageFile.ImageFile, name: str, data: bytes) -> bool:
    """Return whether a file that is not loaded yet has more than 8 bits per channel."""
    if name == "PNG":
        return data[24] == 16
    if name == "TIFF":
        return (_tag(image, _TIFF_BITS) or 1) > 8
    if name == "JPEG2000":
        # the SOC and SIZ markers; the first channel's depth is 42 bytes behind them
        start = data.find(b"\xff\x4f\xff\x51")
        return data[start + 42] & 0x7F > 7
    args = image.tile[0][3] if name == "PPM" and image.tile else None
    return isinstance(args, tuple) and args[1] > 255


def _packed_bits(image: Image.Image) -> int:
    """Return the bits per gray pixel in the file of an image that is not loaded yet. 8 if unknown."""
    args = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    raw_mode = args[0] if isinstance(args, tuple) and args else args
    return int(raw_mode[2:]) if raw_mode in ("L;2", "L;4") else 8


def _gray(image: Any, name: str, is_deep: bool, warnings: list[str], gray_bits: int) -> Pixels:
    """Convert a loaded image to gray, (H, W) of uint8, uint16 or int16 (HU).

    Args:
        image: A loaded Pillow image.
        name: The format, for messages.
        is_deep: Whether the file has more than 8 bits per channel.
        warnings: Conversions are added to it.
        gray_bits: Bits per pixel in the file, if it is gray of up to 8.
    """
    mode = image.mode
    transparent = image.info.get("transparency")
    if is_deep and not mode.startswith("I"):
        if transparent is not None:
            raise ImageError(
                f"{name}: 16-bit color with a transparent color is not supported; save it as 16-bit gray"
            )
        warnings.append("16-bit color or alpha read at 8 bits")
    if mode in ("1", "L"):
        return _gray_8(image, transparent, gray_bits, warnings)
    if mode.startswith("I;16"):
        return _gray_16(image, transparent, warnings)
    if mode == "I":
        return _integers(image, name)
    if mode in ("LA", "La"):
        warnings.append("alpha composited on black")
        gray, alpha = image.split()
        return np.asarray(ImageChops.multiply(gray, alpha) if mode == "LA" else gray)
    return _luma(image, name, transparent, warnings)


def _gray_8(image: Any, transparent: Any, gray_bits: int, warnings: list[str]) -> Pixels:
    if image.mode == "L" and _tag(image, _TIFF_SIGN) == 2:
        raise ImageError("TIFF: signed 8-bit pixels are not supported; save 16 bits")
    pixels = np.asarray(image.convert("L"))
    if not isinstance(transparent, int):
        return pixels
    # `transparent` has the file's own depth. Of 1 bit it is 1 or, in later versions of Pillow, 255.
    if image.mode == "1":
        transparent = min(transparent, 1) * 255
    else:
        transparent = transparent * (255 // ((1 << gray_bits) - 1))
    return _on_black(pixels, transparent, warnings)


def _gray_16(image: Any, transparent: Any, warnings: list[str]) -> Pixels:
    pixels = np.asarray(image).astype(np.uint16)
    if _tag(image, _TIFF_PHOTOMETRIC) == 0:
        warnings.append("inverted, because 0 is white in this file")
        pixels = np.uint16(65_535) - pixels
    if _tag(image, _TIFF_BITS) == 12:
        pixels = np.rint(pixels * (65_535 / 4095)).astype(np.uint16)
    return _on_black(pixels, transparent, warnings) if isinstance(transparent, int) else pixels


def _integers(image: Image.Image, name: str) -> Pixels:
    """Convert mode I, 32 bits per pixel: 16 bits of a PNG or PNM, signed 16 of a TIFF, or really 32."""
    wide = np.asarray(image)
    if _tag(image, _TIFF_SIGN) == 2 and _tag(image, _TIFF_BITS) == 16:
        return wide.astype(np.int16)
    if name in ("PNG", "PPM") and wide.min() >= 0 and wide.max() <= 65_535:
        return wide.astype(np.uint16)
    raise ImageError(
        f"{name}: 32-bit pixels are not supported, because their range is unknown; save 8 or 16 bits"
    )


def _luma(image: Any, name: str, transparent: Any, warnings: list[str]) -> Pixels:
    """Convert color, with or without alpha, by ITU-R 601."""
    mode = image.mode
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if mode == "PA" or transparent is not None else "RGB")
    elif mode == "RGB" and transparent is not None:
        image = image.convert("RGBA")
    elif mode in ("CMYK", "YCbCr", "RGBX", "RGBa"):
        image = image.convert("RGBA" if mode == "RGBa" else "RGB")
    if image.mode not in ("RGB", "RGBA"):
        raise ImageError(
            f"{name}: pixel mode {mode} is not supported; save it as gray of 8 or 16 bits"
        )
    warnings.append(f"converted from {'palette' if mode in ('P', 'PA') else 'color'} to gray")
    if image.mode == "RGBA":
        warnings.append("alpha composited on black")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert(
            "RGB"
        )
    if np.ptp(np.asarray(image), axis=2).mean() >= CHROMA:
        warnings.append("implausible: color image; CT slices are gray")
    return np.asarray(image.convert("L"))


def _gray_alpha_16_on_black(pixels: Pixels, warnings: list[str]) -> Pixels:
    """Convert uint8 (H, W, 4), gray and alpha in two bytes each, to uint16 (H, W)."""
    warnings.append("alpha composited on black")
    wide: Pixels = np.ascontiguousarray(pixels).view(">u2").astype(np.uint32)
    return ((wide[..., 0] * wide[..., 1] + 32_767) // 65_535).astype(np.uint16)


def _on_black(pixels: Pixels, transparent: int, warnings: list[str]) -> Pixels:
    """Replace the transparent gray value by black."""
    warnings.append("alpha composited on black")
    return np.where(pixels == transparent, pixels.dtype.type(0), pixels)


def _tag(image: Image.Image, number: int) -> int | None:
    value = getattr(image, "tag_v2", {}).get(number)
    if isinstance(value, tuple):
        value = value[0] if value else None
    return int(value) if isinstance(value, int) else None


def _exif_orientation(image: Image.Image, warnings: list[str]) -> int:
    try:
        number = image.getexif().get(_EXIF_ORIENTATION, 1)
        return number if number in _EXIF_TRANSFORMS else 1
    except Exception as e:
        # EXIF is free-form, and the pixels are intact
        warnings.append(f"unreadable EXIF ignored ({one_line(e)[:80]})")
        return 1


def _reoriented(
    pixels: Pixels, exif_orientation: int, warnings: list[str], *, applied: bool = False
) -> Slice:
    """Return the pixels as displayed. `applied`: whether they are already."""
    if exif_orientation != 1:
        warnings.append(f"reoriented by its EXIF orientation ({exif_orientation})")
        pixels = pixels if applied else _EXIF_TRANSFORMS[exif_orientation](pixels)
    return Slice(pixels, tuple(warnings))
