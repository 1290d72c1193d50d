"""A trained network becomes an ONNX member: exported, checked, and compared with PyTorch before it takes its name."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import torch
from torch import nn

OPSET = 18
MAX_ABS = 1e-4  # largest difference of a logit between PyTorch and onnxruntime
TIE = 2e-4  # closer top logits than this are a tie, not a difference of the answer
BATCH = 256
# ResNet and small CNN graphs hold no more than these; custom operators are refused by the runtime
STANDARD_DOMAINS = {"", "ai.onnx"}


class ExportError(Exception):
    """An exported network is not the trained one, or cannot be written; one line."""


@dataclass(frozen=True)
class Parity:
    """What was compared: slices, the largest difference of a logit, and the accuracy of the exported file."""

    slices: int
    max_abs: float
    accuracy: float
    logits: np.ndarray  # float32 (N, classes), of the exported file


def export_member(
    network: nn.Module, path: Path, images: np.ndarray, labels: np.ndarray, *, size: int | None = None
) -> Parity:
    """Write `network` (logits of float32 (N, 1, S, S)) to `path` as ONNX, verified on `images`.

    images: uint8 (N, H, W), the validation split; labels: int (N,); size: S, by default the images' own. The file appears only where `onnx.checker`
    accepts it and onnxruntime gives PyTorch's logits, at batch 1 and at batch 256. Raises ExportError otherwise.
    """
    network = copy.deepcopy(network).cpu().eval()
    size = size or images.shape[-1]
    model = to_onnx(network, size)
    content = model.SerializeToString()
    parity = compare(network, content, images, labels, size=size, name=path.stem)
    write_model(model, path)
    return parity


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write one self-contained ONNX file, whole or not at all. Raises ExportError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(model.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise ExportError(f"cannot write {path}: {e.strerror}") from e


def check_installed() -> None:
    """Import what an export will need, so that a missing package is found before a training and not after it."""
    import onnxscript  # noqa: F401

    import organ_infer._packing  # noqa: F401

    _import_onnxruntime()


def _import_onnxruntime() -> ModuleType:
    """onnxruntime as the runtime loads it, without the usage statistics that it sends by default."""
    from organ_infer import DeviceError
    from organ_infer.engine.session import import_onnxruntime

    try:
        return import_onnxruntime()
    except DeviceError as e:
        raise ExportError(f"{e}; beside training: pip install -e '.[train,cpu]' (or train,gpu)") from e


def to_onnx(network: nn.Module, size: int) -> onnx.ModelProto:
    """The network as one self-contained graph: `images` (N, 1, size, size) to `logits` (N, classes), N dynamic."""
    example = torch.zeros(2, 1, size, size)
    device_free = network.for_export() if hasattr(network, "for_export") else network
    program = torch.onnx.export(
        device_free.eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        external_data=False,
        verbose=False,
    )
    file = io.BytesIO()
    program.save(file, external_data=False)
    model = onnx.load_from_string(file.getvalue())
    for entry in list(model.graph.node):  # the exporter's notes name source lines of this machine
        del entry.metadata_props[:]
        entry.doc_string = ""
    for holder in (model, model.graph, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in model.graph.node}
    used = {node.domain for node in model.graph.node}
    if not used <= STANDARD_DOMAINS:
        raise ExportError(
            f"the graph uses operators of {sorted(used - STANDARD_DOMAINS)}; only standard ones are taken"
        )
    for entry in [e for e in model.opset_import if e.domain not in STANDARD_DOMAINS]:
        model.opset_import.remove(entry)
    assert "" in domains or "ai.onnx" in domains
    return model


def compare(
    network: nn.Module, content: bytes, images: np.ndarray, labels: np.ndarray, *, size: int, name: str
) -> Parity:
    """Compare PyTorch with onnxruntime on packed `images`; raises ExportError where they are not the same network."""
    from organ_infer._packing import pack

    parts_torch, parts_onnx = [], []
    session = open_session(content)
    with torch.no_grad():
        for batch in (images[start : start + BATCH] for start in range(0, len(images), BATCH)):
            x = pack(batch, size)  # (B, 1, S, S)
            parts_torch.append(network(torch.from_numpy(x)).numpy())
            parts_onnx.append(session.run(["logits"], {"images": x})[0])
        single = pack(images[:1], size)
        alone = session.run(["logits"], {"images": single})[0]
    expected, found = np.concatenate(parts_torch), np.concatenate(parts_onnx)
    check_logits(expected, found, name=name)
    check_logits(expected[:1], alone, name=f"{name} at batch 1")
    accuracy = float((found.argmax(1) == labels).mean())
    return Parity(len(images), float(np.abs(expected - found).max()), accuracy, found)


def check_logits(expected: np.ndarray, found: np.ndarray, *, name: str) -> None:
    """Raise ExportError where logits (N, classes) differ by more than MAX_ABS, or the answer differs but for ties."""
    if expected.shape != found.shape:
        raise ExportError(f"{name}: the exported graph gives {found.shape}, PyTorch {expected.shape}")
    if not np.isfinite(found).all():
        raise ExportError(f"{name}: the exported graph gives NaN or infinite logits")
    worst = float(np.abs(expected - found).max())
    if worst > MAX_ABS:
        raise ExportError(
            f"{name}: logits differ from PyTorch's by {worst:.2e}, at most {MAX_ABS:.0e} is allowed"
        )
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > TIE
    wrong = int(((expected.argmax(1) != found.argmax(1)) & clear).sum())
    if wrong:
        raise ExportError(f"{name}: {wrong} of {len(expected)} slices get another class than in PyTorch")


def open_session(content: bytes, providers: Sequence[str] = ("CPUExecutionProvider",)):
    """An onnxruntime session on a model's bytes; ExportError names the command where onnxruntime is missing."""
    from organ_infer.engine.cpu_count import usable_processors

    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = (
        usable_processors()
    )  # left to itself it pins threads, which fails in containers
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=list(providers))
