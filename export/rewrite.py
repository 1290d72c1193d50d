"""Replaces convolutions on maps of 1x1 and 2x2 pixels by matrix products, which compute the same function faster.

At 28 px a ResNet's third stage works on 2x2 pixels and its fourth on one pixel. There a padded 3x3 kernel covers mostly
padding, and a convolution is a matrix product over channels. `rewrite` replaces such convolutions, and the operations
between them, by products of matrices (N P, C) with P pixels per map: one row per slice and pixel, the pixels of a slice in
consecutive rows.

- A 1x1 kernel becomes one product.
- A 3x3 kernel on one pixel becomes its center tap. The other eight taps are dropped.
- A 3x3 kernel on 2x2 pixels sees the whole map from every output pixel. It becomes one product with (N, 4 C), the
  pixels of a slice in one row, with the taps that are not over padding. The matrix has 16 blocks for the kernel's nine
  taps and computes 16 products instead of the convolution's 36. (A Toeplitz product of nine is not faster, and slower at
  batch 1.)

Everything else is unchanged. The rewritten network differs only by rounding, which `export.variants` checks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace convolutions on small maps by matrix products.

    Args:
        model: One graph from `images`, float32 (N, 1, S, S), to (N, classes), as export.member.to_onnx returns it. It
            is not changed.

    Returns:
        The rewritten model. A graph without small maps has the same nodes.
    """
    return _Rewriter(onnx.shape_inference.infer_shapes(model, data_prop=True)).run()


class _Rewriter:
    """Rewrites the nodes of a graph in order.

    In the new graph a tensor of the original one exists as a map (N, C, H, W) under its old name, as a matrix (N H W, C)
    under a new name, or as both.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        # by tensor, 0 for a free axis
        self.shapes: dict[str, list[int]] = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        # the name of the matrix (N H W, C) by tensor
        self.rows: dict[str, str] = {}
        # the name of the map by tensor that exists as a matrix; None until a node needs the map
        self.maps: dict[str, str | None] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def run(self) -> onnx.ModelProto:
        """Return the rewritten model."""
        for node in self.model.graph.node:
            matrix = self.as_matrix(node)
            if matrix is not None:
                self.rows[node.output[0]], self.maps[node.output[0]] = matrix, None
                continue
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.input[:] = [self.map_of(name) for name in node.input]
            self.nodes.append(copied)
        graph = self.model.graph
        for port in graph.output:
            if port.name in self.maps:
                self.nodes.append(
                    helper.make_node("Identity", [self.map_of(port.name)], [port.name])
                )
        used = {name for node in self.nodes for name in node.input}
        tensors = [tensor for name, tensor in self.weights.items() if name in used]
        tensors += [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        rewritten = helper.make_graph(self.nodes, graph.name, graph.input, graph.output, tensors)
        result = helper.make_model(
            rewritten, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        result.producer_name, result.producer_version = (
            self.model.producer_name,
            self.model.producer_version,
        )
        onnx.checker.check_model(result, full_check=True)
        return result

    def as_matrix(self, node: onnx.NodeProto) -> str | None:
        """Add nodes that compute the output of `node` as a matrix.

        Returns:
            The name of the matrix. None if `node` is not replaced.
        """
        first = node.input[0]
        if node.op_type == "Conv":
            return self.convolution(node)
        if node.op_type in ("Relu", "Add") and all(name in self.rows for name in node.input):
            return self.add(node.op_type, [self.rows[name] for name in node.input])
        if node.op_type == "ReduceMean" and first in self.rows and self.shapes[first][2:] == [1, 1]:
            axes = numpy_helper.to_array(self.weights[node.input[1]])
            return self.rows[first] if sorted(axis % 4 for axis in axes) == [2, 3] else None
        if node.op_type == "Reshape" and first in self.rows and self.shapes[first][2:] == [1, 1]:
            # (N, C, 1, 1) to (N, C)
            return self.rows[first] if len(self.shapes[node.output[0]]) == 2 else None
        return None

    def convolution(self, node: onnx.NodeProto) -> str | None:
        """Replace a convolution on a small map. Returns as `as_matrix`."""
        source, name = node.input[0], node.output[0]
        weight = numpy_helper.to_array(self.weights[node.input[1]])  # (C', C, k, k)
        _, channels, height, width = self.shapes[source]
        kernel, stride = weight.shape[2], _stride(node, weight)
        if stride is None or len(node.input) < 3 or height != width or height not in (1, 2):
            return None
        rows, bias = self.rows_of(source), node.input[2]
        if height == 1 or (kernel == 1 and stride == 1):
            return self.gemm(name, rows, weight[:, :, kernel // 2, kernel // 2].T, bias)
        if kernel == 1:
            corner = self.add(
                "Gather",
                [self.reshape(rows, -1, 4, channels), self.integers("first_pixel", 0)],
                axis=1,
            )
            return self.gemm(name, corner, weight[:, :, 0, 0].T, bias)
        # Output pixel (i, j) reads input pixel (p, q) through tap (1 + p - i, 1 + q - j).
        # The matrix is (4 C, 4 C') for stride 1, (4 C, C') for stride 2.
        outputs = range(2 if stride == 1 else 1)
        matrix = np.block(
            [
                [weight[:, :, 1 + p - i, 1 + q - j].T for i in outputs for j in outputs]
                for p in (0, 1)
                for q in (0, 1)
            ]
        )
        whole_maps = self.reshape(rows, -1, 4 * channels)
        if stride == 2:
            return self.gemm(name, whole_maps, matrix, bias)
        product = self.gemm(name, whole_maps, matrix, self.repeated(bias))
        return self.reshape(product, -1, len(weight))

    def gemm(self, name: str, rows: str, matrix: np.ndarray, bias: str) -> str:
        """Add a product with a constant matrix."""
        return self.add("Gemm", [rows, self.constant(f"{name}/matrix", matrix), bias])

    def repeated(self, bias: str) -> str:
        """Add a bias for the four pixels of a 2x2 map."""
        return self.constant(
            f"{bias}/repeated", np.tile(numpy_helper.to_array(self.weights[bias]), 4)
        )

    # Between maps (N, C, H, W) and matrices (N H W, C).

    def rows_of(self, name: str) -> str:
        """Return the name of a tensor's matrix, with a conversion if there is none yet."""
        if name not in self.rows:
            channels_last = self.add("Transpose", [name], perm=[0, 2, 3, 1])
            self.rows[name] = self.reshape(channels_last, -1, self.shapes[name][1])
        return self.rows[name]

    def map_of(self, name: str) -> str:
        """Return the name of a tensor in its original shape, with a conversion if there is none yet."""
        if name not in self.maps:
            return name
        as_map = self.maps[name]
        if as_map is None:
            shape = self.shapes[name]
            if len(shape) == 2:
                return self.rows[name]
            channels_last = self.reshape(self.rows[name], -1, *shape[2:], shape[1])
            as_map = self.add("Transpose", [channels_last], perm=[0, 3, 1, 2])
            self.maps[name] = as_map
        return as_map

    # Nodes and constants.

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = f"small/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def reshape(self, name: str, *shape: int) -> str:
        new_shape = self.integers("shape/" + "x".join(map(str, shape)), list(shape))
        return self.add("Reshape", [name, new_shape])

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(value, np.float32)
        return name

    def integers(self, name: str, value: int | list[int]) -> str:
        self.constants[name] = np.array(value, np.int64)
        return name


def _stride(node: onnx.NodeProto, weight: np.ndarray) -> int | None:
    """Return the stride, 1 or 2, of a plain convolution with kernel 1, or with kernel 3 and padding 1; else None."""
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    stride, kernel = int(attributes.get("strides", [1, 1])[0]), weight.shape[2]
    plain = (
        kernel in (1, 3)
        and weight.shape[2:] == (kernel, kernel)
        and list(attributes.get("pads", [0] * 4)) == [kernel // 2] * 4
        and list(attributes.get("strides", [1, 1])) == [stride, stride]
        and list(attributes.get("dilations", [1, 1])) == [1, 1]
        and attributes.get("group", 1) == 1
        and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        and stride in (1, 2)
    )
    return stride if plain else None
