"""CT volumes and masks: read, checked against each other, and cut into crops around organs."""

from .reading import open_mask, open_volume
from .types import Mask, Volume

__all__ = ["Mask", "Volume", "open_mask", "open_volume"]
