"""Every field of a manifest: absent, of another type, out of its range, nested too deeply."""

import copy
import hashlib
import json
import math

import pytest
from conftest import CLASSES

from organ_infer import BundleError
from organ_infer.bundle.files import Card, Fast, Input, Manifest, Member, Plausibility, Task
from organ_infer.bundle.json_fields import FieldReader, clipped, parse_json


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
        "combine": "mean_probability",
        "temperature": 1.0,
        "metrics": {},
        "training": {},
        "card": {"file": "CARD.md", "sha256": "0" * 64},
        "license": "l",
    }  # fmt: skip


def averaging():
    """A manifest of two members with every optional field."""
    whole = full()
    plausibility = {"output": "orientation", "threshold": 0.5}
    second = whole["members"][0] | {"stage": "x", "file": "x.onnx", "alternatives": []}
    return whole | {
        "members": [*whole["members"], second],
        "plausibility": plausibility,
        "fast": {
            "stage": "s",
            "temperature": 0.5,
            "plausibility": dict(plausibility),
            "metrics": {"golden": {}},
        },
    }


def places(value, path=()):
    """Every place in the manifest: objects, lists and what they hold."""
    yield path
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in parts:
        yield from places(child, (*path, key))


PLACES = [place for place in places(full()) if place]
FAST_PLACES = [place for place in places(averaging()) if place[:1] == ("fast",)]
HUGE = 10**400
VALUES = {
    "null": [None],
    "bool": [True, False],
    "int": [0, 1, -1, 2, 28, 1000, 10**6, 2**31, 2**63, HUGE, -HUGE],
    "float": [
        0.0,
        0.5,
        -0.5,
        1.5,
        1e-300,
        1e300,
        -1e300,
        float("inf"),
        float("-inf"),
        float("nan"),
    ],
    "text": [
        "",
        " ",
        "x",
        "1",
        "axial",
        "unknown",
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
    "threshold": lambda v: 0 <= v <= 1,
    "window0": lambda v: -32768 <= v <= 32767,
    "window1": lambda v: 1 <= v <= 65535,
}


def allowed(place, value):
    """Whether docs/reference/bundle_format.md allows this value at this place."""
    name = [part for part in place if not isinstance(part, int)][-1]
    if isinstance(place[-1], int):
        name += str(place[-1])
    if value is None:
        return name in ("window", "orientation", "val_accuracy")
    if isinstance(value, bool):
        return False
    if isinstance(value, (int, float)):
        return name in NUMBERS and value == value and NUMBERS[name](value)
    if isinstance(value, str):
        if name == "file":
            return value in ("x", "1", "axial", "unknown")
        if name == "view":
            return value in ("axial", "unknown")
        limit = 200 if name in ("name", "dataset", "license") else 60
        unpaired = {f"classes{i}" for i in range(11)} - {
            "classes1",
            "classes2",
        }  # not a side of the femur
        free = limit == 200 or name == "stage" or name in unpaired
        return free and bool(value.strip()) and value.isprintable() and len(value) <= limit
    if isinstance(value, list):
        return (name in ("alternatives", "paired") and not value) or (
            name == "window" and value == [1, 2]
        )
    return name in ("metrics", "training")


def allowed_in_fast(place, value):
    """Whether docs/reference/bundle_format.md allows this value at this place of `fast`."""
    if place == ("fast",):
        return value is None
    if place[-1] == "stage":
        return value == "x"
    if place[-1] in ("plausibility", "output"):
        return False
    if place[-1] == "golden":
        return not isinstance(value, float) or math.isfinite(value)
    return allowed(place, value)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_every_field_takes_what_the_contract_says_and_nothing_else(place):
    check_field(full(), place, allowed)


@pytest.mark.parametrize("place", FAST_PLACES, ids=lambda place: ".".join(map(str, place)))
def test_every_field_of_the_fast_member_takes_what_the_contract_says(place):
    check_field(averaging(), place, allowed_in_fast)


def check_field(whole, place, allowed):
    """Try every value at this place of the manifest."""
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
            with pytest.raises(
                BundleError, match=rf"key '{'.*' + key if place else key}' is missing"
            ):
                Manifest.from_json(json.dumps(whole))
            inside[key] = value
            inside[key.upper()] = value
            with pytest.raises(BundleError, match="unknown key"):
                Manifest.from_json(json.dumps(whole))
            del inside[key.upper()]


def fast_error(**changes):
    """The error for a manifest with these changes to `averaging`; those of `fast` are merged into it."""
    whole = averaging()
    whole["fast"].update(changes.pop("fast", {}))
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(whole | changes))
    assert str(caught.value).startswith("manifest.json: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_of_the_fast_member_absent_or_unknown_is_refused():
    for key in averaging()["fast"]:
        whole = averaging()
        del whole["fast"][key]
        with pytest.raises(BundleError, match=rf"key 'fast\.{key}' is missing"):
            Manifest.from_json(json.dumps(whole))
    assert "unknown key 'fast.more'" in fast_error(fast={"more": 1})


def test_the_fast_member_is_exactly_one_of_several():
    members = averaging()["members"]
    expected = "fast.stage must be the stage of exactly one member: s, x, found"
    assert f'{expected} "edge"' in fast_error(fast={"stage": "edge"})
    twins = [member | {"stage": "s"} for member in members]
    assert "fast.stage must be the stage of exactly one member: s, s, found" in fast_error(
        members=twins
    )
    assert "fast must be left out of a bundle of one network" in fast_error(members=members[:1])


def test_the_fast_member_has_a_threshold_if_the_bundle_has_one_and_only_then():
    expected = "fast.plausibility must be an object like plausibility, found null"
    assert expected in fast_error(fast={"plausibility": None})
    assert "fast.plausibility must be null without plausibility" in fast_error(plausibility=None)
    whole = averaging() | {"plausibility": None}
    whole["fast"]["plausibility"] = None
    assert Manifest.from_json(json.dumps(whole)).fast.plausibility is None


def test_the_fast_member_is_written_as_it_is_read_and_left_out_if_there_is_none():
    manifest = Manifest.from_json(json.dumps(averaging()))
    assert manifest.fast == Fast("s", 0.5, Plausibility("orientation", 0.5), {"golden": {}})
    assert Manifest.from_json(manifest.to_json()) == manifest
    plain = Manifest.from_json(json.dumps(full()))
    assert plain.fast is None and "fast" not in json.loads(plain.to_json())


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
            with pytest.raises(BundleError, match=r"nested (at most 32|too)|too large"):
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


# Both sides of every bound.


def read(change=None, text=None):
    whole = copy.deepcopy(full())
    if change:
        change(whole)
    return Manifest.from_json(json.dumps(whole) if text is None else text)


def test_every_value_stands_in_its_field():
    found = read()
    first, half = (
        Member(stage="s", file=file, sha256="0" * 64, bytes=5, precision=precision, output="logits", val_accuracy=0.5)
        for file, precision in [("s.onnx", "fp32"), ("s.fp16.onnx", "fp16")]
    )  # fmt: skip
    first = Member(**{**vars(first), "alternatives": (half,)})
    assert found == Manifest(
        name="n",
        task=Task("d", "axial", tuple(CLASSES), (("femur-left", "femur-right"),)),
        input=Input(
            size=28,
            mean=0.5,
            std=0.5,
            resample="area",
            window=(40.0, 400.0),
            orientation=("L", "P"),
        ),
        members=(first,),
        card=Card("CARD.md", "0" * 64),
        license="l",
        combine="mean_probability",
        temperature=1.0,
        metrics={},
        training={},
        format=1,
    )
    assert list(found.graphs()) == [first, half]
    assert found.files() == ("s.onnx", "s.fp16.onnx", "CARD.md")
    assert found.licence == found.license
    assert Manifest.from_json(found.to_json()) == found
    assert list(json.loads(found.to_json())) == [
        *(
            "format",
            "name",
            "task",
            "input",
            "members",
            "combine",
            "temperature",
            "metrics",
            "training",
        ),
        *("card", "license"),
    ]


SMALL = 1e-9
# field: its least and most, and a step beyond them (docs/reference/bundle_format.md)
BOUNDS = {
    "input.size": (4, 1024, 1),
    "input.mean": (0, 1, SMALL),
    "input.std": (0.001, 100, SMALL),
    "input.window.0": (-32768, 32767, SMALL * 1e5),
    "input.window.1": (1, 65535, SMALL * 1e5),
    "temperature": (0.01, 100, SMALL),
    "members.0.bytes": (1, 2**31 - 1, 1),
    "members.0.val_accuracy": (0, 1, SMALL),
    "members.0.alternatives.0.bytes": (1, 2**31 - 1, 1),
}


def put(whole, place, value):
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for part in way:
        whole = whole[part]
    whole[last] = value


def taken(place, value):
    try:
        read(lambda whole: put(whole, place, value))
    except BundleError as e:
        assert "\n" not in str(e)
        return False
    return True


@pytest.mark.parametrize("place", BOUNDS)
def test_a_number_is_taken_from_its_least_to_its_most(place):
    least, most, step = BOUNDS[place]
    assert [taken(place, value) for value in (least, least + step, most - step, most)] == [True] * 4
    assert not taken(place, least - step) and not taken(place, most + step)


def many_classes(count):
    return [f"c{i}" for i in range(count)]


def with_classes(count):
    def change(whole):
        whole["task"] |= {"classes": many_classes(count), "paired": []}

    return change


def with_members(count):
    def change(whole):
        whole["members"] = [
            whole["members"][0] | {"file": f"{i}.onnx", "alternatives": []} for i in range(count)
        ]

    return change


def with_alternatives(count):
    def change(whole):
        form = whole["members"][0]["alternatives"][0]
        whole["members"][0]["alternatives"] = [form | {"file": f"{i}.onnx"} for i in range(count)]

    return change


def with_pairs(count):
    def change(whole):
        names = [[f"o{i}-left", f"o{i}-right"] for i in range(count)]
        whole["task"] |= {
            "classes": [*(side for pair in names for side in pair), "x", "y"],
            "paired": names,
        }

    return change


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        (with_classes, 2, 1000),
        (with_members, 1, 64),
        (with_alternatives, 0, 16),
        (with_pairs, 0, 499),
    ],
)
def test_a_list_has_from_its_least_to_its_most_entries(change, least, most):
    for count in {least, most}:
        read(change(count))
    for count in {max(least - 1, 0), most + 1} - {least}:
        with pytest.raises(BundleError, match="must be a list of"):
            read(change(count))


def test_an_alternative_has_none_itself():
    def change(whole):
        form = whole["members"][0]["alternatives"][0]
        form["alternatives"] = [form | {"file": "deeper.onnx"}]

    with pytest.raises(
        BundleError,
        match=r"members\[0\]\.alternatives\[0\]\.alternatives must be a list of 0 entries",
    ):
        read(change)


@pytest.mark.parametrize(
    ("place", "most"),
    [
        ("name", 200),
        ("license", 200),
        ("task.dataset", 200),
        ("members.0.stage", 60),
        ("task.classes.0", 60),
    ],
)
def test_a_text_has_from_1_to_its_most_characters(place, most):
    assert taken(place, "x") and taken(place, "x" * most) and taken(place, "é" * most)
    assert not taken(place, "") and not taken(place, "x" * (most + 1)) and not taken(place, " ")


def test_a_file_s_name_has_from_1_to_200_plain_characters():
    for place in ("members.0.file", "card.file"):
        assert taken(place, "x" * 200) and taken(place, "_") and taken(place, "a.B+c-9_")
        for name in (
            "x" * 201,
            ".x",
            "-x",
            "+x",
            "a b",
            "a/b",
            "a\\b",
            "é",
            "manifest.json",
            "..",
            "x\n",
        ):
            assert not taken(place, name), name
    with pytest.raises(BundleError, match=r"file 's\.onnx' is listed twice"):
        read(lambda whole: put(whole, "card.file", "S.ONNX"))  # one file where case does not count


def test_a_class_has_no_space_and_no_comma():
    assert not any(
        taken("task.classes.0", name) for name in ("a b", "a,b", "a\u2003b", "femur-left")
    )


def test_a_pair_is_one_organ_s_two_sides_and_the_organ_no_class():
    classes = [
        "a-left",
        "a-right",
        "b-left",
        "b-right",
        "left",
        "right",
        "-left",
        "-right",
        "a-b-left",
        "a-b-right",
    ]

    def paired(*pairs, also=()):
        def change(whole):
            whole["task"] |= {
                "classes": [*classes, *also],
                "paired": [list(pair) for pair in pairs],
            }

        try:
            return read(change).task
        except BundleError:
            return None

    assert paired(
        ("a-left", "a-right"), ("b-right", "b-left"), ("a-b-left", "a-b-right")
    ).organs() == (*("a", "a", "b", "b", "left", "right", "-left", "-right", "a-b", "a-b"),)
    wrong = [
        [("a-left", "b-right")], [("a-left", "a-left")], [("left", "right")], [("-left", "-right")],
        [("a-left", "none")], [("a-left", "a-right"), ("a-right", "a-left")], [("a-left",)],
        [("a-left", "a-right", "b-left")],
    ]  # fmt: skip
    assert [paired(*pairs) for pairs in wrong] == [None] * len(wrong)
    assert paired(("a-left", "a-right"), also=["a"]) is None and paired(
        ("b-left", "b-right"), also=["a"]
    )


def test_pairs_have_underscores_or_name_their_organ():
    def task(classes, *pairs):
        def change(whole):
            whole["task"] |= {"classes": classes, "paired": [list(pair) for pair in pairs]}

        return read(change).task

    names = ["a_left", "a_right", "lk", "rk", "b-left", "b-right", "c"]
    pairs = (("a_right", "a_left"), ("lk", "rk", "kidney"), ("b-left", "b-right"))
    found = task(names, *pairs)
    assert found.paired == pairs
    assert found.organs() == ("a", "a", "kidney", "kidney", "b", "b", "c")
    # the third name comes before what the others show
    assert task(names, ("b-left", "b-right", "hip")).organs()[4:] == ("hip", "hip", "c")
    wrong = [
        ("lk", "rk"), ("lk", "rk", "c"), ("lk", "rk", "two words"), ("lk", "lk", "k"), ("lk", "rk", ""),
        ("lk", "rk", 1), ("lk", "none", "k"), ("lk", "rk", "k", "more"), ("a_left", "b-right"),
    ]  # fmt: skip
    for pair in wrong:
        with pytest.raises(BundleError, match=r"task\.paired"):
            task(names, pair)
    with pytest.raises(BundleError, match="pairs that share no class"):
        task(names, ("lk", "rk", "k"), ("rk", "c", "m"))


def test_directions_are_at_right_angles():
    pairs = [(a, b) for a in "LRAPHF" for b in "LRAPHF"]
    same = {"LR", "RL", "AP", "PA", "HF", "FH", "LL", "RR", "AA", "PP", "HH", "FF"}
    for a, b in pairs:
        assert taken("input.orientation", [a, b]) == (a + b not in same), a + b
    assert not taken("input.orientation", ["L"]) and not taken("input.orientation", ["L", "P", "H"])
    assert not taken("input.orientation", ["l", "p"]) and not taken("input.window", [40])


def test_a_member_gives_logits_or_probabilities():
    assert taken("members.0.output", "logits") and taken("members.0.output", "probabilities")
    assert not taken("members.0.output", "scores")


def test_a_manifest_with_the_keys_of_older_bundles_is_read():
    """Older bundles have `licence` for `license`, and `merged`, which is always null."""

    def older(whole):
        whole["licence"] = whole.pop("license")
        whole["merged"] = None

    assert read(older) == read()
    assert read(lambda whole: whole.update(merged=None)) == read()
    assert {"licence", "merged"}.isdisjoint(json.loads(read(older).to_json()))
    with pytest.raises(BundleError, match="license must be a printable string"):
        read(lambda whole: whole.update(licence=whole.pop("license") and " "))


def test_both_spellings_of_a_key_and_a_merged_graph_are_unknown_keys():
    with pytest.raises(BundleError, match=r"unknown key 'licence'; valid keys are .*license"):
        read(lambda whole: whole.update(licence="l"))
    with pytest.raises(BundleError, match="unknown key 'merged'"):
        read(lambda whole: whole.update(merged=whole["members"][0] | {"file": "m.onnx"}))
    with pytest.raises(BundleError, match="key 'license' is missing"):
        read(lambda whole: whole.pop("license"))


def test_the_graph_for_a_device_is_the_member_in_the_device_s_precision():
    """CUDA gains from fp16 and not from int8: fp16, else fp32, else int8. The CPU runs what is listed."""

    def variants(device, *precisions):
        def change(whole):
            first, *others = precisions
            member = whole["members"][0] | {"precision": first, "file": f"{first}.onnx"}
            member["alternatives"] = [
                member | {"precision": other, "file": f"{other}.onnx", "alternatives": []}
                for other in others
            ]
            whole["members"] = [member]

        return [entry.file for entry in read(change).variants(device)]

    assert variants("cpu", "int8", "fp16", "fp32") == ["int8.onnx"]
    assert variants("cuda", "int8", "fp32", "fp16") == ["fp16.onnx"]
    assert variants("cuda", "int8", "fp32") == ["fp32.onnx"] and variants("cuda", "int8") == [
        "int8.onnx"
    ]
    assert variants("cuda", "fp16", "fp32") == ["fp16.onnx"]
    assert variants("cuda", "fp32", "int8") == ["fp32.onnx"]


def test_a_manifest_is_read_up_to_a_mebibyte():
    text = json.dumps(full())
    assert read(text=text + " " * ((1 << 20) - len(text)))
    with pytest.raises(
        BundleError, match=r"manifest.json: too large \(1,048,577 bytes, at most 1,048,576\)"
    ):
        read(text=text + " " * ((1 << 20) + 1 - len(text)))


@pytest.mark.parametrize("value", [0, -1, 2, 10**30, True, 1.0, "1", None, [1]])
def test_format_1_alone_is_read(value):
    later = isinstance(value, int) and not isinstance(value, bool) and value > 1
    words = (
        rf"bundle format {value}, but this organ-infer reads format 1; upgrade it"
        if later
        else "format must be the number 1"
    )
    with pytest.raises(BundleError, match=words):
        read(
            lambda whole: whole.update(format=value, unknown=1)
        )  # before what a later format may hold besides


def test_open_objects_are_32_deep_and_finite():
    def nested(depth, leaf=1):
        value = leaf
        for i in range(depth):
            value = {"a": value} if i % 2 else [value]
        return {"x": value}

    for name in ("metrics", "training"):
        assert taken(name, nested(30)) and not taken(name, nested(32))
        for leaf in (math.nan, math.inf):
            with pytest.raises(BundleError):
                read(lambda whole, name=name, leaf=leaf: put(whole, name, {"a": [{"b": leaf}]}))
        with pytest.raises(BundleError, match=rf"{name}\.a\[1\]\.b must be a finite number"):
            Manifest.from_json(
                json.dumps(full()).replace(
                    f'"{name}": {{}}', f'"{name}": {{"a": [0, {{"b": 1e999}}]}}'
                )
            )


# The seal.


def sealed(**training):
    """The text of a manifest with its own checksum."""
    return read(lambda whole: whole.update(training=training)).to_json()


def test_the_seal_is_the_checksum_of_the_text_with_zeros_in_its_place():
    text = sealed(seed=3)
    seal = json.loads(text)["training"]["seal"]
    digest = seal.removeprefix("sha256 of this file with zeros here: ")
    assert digest == hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest()
    assert (
        Manifest.from_json(text).training
        == Manifest.from_json(text.encode()).training
        == {"seed": 3}
    )


def test_a_manifest_that_was_changed_since_it_was_sealed_is_refused():
    text = sealed(seed=3)
    digest = json.loads(text)["training"]["seal"][-64:]
    other = "1" + digest[1:] if digest[0] != "1" else "2" + digest[1:]
    for changed in (
        text.replace('"name": "n"', '"name": "m"'),
        text + " ",
        text.replace('"seed": 3', '"seed": 4'),
        text.replace(digest, other),
        text.replace(digest, digest[:-1]),
        text.replace(digest, digest.upper()) if digest.upper() != digest else text + " ",
        text.replace('"seal"', '"seat"'),  # the key
        text.replace("with zeros here", "with noughts here"),  # the value
        text.replace('"seed": 3', '"also": "sha256 of this file with zeros here: "'),
    ):
        assert changed != text
        with pytest.raises(
            BundleError,
            match=r"changed since it was written, its sha256 differs from training\.seal",
        ):
            Manifest.from_json(changed)
    whole = json.loads(text)
    del whole["training"]["seal"]
    assert Manifest.from_json(json.dumps(whole)).training == {
        "seed": 3
    }  # taken out, if the change is meant
    assert Manifest.from_json(json.dumps(full())).training == {}


def test_what_is_no_json_is_not_written():
    for value in (math.nan, {1, 2}, 1e999):
        with pytest.raises(BundleError, match="every value must be plain, finite JSON"):
            Manifest(**{**vars(read()), "metrics": {"a": value}}).to_json()
    with pytest.raises(BundleError, match=r"temperature must be a number from 0\.01 to 100"):
        Manifest(**{**vars(read()), "temperature": 0.0}).to_json()


# Values one by one.


def test_json_is_read_as_the_standard_has_it():
    assert parse_json('{"a": [1, 2.5, null, true, "\\u00e9"]}', "w") == {
        "a": [1, 2.5, None, True, "é"]
    }
    assert parse_json("é".join('""').encode(), "w") == "é"
    for text, words in {
        '{"a": 1, "b": 2, "a": 3}': "duplicate key 'a'",
        "NaN": "NaN is not a JSON number",
        "[-Infinity]": "-Infinity is not a JSON number",
        b"\xff": "codec can't decode",
        "{": "Expecting property name",
        "[" * 100_000: "nested too deeply",
    }.items():
        with pytest.raises(BundleError, match=rf"^w: not valid JSON \(.*{words}") as told:
            parse_json(text, "w")
        assert str(told.value).endswith("); export the bundle again")


def test_a_long_text_is_clipped_to_its_most():
    assert clipped("x" * 60) == "x" * 60 and clipped("x" * 61) == "x" * 57 + "..."
    assert clipped("\n" * 15, 60) == "\\x0a" * 15
    assert clipped("\n" * 16) == ("\\x0a" * 16)[:57] + "..."
    assert clipped("abcdef", 5) == "ab..."
    with pytest.raises(BundleError) as told:
        parse_json(f'{{"{"k" * 300}": 1, "{"k" * 300}": 1}}', "w")
    assert len(str(told.value)) == len("w: not valid JSON (); export the bundle again") + 120


def test_whole_numbers_are_ints_and_numbers_become_floats():
    reader = FieldReader("w")
    assert reader.integer(3, "k", 3, 3) == 3 and type(reader.number(3, "k", 3, 3)) is float
    for call, words in {
        lambda: reader.integer(
            3.0, "k", 1, 5000
        ): "k must be a whole number from 1 to 5,000, found 3.0",
        lambda: reader.integer(True, "k", 0, 1): "found true",
        lambda: reader.number(False, "k", 0, 1.5): "k must be a number from 0 to 1.5, found false",
        lambda: reader.number("1", "k", 0, 1): 'found "1"',
        lambda: reader.sequence(
            [1], "k", 2, 2, "parts"
        ): r"k must be a list of 2 parts, found \[1\]",
        lambda: reader.sequence((1, 2), "k", 1, 2, "parts"): "k must be a list of 1 to 2 parts",
        lambda: reader.one_of("c", "k", ["a", "b"]): "k must be one of a, b",
        lambda: reader.one_of(["a"], "k", ["a", "b"]): "k must be one of a, b",
        lambda: reader.sha256("A" * 64, "k"): "k must be 64 lower-case hexadecimal digits",
        lambda: reader.sha256("a" * 65, "k"): "k must be 64",
        lambda: reader.sha256(None, "k"): "k must be 64",
    }.items():
        with pytest.raises(BundleError, match=f"^w: .*{words}"):
            call()
    assert reader.sha256("0123456789abcdef" * 4, "k") and reader.sequence(
        [1, 2], "k", 2, 2, "x"
    ) == [1, 2]
    assert reader.optional(None, "k", reader.sha256) is None
