"""Divides the slices of a data set into train, val and test. Slices of one patient stay together."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from train.errors import RunError
from train.own_data.slices import Example

SPLITS = ("train", "val", "test")


def patients(examples: Sequence[Example], pattern: re.Pattern[str] | None) -> list[str]:
    """Return the patient of each slice: what the groups of a pattern match in its file's name, or the file itself.

    Raises:
        RunError: the pattern does not match a name, or its groups are empty there.
    """
    if pattern is None:
        return [example.file for example in examples]
    matches = {example.file: pattern.search(example.file) for example in examples}
    unmatched = [name for name, match in matches.items() if not match or not any(match.groups())]
    if unmatched:
        raise RunError(
            f"--group-by: {pattern.pattern!r} finds no patient in {len(unmatched):,} of {len(matches):,} paths, such as"
            f" {unmatched[0]!r}; correct the pattern"
        )
    names = {
        file: "\0".join(group or "" for group in match.groups())
        for file, match in matches.items()
        if match
    }
    return [names[example.file] for example in examples]


def linked(groups: Sequence[str], digests: Sequence[bytes]) -> list[int]:
    """Join groups that share an identical slice. Returns the number of each slice's joined group."""
    parent: dict[object, object] = {}

    def root(node: object) -> object:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for group, digest in zip(groups, digests, strict=True):
        parent[root(group)] = root(digest)
    numbers: dict[object, int] = {}
    return [numbers.setdefault(root(group), len(numbers)) for group in groups]


def divide(
    examples: Sequence[Example], groups: Sequence[str], shares: Sequence[float], where: str
) -> list[str]:
    """Choose a split for each slice. Every class gets about the shares, whole patients at a time.

    The choice depends on the names and the content of the slices only, not on a seed. Identical slices stay together.

    Args:
        examples: the slices.
        groups: the patient of each.
        shares: of train, val and test.
        where: the data set, for the message.

    Returns:
        The split of each slice.

    Raises:
        RunError: there are too few patients for three splits.
    """
    classes = {label: i for i, label in enumerate(sorted({e.label for e in examples}))}
    numbers = linked(groups, [e.digest for e in examples])
    members: dict[int, Counter[int]] = defaultdict(Counter)
    keys: dict[int, str] = {}
    for example, number in zip(examples, numbers, strict=True):
        members[number][classes[example.label]] += 1
        keys[number] = min(keys.get(number, example.name), example.name)
    if len(members) < len(SPLITS):
        raise RunError(
            f"{where}: {len(members)} patients or files that differ, too few for train, val and test; add some, or"
            " correct --group-by"
        )
    totals = np.bincount([classes[e.label] for e in examples], minlength=len(classes))
    wanted = np.outer(shares, totals)
    given = np.zeros_like(wanted)
    chosen: dict[int, int] = {}
    # An order that does not follow the names, which may list one scanner after the other.
    for number in sorted(members, key=lambda n: hashlib.md5(_bytes(keys[n])).digest()):
        columns, counts = (
            np.array(list(part)) for part in zip(*members[number].items(), strict=True)
        )
        filled = (counts * given[:, columns] / wanted[:, columns]).sum(1)
        split = int(filled.argmin())
        chosen[number] = split
        given[split, columns] += counts
    return [SPLITS[chosen[number]] for number in numbers]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
