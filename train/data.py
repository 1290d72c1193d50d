"""A MedMNIST data set: found or downloaded, its MD5 checked, read into arrays."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from train.download import digest_of, download
from train.errors import RunError

DATASETS = {"organsmnist": "sagittal", "organamnist": "axial", "organcmnist": "coronal"}
SIZES = (28, 64, 128, 224)
SPLITS = ("train", "val", "test")
SMOKE_SLICES = 256  # a split


@dataclass(frozen=True)
class Data:
    """The three splits. images: uint8 (N, H, W) as the file stores them, by split; labels: int64 (N,) by split.

    `size` is that of the networks' input, `stored` that of the file. `counts` are the slices of each class in the whole file, by split, also where a smoke run uses fewer.
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
        """Pixels a side of the slices in the file; larger than `size` where they are resampled."""
        return int(self.images["train"].shape[-1])

    def network_images(self, split: str) -> np.ndarray:
        """A split as networks are trained on it: uint8 (N, S, S) as stored, or, where the file's slices are larger,
        float32 (N, S, S), normalised and resampled by the runtime's own routine."""
        return self.as_network_images(self.images[split])

    def as_network_images(self, images: np.ndarray) -> np.ndarray:
        """Slices uint8 (N, H, W) of the stored size as networks take them (see `network_images`)."""
        if self.stored == self.size:
            return images
        from organ_infer._packing import pack

        return pack(images, self.size)[:, 0]

    def smoke(self) -> Data:
        """The first slices of each split, to prove the line."""
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
    """What medmnist publishes of a file: `url`, `md5`, `classes`, `n_samples`, `name`."""
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
    """Load a data set, downloading it where `directory` (medmnist's own by default) does not hold it yet.

    resample_from: the larger file to take slices of `size` from, by area averaging as the runtime resamples.

    Raises RunError for an unknown name or size, a file whose MD5 is not the published one (expected and found
    are named, with the address to fetch it from), or where the download fails.
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
        found = digest_of(path, "md5")
    except OSError as e:
        raise RunError(f"cannot read {path}: {e.strerror}") from e
    if found != known["md5"]:
        raise RunError(
            f"{path} is not the published file: expected MD5 {known['md5']}, found {found}; "
            f"remove it to download it again, or fetch {known['url']}"
        )
    images, labels = _read(path, stored, len(known["classes"]))
    counts = {split: np.bincount(labels[split], minlength=len(known["classes"])).tolist() for split in SPLITS}
    return Data(flag, DATASETS[flag], size, found, known["classes"], images, labels, counts)


def _read(path: Path, size: int, classes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images = {split: file[f"{split}_images"] for split in SPLITS}
            labels = {split: file[f"{split}_labels"].reshape(-1).astype(np.int64) for split in SPLITS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise RunError(f"{path} is not a MedMNIST file: {e}") from e
    for split in SPLITS:
        a, y = images[split], labels[split]
        if a.dtype != np.uint8 or a.shape != (len(y), size, size):
            raise RunError(
                f"{path}: {split} holds {a.dtype} {a.shape}, expected uint8 ({len(y)}, {size}, {size})"
            )
        if not len(y) or y.min() < 0 or y.max() >= classes:
            raise RunError(f"{path}: {split} has labels outside 0 to {classes - 1}")
    return images, labels
