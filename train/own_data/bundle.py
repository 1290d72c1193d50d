"""What a bundle states about slices of the user."""

from __future__ import annotations

from export.bundle import WINDOW
from export.bundle_info import OwnSlices
from train.data import SPLITS, Data


def own_slices(data: Data) -> OwnSlices | None:
    """Return what a bundle states about slices of the user; None for a data set of MedMNIST."""
    own = data.own
    if own is None:
        return None
    letters = own.orientation
    return OwnSlices(
        counts={split: sum(data.counts[split]) for split in SPLITS},
        paired=tuple(tuple(pair) for pair in own.pairs),
        orientation=(letters[0], letters[1]) if letters else None,
        window=WINDOW if own.hounsfield else None,
    )
