"""The pictures of the page. Files are read again, because most of them pass through the classifier as numbers only."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..images.boxes import split_box
from ..images.registry import decode_slices, open_slices, split_selector
from ..images.types import Limits, Slice
from ..page.pictures import data_address, gray, png

__all__ = ["SliceReader", "Thumbnails"]

# Bytes of all pictures of a page, before base64 adds a third.
PAGE_BYTES = 10_000_000
# Bytes of a picture.
PICTURE_BYTES = 12_000
# Pixels per side of a picture, and of one in a page with many.
SIDE, SMALL_SIDE = 192, 96
MANY = 500
# The name of the results of the image on standard input.
STANDARD_INPUT = "-"
# JPEG qualities that are tried.
QUALITIES = (80, 60, 40)


class SliceReader:
    """Reads the slices of results again, oriented as the model sees them.

    Args:
        limits: What may be read.
        prepare: Reorients a slice, as before its classification. May raise ImageError.
        standard_input: The content of standard input, if it was an image.
    """

    def __init__(
        self,
        limits: Limits,
        prepare: Callable[[Slice], Slice],
        standard_input: bytes | None = None,
    ) -> None:
        self._limits, self._prepare = limits, prepare
        self._standard_input = standard_input

    def slices(self, paths: Collection[str]) -> Iterator[tuple[str, Slice]]:
        """Yield the slices of results, in any order. One that cannot be read any more is left out.

        Args:
            paths: The `path` of each result. A file of many slices is opened once for all of them.
        """
        for source, wanted in _by_file(paths).items():
            remaining = set(wanted)
            for path in [source] if len(wanted) > 1 else wanted:
                yield from self._read(path, remaining)
            for path in sorted(remaining) if len(wanted) > 1 else ():
                yield from self._read(path, remaining)

    def _read(self, path: str, remaining: set[str]) -> Iterator[tuple[str, Slice]]:
        """Yield the remaining slices of a file, and remove them from `remaining`."""
        # A file may have changed or gone. Its row then has no picture.
        with contextlib.suppress(ImageError):
            for name, read in self._open(path):
                if name not in remaining:
                    continue
                remaining.remove(name)
                with contextlib.suppress(ImageError):
                    yield name, self._prepare(read())
                if not remaining:
                    return

    def _open(self, path: str) -> Iterator[tuple[str, Callable[[], Slice]]]:
        if self._standard_input is None or not _is_standard_input(path):
            yield from open_slices(path, self._limits)
            return
        for suffix, read in decode_slices(self._standard_input, self._limits):
            yield f"{STANDARD_INPUT}{suffix}", read


def _is_standard_input(path: str) -> bool:
    return path.partition("#")[0] == STANDARD_INPUT


def _by_file(paths: Collection[str]) -> dict[str, dict[str, None]]:
    """Return the paths by what is opened to read them: the file, or a box of it."""
    files: dict[str, dict[str, None]] = {}
    for path in paths:
        file, selector = split_selector(path)
        if _is_standard_input(path):
            file, selector = STANDARD_INPUT, None
        _, box = split_box(selector or "")
        files.setdefault(f"{file}{box or ''}", {})[path] = None
    return files


class Thumbnails:
    """Makes thumbnails that fit one page together.

    Args:
        count: The pictures of the page.
        window: Level and width in HU, for slices in HU.
    """

    def __init__(self, count: int, window: tuple[float, float] | None) -> None:
        self._window = window
        self._side = SMALL_SIDE if count > MANY else SIDE
        self._bytes = min(PICTURE_BYTES, PAGE_BYTES // max(count, 1))

    def address(self, pixels: NDArray[Any]) -> str:
        """Return the data address of a slice, uint8 or uint16 gray or int16 HU (H, W)."""
        picture = gray(np.asarray(pixels), self._window)
        if max(picture.shape) > self._side:
            picture = _reduced(picture, self._side)
        data = png(picture)
        if len(data) > self._bytes:
            data = _jpeg(picture, self._bytes)
        return data_address(data)


def _reduced(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    # Imported here, because small slices need no Pillow.
    from PIL import Image

    height, width = picture.shape
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    reduced = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(reduced, np.uint8)


def _jpeg(picture: NDArray[np.uint8], limit: int) -> bytes:
    """Encode a picture with the best quality within a number of bytes, or else make it smaller."""
    import io

    from PIL import Image

    while True:
        for quality in QUALITIES:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= limit:
                return buffer.getvalue()
        if max(picture.shape) < 32:
            return buffer.getvalue()
        picture = _reduced(picture, max(picture.shape) // 2)
