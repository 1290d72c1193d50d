"""Networks and bundles that know when not to answer, as ONNX graphs whose answers can be computed by hand."""

import numpy as np
from conftest import CLASSES, write_bundle
from onnx import TensorProto, helper, numpy_helper

SIDE = 28
# how much one of the first nine pixels counts: the one that is white takes nearly all
STRENGTH = 10.0


def orientation_graph(
    orientation=None, *, label="liver", columns=9, normalized=True, elem_type=TensorProto.FLOAT
):
    """Answers `label` with 0.9 (CLASSES in order), and this orientation, nine probabilities.

    None: the first nine pixels of a slice are the orientation, as exponents. The other arguments make a wrong output.
    """
    pixels = SIDE * SIDE
    answers = np.full(len(CLASSES), 0.1 / (len(CLASSES) - 1))
    answers[CLASSES.index(label)] = 0.9
    matrix, bias = np.zeros((pixels, columns)), np.zeros(columns)
    if orientation is None:
        matrix[np.arange(columns), np.arange(columns)] = STRENGTH / 2
    else:
        bias = np.log(np.resize(orientation, columns))
    weights = {
        "zeros": np.zeros((pixels, len(CLASSES))),
        "answers": np.log(answers),
        "matrix": matrix,
        "bias": bias,
    }
    nodes = [
        helper.make_node("Flatten", ["images"], ["pixels"]),
        helper.make_node("Gemm", ["pixels", "zeros", "answers"], ["logits"]),
        helper.make_node("Gemm", ["pixels", "matrix", "bias"], ["raw"]),
        helper.make_node("Softmax" if normalized else "Exp", ["raw"], ["shares"]),
        helper.make_node("Cast", ["shares"], ["orientation"], to=elem_type),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)]),
            helper.make_tensor_value_info("orientation", elem_type, ["N", columns]),
        ],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def orientation_bundle(folder, *graphs, threshold=0.1, **changes):
    """A bundle of these graphs, of one that reads the orientation from the pixels if there are none."""
    graphs = graphs or (orientation_graph(),)
    plausibility = {"output": "orientation", "threshold": threshold}
    named = {f"m{i}.onnx": graph for i, graph in enumerate(graphs)}
    return write_bundle(folder, named, plausibility=plausibility, **changes)


def slice_of(*columns):
    """uint8 (28, 28), a plausible picture; its first nine pixels are white for these columns of the orientation."""
    pixels = np.random.default_rng(3).integers(70, 180, (SIDE, SIDE), np.uint8)
    pixels[0, :9] = 0
    pixels[0, list(columns)] = 255
    return pixels


def shares(*columns):
    """float64 (9,): the orientation that the graph reads from `slice_of(*columns)`."""
    raw = np.full(9, -STRENGTH / 2)
    raw[list(columns)] = STRENGTH / 2
    return np.exp(raw) / np.exp(raw).sum()
