"""Finds the images of a folder: train, val and test with a folder per class, or a folder per class alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from organ_infer.images.discovery import Skipped, images_below
from organ_infer.names import escape_path
from train.errors import RunError
from train.own_data.class_names import check_classes, class_name

SPLITS = ("train", "val", "test")
# names of folders, in lower case
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class ImageFile:
    """An image file of a data set.

    Args:
        path: of the file.
        name: the path below the data set's folder, with `/`.
        label: its class.
        split: train, val or test; None if the folder has no splits.
    """

    path: str
    name: str
    label: str
    split: str | None


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Args:
        files: in the order of their classes and names.
        classes: sorted.
        failed: directories that cannot be listed, with the reason.
    """

    files: list[ImageFile]
    classes: list[str]
    failed: list[tuple[str, str]]


def list_folder(root: Path, *, divided: bool, warn: Callable[[str], None]) -> Listing:
    """List the images of a data set.

    Args:
        root: its folder.
        divided: whether --split is given.
        warn: called with one line for what is left out.

    Raises:
        RunError: the folder is not a data set, or has another layout than `divided` says.
    """
    where = _text(root)
    if not root.is_dir():
        what = "not a directory" if root.exists() else "no such directory"
        raise RunError(f"{where}: {what}; correct --dataset folder:PATH")
    folders = _folders(root)
    splits = _splits(root, folders)
    if not splits:
        if not folders:
            raise RunError(
                f"{where}: no folder in it; make a folder per class, or train, val and test with one per class each"
            )
        if not divided:
            raise RunError(
                f"{where}: no folders train, val and test; add --split 0.8,0.1,0.1 to divide its classes"
                f" {_some(folders)}"
            )
        places: list[tuple[str | None, Path, list[str]]] = [(None, root, folders)]
    else:
        if divided:
            raise RunError(
                f"{where}: has {_some([splits[split].name for split in SPLITS])} already; leave out --split"
            )
        if others := [name for name in folders if name.lower() not in SPLIT_FOLDERS]:
            warn(f"{where}: {_some(others)} left out; only train, val and test are read")
        places = [(split, splits[split], _folders(splits[split])) for split in SPLITS]
    return _list_places(root, places, warn)


def _splits(root: Path, folders: list[str]) -> dict[str, Path]:
    """Return the folders of the splits; empty if there are none. Raises RunError for an incomplete set."""
    where = _text(root)
    splits: dict[str, Path] = {}
    for name in folders:
        split = SPLIT_FOLDERS.get(name.lower())
        if split in splits:
            raise RunError(
                f"{where}: {splits[split].name!r} and {name!r} are both {split}; merge them"
            )
        if split:
            splits[split] = root / name
    # a class may be called test
    if "train" not in splits:
        return {}
    if missing := [split for split in SPLITS if split not in splits]:
        raise RunError(
            f"{where}: has train, but no folder {missing[0]}; add it, or pass a folder per class with"
            " --split 0.8,0.1,0.1"
        )
    return splits


def _list_places(
    root: Path,
    places: list[tuple[str | None, Path, list[str]]],
    warn: Callable[[str], None],
) -> Listing:
    """List the images of the folders of classes in each place."""
    files: list[ImageFile] = []
    sources: list[tuple[str, str]] = []
    failed: list[tuple[str, str]] = []
    skipped: Counter[str] = Counter()
    for split, place, folders in places:
        if loose := sum(1 for _ in images_below(os.fspath(place), False)):
            warn(f"{_text(place)}: images outside of a class's folder left out ({loose:,})")
        for folder in folders:
            path = place / folder
            if path.resolve() in (root.resolve(), *root.resolve().parents):
                raise RunError(f"{_text(path)}: a link to a folder above it; remove the link")
            name = class_name(folder, _text(path))
            before = len(files)

            def skip(_: str, kind: Skipped) -> None:
                skipped[kind.value.strip("()")] += 1

            for candidate in images_below(os.fspath(path), True, skip):
                if candidate.error is None:
                    relative = Path(os.path.relpath(candidate.path, root)).as_posix()
                    files.append(ImageFile(candidate.path, relative, name, split))
                else:
                    failed.append((candidate.path, candidate.error))
            if len(files) == before:
                warn(f"{_text(path)}: no image in this folder; left out")
            else:
                sources.append((name, folder))
    for kind, count in skipped.items():
        warn(f"{_text(root)}: {kind} passed over ({count:,})")
    if not files:
        raise RunError(
            f"{_text(root)}: no image in its folders; add PNG, JPEG, DICOM or other images"
        )
    return Listing(files, check_classes(sources, _text(root)), failed)


def _folders(directory: Path) -> list[str]:
    """Return the names of the directories in a directory, sorted, also of linked ones, without hidden ones."""
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith((".", "__")) and os.path.isdir(entry.path)
            )
    except OSError as e:
        raise RunError(
            f"{_text(directory)}: cannot be listed ({e.strerror}); check its permissions"
        ) from e


def _some(names: list[str]) -> str:
    """Return the first names, for a message."""
    shown = [escape_path(name, one_line=True) for name in names[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")


def _text(path: Path) -> str:
    return escape_path(path, one_line=True)
