"""What is reported about a data set of the user before the first epoch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from organ_infer.errors import printable
from train.errors import RunError
from train.own_data.slices import Example, Reader

SPLITS = ("train", "val", "test")
# the largest class of train has so many times the slices of the smallest
IMBALANCE = 10
# conversions that are listed by name
LISTED = 4

Warn = Callable[[str], None]


def counted(count: int, noun: str) -> str:
    """Return `1 file` or `1,234 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def report_reading(examples: Sequence[Example], reader: Reader, where: str, warn: Warn) -> None:
    """Report what could not be read, was converted or is resampled.

    Raises:
        RunError: nothing could be read.
    """
    if reader.failed:
        name, reason = reader.failed[0]
        example = printable(f"{name}: {reason}")
        if not examples:
            raise RunError(
                f"{where}: none of {counted(len(reader.failed), 'file')} can be read, such as {example}; check the folder"
            )
        warn(
            f"{where}: {counted(len(reader.failed), 'file')} left out, which cannot be read, such as {example}"
        )
    for text, count in reader.conversions.most_common(LISTED):
        warn(f"{where}: {counted(count, 'slice')}: {text}")
    if (more := len(reader.conversions) - LISTED) > 0:
        warn(
            f"{where}: {more:,} other kinds of conversions; run organ-infer on the images to list them"
        )
    size = (reader.size, reader.size)
    other = [example.shape for example in examples if example.shape != size]
    if other:
        (h0, w0), (h1, w1) = (
            min(other, key=lambda s: s[0] * s[1]),
            max(other, key=lambda s: s[0] * s[1]),
        )
        span = f"{w0} x {h0}" if (h0, w0) == (h1, w1) else f"{w0} x {h0} to {w1} x {h1}"
        warn(
            f"{where}: {len(other):,} of {len(examples):,} slices have another size ({span} pixels); resampled to"
            f" {size[0]} x {size[1]} ({reader.resample}), and to 8 bits"
        )


def report_splits(
    examples: Sequence[Example],
    classes: Sequence[str],
    where: str,
    warn: Warn,
    *,
    divided: bool = False,
) -> None:
    """Report empty classes, imbalance and duplicates.

    Raises:
        RunError: a split is empty, or train lacks a class.
    """
    counts = {split: Counter(e.label for e in examples if e.split == split) for split in SPLITS}
    for split in SPLITS:
        if not counts[split]:
            if divided:
                raise RunError(
                    f"{where}: no slice in {split}; add some to each class, choose larger shares, or correct --group-by"
                )
            raise RunError(
                f"{where}: no slice in {split}; add some, or divide the folder with --split"
            )
        missing = [name for name in classes if not counts[split][name]]
        if not missing:
            continue
        names = ", ".join(missing[:4]) + (
            f" and {len(missing) - 4:,} more" if len(missing) > 4 else ""
        )
        if split == "train":
            raise RunError(
                f"{where}: train has no slice of {names}; a network cannot learn what it never sees, add slices or"
                " remove the class"
            )
        warn(
            f"{where}: {split} has no slice of {names}; it is not measured there, and AUC is undefined"
        )
    most, least = counts["train"].most_common()[0], counts["train"].most_common()[-1]
    if most[1] >= IMBALANCE * least[1]:
        warn(
            f"{where}: train has {most[1]:,} slices of {most[0]} but {least[1]:,} of {least[0]}; the accuracy is mostly"
            " that of the large classes, look at the table by class"
        )
    _report_duplicates(examples, where, warn)


def _report_duplicates(examples: Sequence[Example], where: str, warn: Warn) -> None:
    """Report identical slices in several splits, and with several labels."""
    same: dict[bytes, list[Example]] = defaultdict(list)
    for example in examples:
        same[example.digest].append(example)
    for what, advice in (
        ("split", "accuracies are too high, remove them"),
        ("label", "one label is wrong, correct it"),
    ):
        found = [group for group in same.values() if len({getattr(e, what) for e in group}) > 1]
        if found:
            first = found[0][0]
            other = next(e for e in found[0] if getattr(e, what) != getattr(first, what))
            warn(
                f"{where}: {sum(map(len, found)):,} identical slices of more than one {what}, such as"
                f" {printable(first.name)} and {printable(other.name)}; {advice}"
            )


def report_patients(
    examples: Sequence[Example], groups: Sequence[str], where: str, warn: Warn
) -> None:
    """Report patients with slices in several splits."""
    splits: dict[str, set[str | None]] = defaultdict(set)
    for example, group in zip(examples, groups, strict=True):
        splits[group].add(example.split)
    both = sorted(group for group, names in splits.items() if len(names) > 1)
    if both:
        warn(
            f"{where}: {counted(len(both), 'patient')} of --group-by in several splits, such as"
            f" {printable(both[0].replace(chr(0), ' '))}; accuracies are too high, move each to one split"
        )
