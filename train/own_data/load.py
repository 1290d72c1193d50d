"""Loads a data set of the user: reads, divides and checks it, before the first epoch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from organ_infer.images.orientation import Orientation, can_reorient, plane_of, reorient
from organ_infer.names import escape_path
from train.data import SPLITS, Data
from train.datasets import OwnDataset
from train.errors import RunError
from train.own_data import checks, npz
from train.own_data.class_names import pairs_of
from train.own_data.folder import list_folder
from train.own_data.request import OwnRequest
from train.own_data.slices import Example, Reader
from train.own_data.splitting import divide, patients

# in the directory of a run: the file of each slice
SLICES_FILE = "slices.csv"


def print_warning(line: str) -> None:
    """Print a warning about the data set on standard error."""
    print(f"train: warning: {line}", file=sys.stderr, flush=True)


def data_line(data: Data) -> str:
    """Describe a data set of the user in one line."""
    assert data.own is not None
    counts = " + ".join(f"{sum(data.counts[split]):,}" for split in SPLITS)
    orientation = (
        f"orientation {data.own.orientation}" if data.own.orientation else "orientation unknown"
    )
    return (
        f"data    {len(data.classes)} classes, {counts} slices (train + val + test), {len(data.own.pairs)} left-right pairs,"
        f" {orientation}, of {escape_path(data.own.path, one_line=True)}"
    )


def slices_csv(data: Data) -> str:
    """Return a table of the slices: split, index in the split, class and name, one slice per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "index", "label", "path"])
    for split in SPLITS:
        for i, (label, name) in enumerate(zip(data.labels[split], data.names[split], strict=True)):
            writer.writerow([split, i, data.classes[label], escape_path(name)])
    return text.getvalue()


def load_own(
    request: OwnRequest,
    *,
    size: int = 28,
    resample: str = "area",
    warn: Callable[[str], None] = print_warning,
) -> Data:
    """Load a data set of the user.

    Args:
        request: what the command line or results.json says about it.
        size: pixels per side of the networks' input.
        resample: how slices are resampled: area, linear or cubic.
        warn: called with one line for everything that the user should know.

    Returns:
        The three splits. Slices are uint8 (N, size, size): resampled as the runtime does, and rounded once.

    Raises:
        RunError: it is not a data set, or cannot be trained on.
    """
    where = escape_path(request.path, one_line=True)
    reader = Reader(size, resample)
    if request.kind == "folder":
        listing = list_folder(request.path, divided=request.shares is not None, warn=warn)
        reader.failed += listing.failed
        examples, classes = reader.read_files(listing.files), listing.classes
    else:
        arrays = npz.read_arrays(request.path)
        examples, classes = npz.examples_of(arrays, reader, where), arrays.classes
    checks.report_reading(examples, reader, where, warn)
    groups = patients(examples, request.group_by)
    if request.shares:
        for example, split in zip(
            examples, divide(examples, groups, request.shares, where), strict=True
        ):
            example.split = split
    checks.report_splits(examples, classes, where, warn, divided=request.shares is not None)
    if request.group_by:
        checks.report_patients(examples, groups, where, warn)
    orientation = _orient(examples, request.orientation, where, warn)
    pairs = pairs_of(classes, request.pairs_file) if request.pairs is None else request.pairs
    own = OwnDataset(
        kind=request.kind,
        path=str(request.path),
        split=list(request.shares) if request.shares else None,
        group_by=request.group_by.pattern if request.group_by else None,
        pairs=[list(pair) for pair in pairs],
        orientation="".join(orientation) if orientation else None,
        orientation_given=request.orientation is not None,
        hounsfield=reader.hounsfield > 0,
    )
    return _data(examples, classes, own, request.flag, size, resample)


def _data(
    examples: Sequence[Example],
    classes: list[str],
    own: OwnDataset,
    flag: str,
    size: int,
    resample: str,
) -> Data:
    by_split = {split: [e for e in examples if e.split == split] for split in SPLITS}
    index = {name: i for i, name in enumerate(classes)}
    labels = {
        split: np.array([index[e.label] for e in members], np.int64)
        for split, members in by_split.items()
    }
    return Data(
        flag=flag,
        view=plane_of((own.orientation[0], own.orientation[1])) if own.orientation else "unknown",
        size=size,
        md5=_identity(by_split, classes),
        classes=classes,
        images={
            split: np.stack([e.pixels for e in members]) for split, members in by_split.items()
        },
        labels=labels,
        counts={
            split: np.bincount(of_split, minlength=len(classes)).tolist()
            for split, of_split in labels.items()
        },
        resample=resample,
        own=own,
        names={split: [e.name for e in members] for split, members in by_split.items()},
    )


def _identity(by_split: dict[str, list[Example]], classes: Sequence[str]) -> str:
    """Return the MD5 of the content: classes, splits, labels and pixels as stored, but no path."""
    digest = hashlib.md5(json.dumps(classes).encode())
    for split, members in by_split.items():
        digest.update(f"{split} {len(members)}".encode())
        for example in members:
            digest.update(example.label.encode() + b"\0" + example.digest)
    return digest.hexdigest()


def _orient(
    examples: Sequence[Example],
    given: Orientation | None,
    where: str,
    warn: Callable[[str], None],
) -> Orientation | None:
    """Reorient the slices that state an orientation to one for all. Returns that; None if it is not known.

    Without --orientation it is the most frequent one, if all slices state theirs, in one plane.
    """
    stated = Counter(e.orientation for e in examples if e.orientation)
    target = given or (stated.most_common(1)[0][0] if stated else None)
    if target is None:
        return None
    other = next(
        (e for e in examples if e.orientation and not can_reorient(e.orientation, target)), None
    )
    if given is None and (other or sum(stated.values()) < len(examples)):
        what = (
            "in several planes"
            if other
            else f"in only {sum(stated.values()):,} of {len(examples):,} slices"
        )
        warn(
            f"{where}: an orientation is stated {what}; used as stored, and the bundle's orientation is unknown, so"
            " that it refuses DICOM. Pass --orientation, or slices of one plane"
        )
        return None
    if other is not None:
        assert other.orientation is not None
        raise RunError(
            f"--orientation {''.join(target)}: {other.name} is {plane_of(other.orientation)}, another plane; pass slices of"
            " one plane"
        )
    for example in examples:
        if example.orientation and example.orientation != target:
            turned = reorient(example.pixels, example.orientation, target)
            example.pixels = np.ascontiguousarray(turned).astype(np.uint8)
    return target
