"""The names of classes, and their pairs: the two sides of an organ."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from export.bundle import paired
from organ_infer.bundle.manifest import CLASS_LIMIT, organ_of_pair
from organ_infer.names import escape_path
from train.errors import RunError

# characters, as manifests allow
NAME_LIMIT = 60


def class_name(text: str, where: str) -> str:
    """Return the name of a class as manifests allow it: spaces and commas become hyphens.

    Args:
        text: such as the name of a folder.
        where: what has this name, for the message.

    Raises:
        RunError: the name is empty or too long, or has characters that cannot be printed.
    """
    name = re.sub(r"[\s,]+", "-", unicodedata.normalize("NFC", text).strip())
    if not name or not name.isprintable() or len(name) > NAME_LIMIT:
        raise RunError(
            f"{where}: no name of a class; rename it to 1 to {NAME_LIMIT} printable characters"
        )
    return name


def check_classes(sources: Iterable[tuple[str, str]], where: str) -> list[str]:
    """Check the classes of a data set.

    Args:
        sources: the name of each class and what it is made from, such as the name of its folder.
        where: the data set, for messages.

    Returns:
        The classes, sorted.

    Raises:
        RunError: two sources have one name, names differ only in case, or there are too few or too many.
    """
    by_name: dict[str, str] = {}
    by_lower_case: dict[str, str] = {}
    for name, source in sources:
        if by_name.setdefault(name, source) != source:
            raise RunError(
                f"{where}: {by_name[name]!r} and {source!r} are both class {name!r}; rename one"
            )
        other = by_lower_case.setdefault(name.casefold(), name)
        if other != name:
            raise RunError(
                f"{where}: classes {other!r} and {name!r} differ only in case; rename one"
            )
    if len(by_name) == 1:
        raise RunError(
            f"{where}: only one class, {next(iter(by_name))!r}; a network needs two or more"
        )
    if len(by_name) > CLASS_LIMIT:
        raise RunError(
            f"{where}: {len(by_name):,} classes; at most {CLASS_LIMIT:,} are possible, merge some"
        )
    return sorted(by_name)


def pairs_of(classes: Sequence[str], file: Path | None) -> tuple[tuple[str, ...], ...]:
    """Return the pairs of classes that are the two sides of an organ, as manifests list them.

    Args:
        classes: of the data set.
        file: CSV of left,right,organ, which comes before the names of the classes; None for the names alone.

    Raises:
        RunError: the file cannot be used.
    """
    listed = read_pairs(file, classes) if file else ()
    sided = {name for pair in listed for name in pair[:2]}
    return (*listed, *(pair for pair in paired(classes) if not sided.intersection(pair)))


def read_pairs(file: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Read a CSV file of pairs: left,right or left,right,organ, with or without a header."""
    where = f"--pairs {escape_path(file, one_line=True)}"
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    except (OSError, UnicodeError, csv.Error) as e:
        reason = getattr(e, "strerror", None) or "not CSV in UTF-8"
        raise RunError(
            f"{where}: cannot be read ({reason}); pass a CSV file of left,right,organ"
        ) from e
    if rows and rows[0][:2] == ["left", "right"]:
        rows = rows[1:]
    pairs = [_pair(row, classes, f"{where}: pair {i}") for i, row in enumerate(rows, 1)]
    if not pairs:
        raise RunError(f"{where}: no pair; write one per line, left,right,organ")
    sided = [name for pair in pairs for name in pair[:2]]
    for name in sided:
        if sided.count(name) > 1:
            raise RunError(f"{where}: class {name!r} is in two pairs; list it once")
    return tuple(pairs)


def _pair(row: Sequence[str], classes: Sequence[str], where: str) -> tuple[str, ...]:
    if len(row) not in (2, 3) or not all(row):
        raise RunError(f"{where}: expected left,right,organ, found {','.join(row)!r}; correct it")
    pair = tuple(class_name(cell, where) for cell in row)
    for name in pair[:2]:
        if name not in classes:
            shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise RunError(f"{where}: no class {name!r}; choose from {shown}")
    if pair[0] == pair[1]:
        raise RunError(f"{where}: {pair[0]!r} twice; name the left and the right class")
    organ = organ_of_pair(pair)
    if organ is None:
        raise RunError(
            f"{where}: the names do not show the organ; add it as a third column, left,right,organ"
        )
    if organ in classes:
        raise RunError(f"{where}: the organ {organ!r} is itself a class; give it another name")
    # the third name only if it is needed, so that earlier versions read the manifest
    return pair[:2] if organ_of_pair(pair[:2]) == organ else pair
