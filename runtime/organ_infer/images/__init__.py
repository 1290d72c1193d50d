"""Files and objects to slices: formats, decoding, orientation."""

from ..errors import ImageError
from .registry import decode_slices, open_slices
from .types import Limits, Slice

__all__ = ["ImageError", "Limits", "Slice", "decode_slices", "open_slices"]
