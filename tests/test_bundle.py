"""Bundles: what is read, and what is refused by name before anything runs."""

import copy
import hashlib
import json
import os
from pathlib import Path

import pytest
from conftest import DEFAULT, entry, make_graph, needs_default, write_bundle

from organ_infer import BundleError
from organ_infer.bundle.files import (
    Manifest,
    list_bundle,
    open_bundle,
    packaged_bundle,
    read_manifest,
    sha256_of,
)
from organ_infer.bundle.onnx_graph import MalformedFile, read_graph


def put(bundle, change):
    """Alter a bundle's parsed manifest on disk."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return bundle


def refused(bundle, words):
    with pytest.raises(BundleError, match=words) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundle_opens_with_its_verified_bytes(bundle):
    opened = open_bundle(bundle)
    member, data = opened.graphs[0]
    assert data == (bundle / "small.onnx").read_bytes() and member.sha256 == sha256_of(
        bundle / "small.onnx"
    )
    assert opened.manifest.input.orientation == ("L", "P") and opened.manifest.input.window == (
        40.0,
        400.0,
    )
    assert (
        opened.manifest.task.organs()[1:3] == ("femur", "femur")
        and opened.manifest.task.organs()[0] == "bladder"
    )
    assert list_bundle(bundle).sha256 == sha256_of(bundle / "manifest.json")


def test_a_manifest_survives_writing_and_reading(bundle):
    manifest = read_manifest(bundle)
    assert Manifest.from_json(manifest.to_json()) == manifest
    written = json.loads(manifest.to_json())
    assert written["training"].pop("seal").startswith("sha256 of this file")
    assert written == json.loads((bundle / "manifest.json").read_text())


def test_what_would_not_be_read_is_not_written(bundle):
    import dataclasses

    manifest = read_manifest(bundle)
    with pytest.raises(BundleError, match="temperature"):
        dataclasses.replace(manifest, temperature=0.0).to_json()
    with pytest.raises(BundleError, match="JSON"):
        dataclasses.replace(manifest, metrics={"val": float("nan")}).to_json()


def test_a_bundle_with_the_keys_of_older_ones_opens(bundle_copy):
    before = open_bundle(bundle_copy)

    def older(manifest):
        manifest["licence"] = manifest.pop("license")
        manifest["merged"] = None

    put(bundle_copy, older)
    assert open_bundle(bundle_copy) == before


def test_alternatives_are_verified_too(bundle_copy):
    data = make_graph(seed=9)
    (bundle_copy / "other.onnx").write_bytes(data)
    put(bundle_copy, lambda m: m["members"][0].update(alternatives=[entry(data, "other.onnx")]))
    assert len(open_bundle(bundle_copy).graphs) == 1
    (bundle_copy / "other.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(bundle_copy, "other.onnx: sha256")


# Files.


def test_every_changed_byte_of_a_graph_is_refused(bundle_copy):
    path = bundle_copy / "small.onnx"
    data = path.read_bytes()
    for at in (0, 7, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        refused(bundle_copy, "small.onnx: sha256 .* changed or damaged")


def test_a_truncated_or_longer_graph_is_refused(bundle_copy):
    path = bundle_copy / "small.onnx"
    data = path.read_bytes()
    for other in (data[:-1], data + b"\0", b""):
        path.write_bytes(other)
        refused(bundle_copy, f"{len(other):,} bytes instead of {len(data):,}")


def test_a_changed_card_is_refused(bundle_copy):
    (bundle_copy / "MODEL_CARD.md").write_text("better")
    refused(bundle_copy, "MODEL_CARD.md: sha256")


@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "small.onnx.data"])
def test_an_extra_file_is_refused_by_name(bundle_copy, name):
    (bundle_copy / name).write_bytes(b"")
    refused(bundle_copy, f"'{name}' is not listed")


def test_an_extra_directory_is_refused_by_name(bundle_copy):
    (bundle_copy / "__pycache__").mkdir()
    refused(bundle_copy, "'__pycache__' is not listed")


@pytest.mark.parametrize("name", ["small.onnx", "MODEL_CARD.md"])
def test_a_missing_file_is_refused_by_name(bundle_copy, name):
    (bundle_copy / name).unlink()
    refused(bundle_copy, f"'{name}' is listed in manifest.json but missing")


@pytest.mark.parametrize("name", ["small.onnx", "MODEL_CARD.md", "manifest.json"])
def test_a_link_is_refused_even_to_the_right_bytes(bundle_copy, name, tmp_path):
    (bundle_copy / name).rename(tmp_path / name)
    (bundle_copy / name).symlink_to(tmp_path / name)
    refused(bundle_copy, f"{name}: must be a regular file, found a symbolic link")


@pytest.mark.parametrize("name", ["small.onnx", "manifest.json"])
def test_a_pipe_in_a_files_place_is_refused_at_once(bundle_copy, name):
    (bundle_copy / name).unlink()
    os.mkfifo(bundle_copy / name)
    refused(bundle_copy, f"{name}: must be a regular file, found a pipe")


def test_what_is_no_bundle_says_so(tmp_path):
    refused(tmp_path, "it has no manifest.json")
    refused(
        tmp_path / "none", "none: no such directory; pass a bundle, a directory with manifest.json"
    )
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "file: not a directory; pass a bundle")


# The manifest.


@pytest.mark.parametrize(
    "name",
    [
        "../small.onnx",
        "a/b.onnx",
        "a\\b.onnx",
        "..",
        ".",
        "",
        ".hidden",
        "/etc/passwd",
        "small.onnx\n",
        "manifest.json",
    ],
)
def test_a_member_path_that_is_no_plain_name_is_refused(bundle_copy, name):
    put(bundle_copy, lambda m: m["members"][0].update(file=name))
    refused(bundle_copy, r"members\[0\].file must be a plain file name")
    put(
        bundle_copy,
        lambda m: (m["members"][0].update(file="small.onnx"), m["card"].update(file=name)),
    )
    refused(bundle_copy, "card.file must be a plain file name")


def places(value, path=()):
    """Every object in the manifest whose keys are fixed, as a path into it."""
    if isinstance(value, dict):
        yield path
        for key, child in value.items():
            if key not in ("metrics", "training"):
                yield from places(child, (*path, key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from places(child, (*path, i))


def inside(manifest, path):
    for key in path:
        manifest = manifest[key]
    return manifest


def test_a_missing_or_unknown_key_is_refused_at_every_level(bundle_copy):
    path = bundle_copy / "manifest.json"
    whole = json.loads(path.read_text())
    tried = 0
    for place in places(whole):
        for key in inside(whole, place):
            changed = copy.deepcopy(whole)
            del inside(changed, place)[key]
            path.write_text(json.dumps(changed))
            assert key in refused(bundle_copy, "is missing")
            tried += 1
        changed = copy.deepcopy(whole)
        inside(changed, place)["color"] = 1
        path.write_text(json.dumps(changed))
        assert "valid keys are" in refused(bundle_copy, "unknown key '.*color'")
    assert tried > 25


WRONG = [
    ("format", True), ("format", "1"), ("format", 0), ("format", None),
    ("name", ""), ("name", 3), ("name", "a\nb"), ("name", "x" * 201),
    ("task.view", "oblique"), ("task.dataset", None), ("task.classes", []), ("task.classes", "abc"),
    ("task.classes.0", 1), ("task.classes.0", "femur-left"), ("task.classes.0", "two words"),
    ("task.paired", {}), ("task.paired.0", ["femur-left"]), ("task.paired.0", ["femur-left", "gall-right"]),
    ("task.paired.0", ["kidney-left", "kidney-right"]), ("task.paired.0", ["heart", "liver"]),
    ("task.paired.0", ["femur-left", "femur-left"]),
    ("input.size", 28.0), ("input.size", True), ("input.size", 0), ("input.size", 10**6), ("input.size", -28),
    ("input.mean", "0.5"), ("input.mean", 2), ("input.std", 0), ("input.std", -1), ("input.resample", "bilinear"), ("input.resample", None), ("input.resample", "Linear"), ("input.resample", ["area"]),
    ("input.window", [40]), ("input.window", [40, 0]), ("input.window", ["40", 400]), ("input.window", {}),
    ("input.orientation", ["L", "R"]), ("input.orientation", ["L"]), ("input.orientation", "LP"),
    ("input.orientation", ["l", "p"]), ("input.orientation", ["L", "X"]),
    ("members", []), ("members", {}), ("members.0", None), ("members.0.stage", ""), ("members.0.sha256", "0" * 63),
    ("members.0.sha256", "A" * 64), ("members.0.bytes", "5"), ("members.0.bytes", 0), ("members.0.bytes", 2**31),
    ("members.0.bytes", True), ("members.0.precision", "fp8"), ("members.0.output", "classes"),
    ("members.0.val_accuracy", 1.5), ("members.0.val_accuracy", True), ("members.0.alternatives", None),
    ("combine", "vote"), ("temperature", 0), ("temperature", "1"), ("temperature", 1000),
    ("metrics", []), ("training", None), ("card", "MODEL_CARD.md"), ("license", ""),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda v: json.dumps(v)[:30])
def test_a_value_of_the_wrong_type_or_range_is_refused_by_its_key(bundle_copy, key, value):
    *way, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    put(bundle_copy, lambda m: inside(m, way).__setitem__(last, value))
    said = refused(bundle_copy, "must be")
    assert key.split(".")[-1 if not key[-1].isdigit() else -2] in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "the manifest must be an object"),
        (b'{"format": 1, "format": 1}', "duplicate key 'format'"),
        (b'{"format": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"format": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (
            b" " * ((1 << 20) + 1),
            r"too large \(1,048,577 bytes, at most 1,048,576\); copy or export",
        ),
    ],
)
def test_a_manifest_that_is_no_json_is_refused(bundle_copy, text, words):
    (bundle_copy / "manifest.json").write_bytes(text)
    refused(bundle_copy, words)


def test_infinity_by_overflow_is_refused(bundle_copy):
    path = bundle_copy / "manifest.json"
    path.write_text(
        path.read_text().replace('"val": {"accuracy": 0.5}', '"val": {"accuracy": [1e999]}')
    )
    refused(bundle_copy, r"metrics.val.accuracy\[0\] must be a finite number")
    put(bundle_copy, lambda m: m.update(temperature=float("inf")))
    refused(bundle_copy, "Infinity is not a JSON number")


def test_a_later_format_names_who_reads_it(bundle_copy):
    put(bundle_copy, lambda m: m.update(format=2, surprise=True))
    refused(bundle_copy, "bundle format 2, but this organ-infer reads format 1; upgrade it")


def test_a_file_listed_twice_is_refused(bundle_copy):
    put(bundle_copy, lambda m: m["members"].append(m["members"][0] | {"file": "SMALL.onnx"}))
    refused(bundle_copy, "listed twice")
    put(bundle_copy, lambda m: (m["members"].pop(), m["card"].update(file="small.onnx")))
    refused(bundle_copy, "listed twice")


def test_orientation_and_window_may_be_unknown(bundle_copy):
    put(bundle_copy, lambda m: m["input"].update(orientation=None, window=None))
    taken = open_bundle(bundle_copy).manifest.input
    assert taken.orientation is None and taken.window is None


# Graphs.


def one(tmp_path, **how):
    return write_bundle(tmp_path / "b", {"g.onnx": make_graph(**how)})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"classes": 10}, r"output 'logits' must be \(N, 11\).* found \(N, 10\)"),
        ({"shape": ["N", None]}, r"found \(N, N\)"),
        ({"shape": ["N", "C"]}, r"found \(N, N\)"),
        ({"shape": [1, 11]}, r"with N free.* found \(1, 11\)"),
        ({"size": 35}, r"input 'images' must be \(N, 1, 28, 28\).* found \(N, 1, 35, 35\)"),
        ({"output": "probabilities"}, "exactly one output, 'logits', found 'probabilities'"),
    ],
)
def test_a_graph_that_does_not_fit_the_manifest_is_refused(tmp_path, how, words):
    if "shape" in how:
        how["change"] = lambda model: None
    refused(one(tmp_path, **how), words)


def external_weight(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../../secret")


def external_without_a_flag(model):
    model.graph.initializer[1].external_data.add(key="location", value="w.bin")


def external_in_attribute(model):
    import numpy as np
    from onnx import helper, numpy_helper

    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "hidden")
    tensor.data_location = 1
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def subgraph(node_change):
    """An If whose branch holds what `node_change` does to a node."""
    from onnx import TensorProto, helper

    inner = helper.make_node(
        "Constant", [], ["x"], value=helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    )
    node_change(inner)
    branch = helper.make_graph(
        [inner], "branch", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    )
    return helper.make_node("If", ["bias"], ["y"], then_branch=branch, else_branch=branch)


def external_in_subgraph(model):
    model.graph.node.append(
        subgraph(lambda node: node.attribute[0].t.external_data.add(key="location", value="w"))
    )


def external_in_a_list_of_graphs(model):
    from onnx import AttributeProto

    node = subgraph(lambda node: node.attribute[0].t.external_data.add(key="location", value="w"))
    graph = node.attribute[0].g
    del node.attribute[:]
    node.attribute.add(name="branches", type=AttributeProto.GRAPHS).graphs.append(graph)
    model.graph.node.append(node)


def external_in_a_list_of_tensors(model):
    from onnx import AttributeProto

    tensors = model.graph.node[0].attribute.add(name="extra", type=AttributeProto.TENSORS).tensors
    tensors.add().external_data.add(key="location", value="w")


def external_sparse(model):
    model.graph.sparse_initializer.add().values.external_data.add(key="location", value="w")


def function_with(change):
    from onnx import helper

    node = helper.make_node("Constant", [], ["x"], value_float=0.0)
    change(node)
    return helper.make_function("", "F", [], ["x"], [node], [helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    "change",
    [
        external_weight,
        external_without_a_flag,
        external_in_attribute,
        external_in_subgraph,
        external_sparse,
        external_in_a_list_of_graphs,
        external_in_a_list_of_tensors,
    ],
)
def test_external_data_is_refused_wherever_it_hides(tmp_path, change):
    refused(one(tmp_path, change=change), "external data")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.opset_import.add(domain="my.ops", version=1),
        lambda m: setattr(m.graph.node[0], "domain", "my.ops"),
        lambda m: m.graph.node.append(subgraph(lambda node: setattr(node, "domain", "my.ops"))),
        lambda m: m.functions.append(function_with(lambda node: setattr(node, "domain", "my.ops"))),
    ],
    ids=["opset", "node", "subgraph", "function"],
)
def test_custom_operators_are_refused_wherever_they_hide(tmp_path, change):
    refused(one(tmp_path, change=change), "operators of the domain 'my.ops' are not supported")


def test_training_information_and_functions_are_refused(tmp_path):
    refused(
        one(tmp_path, change=lambda m: m.training_info.add()),
        "training information or local functions",
    )
    change = lambda m: m.functions.append(function_with(lambda node: None))  # noqa: E731
    refused(write_bundle(tmp_path / "f", {"g.onnx": make_graph(change=change)}), "local functions")


def test_a_half_precision_input_is_refused(tmp_path):
    def change(model):
        model.graph.input[0].type.tensor_type.elem_type = 10

    refused(one(tmp_path, change=change), "input 'images' must be float32, found ONNX type 10")


@pytest.mark.parametrize(
    "data", [b"no model", b"\x08\x09", b"\x3a\x80\x80\x80\x80\x10", b"\xff" * 20, b"ORTM" * 9]
)
def test_a_file_that_is_no_onnx_is_refused(tmp_path, data):
    refused(write_bundle(tmp_path / "b", {"g.onnx": data}), "not (a valid ONNX file|an ONNX model)")


def test_the_walk_of_a_damaged_file_ends_in_one_kind_of_error():
    data = make_graph()[:400] + make_graph()[-300:]
    for cut in range(0, len(data), 3):
        for piece in (data[:cut], data[:cut] + bytes([data[cut] ^ 0x15]) + data[cut + 1 :]):
            try:
                read_graph(piece)
            except MalformedFile as e:
                assert str(e)


def test_deep_nesting_is_refused():
    """Attribute in node in graph in attribute ... five hundred times."""
    data = b""
    for _ in range(500):
        for number in (6, 5, 1):  # Attribute.g, Node.attribute, Graph.node
            length, head = len(data), bytearray([number << 3 | 2])
            while length >= 0x80:
                head.append(length & 0x7F | 0x80)
                length >>= 7
            data = bytes(head) + bytes([length]) + data
    length, head = len(data), bytearray([7 << 3 | 2])
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    with pytest.raises(MalformedFile, match="nested too deeply"):
        read_graph(bytes(head) + bytes([length]) + data)


@needs_default
def test_the_packaged_bundle_is_whole_axial_and_small():
    opened = open_bundle(packaged_bundle())
    assert opened.manifest.task.view == "axial" and opened.manifest.input.orientation == ("L", "P")
    assert sum(path.stat().st_size for path in DEFAULT.parent.iterdir()) <= 8 << 20
    assert list_bundle(packaged_bundle()).sha256 == hashlib.sha256(DEFAULT.read_bytes()).hexdigest()


# What is listed, and what changes after it was.


def test_a_listed_bundle_names_its_files_manifest_first(bundle):
    assert list_bundle(bundle).files() == [
        bundle / name for name in ("manifest.json", "small.onnx", "MODEL_CARD.md")
    ]


def test_a_link_is_refused_before_anything_is_read(bundle_copy, tmp_path):
    os.replace(bundle_copy / "small.onnx", tmp_path / "elsewhere.onnx")
    (bundle_copy / "small.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(
        BundleError, match=r"small\.onnx: must be a regular file, found a symbolic link"
    ):
        list_bundle(bundle_copy)


def test_a_directory_that_cannot_be_listed_is_named(bundle, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BundleError) as told:
        list_bundle(bundle)
    assert str(told.value) == f"{bundle}: cannot be listed (Permission denied)"


def test_a_graph_that_is_cut_after_it_was_listed_is_told_by_its_size(bundle_copy):
    listed = list_bundle(bundle_copy)
    size = (bundle_copy / "small.onnx").stat().st_size
    os.truncate(bundle_copy / "small.onnx", size - 1)
    with pytest.raises(
        BundleError, match=rf"small\.onnx: {size - 1:,} bytes instead of {size:,}, truncated"
    ):
        listed.verified()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_that_takes_a_file_s_place_is_not_read(bundle_copy, monkeypatch):
    """Between the look at it and its opening."""
    listed, regular = list_bundle(bundle_copy), os.stat(bundle_copy / "manifest.json")
    (bundle_copy / "MODEL_CARD.md").unlink()
    os.mkfifo(bundle_copy / "MODEL_CARD.md")
    monkeypatch.setattr(os, "lstat", lambda path: regular)
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md: must be a regular file, found a pipe"):
        listed.verified()


def test_a_card_of_a_byte_too_much_is_refused_though_it_is_the_listed_one(tmp_path):
    card = b"#" * ((1 << 20) + 1)

    def change(manifest):
        manifest["card"]["sha256"] = hashlib.sha256(card).hexdigest()

    folder = write_bundle(tmp_path / "large", {"small.onnx": make_graph()}, change=change)
    (folder / "MODEL_CARD.md").write_bytes(card)
    with pytest.raises(
        BundleError, match=r"MODEL_CARD\.md: too large \(1,048,577 bytes, at most 1,048,576\)"
    ):
        open_bundle(folder)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")
def test_files_are_closed(bundle):
    before = os.listdir("/proc/self/fd")
    open_bundle(bundle)
    assert os.listdir("/proc/self/fd") == before
