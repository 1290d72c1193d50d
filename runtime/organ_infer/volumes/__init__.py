"""CT volumes and masks: read, checked against each other, and cut into crops around organs."""

from .boxes import BoxMask, open_boxes
from .crops import Crop, organ_crops
from .reading import open_mask, open_volume
from .types import Mask, Volume

__all__ = [
    "BoxMask",
    "Crop",
    "Mask",
    "Volume",
    "open_boxes",
    "open_mask",
    "open_volume",
    "organ_crops",
]
