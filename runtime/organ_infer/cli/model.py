"""Opens the model with the options of the command."""

from ..classifier import OrganClassifier
from .arguments import Options

__all__ = ["open_classifier", "reading_limits"]


def open_classifier(options: Options) -> OrganClassifier:
    """Open the classifier. Only this function passes options of the command to OrganClassifier.

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
    """Return the limits as keyword arguments of `predict_paths`, without those that have their default."""
    limits = {"pixel_limit": options.pixel_limit, "file_limit": options.file_limit}
    return {name: limit for name, limit in limits.items() if limit is not None}
