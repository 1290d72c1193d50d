"""Tiny ONNX graphs whose answers can be computed by hand: `images` (N, 1, 4, 4), flattened, times a matrix."""

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

SIZE, PIXELS = 4, 16


def model_of(nodes, inputs, outputs, weights, *, opset=18):
    """A checked model; inputs and outputs: shape by name, all float32, the first axis free."""

    def ports(shapes):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
            for name, shape in shapes.items()
        ]

    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", ports(inputs), ports(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    checker.check_model(model, full_check=True)
    return model


def linear_graph(matrix, bias=0.0, *, added=0.0, at_batch=1, opset=18, output="logits"):
    """logits (N, classes) = pixels (N, 16) @ matrix + bias; a batch of `at_batch` slices gets `added` on top."""
    matrix = np.asarray(matrix, np.float32)
    classes = matrix.shape[1]
    weights = {"matrix": matrix, "bias": np.full(classes, bias, np.float32)}
    nodes = [
        helper.make_node("Flatten", ["images"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "matrix", "bias"], ["product" if added else output]),
    ]
    if added:
        weights |= {
            "first": np.array(0),
            "count": np.array(at_batch),
            "extra": np.float32(added),
            "none": np.float32(0),
        }
        nodes += [
            helper.make_node("Shape", ["images"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["slices"]),
            helper.make_node("Equal", ["slices", "count"], ["here"]),
            helper.make_node("Where", ["here", "extra", "none"], ["added"]),
            helper.make_node("Add", ["product", "added"], [output]),
        ]
    return model_of(nodes, {"images": [1, SIZE, SIZE]}, {output: [classes]}, weights, opset=opset)


def bright_pixels(*positions):
    """uint8 (N, 4, 4): in each slice the pixels at these positions (a tuple a slice) are white, the others black."""
    slices = np.zeros((len(positions), PIXELS), np.uint8)
    for row, places in zip(slices, positions, strict=True):
        row[list(places)] = 255
    return slices.reshape(-1, SIZE, SIZE)


def packed(slices):
    """float64 (N, 16): the pixels as the published normalization has them, (x / 255 - 0.5) / 0.5."""
    return (np.asarray(slices, np.float64).reshape(len(slices), -1) / 255 - 0.5) / 0.5


def softmax(logits):
    """float64, over the last axis."""
    powers = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def accept_every_variant(monkeypatch):
    """Every variant of fewer bits is accepted, whatever accuracy it loses, of classes and orientation."""
    from dataclasses import replace

    from export import variants

    rows = {
        name: replace(row, max_accuracy_loss=1.0, max_orientation_loss=1.0)
        for name, row in variants.PRECISIONS.items()
    }
    monkeypatch.setattr(variants, "PRECISIONS", rows)
