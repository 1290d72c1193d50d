"""Merges several members into one graph that ends in the mean of their probabilities, for any ONNX runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, compose, helper

from export.average import averaging_nodes
from export.member import (
    BATCH,
    ORIENTATION,
    ORIENTATIONS,
    ExportError,
    has_orientation,
    open_session,
)

# largest accepted difference of a probability between the merged graph and the members
MAX_ABS = 1e-4


def merge(members: Mapping[str, onnx.ModelProto], *, temperature: float = 1.0) -> onnx.ModelProto:
    """Merge members into one graph.

    Args:
        members: By stage, graphs from `images`, float32 (N, 1, S, S), to `logits`, (N, classes), and all or none of them
            also to `orientation`, (N, 9).
        temperature: Divides each member's logits before its softmax.

    Returns:
        One graph from `images` to `probabilities`, float32 (N, classes), and to `orientation`, the mean of the
        members', if they have it.

    Raises:
        ExportError: The members differ in input size, outputs, classes or operator set.
    """
    models = list(members.values())
    check_same_outputs(members)
    input_shapes = {_shape(value) for model in models for value in model.graph.input}
    output_shapes = {_shape(model.graph.output[0]) for model in models}
    opsets = {entry.version for model in models for entry in model.opset_import}
    if len(input_shapes) != 1 or len(output_shapes) != 1 or len(opsets) != 1:
        raise ExportError(
            "--merged: the networks differ in input size, classes or operator set; pass networks with equal ones"
        )
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    logits: dict[str, tuple[str, str]] = {}
    orientations: list[str] = []
    for stage, model in members.items():
        prefixed = compose.add_prefix(model, f"{stage}/", rename_inputs=False).graph
        nodes += prefixed.node
        weights += prefixed.initializer
        logits[stage] = prefixed.output[0].name, "logits"
        orientations += [port.name for port in prefixed.output[1:]]
    averaging, constants = averaging_nodes(logits, temperature, orientations)
    nodes += averaging
    weights += constants
    size, classes = next(iter(input_shapes))[-1], next(iter(output_shapes))[-1]
    columns = {"probabilities": classes, **({ORIENTATION: ORIENTATIONS} if orientations else {})}
    graph = helper.make_graph(
        nodes,
        "ensemble",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, size, size])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", count])
            for name, count in columns.items()
        ],
        weights,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", next(iter(opsets)))],
        ir_version=max(model.ir_version for model in models),
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def check_same_outputs(members: Mapping[str, onnx.ModelProto]) -> None:
    """Check that all members have the output `orientation`, or none.

    Args:
        members: The graphs by stage.

    Raises:
        ExportError: Some have it and others do not.
    """
    stages: dict[bool, list[str]] = {True: [], False: []}
    for stage, model in members.items():
        stages[has_orientation(model)].append(stage)
    if stages[True] and stages[False]:
        raise ExportError(
            f"{stages[False][0]}: the network has no output {ORIENTATION!r}, but {stages[True][0]} has one; combine"
            " networks that all have it, or none"
        )


def check_merged(
    model: onnx.ModelProto,
    expected: np.ndarray,
    images: np.ndarray,
    size: int,
    resample: str = "area",
    *,
    orientation: np.ndarray | None = None,
) -> None:
    """Check a merged graph against the members, at batch 1 and at batch 256.

    Args:
        model: The merged graph, from `images` to `probabilities`.
        expected: float (N, classes), the members' mean probabilities.
        images: uint8 (N, H, W).
        size: Height and width of the graph's input, pixels.
        resample: How slices of another size are resampled, see `pack`.
        orientation: float (N, 9), the members' mean. None if they have none.

    Raises:
        ExportError: A probability differs by more than MAX_ABS.
    """
    from organ_infer._packing import pack

    session = open_session(model.SerializeToString())
    for start, batch in ((0, 1), *((start, BATCH) for start in range(0, len(images), BATCH))):
        rows = slice(start, start + batch)
        packed = pack(images[rows], size, resample=resample)
        references = {"probabilities": expected, ORIENTATION: orientation}
        for name, reference in references.items():
            if reference is None:
                continue
            values = session.run([name], {"images": packed})[0]
            worst = float(np.abs(values - reference[rows]).max())
            if not worst <= MAX_ABS:
                what = "probabilities differ" if name == "probabilities" else f"{name} differs"
                raise ExportError(
                    f"the merged graph's {what} from the members' mean by {worst:.2e}"
                )


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of a graph's input or output, 0 for a free axis."""
    return tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
