"""Reads a MedMNIST data set. A missing file is downloaded, and the MD5 of every file is checked."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from train.datasets import DATASETS, SIZES, OwnDataset
from train.download import digest_of, download
from train.errors import RunError
from train.record import note

SPLITS = ("train", "val", "test")
# slices of each split in a smoke run
SMOKE_SLICES = 256


@dataclass(frozen=True)
class Data:
    """The splits of a data set.

    Args:
        flag: MedMNIST's name of it, a key of `train.datasets.DATASETS`, or that of a data set of the user.
        view: of its slices: axial, coronal, sagittal or unknown.
        size: pixels per side of the networks' input.
        md5: of its file, or of the content of a data set of the user.
        classes: class names, by index.
        images: uint8 (N, H, W) as the file stores them, by split.
        labels: class indices, int64 (N,), by split.
        counts: slices of each class in the whole file, by split; a smoke run uses fewer.
        resample: how slices are resampled, in training and by the bundle: area, linear or cubic.
        own: what a data set of the user is; None for those of MedMNIST.
        names: of the slices, by split; only of a data set of the user.
    """

    flag: str
    view: str
    size: int
    md5: str
    classes: list[str]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    counts: dict[str, list[int]]
    resample: str = "area"
    own: OwnDataset | None = None
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def recipe_view(self) -> str:
        """The view for recipes, which flip axial slices front to back along their columns. Own slices only if the user gave the orientation."""
        if self.own is None:
            return self.view
        columns = (self.own.orientation or "")[1:]
        return self.view if self.own.orientation_given and columns in ("A", "P") else "unknown"

    @property
    def stored(self) -> int:
        """Pixels per side of the slices in the file; larger than `size` if they are resampled."""
        return int(self.images["train"].shape[-1])

    def network_images(self, split: str) -> np.ndarray:
        """Return the images of a split as networks take them, see `as_network_images`."""
        return self.as_network_images(self.images[split])

    def as_network_images(self, images: np.ndarray) -> np.ndarray:
        """Resample slices to the networks' input, if they are stored larger.

        Args:
            images: uint8 (N, H, W) of the stored size.

        Returns:
            The images unchanged if they have the input's size. Otherwise float32 (N, S, S) in -1 to 1, resampled and
            normalized by the runtime's own routine.
        """
        if self.stored == self.size:
            return images
        from organ_infer._packing import pack

        packed: np.ndarray = pack(images, self.size, resample=self.resample)  # (N, 1, S, S)
        return packed[:, 0]

    def smoke(self) -> Data:
        """Return the first slices of each split, for a smoke run. Own slices, sorted by class, are spread evenly."""
        rows = {split: self._smoke_rows(len(labels)) for split, labels in self.labels.items()}
        return replace(
            self,
            images={split: images[rows[split]] for split, images in self.images.items()},
            labels={split: labels[rows[split]] for split, labels in self.labels.items()},
            names={split: [names[i] for i in rows[split]] for split, names in self.names.items()},
        )

    def _smoke_rows(self, count: int) -> np.ndarray:
        if self.own is None:
            return np.arange(min(count, SMOKE_SLICES))
        return np.linspace(0, count - 1, min(count, SMOKE_SLICES)).round().astype(int)


def default_directory() -> Path:
    """Return medmnist's own data directory."""
    from medmnist.info import DEFAULT_ROOT

    return Path(DEFAULT_ROOT) if DEFAULT_ROOT else Path.home() / ".medmnist"


def published_file(flag: str, size: int) -> dict[str, Any]:
    """Return what medmnist publishes about the file of a data set.

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
    flag: str,
    *,
    size: int = 28,
    directory: Path | None = None,
    resample_from: int | None = None,
    resample: str = "area",
) -> Data:
    """Load a data set; its file is downloaded if it is missing and `directory` is one for downloads.

    Args:
        flag: MedMNIST's name of it, a key of `train.datasets.DATASETS`.
        size: pixels per side of the networks' input.
        directory: of the file; by default medmnist's own data directory. For a download it must exist, and be empty or
            hold only files of MedMNIST.
        resample_from: pixels per side of a larger file to resample the slices from.
        resample: how slices are resampled: area, linear or cubic.

    Returns:
        The three splits, with images as the file stores them.

    Raises:
        RunError: the name or the size is unknown, the directory is not one for downloads, the file's MD5 is not the
            published one, or the download failed.
    """
    if flag not in DATASETS:
        raise RunError(
            f"data set {flag!r}: unknown; choose from {', '.join(DATASETS)}, folder:PATH or npz:FILE"
        )
    if size not in SIZES:
        raise RunError(f"size {size}: not published; choose from {', '.join(map(str, SIZES))}")
    stored = resample_from or size
    if stored not in SIZES or stored < size:
        raise RunError(
            f"slices of {size} px: cannot be resampled from {stored} px; choose from"
            f" {', '.join(str(s) for s in SIZES if s >= size)}"
        )
    published = published_file(flag, stored)
    path = (directory or default_directory()) / published["name"]
    try:
        exists = path.exists()
    except OSError as e:
        raise RunError(f"{path}: cannot be read ({e.strerror}); choose another --data-dir") from e
    if not exists:
        if directory is not None:
            _check_download_place(directory, path.name)
        note(f"{path}: no such file; downloading {published['url']}")
        download(published["url"], path, published["md5"])
    elif not path.is_file():
        raise RunError(f"{path}: not a file; rename it or choose another --data-dir")
    try:
        digest = digest_of(path, "md5")
    except OSError as e:
        raise RunError(f"{path}: cannot be read ({e.strerror}); choose another --data-dir") from e
    if digest != published["md5"]:
        raise RunError(
            f"{path}: has the name of MedMNIST's file but other content, expected MD5 {published['md5']},"
            f" found {digest}; give another --data-dir, or rename this file to download {published['url']}"
        )
    classes = published["classes"]
    images, labels = _read(path, stored, len(classes))
    counts = {
        split: np.bincount(labels[split], minlength=len(classes)).tolist() for split in SPLITS
    }
    return Data(flag, DATASETS[flag].view, size, digest, classes, images, labels, counts, resample)


def _check_download_place(directory: Path, name: str) -> None:
    """Raise RunError unless a file may be downloaded into the directory of --data-dir.

    A mistyped path must not start a download. Users name an existing directory that is empty, or that holds files of
    MedMNIST already.

    Args:
        directory: of --data-dir.
        name: of the missing file.
    """
    if not directory.is_dir():
        what = "not a directory" if directory.exists() else "no such directory"
        raise RunError(
            f"{directory}: {what}, so {name} is not there; correct --data-dir, or create the directory to download the"
            " file into it"
        )
    try:
        others = sorted(p.name for p in directory.iterdir() if not _may_be_beside(p.name))
    except OSError as e:
        raise RunError(
            f"{directory}: cannot be listed ({e.strerror}); choose another --data-dir"
        ) from e
    if others:
        raise RunError(
            f"{directory}: no {name}, but other files such as {others[0]}; correct --data-dir, or pass an empty directory"
            " to download the file into it"
        )


def _may_be_beside(name: str) -> bool:
    """Return whether a file may be in a directory that data sets are downloaded into: hidden, or of MedMNIST."""
    from medmnist import INFO

    base = name.removesuffix(".part")
    return name.startswith(".") or (
        base.endswith(".npz") and base.removesuffix(".npz").partition("_")[0] in INFO
    )


def _read(
    path: Path, size: int, classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read images and labels by split. Raises RunError if it is not a MedMNIST file of this size."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images = {split: file[f"{split}_images"] for split in SPLITS}
            labels = {
                split: file[f"{split}_labels"].reshape(-1).astype(np.int64) for split in SPLITS
            }
    except MemoryError as e:
        raise RunError(f"{path}: not enough memory to read it; free memory and rerun") from e
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        # an error of the system with a number is one of the disk, not of the file's content
        if isinstance(e, OSError) and e.errno is not None:
            raise RunError(
                f"{path}: cannot be read ({e.strerror}); choose another --data-dir"
            ) from e
        raise RunError(
            f"{path}: not a MedMNIST file ({e}); choose another --data-dir, or rename this file"
        ) from e
    for split in SPLITS:
        x, y = images[split], labels[split]
        if x.dtype != np.uint8 or x.shape != (len(y), size, size):
            raise RunError(
                f"{path}: expected {split} images uint8 ({len(y)}, {size}, {size}), found {x.dtype} {x.shape};"
                " choose another --data-dir, or rename this file"
            )
        if not len(y) or y.min() < 0 or y.max() >= classes:
            raise RunError(
                f"{path}: expected {split} labels of 0 to {classes - 1}; choose another --data-dir, or rename this file"
            )
    return images, labels
