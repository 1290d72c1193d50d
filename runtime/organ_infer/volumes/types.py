"""A CT volume in patient coordinates, and a mask on its grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, short_repr

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
        frame_of_reference: FrameOfReferenceUID of a DICOM series, or "".
        series: SeriesInstanceUID of a DICOM series, or "".
    """

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]
    source: str
    warnings: tuple[str, ...] = ()
    frame_of_reference: str = ""
    series: str = ""


class Mask(Mapping[str, NDArray[np.bool_]]):
    """The organs of a mask on the grid of a volume: class name -> bool (X, Y, Z).

    One label image holds all organs that do not overlap. An organ's array is computed when it is asked for.

    Attributes:
        unmapped: Names or numbers of structures that the label map does not map to a class, sorted.
        source: The path that it was read from.
        warnings: What was converted, and anything suspicious.
        margin_mm: Margin in millimeters that crops have if none is given.
    """

    # Without a margin and with more, fewer slices of public scans were classified correctly.
    margin_mm: float = 5.0
    unmapped: tuple[str, ...]
    source: str
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        layers: Sequence[NDArray[np.uint8]],
        codes: Mapping[str, int],
        *,
        unmapped: Sequence[str] = (),
        source: str = "",
        warnings: Sequence[str] = (),
        structures: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Create a mask.

        Args:
            layers: uint8 (X, Y, Z) each: the code of the organ at a voxel, or 0. Organs that overlap are in
                different layers.
            codes: Class name -> code, 1 to 255.
            unmapped: Structures without a class.
            source: The path that it was read from.
            warnings: What was converted, and anything suspicious.
            structures: Class name -> names or numbers of the mask's structures in it. By default the class.
        """
        if (
            not isinstance(layers, (list, tuple))
            or not layers
            or not all(
                isinstance(layer, np.ndarray) and layer.dtype == np.uint8 for layer in layers
            )
            or any(layer.ndim != 3 or layer.shape != layers[0].shape for layer in layers)
        ):
            raise InputError("layers: expected a list of uint8 arrays (X, Y, Z), all of one shape")
        if not isinstance(codes, Mapping) or not all(
            isinstance(code, (int, np.integer)) and 1 <= code <= 255 for code in codes.values()
        ):
            raise InputError(
                f"codes: expected class names with codes from 1 to 255, found {short_repr(codes)}"
            )
        self._layers = tuple(layers)
        self._codes = {name: int(code) for name, code in codes.items()}
        self._structures = dict(structures or {})
        # per layer, once it was asked for: code -> box
        self._boxes: dict[int, dict[int, _Box]] = {}
        self.unmapped = tuple(unmapped)
        self.source = source
        self.warnings = tuple(warnings)

    @property
    def shape(self) -> tuple[int, int, int]:
        """X, Y and Z of the volume that the mask belongs to."""
        x, y, z = self._layers[0].shape
        return x, y, z

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return self.region(name, (slice(None), slice(None), slice(None)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would compute the organ's array
        return name in self._codes

    def __repr__(self) -> str:
        return f"Mask({', '.join(self._codes)})"

    def box(self, name: str) -> tuple[slice, slice, slice]:
        """The smallest box of indices that contains the organ."""
        code = self._codes[name]
        boxes = [
            box[code]
            for box in (self._layer_boxes(i) for i in range(len(self._layers)))
            if code in box
        ]
        if not boxes:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        x, y, z = (
            slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes))
            for axis in range(3)
        )
        return x, y, z

    def region(self, name: str, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
        """The part of an organ's array inside a box of indices. Only this part is computed."""
        code = self._codes[name]
        organ: NDArray[np.bool_] = self._layers[0][box] == code
        for layer in self._layers[1:]:
            organ |= layer[box] == code
        return organ

    def structures(self, name: str) -> tuple[str, ...]:
        """Names or numbers of the mask's structures that make up a class, such as the lobes of a lung."""
        return tuple(self._structures.get(name, (name,)))

    def _layer_boxes(self, index: int) -> dict[int, "_Box"]:
        if index not in self._boxes:
            self._boxes[index] = _boxes(self._layers[index])
        return self._boxes[index]


_Box = tuple[slice, slice, slice]


def _boxes(layer: NDArray[np.uint8]) -> dict[int, _Box]:
    """Return the box of every code of a layer, (X, Y, Z). One pass finds the planes of each code."""
    # the axis with the largest stride: its planes are contiguous
    axis = int(np.argmax(np.abs(layer.strides)))
    planes = np.moveaxis(layer, axis, 0)
    extent: dict[int, tuple[int, int]] = {}
    for i, plane in enumerate(planes):
        for code in np.flatnonzero(np.bincount(plane[plane != 0])).tolist():
            first, _ = extent.get(code, (i, i))
            extent[code] = first, i + 1
    boxes: dict[int, _Box] = {}
    for code, (start, stop) in extent.items():
        shadow = np.zeros(planes.shape[1:], np.bool_)
        for plane in planes[start:stop]:
            shadow |= plane == code
        sides = [_extent(np.any(shadow, axis=1)), _extent(np.any(shadow, axis=0))]
        sides.insert(axis, slice(start, stop))
        boxes[code] = (sides[0], sides[1], sides[2])
    return boxes


def _extent(line: Any) -> slice:
    indices = np.flatnonzero(line)
    return slice(int(indices[0]), int(indices[-1]) + 1)
