"""Converts float32 networks to int8 for CPUs and to fp16 for CUDA. `export.variants` decides which are accepted."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from export.machine import check_space
from export.member import ORIENTATION, has_orientation, session_threads

# slices per batch while the ranges of the activations are measured
SAMPLE_BATCH = 64


def to_int8(model: onnx.ModelProto, samples: np.ndarray) -> onnx.ModelProto:
    """Convert a model to a static QDQ graph.

    Weights are int8 with one scale per channel, activations uint8 with one scale per tensor. Weights use only 7 bits.
    With 8 bits the products overflow the 16-bit sums of processors without VNNI instructions, and the network would give
    other results there (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        model: The float32 graph.
        samples: float32 (N, 1, S, S), packed training slices. They determine the ranges of the activations.

    Returns:
        The int8 graph. Its input and output stay float32.

    Raises:
        OSError: The temporary directory is full or cannot be written.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, _quiet(), _limited_threads(model.ByteSize()):
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        try:
            named = _named(model)
            onnx.save(named, source)
            quantize_static(
                source,
                target,
                _Samples(samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=_orientation_head(named),
            )
            return _cleaned(onnx.load(target))
        except Exception:
            # parts of onnx write in C++ and do not notice a full disk, so that reading the file again fails
            check_space(folder, 2 * model.ByteSize())
            raise


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model to half precision.

    Args:
        model: The float32 graph. It is not changed.

    Returns:
        The fp16 graph. Its input and output stay float32.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with _quiet():
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        half = convert_float_to_float16(copied, keep_io_types=True)
        # the converter appends the casts of the input at the end
        OnnxModel.graph_topological_sort(half.graph)
        return _cleaned(half)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose nodes that compute the orientation have names; the same graph if it has no orientation."""
    if not has_orientation(model):
        return model
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for i, node in enumerate(named.graph.node):
        node.name = node.name or f"node/{i}"
    return named


def _orientation_head(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that stay float32: from the orientation back to its last matrix product.

    An int8 softmax has steps of 1/256 and does not sum to 1, which is too coarse for the threshold of the plausibility.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    head, pending = [], [ORIENTATION] if has_orientation(model) else []
    while pending:
        node = producers.get(pending.pop())
        # None for weights and the input
        if node is None or node.name in head:
            continue
        head.append(node.name)
        if node.op_type not in ("Gemm", "MatMul", "Conv"):
            pending += node.input
    return head


class _Samples:
    """onnxruntime's CalibrationDataReader over packed slices."""

    def __init__(self, samples: np.ndarray) -> None:
        self._batches = iter(
            samples[start : start + SAMPLE_BATCH] for start in range(0, len(samples), SAMPLE_BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove unused operator sets and metadata from a model, and check it. Returns the same model."""
    used = {node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    del model.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _limited_threads(size: int) -> Iterator[None]:
    """Let onnxruntime's tools start only threads that can be started. They create their sessions themselves.

    Args:
        size: Of the model, bytes.
    """
    import onnxruntime

    threads, unlimited = session_threads(size), onnxruntime.SessionOptions

    class Limited(unlimited):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = threads
            self.inter_op_num_threads = 1

    onnxruntime.SessionOptions = Limited
    try:
        yield
    finally:
        onnxruntime.SessionOptions = unlimited


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the advice of onnxruntime's tools to preprocess the model. The export has already done that."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
