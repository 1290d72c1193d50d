"""True labels of files: from a CSV file, or from the folders that the files are in. Groups of files from their paths."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from ..csv_rows import csv_rows
from ..errors import InputError, short_repr, shorten_names
from ..images.boxes import split_box
from ..images.registry import split_selector
from ..names import escape_path, unescape_path

__all__ = ["ClassNames", "FileLabels", "FolderLabels", "group_function"]

COLUMNS = ("path", "label")
# Characters of a list of labels in a message.
NAMES_LIMIT = 200


class ClassNames:
    """Finds the class that a label names. Case does not count, and spaces and underscores are hyphens."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        # The exact names come last, so that they win.
        self._indices = {_normalized(name): i for i, name in enumerate(classes)}
        self._indices |= {name: i for i, name in enumerate(classes)}

    def index(self, label: str) -> int | None:
        """Return the index of the class, or None if the model does not have it."""
        index = self._indices.get(label)
        return self._indices.get(_normalized(label)) if index is None else index


def _normalized(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


class FileLabels:
    """The labels of a CSV file with lines `path,label`.

    Args:
        path: The file. Paths in it are relative to its directory. A path without `#` is the label of every slice of a
            file.
        names: The classes of the model.

    Attributes:
        count: The number of labeled paths.

    Raises:
        InputError: The file cannot be read, a line is no label, a path has two labels, or no label is a class.
    """

    def __init__(self, path: str, names: ClassNames) -> None:
        # (file, slice) -> (label, the line for messages)
        self._labels: dict[tuple[str, str], tuple[str, str]] = {}
        self._used: set[tuple[str, str]] = set()
        # (file, slice) -> the path as it is written
        self._written: dict[tuple[str, str], str] = {}
        self._real_directory = cache(os.path.realpath)
        self._read(path, names)
        shown = escape_path(path, one_line=True)
        labels = list(dict.fromkeys(label for label, _ in self._labels.values()))
        if not any(names.index(label) is not None for label in labels):
            raise InputError(
                f"{shown}: expected lines with path,label, found the labels {shorten_names(labels, NAMES_LIMIT)};"
                f" the classes of the model are {', '.join(names.classes)}"
            )
        self.count = len(self._labels)

    def _read(self, path: str, names: ClassNames) -> None:
        first_error = ""
        for row in csv_rows(path, COLUMNS, kind="a label"):
            name, label = row.cells["path"], row.cells["label"]
            if row.error is not None:
                # The rows of images that failed have no label.
                if not name or label:
                    raise InputError(row.error)
                first_error = first_error or row.error
                continue
            key = self._key_of_row(os.path.dirname(path), name)
            other, where = self._labels.setdefault(key, (label, row.where))
            if other != label and _class_or_text(names, other) != _class_or_text(names, label):
                raise InputError(
                    f"{row.where}: {escape_path(name, one_line=True)} has the label {short_repr(label)},"
                    f" but {short_repr(other)} in {where.rpartition(', ')[2]}; keep one of them"
                )
            self._written[key] = name
        if not self._labels and first_error:
            raise InputError(first_error)
        if not self._labels:
            shown = escape_path(path, one_line=True)
            raise InputError(f"{shown}: lists no label; expected lines with path,label")

    def _key_of_row(self, directory: str, name: str) -> tuple[str, str]:
        # Results of this package have escaped names.
        literal, unescaped = (os.path.join(directory, each) for each in (name, unescape_path(name)))
        is_escaped = literal != unescaped and not os.path.lexists(split_selector(literal)[0])
        return self._key(unescaped if is_escaped else literal)

    def _key(self, path: str) -> tuple[str, str]:
        """Return the absolute path of the file, and the slice of it, or ""."""
        file, selector = split_selector(path)
        directory, name = os.path.split(file)
        return os.path.join(self._real_directory(directory), name), selector or ""

    def label_of(self, path: str) -> str | None:
        """Return the label of a result's path, or None. That of the slice comes before that of its file."""
        file, selector = self._key(path)
        for part in _wider(selector):
            if (file, part) in self._labels:
                self._used.add((file, part))
                return self._labels[file, part][0]
        return None

    def unused(self) -> list[str]:
        """Return the paths, as written, that `label_of` was not asked for."""
        return [name for key, name in self._written.items() if key not in self._used]


def _class_or_text(names: ClassNames, label: str) -> int | str:
    index = names.index(label)
    return label if index is None else index


def _wider(selector: str) -> Iterator[str]:
    """Yield a slice's selector, then those of what contains it: without its box, its array, and the whole file."""
    yield selector
    without_box, box = split_box(selector)
    if box is not None:
        yield without_box
    while without_box:
        without_box = without_box.rpartition("#")[0]
        yield without_box


class FolderLabels:
    """Labels from folders: one folder per class.

    The label is the name of the nearest folder that is a class, from the file upward to the folder that the command
    line names. If there is none, it is the name of the folder that contains the file.

    Args:
        paths: What the command line names.
        names: The classes of the model.
    """

    def __init__(self, paths: Sequence[str], names: ClassNames) -> None:
        self._roots = sorted(
            (os.path.abspath(path) for path in paths if os.path.isdir(path)), key=len, reverse=True
        )
        self._names = names
        self._of_directory = cache(self._label_of_directory)

    def label_of(self, path: str) -> str | None:
        """Return the label of a result's path, or None for standard input and at the top of the file system."""
        if path == "-":
            # The directory that the command runs in is not that of the image.
            return None
        return self._of_directory(os.path.dirname(os.path.abspath(split_selector(path)[0])))

    def unused(self) -> list[str]:
        """Return nothing: folders list no labels."""
        return []

    def _label_of_directory(self, directory: str) -> str | None:
        root = next((each for each in self._roots if _is_below(directory, each)), directory)
        folder = directory
        while _is_below(folder, root):
            if self._names.index(os.path.basename(folder)) is not None:
                return os.path.basename(folder)
            if folder == root:
                break
            folder = os.path.dirname(folder)
        return os.path.basename(directory) or None


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def group_function(pattern: str) -> Callable[[str], str | None]:
    """Return the function that finds the group of a path: the first group of a regular expression, or its match.

    Args:
        pattern: A valid regular expression.
    """
    expression = re.compile(pattern)

    def group_of(path: str) -> str | None:
        match = expression.search(path)
        if match is None:
            return None
        return (match[1] if expression.groups else None) or match[0]

    return group_of
