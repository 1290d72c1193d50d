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
    """

    slices: int
    max_abs: float
    accuracy: float
    logits: np.ndarray


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
            that this method returns is exported instead.
        size: Height and width of the input, pixels.

    Returns:
        The graph from `images`, float32 (N, 1, size, size), to `logits`, (N, classes), with any N.

    Raises:
        ExportError: The graph uses operators that are not standard.
    """
    example = torch.zeros(2, 1, size, size)
    for_export: Callable[[], nn.Module] | None = getattr(network, "for_export", None)
    exportable = network if for_export is None else for_export()
    program = torch.onnx.export(
        exportable.eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
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
        network: Maps float32 (N, 1, S, S) to logits (N, classes), on the CPU.
        content: The exported ONNX file.
        images: uint8 (N, H, W).
        labels: int (N,).
        size: S, pixels.
        name: Of the network, for messages.
        resample: How slices of another size are resampled, see `pack`.

    Returns:
        The comparison.

    Raises:
        ExportError: The logits differ (see `check_logits`).
    """
    from organ_infer._packing import pack

    torch_logits, onnx_logits = [], []
    session = open_session(content)
    with torch.no_grad():
        for batch in (images[start : start + BATCH] for start in range(0, len(images), BATCH)):
            x = pack(batch, size, resample=resample)  # (B, 1, S, S)
            torch_logits.append(network(torch.from_numpy(x)).numpy())
            onnx_logits.append(session.run(["logits"], {"images": x})[0])
        first = pack(images[:1], size, resample=resample)
        first_logits = session.run(["logits"], {"images": first})[0]
    expected, exported = np.concatenate(torch_logits), np.concatenate(onnx_logits)
    accepted = accepted_difference(expected)
    check_logits(expected, exported, name=name, accepted=accepted)
    check_logits(expected[:1], first_logits, name=f"{name} at batch 1", accepted=accepted)
    accuracy = float((exported.argmax(1) == labels).mean())
    return Parity(len(images), float(np.abs(expected - exported).max()), accuracy, exported)


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
