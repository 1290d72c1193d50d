"""The number formats of a network's weights, one row each."""

from typing import NamedTuple

__all__ = ["BY_NAME", "PRECISIONS", "Precision"]


class Precision(NamedTuple):
    """One row of the table of precisions.

    Attributes:
        name: In manifests and on the command line.
        tolerance: Largest difference of a probability from a golden answer that is accepted on a device
            (docs/reference/check.md says what was measured, and why).
        cuda_rank: On CUDA, the variant with the lowest rank is used. int8 gains nothing there.
    """

    name: str
    tolerance: float
    cuda_rank: int


PRECISIONS = (
    Precision("fp32", tolerance=1e-3, cuda_rank=1),
    Precision("fp16", tolerance=2e-2, cuda_rank=0),
    Precision("int8", tolerance=2e-2, cuda_rank=2),
)
BY_NAME = {row.name: row for row in PRECISIONS}
