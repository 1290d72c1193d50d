"""Converts JSON objects to dataclasses and back. Unknown keys, missing keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from train.errors import RunError

T = TypeVar("T")

# metadata of a field that is not written while it has its default
OPTIONAL = types.MappingProxyType({"left_out_by_default": True})

_EXPECTED = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}


def from_json(kind: type[T], value: object, where: str) -> T:
    """Convert a parsed JSON object to a dataclass.

    Args:
        kind: a dataclass. Its fields may hold int, float, str, bool, other dataclasses, lists, dicts with text
            keys, `X | None`, and `object` for what is not checked.
        value: the parsed JSON.
        where: the file and the position in it, with which error messages begin.

    Returns:
        An instance of `kind`. Missing keys take the field's default.

    Raises:
        RunError: an unknown key, a missing key without a default, or a value of another type.
    """
    if not isinstance(value, dict):
        raise _wrong_type(where, "an object", value)
    annotations = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [key for key in value if key not in fields]:
        raise RunError(
            f"{where}: unknown key {unknown[0]!r}; read it with the version of this program that wrote it"
        )
    required = [name for name, field in fields.items() if _default(field) is dataclasses.MISSING]
    if missing := [name for name in required if name not in value]:
        raise RunError(
            f"{where}: no key {missing[0]!r}; the file is incomplete or of another version"
        )
    return kind(
        **{
            key: _converted(annotations[key], item, f"{where}: {key}")
            for key, item in value.items()
        }
    )


def to_json(value: object) -> Any:
    """Convert dataclasses, and lists and dicts of them, to what `json` writes, keys in the order of the fields."""
    if dataclasses.is_dataclass(value):
        items = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            field.name: to_json(item)
            for field, item in items.items()
            if not (field.metadata.get("left_out_by_default") and item == _default(field))
        }
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field; MISSING if the field is required."""
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def _converted(annotation: Any, value: object, where: str) -> Any:
    """Convert a value to the type of an annotation. Numbers are not converted, so that they are written unchanged."""
    if annotation is object:
        return value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        (annotation,) = (argument for argument in arguments if argument is not types.NoneType)
        return _converted(annotation, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong_type(where, "a list", value)
        return [_converted(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong_type(where, "an object", value)
        return {
            key: _converted(arguments[1], item, f"{where}.{key}") for key, item in value.items()
        }
    if dataclasses.is_dataclass(annotation):
        return from_json(typing.cast(type, annotation), value, where)
    if not _has_type(value, annotation):
        raise _wrong_type(where, _EXPECTED[annotation], value)
    return value


def _has_type(value: object, expected: type) -> bool:
    if expected is float:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    return isinstance(value, expected) and isinstance(value, bool) == (expected is bool)


def _wrong_type(where: str, expected: str, value: object) -> RunError:
    text = repr(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return RunError(
        f"{where}: expected {expected}, found {shown}; restore the file or move it away"
    )
