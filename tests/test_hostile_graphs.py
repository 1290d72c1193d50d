"""Graphs that reach outside of their bundle, or bring code: refused before onnxruntime sees a byte of them."""

import numpy as np
import pytest
from conftest import write_bundle
from support.altered_bundles import altered, tiny_graph
from support.fake_onnxruntime import CPU

from organ_infer import BundleError, OrganClassifier
from organ_infer.bundle import onnx_graph
from organ_infer.bundle.onnx_graph import _MESSAGES, MalformedFile, Port, check_graph, read_graph


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
                part.message_type.full_name in holding
                or part.message_type.name == "TrainingInfoProto"
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
def test_external_data_is_refused_wherever_it_lies(tmp_path, install_fake, location):
    """Beside the graph, above it, behind a link, in memory: onnxruntime is not asked."""
    ort = install_fake(available=(CPU,))
    for name in ("w.bin", "secret"):
        (tmp_path / name).write_bytes(b"\0" * 44)
    folder = write_bundle(tmp_path / "b", {"g.onnx": external(location)})
    with pytest.raises(
        BundleError, match=r"g\.onnx: tensor 'w' has its data in another file \(external data\)"
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


# The walk, byte by byte.


def plain(**changed):
    """A model of graph and operator set, of the parts given by field name."""
    parts = {
        "graph": field(
            7, field(11, port("images", 1, None, 1, 4, 4)) + field(12, port("logits", 1, None, 3))
        ),
        "opset": field(8, field(1, b"")),
    } | changed
    return b"".join(parts.values())


def dim(size):
    return field(1, b"" if size is None else varint(1 << 3) + varint(size))


def port(name, kind, *axes):
    tensor = varint(1 << 3) + varint(kind) + field(2, b"".join(map(dim, axes)))
    return field(1, name.encode()) + field(2, field(1, tensor))


def checked(data):
    return check_graph(data, where="w", size=4, classes=3, output="logits")


def told(data):
    with pytest.raises(BundleError) as caught:
        checked(data)
    return str(caught.value)


def test_a_graph_s_ports_are_read_with_their_type_and_axes():
    info = checked(plain())
    assert info.inputs == [Port("images", 1, (None, 1, 4, 4))]
    assert info.outputs == [Port("logits", 1, (None, 3))]
    assert (info.domains, info.external, info.graphs, info.opsets) == ({""}, [], 1, 1)
    assert (info.functions, info.training) == (0, False)
    for domain, known in {"ai.onnx": True, "ai.onnx.ml": False, "com.microsoft": False}.items():
        data = plain(opset=field(8, field(1, domain.encode())))
        assert checked(data) if known else f"operators of the domain '{domain}'" in told(data)


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("other", [None, 0, 2, 5])
def test_every_axis_of_the_input_and_the_output_counts(at, other):
    axes = [None, 1, 4, 4]
    if axes[at] != other:
        axes[at] = other
        graph = field(
            7, field(11, port("images", 1, *axes)) + field(12, port("logits", 1, None, 3))
        )
        listed = ", ".join("N" if axis is None else str(axis) for axis in axes)
        assert told(plain(graph=graph)) == (
            "w: input 'images' must be (N, 1, 4, 4) with N free, to match the manifest,"
            f" found ({listed}); export the bundle again"
        )
    classes = [None, 3]
    if at < 2 and classes[at] != other:
        classes[at] = other
        graph = field(
            7, field(11, port("images", 1, None, 1, 4, 4)) + field(12, port("logits", 1, *classes))
        )
        assert "output 'logits' must be (N, 3) with N free" in told(plain(graph=graph))


def test_one_input_and_one_output_of_float32_by_their_names():
    image, answer = (
        field(11, port("images", 1, None, 1, 4, 4)),
        field(12, port("logits", 1, None, 3)),
    )
    for graph, words in {
        answer: "exactly one input, 'images', found none",
        image: "exactly one output, 'logits', found none",
        image + image + answer: "exactly one input, 'images', found 'images', 'images'",
        image + answer + answer: "exactly one output, 'logits', found 'logits', 'logits'",
        field(11, port("image", 1, None, 1, 4, 4))
        + answer: "exactly one input, 'images', found 'image'",
        field(11, port("images", 10, None, 1, 4, 4))
        + answer: "input 'images' must be float32, found ONNX type 10",
        image
        + field(
            12, port("logits", 11, None, 3)
        ): "output 'logits' must be float32, found ONNX type 11",
        field(11, field(1, b"images"))
        + answer: "input 'images' must be float32, found ONNX type None",
    }.items():
        assert words in told(plain(graph=field(7, graph)))
    weight = field(5, field(8, b"w")) + field(
        11, port("w", 1, 3)
    )  # one that is a weight is no input
    assert checked(plain(graph=field(7, image + weight + answer))).inputs == [
        Port("images", 1, (None, 1, 4, 4))
    ]


def test_one_graph_and_an_operator_set():
    for data in (plain(graph=b""), plain(opset=b""), plain(more=plain(opset=b""))):
        assert "not an ONNX model, expected one graph and its operator set" in told(data)
    assert "training information" in told(plain(more=field(20, b"")))
    assert "local functions" in told(plain(more=field(25, b"")))


def test_external_data_is_named_by_its_tensor():
    image, answer = (
        field(11, port("images", 1, None, 1, 4, 4)),
        field(12, port("logits", 1, None, 3)),
    )
    for mark in (
        field(13, b""),
        varint(14 << 3) + b"\1",
        varint(14 << 3) + b"\0" + varint(14 << 3) + b"\1",
    ):
        tensor = field(5, field(8, b"one") + field(8, b"two") + mark)
        assert "tensor 'two' has its data in another file" in told(
            plain(graph=field(7, image + tensor + answer))
        )
    inside = field(5, field(8, b"one") + varint(14 << 3) + b"\0")
    assert checked(plain(graph=field(7, image + inside + answer))).external == []
    assert "tensor '' has" in told(plain(graph=field(7, image + field(5, field(13, b"")) + answer)))


def test_numbers_have_at_most_ten_bytes_and_keys_at_most_32_bits():
    ten, eleven = b"\xff" * 9 + b"\x01", b"\x80" * 10 + b"\x01"
    assert read_graph(b"\x08" + ten) and onnx_graph._Walk(ten).varint(0, 10) == (2**64 - 1, 10)
    assert onnx_graph._Walk(b"\xff" * 9 + b"\x7f").varint(0, 10) == (
        2**64 - 1,
        10,
    )  # 70 bits, of which 64 count
    assert onnx_graph._Walk(b"\xac\x02").varint(0, 2) == (300, 2)
    for data, words in {
        b"\x08" + eleven: "a number of more than 10 bytes",
        b"\x08\x80": "truncated",
        b"\x08": "truncated",
        b"\x80": "truncated",
        varint(1 << 32): "a field number of more than 29 bits",
        varint((2 << 3) | 3): "field 2 of wire type 3",
        varint((2 << 3) | 4): "field 2 of wire type 4",
        varint((2 << 3) | 6): "field 2 of wire type 6",
        varint(0) + b"\0": "field 0 of wire type 0",
        varint(7 << 3) + b"\0": "Model.graph of wire type 0",
        field(8, varint(1 << 3) + b"\0"): "Opset.domain of wire type 0",
        field(8, field(1, b"\xff")): "a name that is not UTF-8",
    }.items():
        with pytest.raises(MalformedFile, match=f"^{words}$"):
            read_graph(data)
    assert read_graph(varint((2**29 - 1) << 3) + b"\0")  # the largest field number


def test_fields_of_every_wire_type_are_passed_over_whole():
    """8 bytes, 4 bytes, a number, a text, before and after what counts; none may end beyond the message."""
    odd = [
        varint(99 << 3 | 1) + bytes(8),
        varint(99 << 3 | 5) + bytes(4),
        varint(99 << 3) + b"\x80\x01",
        field(99, b"ab"),
    ]
    for part in odd:
        assert checked(part + plain() + part).graphs == 1
        for n in range(1, len(part)):
            assert "not a valid ONNX file (truncated)" in told(plain() + part[:n])
    inner = field(7, varint(99 << 3 | 1) + bytes(4)) + bytes(
        4
    )  # ends beyond its message, within the file
    assert "truncated" in told(inner)


def test_the_walk_is_64_messages_deep_and_not_65():
    def nested(depth):
        """A model and `depth` messages in it, one in the other: graph, node, attribute, graph, ..."""
        numbers = [7, *([1, 5, 6] * depth)][:depth]
        data = b""
        for number in reversed(numbers):
            data = field(number, data)
        return data

    assert read_graph(nested(64)).graphs == 1
    with pytest.raises(MalformedFile, match=r"^nested too deeply$"):
        read_graph(nested(65))


def test_a_million_fields_are_read_and_one_more_is_not(monkeypatch):
    assert onnx_graph.FIELD_LIMIT == 1_000_000
    monkeypatch.setattr(onnx_graph, "FIELD_LIMIT", 100)
    assert read_graph(b"\x08\x01" * 100)
    with pytest.raises(MalformedFile, match=r"^more than 100 fields$"):
        read_graph(b"\x08\x01" * 101)
    assert read_graph(field(8, b"\x10\x01" * 49) * 2)  # counted in all messages together
    with pytest.raises(MalformedFile):
        read_graph(field(8, b"\x10\x01" * 50) * 2)


def test_what_a_port_says_last_counts_and_two_types_are_none():
    def ports(value):
        return read_graph(field(7, field(11, value)) + field(8, b"")).inputs

    tensor = varint(1 << 3) + b"\1"
    shape = field(2, field(1, varint(1 << 3) + b"\2" + varint(1 << 3) + b"\3"))
    assert ports(
        field(1, b"a") + field(1, b"b") + field(2, field(1, tensor + tensor[:1] + b"\7" + shape))
    ) == [Port("b", 7, (3,))]
    assert ports(field(2, field(1, tensor) * 2)) == ports(field(2, b"")) == [Port("", None, None)]
    assert ports(field(2, field(1, tensor))) == [Port("", 1, None)]
    assert ports(field(2, field(1, tensor + shape + shape))) == [Port("", 1, None)]
    assert ports(field(2, field(1, field(2, field(1, field(2, b"N")))))) == [
        Port("", None, (None,))
    ]
