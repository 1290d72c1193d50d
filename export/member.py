"""Exports a trained network to ONNX and compares the file with PyTorch.

A member is one network of a bundle. Its file is written only after the comparison succeeded.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

OPSET = 18
# Largest accepted difference of a logit between PyTorch and onnxruntime, in units of the network's largest logit, which
# counts as 1 if it is smaller. float32 rounds relative to the size of a number, and two correct implementations sum in
# different orders: a ResNet-101 trained on a GPU for one epoch differed by 2.3e-4.
MAX_DIFFERENCE = 1e-4
# slices
BATCH = 256
# The second output of a network that knows when not to answer: probabilities of the eight in-plane orientations, the
# required one first, and of no organ crop (docs/reference/bundle_format.md, "Graphs").
ORIENTATION = "orientation"
ORIENTATIONS = 9
# largest accepted difference of a probability of the orientation, and of their sum from 1
MAX_ORIENTATION_DIFFERENCE = 1e-4
MAX_SUM_ERROR = 1e-3
# The networks need no other operators, and the runtime refuses custom ones.
STANDARD_DOMAINS = {"", "ai.onnx"}


class ExportError(Exception):
    """A network cannot be exported, or the export differs from it. The message is one line."""


@dataclass(frozen=True)
class Parity:
    """The comparison of an exported file with PyTorch.

    Attributes:
        slices: Number of slices compared.
        max_abs: Largest difference of a logit.
        accuracy: Of the exported file, 0 to 1.
        logits: float32 (N, classes), of the exported file.
        orientation: float32 (N, 9), of the exported file. None if the network does not know when not to answer.
    """

    slices: int
    max_abs: float
    accuracy: float
    logits: np.ndarray
    orientation: np.ndarray | None = None


def export_member(
    network: nn.Module,
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    size: int | None = None,
    resample: str = "area",
) -> Parity:
    """Export a network and compare the file with PyTorch, at batch 1 and at batch 256.

    Args:
        network: Maps float32 (N, 1, S, S) to logits (N, classes). It is not changed.
        path: The ONNX file. It is written only if `onnx.checker` accepts it and onnxruntime returns PyTorch's logits.
        images: uint8 (N, H, W), the validation split.
        labels: int (N,).
        size: S, pixels. None: the images' own size.
        resample: How slices of another size are resampled, see `pack`.

    Returns:
        The comparison.

    Raises:
        ExportError: The file differs from the network, or cannot be written.
    """
    network = copy.deepcopy(network).cpu().eval()
    size = size or images.shape[-1]
    model = to_onnx(network, size)
    content = model.SerializeToString()
    parity = compare(network, content, images, labels, size=size, name=path.stem, resample=resample)
    write_model(model, path)
    return parity


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write one self-contained ONNX file, whole or not at all.

    Raises:
        ExportError: It cannot be written. `path` is then unchanged.
    """
    from organ_infer.files import NAME_BYTES, flush_file

    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > NAME_BYTES:
        name = f".{os.getpid()}.partial"
    temporary = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(model.SerializeToString())
            file.flush()
            flush_file(file.fileno())
        os.replace(temporary, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ExportError(f"{path}: cannot be written ({e.strerror}); name another path") from e


def check_installed() -> None:
    """Import what an export needs, so that a missing package is reported before training and not after it.

    Raises:
        ImportError: A package is missing.
        ExportError: onnxruntime is missing or cannot be loaded.
    """
    import onnxscript  # noqa: F401

    import organ_infer._packing  # noqa: F401

    _import_onnxruntime()


def _import_onnxruntime() -> ModuleType:
    """Import onnxruntime through the runtime, which disables the usage statistics that it sends by default."""
    from organ_infer import DeviceError
    from organ_infer.engine.session import import_onnxruntime

    try:
        return import_onnxruntime()
    except DeviceError as e:
        raise ExportError(
            f"{e}; for training and export: pip install -e '.[train,cpu]' (or train,gpu)"
        ) from e


def to_onnx(network: nn.Module, size: int) -> onnx.ModelProto:
    """Convert a network to one self-contained graph.

    Args:
        network: Maps float32 (N, 1, size, size) to logits (N, classes). If it has a method `for_export`, the module
            that this method returns is exported instead. It may return a tuple: the logits, and the probabilities of
            the orientation, (N, 9).
        size: Height and width of the input, pixels.

    Returns:
        The graph from `images`, float32 (N, 1, size, size), to `logits`, (N, classes), with any N. A network that
        returns a tuple has the second output `orientation`.

    Raises:
        ExportError: The graph uses operators that are not standard.
    """
    example = torch.zeros(2, 1, size, size)
    exportable = _exportable(network)
    with torch.no_grad():
        has_orientation = isinstance(exportable(example), tuple)
    program = torch.onnx.export(
        exportable,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits", ORIENTATION] if has_orientation else ["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    file = io.BytesIO()
    # save() also accepts a file object, which its annotation does not mention
    program.save(file, external_data=False)  # type: ignore[arg-type]
    model = onnx.load_from_string(file.getvalue())
    _remove_metadata(model)
    onnx.checker.check_model(model, full_check=True)
    _check_operators(model)
    return model


def _exportable(network: nn.Module) -> nn.Module:
    """Return the module to export, in evaluation mode."""
    for_export: Callable[[], nn.Module] | None = getattr(network, "for_export", None)
    return (network if for_export is None else for_export()).eval()


def has_orientation(model: onnx.ModelProto) -> bool:
    """Return whether an exported graph has the output `orientation`."""
    return ORIENTATION in [port.name for port in model.graph.output]


def _remove_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's metadata, which contains paths of source files on this machine."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    for element in (model, graph, *values, *graph.node, *graph.initializer):
        del element.metadata_props[:]
        element.doc_string = ""


def _check_operators(model: onnx.ModelProto) -> None:
    """Remove operator sets that are not standard. Raises ExportError if a node uses one."""
    used = {node.domain for node in model.graph.node}
    domains = {entry.domain for entry in model.opset_import} | used
    if not used <= STANDARD_DOMAINS:
        raise ExportError(
            f"the exported graph: operators of {sorted(used - STANDARD_DOMAINS)} are not standard; build the network"
            " from standard operators"
        )
    for entry in [e for e in model.opset_import if e.domain not in STANDARD_DOMAINS]:
        model.opset_import.remove(entry)
    assert "" in domains or "ai.onnx" in domains


def compare(
    network: nn.Module,
    content: bytes,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    size: int,
    name: str,
    resample: str = "area",
) -> Parity:
    """Compare PyTorch with onnxruntime, at batch 1 and at batch 256.

    Args:
        network: Maps float32 (N, 1, S, S) to logits (N, classes), or to a tuple that begins with them, on the CPU. The
            orientation is compared with that of its `for_export`.
        content: The exported ONNX file.
        images: uint8 (N, H, W).
        labels: int (N,).
        size: S, pixels.
        name: Of the network, for messages.
        resample: How slices of another size are resampled, see `pack`.

    Returns:
        The comparison.

    Raises:
        ExportError: The logits or the orientation differ (see `check_logits` and `check_orientation`).
    """
    from organ_infer._packing import pack

    session = open_session(content)
    names = output_names(session)
    reference = _reference(network, names)
    torch_batches, onnx_batches = [], []
    with torch.no_grad():
        for batch in (images[start : start + BATCH] for start in range(0, len(images), BATCH)):
            x = pack(batch, size, resample=resample)  # (B, 1, S, S)
            torch_batches.append(reference(torch.from_numpy(x)))
            onnx_batches.append(session.run(names, {"images": x}))
        first = pack(images[:1], size, resample=resample)
        first_logits, *first_orientation = session.run(names, {"images": first})
    expected, *expected_orientation = map(np.concatenate, zip(*torch_batches, strict=True))
    exported, *orientation = map(np.concatenate, zip(*onnx_batches, strict=True))
    accepted = accepted_difference(expected)
    check_logits(expected, exported, name=name, accepted=accepted)
    check_logits(expected[:1], first_logits, name=f"{name} at batch 1", accepted=accepted)
    if orientation:
        check_orientation(expected_orientation[0], orientation[0], name=name)
        check_orientation(
            expected_orientation[0][:1], first_orientation[0], name=f"{name} at batch 1"
        )
    accuracy = float((exported.argmax(1) == labels).mean())
    worst = float(np.abs(expected - exported).max())
    return Parity(len(images), worst, accuracy, exported, *orientation)


def output_names(session: Any) -> list[str]:
    """Return the outputs of an exported graph: `logits`, and `orientation` if it has one."""
    names = [port.name for port in session.get_outputs()]
    return ["logits", ORIENTATION] if ORIENTATION in names else ["logits"]


def _reference(
    network: nn.Module, names: Sequence[str]
) -> Callable[[torch.Tensor], list[np.ndarray]]:
    """Return a function that computes the outputs with PyTorch.

    The logits are those of the network itself, so that a mistake of `for_export` is found, too.
    """
    exportable = _exportable(network) if ORIENTATION in names else None

    def run(x: torch.Tensor) -> list[np.ndarray]:
        output = network(x)
        logits = (output[0] if isinstance(output, tuple) else output).numpy()
        return [logits] if exportable is None else [logits, exportable(x)[1].numpy()]

    return run


def check_orientation(expected: np.ndarray, exported: np.ndarray, *, name: str) -> None:
    """Check that the orientation of an exported graph is PyTorch's, and that its rows are probabilities.

    Args:
        expected: float32 (N, 9), PyTorch's.
        exported: float32 (N, 9), the exported graph's.
        name: Of the network, for messages.

    Raises:
        ExportError: A shape or a sum is wrong, or a probability differs by more than MAX_ORIENTATION_DIFFERENCE.
    """
    for source, orientation in (("PyTorch", expected), ("the exported graph", exported)):
        if problem := why_no_orientation(orientation):
            raise ExportError(f"{name}: the orientation of {source} {problem}")
    worst = float(np.abs(expected - exported).max())
    if worst > MAX_ORIENTATION_DIFFERENCE:
        raise ExportError(
            f"{name}: the orientation differs from PyTorch's by {worst:.2e}, at most"
            f" {MAX_ORIENTATION_DIFFERENCE:.1e} is allowed"
        )


def why_no_orientation(orientation: np.ndarray) -> str:
    """Return why an output is not an orientation, float32 (N, 9) of probabilities; empty if it is one."""
    if orientation.ndim != 2 or orientation.shape[1] != ORIENTATIONS:
        return f"has the shape {orientation.shape}, expected (N, {ORIENTATIONS}); return one column per orientation"
    # also for NaN
    if not (orientation.min() >= 0 and np.isfinite(orientation).all()):
        return "is negative, NaN or infinite; return probabilities, after a softmax"
    worst = float(np.abs(orientation.sum(1, dtype=np.float64) - 1).max())
    if worst > MAX_SUM_ERROR:
        return f"does not sum to 1, by up to {worst:.1e}; return probabilities, after a softmax"
    return ""


def accepted_difference(expected: np.ndarray) -> float:
    """Return the largest accepted difference of a logit for a network whose logits are `expected`, (N, classes)."""
    return MAX_DIFFERENCE * max(1.0, float(np.abs(expected).max()))


def check_logits(
    expected: np.ndarray, exported: np.ndarray, *, name: str, accepted: float | None = None
) -> None:
    """Check that the logits of an exported graph are PyTorch's.

    Args:
        expected: float32 (N, classes), PyTorch's.
        exported: float32 (N, classes), the exported graph's.
        name: Of the network, for messages.
        accepted: Largest accepted difference of a logit, by default `accepted_difference(expected)`. A slice whose top
            two logits differ by more than twice as much keeps its class.

    Raises:
        ExportError: The shapes differ, or a logit differs by more than `accepted` or is not finite.
    """
    if expected.shape != exported.shape:
        raise ExportError(
            f"{name}: the exported graph returns {exported.shape}, PyTorch {expected.shape}"
        )
    if not np.isfinite(exported).all():
        raise ExportError(f"{name}: the exported graph returns NaN or infinite logits")
    if not np.isfinite(expected).all():
        raise ExportError(f"{name}: in PyTorch it returns NaN or infinite logits")
    if accepted is None:
        accepted = accepted_difference(expected)
    worst = float(np.abs(expected - exported).max())
    if worst > accepted:
        raise ExportError(
            f"{name}: logits differ from PyTorch's by {worst:.2e}, at most {accepted:.1e} is allowed"
        )


def open_session(content: bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """Open an onnxruntime session.

    Args:
        content: The ONNX file.
        providers: onnxruntime's execution providers.

    Returns:
        An onnxruntime.InferenceSession.

    Raises:
        ExportError: onnxruntime is missing. The message names the command that installs it.
    """
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # By default onnxruntime pins threads to cores, which fails in containers.
    options.intra_op_num_threads = session_threads(len(content))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=list(providers))


# what the previous session was allowed, so that a limit is reported once
_allowed: int | None = None


def session_threads(size: int) -> int:
    """Return the number of threads for the next session, which waits forever if one of them cannot be started.

    Args:
        size: Of the graph, bytes.
    """
    from organ_infer.engine.cpu_count import usable_processors
    from organ_infer.engine.ensemble import COPIES
    from organ_infer.engine.threads import affordable_threads

    global _allowed
    _allowed = affordable_threads(_allowed or usable_processors(), memory=COPIES * size)
    return _allowed
