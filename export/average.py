"""The last nodes of an ensemble's graph: from the logits of several members to the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper


def averaging_nodes(
    outputs: Mapping[str, tuple[str, str]], temperature: float, orientations: Sequence[str] = ()
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Create the nodes that average the members' probabilities.

    Each member's logits are divided by `temperature` before its softmax, as the runtime does.

    Args:
        outputs: By stage, the name of the member's output tensor, float32 (N, classes), and its kind: `logits` or
            `probabilities`. Probabilities already include the temperature.
        temperature: Divides the logits.
        orientations: The names of the members' tensors of the orientation, float32 (N, 9).

    Returns:
        The nodes, which end in `probabilities`, float32 (N, classes), and with `orientations` in `orientation` too, and
        their constants.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[TensorProto] = []
    probabilities = []
    for stage, (tensor, kind) in outputs.items():
        if kind == "logits":
            if temperature != 1.0:
                constants.append(
                    helper.make_tensor(f"{stage}/temperature", TensorProto.FLOAT, [], [temperature])
                )
                nodes.append(
                    helper.make_node("Div", [tensor, f"{stage}/temperature"], [f"{stage}/cooled"])
                )
                tensor = f"{stage}/cooled"
            nodes.append(helper.make_node("Softmax", [tensor], [f"{stage}/probabilities"], axis=1))
            tensor = f"{stage}/probabilities"
        probabilities.append(tensor)
    nodes.append(helper.make_node("Mean", probabilities, ["probabilities"]))
    if orientations:
        nodes.append(helper.make_node("Mean", list(orientations), ["orientation"]))
    return nodes, constants
