"""Reads a MedMNIST data set, downloaded if it is missing, after a check of its MD5."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from train.datasets import DATASETS, SIZES
from train.download import digest_of, download
from train.errors import RunError

SPLITS = ("train", "val", "test")
# slices of each split in a smoke run
SMOKE_SLICES = 256


@dataclass(frozen=True)
class Data:
    """The splits of a data set.

    Args:
        flag: its name in the table.
        view: of its slices.
        size: pixels per side of the networks' input.
        md5: of its file.
        classes: class names, by index.
        images: uint8 (N, H, W) as the file stores them, by split.
        labels: class indices, int64 (N,), by split.
        counts: slices of each class in the whole file, by split; a smoke run uses fewer.
    """

    flag: str
    view: str
    size: int
    md5: str
    classes: list[str]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    counts: dict[str, list[int]]

    @property
    def stored(self) -> int:
        """Pixels per side of the slices in the file; larger than `size` if they are resampled."""
        return int(self.images["train"].shape[-1])

    def network_images(self, split: str) -> np.ndarray:
        """A split as networks are trained on it, see `as_network_images`."""
        return self.as_network_images(self.images[split])

    def as_network_images(self, images: np.ndarray) -> np.ndarray:
        """Slices as networks take them.

        Args:
            images: uint8 (N, H, W) of the stored size.

        Returns:
            The images, or if the stored size is larger than the networks' input, float32 (N, S, S) in -1 to 1,
            normalized and resampled by the runtime's own routine.
        """
        if self.stored == self.size:
            return images
        from organ_infer._packing import pack

        packed: np.ndarray = pack(images, self.size)  # (N, 1, S, S)
        return packed[:, 0]

    def smoke(self) -> Data:
        """The first slices of each split, for a smoke run."""
        return replace(
            self,
            images={split: a[:SMOKE_SLICES] for split, a in self.images.items()},
            labels={split: a[:SMOKE_SLICES] for split, a in self.labels.items()},
        )


def default_directory() -> Path:
    """medmnist's own data folder."""
    from medmnist.info import DEFAULT_ROOT

    return Path(DEFAULT_ROOT) if DEFAULT_ROOT else Path.home() / ".medmnist"


def published(flag: str, size: int) -> dict[str, Any]:
    """What medmnist publishes about a file.

    Args:
        flag: the data set's name.
        size: pixels per side.

    Returns:
        `name`, `url`, `md5`, `classes` (names by index) and `n_samples` (by split).
    """
    from medmnist import INFO

    info, suffix = INFO[flag], "" if size == 28 else f"_{size}"
    return {
        "name": f"{flag}{suffix}.npz",
        "url": info[f"url{suffix}"],
        "md5": info[f"MD5{suffix}"],
        "classes": [info["label"][str(i)] for i in range(len(info["label"]))],
        "n_samples": info["n_samples"],
    }


def load_data(
    flag: str, *, size: int = 28, directory: Path | None = None, resample_from: int | None = None
) -> Data:
    """Load a data set; it is downloaded if `directory` does not have its file.

    Args:
        flag: a name of the table.
        size: pixels per side of the networks' input.
        directory: of the file; by default medmnist's own.
        resample_from: pixels per side of a larger file to resample the slices from, by area averages.

    Returns:
        The three splits, with images as the file stores them.

    Raises:
        RunError: the name or the size is unknown, the file's MD5 is not the published one, or the download failed.
    """
    if flag not in DATASETS:
        raise RunError(f"unknown data set {flag!r}; choose from {', '.join(DATASETS)}")
    if size not in SIZES:
        raise RunError(f"unknown size {size}; choose from {', '.join(map(str, SIZES))}")
    stored = resample_from or size
    if stored not in SIZES or stored < size:
        raise RunError(
            f"slices of {size} px cannot be resampled from {stored} px; choose from {', '.join(map(str, SIZES))}"
        )
    known = published(flag, stored)
    path = (directory or default_directory()) / known["name"]
    if not path.exists():
        download(known["url"], path, known["md5"])
    elif not path.is_file():
        raise RunError(f"{path} is not a file")
    try:
        digest = digest_of(path, "md5")
    except OSError as e:
        raise RunError(f"cannot read {path}: {e.strerror}") from e
    if digest != known["md5"]:
        raise RunError(
            f"{path} is not the published file: expected MD5 {known['md5']}, found {digest}; "
            f"remove it to download it again, or fetch {known['url']}"
        )
    images, labels = _read(path, stored, len(known["classes"]))
    counts = {
        split: np.bincount(labels[split], minlength=len(known["classes"])).tolist()
        for split in SPLITS
    }
    return Data(flag, DATASETS[flag].view, size, digest, known["classes"], images, labels, counts)


def _read(
    path: Path, size: int, classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images and labels by split; RunError if the file is not a MedMNIST file of this size."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images = {split: file[f"{split}_images"] for split in SPLITS}
            labels = {
                split: file[f"{split}_labels"].reshape(-1).astype(np.int64) for split in SPLITS
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise RunError(f"{path} is not a MedMNIST file: {e}") from e
    for split in SPLITS:
        x, y = images[split], labels[split]
        if x.dtype != np.uint8 or x.shape != (len(y), size, size):
            raise RunError(
                f"{path}: {split} holds {x.dtype} {x.shape}, expected uint8 ({len(y)}, {size}, {size})"
            )
        if not len(y) or y.min() < 0 or y.max() >= classes:
            raise RunError(f"{path}: {split} has labels outside 0 to {classes - 1}")
    return images, labels
