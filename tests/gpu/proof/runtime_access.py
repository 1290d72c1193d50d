"""How the runtime's checks reach organ_infer: its public API, and here alone the internals that have none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proof.harness import Settings, Skip

CUDA = "CUDAExecutionProvider"
BATCHES = (1, 4, 16, 64, 256)
# Operators that compute shapes or next to nothing, and that onnxruntime may leave on the CPU.
SMALL_OPERATORS = frozenset(
    [
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Range",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
INTERNALS = "the runtime's internals have changed ({}): adapt tests/gpu/proof/runtime_access.py"


def needs_runtime(settings: Settings) -> None:
    """Raise Skip unless onnxruntime is installed and offers what the device needs."""
    from organ_infer import DeviceError
    from organ_infer.engine.session import import_onnxruntime

    try:
        onnxruntime = import_onnxruntime()
        offered = onnxruntime.get_available_providers()
    except DeviceError as e:
        raise Skip(str(e)) from e
    if settings.cuda and CUDA not in offered:
        raise Skip(f"needs onnxruntime with CUDA; this one offers {', '.join(offered)}")
    if hasattr(onnxruntime, "set_default_logger_severity"):
        # What fails is raised. Opening fp16 would print dozens of lines about plans that cuDNN does not have.
        onnxruntime.set_default_logger_severity(4)


@contextmanager
def opened(
    bundle: Path | None, device: str, *, batch_size: int = 256, cuda_graphs: bool | None = None
) -> Iterator[Any]:
    """An OrganClassifier. Raises Skip if graphs are to be switched and this one cannot switch them."""
    from organ_infer import OrganClassifier

    options: dict[str, Any] = {"batch_size": batch_size}
    if cuda_graphs is not None:
        if "cuda_graphs" not in inspect.signature(OrganClassifier).parameters:
            raise Skip("needs OrganClassifier(cuda_graphs=...), which this version does not have")
        options["cuda_graphs"] = cuda_graphs
    with OrganClassifier(
        bundle, device="cuda" if device == "cuda:0" else device, **options
    ) as classifier:
        yield classifier


def placed_nodes(classifier: Any) -> list[dict[str, list[str]]]:
    """For each network, provider -> operators; an empty dictionary if this onnxruntime does not tell."""
    try:
        if hasattr(classifier, "placements"):
            nodes = [placement._nodes for _, placement in classifier.placements]
        else:
            nodes = [session.placed_nodes() for session in _device_sessions(classifier)]
    except AttributeError as e:
        raise LookupError(INTERNALS.format(e)) from e
    return [{provider: list(kinds) for provider, kinds in one.items()} for one in nodes]


def recorded_sizes(classifier: Any) -> list[tuple[int, ...]]:
    """For each network, the batch sizes that run as CUDA graphs."""
    try:
        return [tuple(session.captured) for session in _device_sessions(classifier)]
    except AttributeError as e:
        raise LookupError(INTERNALS.format(e)) from e


def _device_sessions(classifier: Any) -> list[Any]:
    """The objects that stand for onnxruntime's sessions on CUDA."""
    return [session._run for session in classifier._ensemble._sessions]


def left_on_cpu(placed: Mapping[str, Sequence[str]]) -> list[str]:
    """The operators elsewhere than on CUDA that are not small."""
    elsewhere = {kind for provider, kinds in placed.items() if provider != CUDA for kind in kinds}
    return sorted(elsewhere - SMALL_OPERATORS)
