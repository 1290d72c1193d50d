"""The smallest bundle's graph, its seal, and every way to alter bytes. For tests and tests/endurance/tamper.py."""

import numpy as np

from organ_infer.bundle.files import Manifest


def tiny_graph():
    """Each slice's mean, weighted: the smallest graph that a bundle can hold."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.linspace(-1, 1, 11, dtype=np.float32)[None]
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["a"]),
            helper.make_node("Flatten", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 11])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def seal(bundle):
    """The manifest written anew as export writes it."""
    path = bundle / "manifest.json"
    path.write_text(Manifest.from_json(path.read_text()).to_json())
    return bundle


def altered(data):
    """Every bit turned, every end cut off, every byte left out or put in twice."""
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        yield data[:at]
        yield data[:at] + data[at + 1 :]
        yield data[:at] + data[at : at + 1] + data[at:]
