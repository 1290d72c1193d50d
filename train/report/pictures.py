"""Slices as small PNGs for the page, and the choice of sample slices."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

# largest width and height on the page, pixels; larger slices are reduced to keep the page small
LARGEST = 96


def data_uri(image: np.ndarray) -> str:
    """Encode a slice as a PNG in a data URI.

    Args:
        image: uint8 (H, W).
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    if max(picture.size) > LARGEST:
        picture = picture.resize((LARGEST, LARGEST), Image.Resampling.BOX)
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def samples(labels: np.ndarray, index: int, count: int) -> list[int]:
    """Choose slices of a class, evenly spaced through the split so that they come from several scans.

    Args:
        labels: int (N,).
        index: of the class.
        count: number of slices to choose, at most.

    Returns:
        Indices into `labels`, ascending.
    """
    of_class = np.flatnonzero(labels == index)
    if len(of_class) <= count + 2:
        return [int(i) for i in of_class[:count]]
    positions = np.linspace(0, len(of_class) - 1, count + 2)[1:-1]
    return [int(of_class[round(position)]) for position in positions]
