"""A float32 member in fewer bits: int8 for CPUs, fp16 for CUDA. What is accepted is decided by `export.forms`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

CALIBRATION_BATCH = 64


def to_int8(model: onnx.ModelProto, calibration: np.ndarray) -> onnx.ModelProto:
    """The model as a static QDQ graph: weights int8, a scale a channel; activations uint8, a scale a tensor.

    calibration: float32 (N, 1, S, S), packed training slices that the ranges of the activations are taken from.
    Weights keep 7 bits: the products of 8 bits overflow the 16-bit sums of processors without VNNI instructions, and
    the model would answer differently there (onnxruntime's documentation, "Quantize ONNX models").
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Slices(CalibrationDataReader):
        def __init__(self) -> None:
            starts = range(0, len(calibration), CALIBRATION_BATCH)
            self.batches: Iterator[dict] = iter(
                {"images": calibration[start : start + CALIBRATION_BATCH]} for start in starts
            )

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            made,
            Slices(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return _plain(onnx.load(made))


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model computed in half precision; its input and output stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with _quiet():
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        made = convert_float_to_float16(copied, keep_io_types=True)
        OnnxModel.graph_topological_sort(made.graph)  # the casts of the input stand last
        return _plain(made)


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without operator sets that no node uses, and checked."""
    used = {node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    del model.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


class _quiet:
    """onnxruntime's tools advise a preprocessing that the export has done already."""

    def __enter__(self) -> None:
        self.level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self.level)
