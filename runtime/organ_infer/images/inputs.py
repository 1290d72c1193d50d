"""The types of slices in memory, for the signatures of programs. Importing this module imports Pillow."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

__all__ = ["Images", "Pixels"]

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int16]
"""An array (H, W) or (N, H, W) of gray or Hounsfield units."""
Images: TypeAlias = Pixels | Image | Sequence[Pixels | Image]
"""What `OrganClassifier.predict` takes: an array (H, W) or (N, H, W), a Pillow image, or a sequence of (H, W) arrays and Pillow images."""
