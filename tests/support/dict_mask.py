"""A mask made of arrays."""

import numpy as np

from organ_infer.volumes.types import Mask


class DictMask(Mask):
    """The organs are the values of a dict, bool (X, Y, Z) each."""

    def __init__(self, organs, *, source="mask.nii.gz", unmapped=(), warnings=(), structures=None):
        self.organs = dict(organs)
        self.source, self.unmapped, self.warnings = source, tuple(unmapped), tuple(warnings)
        self.names = structures or {}

    def __getitem__(self, name):
        return self.organs[name]

    def __iter__(self):
        return iter(self.organs)

    def __len__(self):
        return len(self.organs)

    def __contains__(self, name):
        return name in self.organs

    def __repr__(self):
        return f"DictMask({', '.join(self.organs)})"

    def box(self, name):
        corners = np.argwhere(self.organs[name])
        if not len(corners):
            return (slice(0, 0),) * 3
        low, high = corners.min(axis=0).tolist(), (corners.max(axis=0) + 1).tolist()
        return tuple(map(slice, low, high))

    def region(self, name, box):
        return self.organs[name][box]

    def structures(self, name):
        return self.names.get(name, (name,))


def block(shape, *sides):
    """A bool array that is True inside a box of (start, stop) per axis."""
    array = np.zeros(shape, bool)
    array[tuple(slice(*side) for side in sides)] = True
    return array
