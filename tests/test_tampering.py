"""Bundles that were altered, by accident or on purpose: refused by name before onnxruntime sees a byte of them."""

import copy
import json
import os
import shutil

import numpy as np
import pytest
from conftest import CLASSES, write_bundle
from stand_in import CPU

from organ_infer import BundleError, OrganClassifier
from organ_infer.bundle import Manifest, list_bundle, open_bundle, read_manifest
from organ_infer.onnx_file import _MESSAGES, check_graph

FILES = ("manifest.json", "MODEL_CARD.md", "tiny.onnx")


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sealed bundle of some 3,000 bytes. Read only."""
    return seal(write_bundle(tmp_path_factory.mktemp("whole") / "b", {"tiny.onnx": tiny_graph()}))


@pytest.fixture
def tiny(whole, tmp_path):
    """A copy of it to be altered."""
    return shutil.copytree(whole, tmp_path / "tiny")


def refusal(bundle):
    """The one line that `bundle` is refused with, or None."""
    try:
        open_bundle(bundle)
    except BundleError as e:
        assert "\n" not in str(e) and len(str(e)) < 400 + len(str(bundle)), e
        return str(e)
    return None


# Bytes.


def altered(data):
    """Every bit turned, every end cut off, every byte left out or put in twice."""
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        yield data[:at]
        yield data[:at] + data[at + 1 :]
        yield data[:at] + data[at : at + 1] + data[at:]


def test_a_manifest_altered_in_any_bit_is_refused(whole):
    data = (whole / "manifest.json").read_bytes()
    tried = 0
    for other in altered(data):
        if other == data:
            continue
        with pytest.raises(BundleError) as caught:
            Manifest.from_json(other)
        assert "\n" not in str(caught.value)
        tried += 1
    assert tried > 10 * len(data)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_refused_by_its_name(tiny, name):
    path = tiny / name
    data = path.read_bytes()
    assert refusal(tiny) is None
    every = list(altered(data))  # of which a spread; tests/endurance/tamper.py takes them all
    for other in every[:: 1 + len(every) // 500]:
        if other != data:
            path.write_bytes(other)
            assert name in (refusal(tiny) or ""), other
    path.write_bytes(data)
    assert refusal(tiny) is None


def test_a_seal_says_what_was_changed_and_a_damaged_one_is_no_missing_one(tiny):
    path = tiny / "manifest.json"
    text = path.read_text()
    for other in (
        text.replace('"mean": 0.5', '"mean": 0.4'),
        text.replace('"seal"', '"seam"'),
        text.replace("sha256 of this file", "sha256 of that file"),
        text.replace('"seed": 0', '"seal2": "sha256 of this file with zeros here: "'),
        text + " ",
    ):
        assert other != text
        path.write_text(other)
        assert (
            "manifest.json: changed since it was written, its sha256 is not the one in training.seal"
            in refusal(tiny)
        )


def test_a_bundle_without_a_seal_opens_and_the_seal_is_not_part_of_training(bundle, tiny):
    assert "seal" not in (bundle / "manifest.json").read_text() and open_bundle(bundle)
    assert dict(read_manifest(tiny).training) == {"seed": 0}
    path = tiny / "manifest.json"
    sealed = path.read_text()
    assert seal(tiny) and path.read_text() == sealed  # sealing again changes nothing


@pytest.mark.parametrize("name", ["second.onnx", "third.onnx", "MODEL_CARD.md", "manifest.json"])
def test_nothing_is_run_before_the_last_file_is_verified(install, ensemble, tmp_path, name):
    """Of three networks not even the first is opened."""
    ort = install(available=(CPU,))
    OrganClassifier(ensemble, device="cpu").close()
    assert len(ort.opened) == 3
    ort.opened.clear()
    folder = seal(shutil.copytree(ensemble, tmp_path / "b"))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=name):
        OrganClassifier(folder, device="cpu")
    assert ort.opened == []


# Files.


@pytest.mark.parametrize("name", FILES)
def test_each_file_missing_or_something_else_is_refused(tiny, name, tmp_path):
    path = tiny / name
    data = path.read_bytes()
    path.unlink()
    assert name in refusal(tiny)
    others = {
        "a directory": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a symbolic link": lambda: path.symlink_to(tmp_path / "elsewhere"),
        "a special file": lambda: os.mknod(path, 0o140644) if os.name == "posix" else None,  # a socket
    }
    (tmp_path / "elsewhere").write_bytes(data)
    for found, make in others.items():
        make()
        assert refusal(tiny).endswith(f"{name}: must be a regular file, found {found}")
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(data)
    assert refusal(tiny) is None


@pytest.mark.parametrize(
    "name",
    ["x", ".x", "tiny.onnx~", "tiny.onnx.data", "TINY.ONNX", "manifest.json.bak", "\n", "\udcff", "a" * 255],
)
def test_any_other_file_is_refused_by_name(tiny, name):
    (tiny / name).write_bytes(b"")
    assert f"{name!r} is not listed in manifest.json" in refusal(tiny)


# Every field of the manifest.


def full():
    """A manifest in which nothing is null and no list is empty."""
    member = {
        "stage": "s", "file": "s.onnx", "sha256": "0" * 64, "bytes": 5, "precision": "fp32",
        "output": "logits", "val_accuracy": 0.5, "alternatives": [],
    }  # fmt: skip
    form = member | {"file": "s.fp16.onnx", "precision": "fp16"}
    return {
        "format": 1,
        "name": "n",
        "task": {"dataset": "d", "view": "axial", "classes": CLASSES, "paired": [["femur-left", "femur-right"]]},
        "input": {
            "size": 28, "mean": 0.5, "std": 0.5, "resample": "area", "window": [40, 400], "orientation": ["L", "P"],
        },
        "members": [member | {"alternatives": [form]}],
        "merged": member | {"file": "m.onnx", "output": "probabilities"},
        "combine": "mean_probability",
        "temperature": 1.0,
        "metrics": {},
        "training": {},
        "card": {"file": "CARD.md", "sha256": "0" * 64},
        "licence": "l",
    }  # fmt: skip


def places(value, path=()):
    """Every place in the manifest: objects, lists and what they hold."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in parts:
        yield from places(child, (*path, key))


PLACES = [place for place in places(full()) if place]
HUGE = 10**400
VALUES = {
    "null": [None],
    "bool": [True, False],
    "int": [0, 1, -1, 2, 28, 1000, 10**6, 2**31, 2**63, HUGE, -HUGE],
    "float": [0.0, 0.5, -0.5, 1.5, 1e-300, 1e300, -1e300, float("inf"), float("-inf"), float("nan")],
    "text": [
        "",
        " ",
        "x",
        "1",
        "axial",
        "x" * 300,
        "a\nb",
        "\x1b[31m",
        "a\0b",
        "../x",
        "a/b",
        "é",
        "\u202e",
        "\ud800",
    ],
    "list": [[], [None], [1], ["x"], [[]], [{}], [1, 2], ["L", "R"], [1] * 2000],
    "object": [{}, {"a": 1}],
}

NUMBERS = {
    "format": lambda v: v == 1 and isinstance(v, int),
    "size": lambda v: isinstance(v, int) and 4 <= v <= 1024,
    "mean": lambda v: 0 <= v <= 1,
    "std": lambda v: 1e-3 <= v <= 100,
    "bytes": lambda v: isinstance(v, int) and 1 <= v < 2**31,
    "val_accuracy": lambda v: 0 <= v <= 1,
    "temperature": lambda v: 0.01 <= v <= 100,
    "window0": lambda v: -32768 <= v <= 32767,
    "window1": lambda v: 1 <= v <= 65535,
}


def allowed(place, value):
    """Whether the contract (C3) lets this value stand there."""
    name = [part for part in place if not isinstance(part, int)][-1]
    if isinstance(place[-1], int):
        name += str(place[-1])
    if value is None:
        return name in ("merged", "window", "orientation", "val_accuracy")
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return name in NUMBERS and value == value and NUMBERS[name](value)
    if isinstance(value, str):
        if name == "file":
            return value in ("x", "1", "axial")
        if name == "view":
            return value == "axial"
        limit = 200 if name in ("name", "dataset", "licence") else 60
        unpaired = {f"classes{i}" for i in range(11)} - {"classes1", "classes2"}  # not a side of the femur
        free = limit == 200 or name == "stage" or name in unpaired
        return free and bool(value.strip()) and value.isprintable() and len(value) <= limit
    if isinstance(value, list):
        return (name in ("alternatives", "paired") and not value) or (name == "window" and value == [1, 2])
    return name in ("metrics", "training")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_every_field_takes_what_the_contract_says_and_nothing_else(place):
    whole = full()
    *way, last = place
    tried = 0
    for value in (value for values in VALUES.values() for value in values):
        changed = copy.deepcopy(whole)
        inside = changed
        for key in way:
            inside = inside[key]
        inside[last] = value
        text = json.dumps(changed)
        try:
            Manifest.from_json(text)
        except BundleError as e:
            assert not allowed(place, value), f"{value!r} is refused: {e}"
            assert "\n" not in str(e) and "\x1b" not in str(e) and len(str(e)) < 400
        else:
            assert allowed(place, value), f"{value!r} is taken"
        tried += 1
    assert tried > 40


def test_every_key_absent_or_unknown_is_refused():
    whole = full()
    assert Manifest.from_json(json.dumps(whole))
    for place in [(), *PLACES]:
        inside = whole
        for key in place:
            inside = inside[key]
        if not isinstance(inside, dict) or place in [("metrics",), ("training",)]:
            continue
        for key in list(inside):
            value = inside.pop(key)
            with pytest.raises(BundleError, match=rf"key '{'.*' + key if place else key}' is missing"):
                Manifest.from_json(json.dumps(whole))
            inside[key] = value
            inside[key.upper()] = value
            with pytest.raises(BundleError, match="unknown key"):
                Manifest.from_json(json.dumps(whole))
            del inside[key.upper()]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_any_depth_of_nesting_is_an_error_of_ours(opening):
    """Near Python's own limit a value could be read and not be written into the error."""
    text = json.dumps(full())
    for depth in (1, 30, 31, 33, 500, *range(940, 1010), 20_000, 150_000):
        value = opening * depth + "1" + {"[": "]", "{": "}"}[opening[0]] * depth
        with pytest.raises(BundleError) as caught:
            Manifest.from_json(text.replace("1.0", value, 1))  # temperature
        assert len(str(caught.value)) < 300
        if depth <= 30:
            assert Manifest.from_json(text.replace('"metrics": {}', f'"metrics": {{"m": {value}}}'))
        elif depth > 32:
            with pytest.raises(BundleError, match=r"nested (at most 32|too)|are read"):
                Manifest.from_json(text.replace('"metrics": {}', f'"metrics": {{"m": {value}}}'))


def test_a_line_of_error_stays_one_line_whatever_stands_in_the_manifest():
    text = json.dumps(full())
    long = "9" * 4000
    for old, new in [
        ('"metrics": {}', '"metrics": {"a\\nb\\u001b[31m": 1e999}'),
        ('"metrics": {}', f'"metrics": {{"{long}": 1e999}}'),
        ('"format": 1', f'"format": {long}'),
        ('"name"', f'"{long}"'),
        ('"name"', '"na\\nme"'),
        ('"name": "n"', f'"{long}": 1, "{long}": 2'),
        ('"temperature": 1.0', f'"temperature": {long}{long}'),
    ]:
        assert old in text
        with pytest.raises(BundleError) as caught:
            Manifest.from_json(text.replace(old, new))
        said = str(caught.value)
        assert said.isprintable() and len(said) < 500, said


# Graphs that reach outside, or bring code.


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


def test_a_listing_that_changes_meanwhile_is_an_error_of_ours(tiny):
    listed = list_bundle(tiny)
    (tiny / "tiny.onnx").unlink()
    with pytest.raises(BundleError, match=r"tiny\.onnx: cannot be read \(No such file"):
        listed.verified()
