"""Pictures of the structures that a finding is about."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..page.pictures import gray
from .evidence import Evidence
from .types import Picture

__all__ = ["pictures_of"]

# Pictures per finding, and their longest side in pixels.
MOST_PICTURES, LONGEST_SIDE = 5, 160


def pictures_of(evidence: Evidence, organs: Sequence[int]) -> tuple[Picture, ...]:
    """Return the middle slice of each structure, as the scan's header and the mask say, those that differ most first."""
    view = evidence.view()

    def own_probability(i: int) -> float:
        return float(view.probabilities[i, evidence.classes.index(evidence.structures[i].name)])

    ranked = sorted(organs, key=own_probability)
    return tuple(_picture(evidence, i) for i in ranked[:MOST_PICTURES])


def _picture(evidence: Evidence, i: int) -> Picture:
    structure = evidence.structures[i]
    grid = evidence.grid()
    crops = structure.crops(evidence.volume.hu, grid, evidence.margin_mm)
    index, pixels = crops[len(crops) // 2]
    answer = evidence.classify([pixels]).probabilities[0]
    best = int(answer.argmax())
    center = structure.center.copy()
    center[grid.axes[0]] = index
    affine = np.asarray(evidence.volume.affine, np.float64)
    position = affine[:3, :3] @ center + affine[:3, 3]
    return Picture(
        organ=structure.name,
        index=index,
        position=float(position[int(np.abs(affine[:3, grid.axes[0]]).argmax())]),
        label=evidence.classes[best],
        probability=float(answer[best]),
        pixels=gray(_small(pixels), evidence.window),
    )


def _small(pixels: NDArray[np.int16]) -> NDArray[np.int16]:
    """Leave out rows and columns of large slices."""
    step = -(-max(pixels.shape) // LONGEST_SIDE)
    return pixels[::step, ::step]
