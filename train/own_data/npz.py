"""Reads a data set of the user from an .npz file with MedMNIST's keys."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from organ_infer import OrganInferError
from organ_infer.bundle.manifest import CLASS_LIMIT
from organ_infer.images.memory import slices_in_memory
from organ_infer.images.types import DTYPES
from organ_infer.names import escape_path
from train.errors import RunError
from train.own_data.class_names import check_classes, class_name
from train.own_data.slices import Example, Reader

SPLITS = ("train", "val", "test")
KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
# optional: the names of the classes
NAMES = "classes"


@dataclass(frozen=True)
class Arrays:
    """The arrays of a file, checked.

    Args:
        images: (N, H, W) or, in color, (N, H, W, 3), by split.
        labels: class indices, int64 (N,), by split.
        classes: their names.
    """

    images: dict[str, NDArray[np.generic]]
    labels: dict[str, NDArray[np.int64]]
    classes: list[str]


def read_arrays(path: Path) -> Arrays:
    """Read and check the arrays of a file.

    Raises:
        RunError: it cannot be read, lacks a key, or an array is not what its key says.
    """
    where = escape_path(path, one_line=True)
    stored = _load(path, where)
    images, labels = {}, {}
    for split in SPLITS:
        images[split] = _images(stored[f"{split}_images"], f"{where}: {split}_images")
        labels[split] = _labels(stored[f"{split}_labels"], f"{where}: {split}_labels")
        if len(images[split]) != len(labels[split]):
            raise RunError(
                f"{where}: {len(images[split]):,} {split}_images but {len(labels[split]):,} {split}_labels; give each"
                " slice one label"
            )
    largest = int(max(labels[split].max() for split in SPLITS))
    classes = _classes(stored.get(NAMES), largest + 1, where)
    if largest >= len(classes):
        raise RunError(
            f"{where}: label {largest}, but {len(classes)} names in {NAMES!r}; labels are 0 to {len(classes) - 1}"
        )
    return Arrays(images, labels, classes)


def examples_of(arrays: Arrays, reader: Reader, where: str) -> list[Example]:
    """Convert the slices of a file in its order, see `Reader.example`."""
    examples = []
    for split in SPLITS:
        for i, (image, label) in enumerate(
            zip(arrays.images[split], arrays.labels[split], strict=True)
        ):
            name = f"{split}_images#{i}"
            try:
                content = image
                if image.ndim == 3:
                    from PIL import Image

                    content = Image.fromarray(image)
                for _, one in slices_in_memory(content):
                    examples.append(
                        reader.example(one, name, name, arrays.classes[int(label)], split)
                    )
            except OrganInferError as e:
                raise RunError(f"{where}: {name}: {e}") from e
    return examples


def _load(path: Path, where: str) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise RunError(f"{where}: {what}; correct --dataset npz:FILE")
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("one array")
        with opened as file:
            if missing := [key for key in KEYS if key not in file.files]:
                found = ", ".join(sorted(file.files)[:6]) or "nothing"
                raise RunError(
                    f"{where}: no key {missing[0]!r}, found {found}; save {', '.join(KEYS)} with numpy.savez"
                )
            stored = {key: file[key] for key in (*KEYS, *({NAMES} & set(file.files)))}
            # numpy.load returns the bytes of a member without NumPy's header.
            if bad := [key for key, value in stored.items() if not isinstance(value, np.ndarray)]:
                raise ValueError(f"{bad[0]} is no array")
            return stored
    except MemoryError as e:
        raise RunError(f"{where}: not enough memory to read it; free memory and rerun") from e
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, TypeError) as e:
        reason = " ".join(str(getattr(e, "strerror", None) or e).split())[:120]
        if "unsafely" in reason:
            # What numpy.load takes for pickled objects, although nothing says that it is.
            reason = "no .npz file"
        raise RunError(
            f"{where}: cannot be read as .npz ({reason}); save it with numpy.savez"
        ) from e


def _images(array: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    color = array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8
    if array.dtype.name not in DTYPES or not (array.ndim == 3 or color) or 0 in array.shape:
        raise RunError(
            f"{where}: expected {', '.join(DTYPES)} (N, H, W) or uint8 (N, H, W, 3), found {array.dtype} {array.shape};"
            " save slices of gray values"
        )
    return array


def _labels(array: NDArray[np.generic], where: str) -> NDArray[np.int64]:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise RunError(
            f"{where}: expected whole numbers (N,) or (N, 1), found {array.dtype} {array.shape}; give each slice one"
            " label"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= CLASS_LIMIT:
        wrong = low if low < 0 else high
        raise RunError(f"{where}: label {wrong}; labels are 0 to {CLASS_LIMIT - 1} at most")
    return array.astype(np.int64)


def _classes(names: NDArray[np.generic] | None, count: int, where: str) -> list[str]:
    """Return the names of the classes in the order of their labels."""
    if names is None:
        return [f"class-{i}" for i in range(max(count, 2))]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise RunError(
            f"{where}: {NAMES!r} holds {names.dtype} {names.shape}; save the names as an array of texts"
        )
    classes = [class_name(str(name), f"{where}: {NAMES}[{i}]") for i, name in enumerate(names)]
    check_classes([(name, f"{NAMES}[{i}]") for i, name in enumerate(classes)], where)
    return classes
