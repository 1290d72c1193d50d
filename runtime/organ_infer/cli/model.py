"""The model as the options ask for it."""

from ..classifier import OrganClassifier
from .arguments import Options

__all__ = ["open_classifier", "reading_limits"]


def open_classifier(options: Options) -> OrganClassifier:
    """The only place that passes options to OrganClassifier.

    Raises:
        OrganInferError: The bundle, the device or an option is not usable.
    """
    return OrganClassifier(
        options.bundle,
        device=options.device,
        threads=options.threads,
        batch_size=options.batch_size,
        orientation=options.orientation,
        tta=options.tta,
        cuda_graphs=options.cuda_graphs,
    )


def reading_limits(options: Options) -> dict[str, int]:
    """The limits as keyword arguments of `predict_paths`, without those that keep their default."""
    limits = {"pixel_limit": options.pixel_limit, "file_limit": options.file_limit}
    return {name: limit for name, limit in limits.items() if limit is not None}
