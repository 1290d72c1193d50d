"""The tail of an ensemble's graph: logits of several members to the mean of their probabilities (docs/reference/bundle_format.md)."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper


def mean_of(
    answers: Mapping[str, tuple[str, str]], temperature: float
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes, and their constants, that end in `probabilities` (N, classes): each member's logits divided by
    `temperature`, softmax, the mean over members.

    answers: by stage, the tensor's name and `logits` or `probabilities`, which contain the temperature already.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    found = []
    for stage, (tensor, kind) in answers.items():
        if kind == "logits":
            if temperature != 1.0:
                weights.append(
                    helper.make_tensor(f"{stage}/temperature", TensorProto.FLOAT, [], [temperature])
                )
                nodes.append(helper.make_node("Div", [tensor, f"{stage}/temperature"], [f"{stage}/cooled"]))
                tensor = f"{stage}/cooled"
            nodes.append(helper.make_node("Softmax", [tensor], [f"{stage}/probabilities"], axis=1))
            tensor = f"{stage}/probabilities"
        found.append(tensor)
    return [*nodes, helper.make_node("Mean", found, ["probabilities"])], weights
