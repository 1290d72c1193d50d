"""Converts arrays and Pillow images, as given to `OrganClassifier.predict`, to slices."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, one_line, short_repr, shorten
from .types import DTYPES, PIXEL_LIMIT, SIDE_LIMIT, Slice, array_problem, check_size

if TYPE_CHECKING:
    pass

__all__ = ["EXPECTED", "slices_in_memory"]

EXPECTED = "expected an array (H, W) or (N, H, W), a Pillow image, or a sequence of (H, W) arrays and Pillow images"


def slices_in_memory(images: Any) -> Iterator[tuple[str, Slice]]:
    """Yield every slice of `images`, with its name for messages (`images`, `images[3]`).

    Args:
        images: uint8, uint16 or int16 (HU) arrays (H, W) or (N, H, W), a Pillow image, or a sequence
            of (H, W) arrays and Pillow images.

    Raises:
        InputError: For anything else. The message says what to pass instead.
    """
    if isinstance(images, np.ndarray) or _is_pillow_image(images):
        yield from _slices_of_one(images, "images", allow_stack=True)
        return
    if isinstance(images, (bytes, bytearray, memoryview)):
        raise InputError(
            f"images: expected pixels, found {len(images):,} bytes; use predict_bytes for the content of a file"
        )
    if isinstance(images, (str, os.PathLike)):
        raise InputError(
            f"images: expected pixels, found the path {short_repr(images)}; use predict_paths([path])"
        )
    try:
        sequence = list(images)
    except (TypeError, NotImplementedError) as e:
        raise InputError(f"images: {EXPECTED}, found {type(images).__name__}") from e
    for i, image in enumerate(sequence):
        yield from _slices_of_one(image, f"images[{i}]", allow_stack=False)


def _slices_of_one(image: Any, where: str, *, allow_stack: bool) -> Iterator[tuple[str, Slice]]:
    if _is_pillow_image(image):
        yield where, _slice_of_pillow_image(image, where)
        return
    if not isinstance(image, np.ndarray):
        raise InputError(f"{where}: {EXPECTED}, found {type(image).__name__}")
    if image.dtype.name not in DTYPES:
        raise InputError(
            f"{where}: expected {', '.join(DTYPES)}, found {shorten(str(image.dtype), 120)}; {_advice(image)}"
        )
    if np.ma.is_masked(image):
        raise InputError(f"{where}: masked pixels are not supported; pass image.filled(0)")
    if image.ndim > 2 and image.shape[-1] == 1:
        # one channel, which has one meaning
        image = image[..., 0]
    if image.ndim not in ((2, 3) if allow_stack else (2,)):
        raise InputError(
            f"{where}: {EXPECTED}, found {image.ndim} axes {image.shape}; {_advice(image)}"
        )
    if problem := array_problem(image.shape):
        raise InputError(f"{where}: an array {image.shape} {problem}")
    for pixels in image if image.ndim == 3 else [image]:
        if 0 in pixels.shape or max(pixels.shape) > SIDE_LIMIT:
            raise InputError(f"{where}: expected 1 to 65,535 pixels per side, found {pixels.shape}")
        yield where, Slice(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))


def _slice_of_pillow_image(image: Any, where: str) -> Slice:
    from .pillow import slice_of_image

    try:
        width, height = image.size
        check_size(width, height, PIXEL_LIMIT)
        return slice_of_image(image)
    except MemoryError:
        raise
    except Exception as e:
        # Pillow raises almost anything for a damaged image that is not loaded yet
        raise InputError(f"{where}: {shorten(one_line(e), 300)}") from e


def _is_pillow_image(image: Any) -> bool:
    # a Pillow image can only be given if Pillow is loaded
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _advice(image: NDArray[Any]) -> str:
    """Return what to pass instead."""
    if image.ndim >= 3 and image.shape[-1] in (3, 4):
        return "pass gray (H, W), or a Pillow image, which is converted"
    if image.dtype == bool:
        return "pass image.astype('uint8') * 255"
    if image.dtype.kind == "f":
        suffix = " after removing NaN" if np.isnan(image).any() else ""
        return f"pass gray of 0 to 255 as uint8, or HU as int16{suffix}"
    return "pass uint8 gray, uint16 gray, or int16 Hounsfield units"
