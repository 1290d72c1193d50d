"""What the command line says about a data set of the user, checked before anything is read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from organ_infer import InputError
from organ_infer.images.orientation import Orientation, parse_orientation
from train.datasets import DATASETS, OWN_KINDS, OwnDataset
from train.errors import RunError
from train.options import TrainOptions

# how far shares may be from a sum of 1
TOLERANCE = 1e-6
# characters of a data set's name
NAME_LIMIT = 60


@dataclass(frozen=True)
class OwnRequest:
    """A data set of the user, and how to use it.

    Args:
        kind: a row of `OWN_KINDS`.
        path: absolute.
        shares: of train, val and test; None if the data set has its own splits.
        group_by: a pattern whose groups name the patient in a path; None for none.
        pairs_file: CSV of pairs; None for those of the names.
        pairs: of a finished run, as a manifest lists them; None to read them.
        orientation: of slices that do not state theirs; None if unknown.
    """

    kind: str
    path: Path
    shares: tuple[float, float, float] | None = None
    group_by: re.Pattern[str] | None = None
    pairs_file: Path | None = None
    pairs: tuple[tuple[str, ...], ...] | None = None
    orientation: Orientation | None = None

    @property
    def flag(self) -> str:
        """The name of the data set, for directories and bundles: that of the folder or file."""
        stem = self.path.name if self.kind == "folder" else self.path.stem
        name = re.sub(r"[^\w.+-]+", "-", stem).strip("-.")[:NAME_LIMIT] or "own"
        name = name if name.isprintable() else "own"
        return f"own-{name}" if name.lower() in DATASETS else name

    @property
    def settings(self) -> dict[str, object]:
        """The options that must be equal when a run is resumed, as they are written on the command line."""
        return {
            "split": ",".join(f"{share:g}" for share in self.shares) if self.shares else None,
            "group_by": self.group_by.pattern if self.group_by else None,
            "orientation": "".join(self.orientation) if self.orientation else None,
        }


def own_request(options: TrainOptions) -> OwnRequest | None:
    """Return the data set of the user that --dataset names; None for those of MedMNIST.

    Raises:
        RunError: an option cannot be used.
    """
    kind, colon, path = options.dataset.partition(":")
    if not colon or kind not in OWN_KINDS:
        for option, value in (
            ("--split", options.split),
            ("--group-by", options.group_by),
            ("--pairs", options.pairs),
            ("--orientation", options.orientation),
        ):
            if value is not None:
                raise RunError(
                    f"{option}: applies to your own data, but --dataset is {options.dataset!r};"
                    " leave it out, or use --dataset folder:PATH or npz:FILE"
                )
        return None
    if not path:
        raise RunError(f"--dataset {kind}: no path; write --dataset {kind}:PATH")
    for option, used in (
        ("--data-dir", options.data_dir is not None),
        ("--resample-from", options.resample_from is not None),
    ):
        if used:
            raise RunError(
                f"{option}: applies to the data sets of MedMNIST; leave it out, own images are read from their path and"
                " resampled to --size"
            )
    if kind == "npz" and (options.split is not None or options.group_by is not None):
        option = "--group-by" if options.split is None else "--split"
        raise RunError(
            f"{option}: applies to --dataset folder:PATH; an .npz file has its own splits, leave it out"
        )
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if kind == "folder" and place.resolve() in (out := options.out.resolve(), *out.parents):
        raise RunError(
            f"--out {options.out}: inside the data set's folder, where its pictures would become a class; choose another"
            " directory"
        )
    return OwnRequest(
        kind,
        place,
        None if options.split is None else _shares(options.split),
        None if options.group_by is None else _pattern(options.group_by),
        options.pairs,
        None,
        None if options.orientation is None else _orientation(options.orientation),
    )


def request_of(recorded: OwnDataset, path: Path | None = None) -> OwnRequest:
    """Return the data set of a run.

    Args:
        recorded: as results.json has it.
        path: where the folder or file is now; None for the recorded path.
    """
    first, second, third = recorded.split or (0.0, 0.0, 0.0)
    return OwnRequest(
        recorded.kind,
        Path(os.path.abspath(path or recorded.path)),
        (first, second, third) if recorded.split else None,
        None if recorded.group_by is None else _pattern(recorded.group_by),
        None,
        tuple(tuple(pair) for pair in recorded.pairs),
        parse_orientation(recorded.orientation)
        if recorded.orientation_given and recorded.orientation
        else None,
    )


def _shares(text: str) -> tuple[float, float, float]:
    """Parse --split."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(0 < share < 1 for share in shares):
        raise RunError(
            f"--split: expected three shares between 0 and 1, found {text!r}; write train, val and test as in"
            " 0.8,0.1,0.1"
        )
    if abs(sum(shares) - 1) > TOLERANCE:
        raise RunError(f"--split: the shares sum to {sum(shares):g}; choose three that sum to 1")
    train, val, test = shares
    return train, val, test


def _pattern(text: str) -> re.Pattern[str]:
    """Compile --group-by."""
    try:
        pattern = re.compile(text)
    except re.error as e:
        raise RunError(
            f"--group-by: {text!r} is no regular expression ({e}); correct it, as in 'patient([0-9]+)'"
        ) from e
    if not pattern.groups:
        raise RunError(
            f"--group-by: {text!r} has no group; put parentheses around the patient, as in 'patient([0-9]+)'"
        )
    return pattern


def _orientation(text: str) -> Orientation:
    try:
        return parse_orientation(text)
    except InputError as e:
        raise RunError(f"--{e}; leave it out if it is not known") from e
