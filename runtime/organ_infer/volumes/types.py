"""A CT volume in patient coordinates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mask", "Volume"]


@dataclass(frozen=True)
class Volume:
    """A CT volume.

    Attributes:
        hu: Hounsfield units, int16 (X, Y, Z). Any strides, so that it can be a view of a file's array.
        affine: float64 (4, 4), from indices (x, y, z) to millimeters toward the patient's left, posterior and head
            (LPS).
        source: The path that it was read from.
        warnings: What was converted, and anything suspicious.
    """

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]
    source: str
    warnings: tuple[str, ...] = ()


class Mask(Mapping[str, NDArray[np.bool_]]):
    """The organs of a mask on the grid of a volume: class name -> bool (X, Y, Z).

    One label image holds all organs that do not overlap. An organ's array is computed when it is asked for.

    Attributes:
        unmapped: Names or numbers of structures that the label map does not map to a class, sorted.
        source: The path that it was read from.
        warnings: What was converted, and anything suspicious.
    """

    unmapped: tuple[str, ...]
    source: str
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def box(self, name: str) -> tuple[slice, slice, slice]:
        """The smallest box of indices that contains the organ."""
        raise NotImplementedError

    def region(self, name: str, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
        """The part of an organ's array inside a box of indices.

        Masks that do not hold whole arrays should compute this part alone.
        """
        return self[name][box]

    def structures(self, name: str) -> tuple[str, ...]:
        """Names or numbers of the mask's structures that make up a class, such as the lobes of a lung."""
        return (name,)
