"""Boxes that are cut from slices. The name of a box follows the slice's: `scan.png[x0:x1,y0:y1]`."""

import re
from dataclasses import replace
from typing import NamedTuple

from ..errors import ImageError
from .types import Slice

__all__ = ["Box", "cut_box", "split_box"]

_BOX = re.compile(
    r"\[(?:(?P<name>[^\[\]]*)=)?(-?\d{1,9}):(-?\d{1,9}),(-?\d{1,9}):(-?\d{1,9})\]", re.ASCII
)


class Box(NamedTuple):
    """Pixels of a slice: the columns x0 to x1 - 1 and the rows y0 to y1 - 1, counted from 0 at the top left.

    Attributes:
        x0: The first column. x grows to the right.
        y0: The first row. y grows downward.
        x1: The column after the last one.
        y1: The row after the last one.
        name: What the user calls the box, or "".
    """

    x0: int
    y0: int
    x1: int
    y1: int
    name: str = ""

    def __str__(self) -> str:
        name = f"{self.name}=" if self.name else ""
        return f"[{name}{self.x0}:{self.x1},{self.y0}:{self.y1}]"


def split_box(text: str) -> tuple[str, Box | None]:
    """Split `scan.png[0:9,2:7]` into `scan.png` and the box. A text without one gives None."""
    start = text.rfind("[")
    match = _BOX.fullmatch(text, start) if start >= 0 else None
    if match is None:
        return text, None
    name, x0, x1, y0, y1 = match.groups()
    return text[:start], Box(int(x0), int(y0), int(x1), int(y1), name or "")


def cut_box(image: Slice, box: Box) -> Slice:
    """Cut a box out of a slice, as its pixels were read. What is outside the slice is left out, with a warning.

    Raises:
        ImageError: If no pixel is in the box.
    """
    height, width = image.pixels.shape
    size = f"{width} x {height} pixels"
    if box.x1 <= box.x0 or box.y1 <= box.y0:
        raise ImageError(f"box {box}: no pixels in it; x1 and y1 must be larger than x0 and y0")
    inside = box._replace(
        x0=max(box.x0, 0), y0=max(box.y0, 0), x1=min(box.x1, width), y1=min(box.y1, height)
    )
    if inside.x1 <= inside.x0 or inside.y1 <= inside.y0:
        raise ImageError(f"box {box}: outside the image of {size}; correct the box")
    warnings = image.warnings
    if inside != box:
        clipped = inside._replace(name="")
        warnings = (*warnings, f"the box reaches beyond the image of {size}; clipped to {clipped}")
    field = image.field and (
        image.field[0] * (inside.y1 - inside.y0) / height,
        image.field[1] * (inside.x1 - inside.x0) / width,
    )
    pixels = image.pixels[inside.y0 : inside.y1, inside.x0 : inside.x1]
    return replace(image, pixels=pixels, warnings=warnings, field=field)
