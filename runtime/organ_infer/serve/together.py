"""The work of a service that blocks: files are decoded, and the slices of several requests are classified together."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..batching import Batch
from ..classifier import OrganClassifier
from ..results import ImageFailure, Prediction
from .limits import ServiceLimits

__all__ = ["Result", "classify_together", "decoded_batches"]

Result = Prediction | ImageFailure


def decoded_batches(
    classifier: OrganClassifier, files: Sequence[tuple[str, bytes]], limits: ServiceLimits
) -> Iterator[Batch]:
    """Decode files, each with a name, one batch at a time."""
    read = classifier._limits(limits.pixels, limits.file_bytes, limits.any_modality)
    return classifier._read_files(files, read)


def classify_together(classifier: OrganClassifier, batches: Sequence[Batch]) -> list[list[Result]]:
    """Classify the slices of all batches in one run, and return the results of each batch.

    Raises:
        OrganInferError: The model failed.
    """
    if len(batches) == 1:
        return [list(classifier._results(batches[0]))]
    together = Batch(
        [name for batch in batches for name in batch.names],
        np.concatenate([batch.packed for batch in batches]),
        [outcome for batch in batches for outcome in batch.outcomes],
    )
    results = iter(list(classifier._results(together)))
    return [[next(results) for _ in batch.names] for batch in batches]
