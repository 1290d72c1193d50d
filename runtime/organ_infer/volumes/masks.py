"""Masks on the grid of a scan: label images, directories with one file per structure, DICOM SEG."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..images.scan_formats import SCAN_SUFFIXES
from .grid import Alignment, Shape, alignment, described
from .label_maps import LABEL_MAP_OF_NAMES, LabelMap
from .resampling import Resampling, resampling
from .scan_files import read_header
from .types import Mask, Volume
from .voxel_files import Header, blocks

__all__ = [
    "RESAMPLE_ADVICE",
    "Layers",
    "finished_mask",
    "read_label_image",
    "read_structure_files",
]

# the largest number of a label image
MOST_LABEL = 65_535
# structures that a message lists
MOST_LISTED = 12
RESAMPLE_ADVICE = (
    "pass the mask of this scan, or resample it, in organ-infer volume with --resample-mask and in open_mask with"
    " resample=True"
)


class Layers:
    """Collects structures in as few layers as their overlaps allow.

    Attributes:
        codes: Class -> code, for the classes that have voxels.
        structures: Class -> its structures in the mask.
        unmapped: Structures without a class.
        empty: Structures without a voxel.
        resampled: The grids of the mask that are not the scan's, in words. Its voxels were resampled from them.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._layers: list[NDArray[np.uint8]] = []
        self.codes: dict[str, int] = {}
        self.structures: dict[str, list[str]] = {}
        self.unmapped: set[str] = set()
        self.empty: set[str] = set()
        self.resampled: list[str] = []

    def code(self, organ: str) -> int:
        """Return the code of a class, a new one if it has none."""
        if organ not in self.codes and len(self.codes) == 255:
            raise ImageError("more than 255 classes; map fewer with a CSV file")
        return self.codes.setdefault(organ, len(self.codes) + 1)

    def add(
        self,
        organ: str,
        structure: str,
        voxels: NDArray[np.bool_],
        start: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Add voxels to a class.

        Args:
            organ: The class.
            structure: What the mask calls the voxels.
            voxels: bool (x, y, z), a part of the grid or all of it.
            start: The first index of the part.
        """
        code = self.code(organ)
        self.name(organ, structure)
        x, y, z = (slice(s, s + n) for s, n in zip(start, voxels.shape, strict=True))
        for layer in self._layers:
            part = layer[x, y, z]
            if not (voxels & (part != 0) & (part != code)).any():
                part[voxels] = code
                return
        # x is contiguous, as in files
        self._layers.append(np.zeros(self._shape, np.uint8, order="F"))
        self._layers[-1][x, y, z][voxels] = code

    def name(self, organ: str, structure: str) -> None:
        """Note that a structure is a part of a class."""
        if structure not in self.structures.setdefault(organ, []):
            self.structures[organ].append(structure)

    def note_resampled(self, grid: str) -> None:
        """Note a grid of the mask, in words, from which voxels were resampled."""
        if grid not in self.resampled:
            self.resampled.append(grid)

    def add_layer(self, layer: NDArray[np.uint8]) -> None:
        """Add a layer of codes, (X, Y, Z)."""
        self._layers.append(layer)

    @property
    def layers(self) -> list[NDArray[np.uint8]]:
        """uint8 (X, Y, Z) each."""
        return self._layers


def finished_mask(
    path: str, like: Volume, layers: Layers, row: LabelMap, warnings: Iterable[str] = ()
) -> Mask:
    """Return the mask, with its classes in the order of their names.

    Raises:
        ImageError: If no class has a voxel.
    """
    numbers = sorted((name for name in layers.unmapped if name.isdigit()), key=int)
    unmapped = numbers + sorted(name for name in layers.unmapped if not name.isdigit())
    if not layers.codes:
        if not unmapped:
            raise ImageError("the mask is empty; pass the mask of this scan")
        raise ImageError(
            f"no structure of the mask has a class in the label map {row.name}: found {_listed(unmapped)};"
            " pass the data set's label map or a CSV file with --labels or labels="
        )
    if layers.resampled:
        scan = described(like.affine, like.hu.shape)
        if not any(layer.any() for layer in layers.layers):
            raise ImageError(
                f"no voxel of the mask's organs is in the scan: the mask has {layers.resampled[0]},"
                f" the scan {scan}; pass the mask of this scan"
            )
        warnings = (
            *warnings,
            *(
                f"resampled with nearest neighbor from {grid} to the scan's {scan}"
                for grid in layers.resampled
            ),
        )
    if layers.empty:
        warnings = (*warnings, f"structures without a voxel: {_listed(sorted(layers.empty))}")
    codes = {organ: layers.codes[organ] for organ in sorted(layers.codes)}
    return Mask(
        layers.layers,
        codes,
        unmapped=unmapped,
        source=path,
        warnings=tuple(warnings),
        structures=layers.structures,
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _aligned(
    header: Header, like: Volume, layers: Layers, resample: bool
) -> Alignment | Resampling:
    """Return how the voxels of a file become voxels of the scan.

    Raises:
        ImageError: If they are not on the same grid, and are not to be resampled.
    """
    found = alignment(header.affine, header.shape, like.affine)
    if found and found.shape(header.shape) == like.hu.shape and found.start == (0, 0, 0):
        return found
    grid = described(header.affine, header.shape)
    if not resample:
        raise ImageError(
            f"not the scan's grid: the mask has {grid}, the scan {described(like.affine, like.hu.shape)};"
            f" {RESAMPLE_ADVICE}"
        )
    layers.note_resampled(grid)
    return resampling(header.affine, like)


# Label images.


def read_label_image(path: str, like: Volume, row: LabelMap, resample: bool = False) -> Mask:
    """Read a label image."""
    header = read_header(path, is_resampled=resample)
    layers = Layers(like.hu.shape)
    aligned = _aligned(header, like, layers, resample)
    lookup = _lookup(row, header.structures, layers)
    codes = np.empty(header.count, np.uint8)
    counts = np.zeros(MOST_LABEL + 1, np.int64)
    for start, values in blocks(header):
        numbers = _labels(values, header)
        # most voxels are background, and counting is slower than leaving them out
        part = np.bincount(numbers[numbers != 0])
        counts[: len(part)] += part
        np.take(lookup, numbers, out=codes[start : start + len(values)], mode="clip")
    layers.add_layer(aligned.apply(codes.reshape(header.shape[::-1]).transpose(2, 1, 0)))
    layers.codes = {
        organ: code for organ, code in layers.codes.items() if counts[lookup == code].any()
    }
    organs = {code: organ for organ, code in layers.codes.items()}
    for number in (np.flatnonzero(counts[1:]) + 1).tolist():
        structure = header.structures.get(number, str(number))
        if lookup[number]:
            layers.name(organs[int(lookup[number])], structure)
        else:
            layers.unmapped.add(structure)
    warnings = [*header.warnings]
    if row.other and not _is_named(row, header.structures) and not counts[row.other[1] + 1 :].any():
        warnings.append(
            f"numbers without names, read as {row.name}; if they are of version 1, choose {row.other[0]}, and if of"
            " another data set, its label map or a CSV file"
        )
    if contradictions := _contradictions(row, header.structures, counts):
        warnings.append(
            f"the label map {row.name} contradicts the names in the file: {_listed(contradictions)};"
            f" choose {LABEL_MAP_OF_NAMES} to read the names"
        )
    return finished_mask(path, like, layers, row, warnings)


def _is_named(row: LabelMap, structures: Mapping[int, str]) -> bool:
    """Whether the file's own names of its numbers are used. A table of names that no row knows is not."""
    return row.prefers_names and any(row.class_of(None, name) for name in structures.values())


def _contradictions(
    row: LabelMap, structures: Mapping[int, str], counts: NDArray[np.int64]
) -> list[str]:
    """List the numbers with voxels whose name in the file is of another class than their number in the label map."""
    if _is_named(row, structures):
        return []
    found = []
    for number, name in sorted(structures.items()):
        by_number, by_name = row.numbers.get(number), row.class_of(None, name)
        if by_number and by_name and by_number != by_name and counts[number]:
            found.append(f"{number} {name} is read as {by_number}")
    return found


def _lookup(row: LabelMap, structures: Mapping[int, str], layers: Layers) -> NDArray[np.uint8]:
    """Return the code of every number, uint8 (65,536)."""
    lookup = np.zeros(MOST_LABEL + 1, np.uint8)
    is_named = _is_named(row, structures)
    for number in sorted({*row.numbers, *structures}):
        name = structures.get(number)
        organ = row.class_of(None if is_named else number, *(() if name is None else (name,)))
        if organ is not None and 0 < number <= MOST_LABEL:
            lookup[number] = layers.code(organ)
    return lookup


def _labels(values: NDArray[Any], header: Header) -> NDArray[Any]:
    """Return the label numbers of a block, unsigned or int64."""
    is_scaled = (header.slope, header.intercept) != (1, 0)
    if not is_scaled and values.dtype in (np.uint8, np.uint16):
        return values
    scaled = values.astype(np.float64) * header.slope + header.intercept if is_scaled else values
    low, high = scaled.min(), scaled.max()
    if not np.isfinite([low, high]).all():
        raise ImageError(
            "NaN or infinite values are no labels; pass a label image of whole numbers"
        )
    if not (low >= 0 and high <= MOST_LABEL):
        raise ImageError(
            f"values {low:,.5g} to {high:,.5g} are no labels, 0 to {MOST_LABEL:,}; pass the mask, not the scan"
        )
    numbers = scaled.astype(np.int64)
    if scaled.dtype.kind == "f" and (numbers != scaled).any():
        raise ImageError(
            "fractions, so probabilities or an interpolated mask; pass a label image of whole numbers"
        )
    return numbers


# One file per structure.


def read_structure_files(
    path: str, files: Iterable[str], like: Volume, row: LabelMap, resample: bool = False
) -> Mask:
    """Read a directory with one binary image per structure, named as the structure.

    Args:
        path: The directory.
        files: The names of the images in it.
        like: The scan.
        row: The label map.
        resample: Whether files on another grid are resampled.
    """
    layers = Layers(like.hu.shape)
    for name in sorted(files):
        structure = _stem(name)
        organ = row.class_of(None, structure)
        if organ is None:
            layers.unmapped.add(structure)
            continue
        file = os.path.join(path, name)
        try:
            _add(file, organ, structure, like, layers, resample)
        except ImageError as e:
            raise ImageError(f"{file}: {e.args[0]}") from e
    return finished_mask(path, like, layers, row)


def _add(
    path: str, organ: str, structure: str, like: Volume, layers: Layers, resample: bool
) -> None:
    header = read_header(path, is_resampled=resample)
    aligned = _aligned(header, like, layers, resample)
    voxels = np.empty(header.count, np.bool_)
    for start, values in blocks(header):
        np.not_equal(_labels(values, header), 0, out=voxels[start : start + len(values)])
    if not voxels.any():
        layers.empty.add(structure)
        return
    layers.add(
        organ, structure, aligned.apply(voxels.reshape(header.shape[::-1]).transpose(2, 1, 0))
    )


def _stem(name: str) -> str:
    """Return a file's name without the suffixes of scans."""
    suffix = next(
        (s for s in sorted(SCAN_SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), ""
    )
    return name[: len(name) - len(suffix)]
