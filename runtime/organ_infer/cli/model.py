"""Opens the model with the options of the command."""

from typing import TYPE_CHECKING, Any

from ..classifier import OrganClassifier
from .arguments import Options

if TYPE_CHECKING:
    from ..bundle.manifest import Task
    from .audit_arguments import AuditOptions
    from .serve_arguments import ServeOptions
    from .volume_arguments import VolumeOptions

__all__ = ["open_classifier", "packaged_model_note", "reading_options"]


def open_classifier(
    options: "Options | VolumeOptions | AuditOptions | ServeOptions",
) -> OrganClassifier:
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
        fast=options.fast,
        cuda_graphs=options.cuda_graphs,
    )


def packaged_model_note(name: str, task: "Task") -> str:
    """Return the note that names the packaged model, when no other was chosen."""
    return f"using the packaged {name} ({task.view} slices); see --bundle"


def reading_options(options: Options) -> dict[str, Any]:
    """The keyword arguments of `predict_paths`, without those that keep their default."""
    given = {
        "pixel_limit": options.pixel_limit,
        "file_limit": options.file_limit,
        "any_modality": options.any_modality or None,
    }
    return {name: value for name, value in given.items() if value is not None}
