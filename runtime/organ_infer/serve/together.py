"""The work of a service that blocks: files are decoded, and the slices of several requests are classified together."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..batching import Batch
from ..classifier import OrganClassifier
from ..results import ImageFailure, Prediction
from .limits import ServiceLimits

__all__ = ["Result", "classify_together", "count_that_fit", "decoded_batches"]

Result = Prediction | ImageFailure


def decoded_batches(
    classifier: OrganClassifier, files: Sequence[tuple[str, bytes]], limits: ServiceLimits
) -> Iterator[Batch]:
    """Decode files, each with a name, one batch at a time."""
    read = classifier._limits(limits.pixels, limits.file_bytes, limits.any_modality)
    return classifier._read_files(files, read)


def count_that_fit(batches: Sequence[Batch], slices: int) -> int:
    """Return how many of the first batches fit into one run of the network, at least 1."""
    total = 0
    for count, batch in enumerate(batches):
        total += len(batch.names)
        if total > slices and count:
            return count
    return len(batches)


def classify_together(classifier: OrganClassifier, batches: Sequence[Batch]) -> list[list[Result]]:
    """Classify the slices of all batches, in as few runs as possible, and return the results of each batch.

    Raises:
        OrganInferError: The model failed.
    """
    results: list[list[Result]] = []
    while len(results) < len(batches):
        rest = batches[len(results) :]
        results += _run_together(classifier, rest[: count_that_fit(rest, classifier._batch_size)])
    return results


def _run_together(classifier: OrganClassifier, batches: Sequence[Batch]) -> list[list[Result]]:
    if len(batches) == 1:
        return [list(classifier._results(batches[0]))]
    together = Batch(
        [name for batch in batches for name in batch.names],
        np.concatenate([batch.packed for batch in batches]),
        [outcome for batch in batches for outcome in batch.outcomes],
    )
    results = iter(list(classifier._results(together)))
    return [[next(results) for _ in batch.names] for batch in batches]
