"""Graphs that reach outside of their bundle, or bring code: refused before onnxruntime sees a byte of them."""

import numpy as np
import pytest
from altering import altered, tiny_graph
from conftest import write_bundle
from stand_in import CPU

from organ_infer import BundleError, OrganClassifier
from organ_infer.onnx_file import _MESSAGES, check_graph


def fields_with(kind, seen=None):
    """Message name -> its fields whose content can hold what the check looks for, by onnx's own description."""
    seen = {} if seen is None else seen
    if kind.full_name not in seen:
        seen[kind.full_name] = kind
        for part in kind.fields:
            if part.message_type:
                fields_with(part.message_type, seen)
    return seen


def test_the_walk_knows_every_field_that_can_hold_a_tensor_a_graph_or_a_domain():
    """Held against the description of the format in the installed onnx, which may be newer."""
    import onnx

    ours = {
        "Model": "ModelProto", "Opset": "OperatorSetIdProto", "Graph": "GraphProto", "Function": "FunctionProto",
        "Node": "NodeProto", "Attribute": "AttributeProto", "Sparse": "SparseTensorProto", "Tensor": "TensorProto",
        "Value": "ValueInfoProto", "Type": "TypeProto", "TensorType": "TypeProto.Tensor", "Shape": "TensorShapeProto",
        "Dim": "TensorShapeProto.Dimension",
    }  # fmt: skip
    kinds = fields_with(onnx.ModelProto.DESCRIPTOR)
    holding = {
        f"onnx.{ours[name]}"
        for name in ("Graph", "Function", "Node", "Attribute", "Sparse", "Tensor", "Opset")
    }
    checked = 0
    for name, kind in kinds.items():
        if name == "onnx.TrainingInfoProto":
            continue  # refused whole
        table = next((_MESSAGES[key] for key, value in ours.items() if name == f"onnx.{value}"), {})
        for part in kind.fields:
            held = part.message_type and (
                part.message_type.full_name in holding or part.message_type.name == "TrainingInfoProto"
            )
            loose = part.name in ("external_data", "data_location") or (
                part.name == "domain" and name not in ("onnx.ModelProto", "onnx.TypeProto.Opaque")
            )
            if held or loose:
                assert part.number in table, f"{name}.{part.name}"
                assert not held or table[part.number][1] in ("bytes", *ours), f"{name}.{part.name}"
                checked += 1
    assert checked >= 20


def varint(value, length=0):
    data = bytearray()
    while value >= 0x80 or len(data) + 1 < length:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def field(number, data, *, more=0, length=0):
    """A field of bytes; `more` is added to its key, which is written in at least `length` bytes."""
    return varint((number << 3 | 2) + more, length) + varint(len(data)) + data


def external(location, **how):
    """`tiny_graph` with its weights in the file `location`, the fields that say so written as `how` says."""
    import onnx

    model = onnx.ModelProto.FromString(tiny_graph())
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    data = tensor.SerializeToString()
    for key, value in {"location": location, "offset": "0", "length": "44"}.items():
        data += field(13, field(1, key.encode()) + field(2, value.encode()), **how)
    data += varint((14 << 3) + how.get("more", 0), how.get("length", 0)) + b"\x01"
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString() + field(5, data)
    model.ClearField("graph")
    return model.SerializeToString() + field(7, graph)


@pytest.mark.parametrize(
    "location",
    [
        "w.bin",
        "./w.bin",
        "../w.bin",
        "a/../../w.bin",
        "/etc/passwd",
        "link",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "file:///etc/passwd",
    ],
)
def test_external_data_is_refused_wherever_it_lies(tmp_path, install, location):
    """Beside the graph, above it, behind a link, in memory: onnxruntime is not asked."""
    ort = install(available=(CPU,))
    for name in ("w.bin", "secret"):
        (tmp_path / name).write_bytes(b"\0" * 44)
    folder = write_bundle(tmp_path / "b", {"g.onnx": external(location)})
    with pytest.raises(
        BundleError, match=r"g\.onnx: tensor 'w' keeps its data in another file \(external data\)"
    ):
        OrganClassifier(folder, device="cpu")
    (folder / "w.bin").write_bytes(b"\0" * 44)
    with pytest.raises(BundleError, match=r"'w\.bin' is not listed"):
        OrganClassifier(folder, device="cpu")
    (folder / "w.bin").unlink()
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="'link' is not listed"):
        OrganClassifier(folder, device="cpu")
    assert ort.opened == []


@pytest.mark.parametrize(
    "how",
    [{}, {"length": 5}, {"length": 10}, *({"more": 1 << bit} for bit in range(32, 64))],
    ids=str,
)
def test_external_data_cannot_hide_behind_another_way_to_write_a_number(tmp_path, monkeypatch, how):
    """protobuf reads a field's key in 32 bits and drops what is above: to it, all but the longest are field 13."""
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(np.ones(11, np.float32).tobytes())
    data = external("w.bin", **how)
    with pytest.raises(BundleError, match=r"external data|not a valid ONNX file"):
        check_graph(data, where="g", size=28, classes=11, output="logits")
    (tmp_path / "g.onnx").write_bytes(data)
    reached = True
    try:
        session = onnxruntime.InferenceSession("g.onnx", providers=[CPU])
        (row,) = session.run(None, {"images": np.ones((1, 1, 28, 28), np.float32)})[0]
        assert row == pytest.approx(np.ones(11))
    except Exception:  # onnxruntime's own exceptions share no base class but Exception
        reached = False
    if how in ({}, {"length": 5}, {"more": 1 << 32}):
        assert reached  # onnxruntime alone does open the other file: the test tries what it says


def test_a_small_graph_altered_in_any_bit_never_reaches_outside():
    """Past the hash, as if the manifest had been made to fit: what is accepted is one self-contained graph."""
    import onnx

    data, accepted = tiny_graph(), 0
    for other in altered(data):
        try:
            check_graph(other, where="g", size=28, classes=11, output="logits")
        except BundleError as e:
            assert "\n" not in str(e)
            continue
        accepted += 1
        try:
            model = onnx.ModelProto.FromString(other)
        except Exception:  # protobuf's DecodeError, of which there are two
            continue
        assert not model.functions and not any(t.external_data for t in model.graph.initializer)
        assert {n.domain for n in model.graph.node} <= {"", "ai.onnx"}
    assert accepted  # as where a weight changed
