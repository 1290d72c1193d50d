"""Exact rewriting of an exported network: the same function in operations that fit maps of one and of 2x2 pixels.

At 28 px a ResNet's third stage works on 2x2 pixels and its fourth on one. There a padded 3x3 kernel meets mostly
padding, and a convolution is a matrix product over channels. `rewrite` turns such convolutions, and what lies between
them, into products of matrices (N P, C): one row a slice and pixel, the pixels of a slice after each other.

- A 1x1 kernel is one product.
- A 3x3 kernel on one pixel is its centre tap; the other eight are dropped.
- A 3x3 kernel on 2x2 pixels sees the whole map from every output pixel: one product of (N, 4 C), the pixels of a
  slice beside each other, with the taps that are not over padding. It holds 16 blocks for the kernel's nine taps and
  computes 16 where the convolution computes 36. (A Toeplitz product of nine was tried: no faster, slower at batch 1.)

Everything else is left as it is. Exact means equal but for rounding; `export.member.compare` measures it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its convolutions on small maps as matrix products; the input is not changed.

    model: one graph `images` float32 (N, 1, S, S) -> (N, classes), as export.member.to_onnx makes it. A graph without
    small maps comes back as it was.
    """
    return _Rewriter(onnx.shape_inference.infer_shapes(model, data_prop=True)).run()


class _Rewriter:
    """Walks the nodes in order. A tensor of the original graph is there as it was, as a matrix, or both."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = {
            value.name: [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.rows: dict[str, str] = {}  # tensor -> its matrix (N H W, C)
        self.maps: dict[
            str, str | None
        ] = {}  # tensor that was made as a matrix -> its map, where one is wanted
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            made = self.matrix(node)
            if made is not None:
                self.rows[node.output[0]], self.maps[node.output[0]] = made, None
                continue
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            kept.input[:] = [self.map_of(name) for name in node.input]
            self.nodes.append(kept)
        graph = self.model.graph
        for port in graph.output:
            if port.name in self.maps:
                self.nodes.append(helper.make_node("Identity", [self.map_of(port.name)], [port.name]))
        used = {name for node in self.nodes for name in node.input}
        tensors = [tensor for name, tensor in self.weights.items() if name in used]
        tensors += [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        made = helper.make_graph(self.nodes, graph.name, graph.input, graph.output, tensors)
        result = helper.make_model(
            made, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        result.producer_name, result.producer_version = self.model.producer_name, self.model.producer_version
        onnx.checker.check_model(result, full_check=True)
        return result

    def matrix(self, node: onnx.NodeProto) -> str | None:
        """The matrix of what `node` gives, its nodes added; None where it stays as it is."""
        first = node.input[0]
        if node.op_type == "Conv":
            return self.convolution(node)
        if node.op_type in ("Relu", "Add") and all(name in self.rows for name in node.input):
            return self.add(node.op_type, [self.rows[name] for name in node.input])
        if node.op_type == "ReduceMean" and first in self.rows and self.shapes[first][2:] == [1, 1]:
            axes = numpy_helper.to_array(self.weights[node.input[1]])
            return self.rows[first] if sorted(axis % 4 for axis in axes) == [2, 3] else None
        if node.op_type == "Reshape" and first in self.rows and self.shapes[first][2:] == [1, 1]:
            return (
                self.rows[first] if len(self.shapes[node.output[0]]) == 2 else None
            )  # (N, C, 1, 1) to (N, C)
        return None

    # Convolutions.

    def convolution(self, node: onnx.NodeProto) -> str | None:
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
                "Gather", [self.reshape(rows, -1, 4, channels), self.whole("first_pixel", 0)], axis=1
            )
            return self.gemm(name, corner, weight[:, :, 0, 0].T, bias)
        # output pixel (i, j) sees input pixel (p, q) through tap (1 + p - i, 1 + q - j)
        seen = range(2 if stride == 1 else 1)
        matrix = np.block(
            [
                [weight[:, :, 1 + p - i, 1 + q - j].T for i in seen for j in seen]
                for p in (0, 1)
                for q in (0, 1)
            ]
        )  # (4 C, 4 C') or (4 C, C')
        beside = self.reshape(rows, -1, 4 * channels)
        if stride == 2:
            return self.gemm(name, beside, matrix, bias)
        return self.reshape(self.gemm(name, beside, matrix, self.repeated(bias)), -1, len(weight))

    def gemm(self, name: str, rows: str, matrix: np.ndarray, bias: str) -> str:
        return self.add("Gemm", [rows, self.constant(f"{name}/matrix", matrix), bias])

    def repeated(self, bias: str) -> str:
        return self.constant(f"{bias}/repeated", np.tile(numpy_helper.to_array(self.weights[bias]), 4))

    # Between maps (N, C, H, W) and matrices (N H W, C).

    def rows_of(self, name: str) -> str:
        if name not in self.rows:
            turned = self.add("Transpose", [name], perm=[0, 2, 3, 1])
            self.rows[name] = self.reshape(turned, -1, self.shapes[name][1])
        return self.rows[name]

    def map_of(self, name: str) -> str:
        """The tensor as the original graph has it."""
        if name not in self.maps:
            return name
        if self.maps[name] is None:
            shape = self.shapes[name]
            if len(shape) == 2:
                return self.rows[name]
            wide = self.reshape(self.rows[name], -1, *shape[2:], shape[1])
            self.maps[name] = self.add("Transpose", [wide], perm=[0, 3, 1, 2])
        return self.maps[name]

    # Nodes and constants.

    def add(self, kind: str, inputs: list[str], **attributes: object) -> str:
        output = f"small/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def reshape(self, name: str, *shape: int) -> str:
        wanted = self.whole("shape/" + "x".join(map(str, shape)), list(shape))
        return self.add("Reshape", [name, wanted])

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(value, np.float32)
        return name

    def whole(self, name: str, value: int | list[int]) -> str:
        self.constants[name] = np.array(value, np.int64)
        return name


def _stride(node: onnx.NodeProto, weight: np.ndarray) -> int | None:
    """1 or 2 where `node` is a plain convolution of kernel 1, or 3 padded by 1; else None."""
    found = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    stride, kernel = found.get("strides", [1, 1])[0], weight.shape[2]
    plain = (
        kernel in (1, 3)
        and weight.shape[2:] == (kernel, kernel)
        and list(found.get("pads", [0] * 4)) == [kernel // 2] * 4
        and list(found.get("strides", [1, 1])) == [stride, stride]
        and list(found.get("dilations", [1, 1])) == [1, 1]
        and found.get("group", 1) == 1
        and found.get("auto_pad", b"NOTSET") == b"NOTSET"
        and stride in (1, 2)
    )
    return stride if plain else None
