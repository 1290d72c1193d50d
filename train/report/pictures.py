"""Slices as small PNGs for the page, and the choice of sample slices."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

LARGEST = 96  # pixels a side on the page; larger slices are reduced to keep the page small


def data_uri(image: np.ndarray) -> str:
    """A uint8 (S, S) slice as a PNG in a data address."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    if max(picture.size) > LARGEST:
        picture = picture.resize((LARGEST, LARGEST), Image.Resampling.BOX)
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def samples(labels: np.ndarray, index: int, count: int) -> list[int]:
    """Up to `count` slices of class `index`, evenly spaced through the split, so that they come from several scans."""
    found = np.flatnonzero(labels == index)
    if len(found) == 0:
        return []
    places = np.linspace(
        0, len(found) - 1, min(count, len(found)) + 2 if len(found) > count + 2 else len(found)
    )
    chosen = places[1:-1] if len(found) > count + 2 else places[:count]
    return [int(found[round(place)]) for place in chosen]
