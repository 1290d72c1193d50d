"""JSON objects as dataclasses: what is read, what is refused and how it is named, what is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from train.errors import RunError
from train.json_format import OPTIONAL, from_json, to_json


@dataclass(frozen=True)
class Inner:
    share: float


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    inner: Inner | None = None
    flags: list[bool] = field(default_factory=list)
    by_name: dict[str, list[Inner]] = field(default_factory=dict)
    anything: object = None
    note: str | None = field(default="", metadata=OPTIONAL)
    extras: list[int] = field(default_factory=list, metadata=OPTIONAL)


def test_an_object_is_read_with_its_parts():
    content = {
        "name": "a",
        "count": 3,
        "inner": {"share": 0.5},
        "flags": [True, False],
        "note": None,
    }
    content |= {"by_name": {"b": [{"share": 1}]}, "anything": {"c": [None]}, "extras": [4]}
    assert from_json(Outer, content, "file") == Outer(
        name="a",
        count=3,
        inner=Inner(0.5),
        flags=[True, False],
        by_name={"b": [Inner(1)]},
        anything={"c": [None]},
        note=None,
        extras=[4],
    )
    assert from_json(Outer, {"name": "a", "count": 3}, "file") == Outer("a", 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": 1}, "file: unknown key 'x'; read it with the version of this program that wrote it"),
        ({"inner": {"share": 1, "y": 2}}, "file: inner: unknown key 'y'; read it with the version"),
        (
            {"inner": {}},
            "file: inner: no key 'share'; the file is incomplete or of another version",
        ),
        ({"inner": []}, "file: inner: expected an object, found []"),
        ({"name": None}, "file: name: expected a text, found None"),
        ({"name": 1}, "file: name: expected a text, found 1"),
        ({"count": 1.0}, "file: count: expected an integer, found 1.0"),
        ({"count": True}, "file: count: expected an integer, found True"),
        ({"flags": {}}, "file: flags: expected a list, found {}"),
        ({"flags": [True, 1]}, "file: flags[1]: expected true or false, found 1"),
        ({"by_name": []}, "file: by_name: expected an object, found []"),
        (
            {"by_name": {"b": [{"share": "1"}]}},
            "file: by_name.b[0]: share: expected a finite number, found '1'",
        ),
        (
            {"inner": {"share": float("nan")}},
            "file: inner: share: expected a finite number, found nan",
        ),
        ({"inner": {"share": True}}, "file: inner: share: expected a finite number, found True"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(changed, message):
    with pytest.raises(RunError) as raised:
        from_json(Outer, {"name": "a", "count": 3} | changed, "file")
    assert str(raised.value).startswith(message) and raised.value.exit_code == 2


@pytest.mark.parametrize("content", [None, [], "text", 1])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(RunError, match=r"^file: expected an object, found "):
        from_json(Outer, content, "file")


@pytest.mark.parametrize(("length", "shown"), [(58, "x" * 58 + "'"), (59, "x" * 56 + "...")])
def test_long_values_are_shortened_to_60_characters(length, shown):
    with pytest.raises(RunError) as raised:
        from_json(Outer, {"name": "a", "count": "x" * length}, "file")
    text = str(raised.value).removeprefix("file: count: expected an integer, found ")
    text = text.removesuffix("; restore the file or move it away")
    assert text == f"'{shown}" and len(text) == 60


def test_an_object_is_written_in_the_order_of_its_fields_without_optional_defaults():
    written = to_json(Outer("a", 3, by_name={"b": [Inner(1), Inner(0.25)]}))
    assert json.dumps(written) == (
        '{"name": "a", "count": 3, "inner": null, "flags": [], "by_name": {"b": [{"share": 1}, {"share": 0.25}]}, '
        '"anything": null}'
    )
    assert to_json([Outer("a", 3, note=None, extras=[5])])[0]["note"] is None
    assert to_json(Outer("a", 3, extras=[5]))["extras"] == [5]


@pytest.mark.parametrize("value", [0, -3, 1e300, 0.1])
def test_numbers_are_written_as_they_were_read(value):
    text = json.dumps({"share": value})
    assert json.dumps(to_json(from_json(Inner, json.loads(text), "file"))) == text
