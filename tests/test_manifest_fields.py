"""Every field of a manifest: absent, of another type, out of its range, nested too deeply."""

import copy
import json

import pytest
from conftest import CLASSES

from organ_infer import BundleError
from organ_infer.bundle import Manifest


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
