"""Reads images with the runtime's own readers, and resamples them to the networks' input."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.bundle import WINDOW
from organ_infer import OrganInferError
from organ_infer._packing import pack
from organ_infer.images.orientation import Orientation
from organ_infer.images.registry import open_slices
from organ_infer.images.types import Slice
from train.own_data.folder import ImageFile


@dataclass
class Example:
    """One slice of a data set.

    Args:
        name: of its file, with the number of the slice if the file has several.
        file: of its file.
        label: its class.
        split: train, val or test; None if it is not chosen yet.
        pixels: uint8 (S, S), as the networks take them.
        digest: of the pixels as stored.
        shape: height and width as stored.
        orientation: that the file states; None if it states none.
    """

    name: str
    file: str
    label: str
    split: str | None
    pixels: NDArray[np.uint8]
    digest: bytes
    shape: tuple[int, int]
    orientation: Orientation | None = None


@dataclass
class Reader:
    """Converts slices to examples, and counts what happens on the way.

    Args:
        size: S, pixels per side of the networks' input.
        resample: see `pack`.
        failed: names of what could not be read, with the reason.
        conversions: slices by warning of the readers.
        hounsfield: slices in Hounsfield units, which are read through the window of bundles.
    """

    size: int
    resample: str
    failed: list[tuple[str, str]] = field(default_factory=list)
    conversions: Counter[str] = field(default_factory=Counter)
    hounsfield: int = 0

    def read_files(self, files: Iterable[ImageFile]) -> list[Example]:
        """Read every slice of the files. What cannot be read is in `failed` afterwards."""
        examples = []
        for file in files:
            try:
                for path, read in open_slices(file.path):
                    name = file.name + path.removeprefix(file.path)
                    examples.append(self.example(read(), name, file.name, file.label, file.split))
            except OrganInferError as e:
                self.failed.append((file.name, str(e)))
        return examples

    def example(self, image: Slice, name: str, file: str, label: str, split: str | None) -> Example:
        """Convert a slice, see `Example`."""
        pixels = np.ascontiguousarray(image.pixels)
        height, width = pixels.shape
        # the conversion of color images is a warning of its own
        self.conversions.update(w for w in image.warnings if not w.startswith("implausible: color"))
        self.hounsfield += pixels.dtype == np.int16
        digest = hashlib.md5(f"{pixels.dtype} {pixels.shape}".encode())
        digest.update(pixels.tobytes())
        return Example(
            name,
            file,
            label,
            split,
            self._gray(pixels),
            digest.digest(),
            (height, width),
            image.orientation,
        )

    def _gray(self, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Resample as the runtime does, and round to 8 bits, as MedMNIST stores its slices."""
        if pixels.dtype == np.uint8 and pixels.shape == (self.size, self.size):
            return pixels.astype(np.uint8)
        window = WINDOW if pixels.dtype == np.int16 else None
        images: list[NDArray[np.uint8]] = [pixels]  # type: ignore[list-item]
        packed = pack(images, self.size, window=window, resample=self.resample)[0, 0]
        gray: NDArray[np.uint8] = np.rint((packed * 0.5 + 0.5) * 255).clip(0, 255).astype(np.uint8)
        return gray
