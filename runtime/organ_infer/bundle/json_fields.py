"""Checks of single values in parsed JSON: type, range, and the error message if one of them is wrong."""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..errors import BundleError, printable

__all__ = ["MANIFEST_FILE", "FieldReader", "clipped", "parse_json"]

MANIFEST_FILE = "manifest.json"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
SHA256 = re.compile(r"[0-9a-f]{64}")
# Nested objects and lists below a key whose content is free.
DEPTH_LIMIT = 32


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON strictly: UTF-8, no NaN or infinity, no duplicate keys.

    Args:
        text: The JSON text.
        where: The name of the file in errors.

    Returns:
        The parsed value.

    Raises:
        BundleError: The text is not strict JSON.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else clipped(str(e), 120)
        raise BundleError(f"{where}: not valid JSON ({reason}); export the bundle again") from e


def clipped(text: str, limit: int = 60) -> str:
    """Shorten text for an error message to at most `limit` characters, and escape control characters."""
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


T = TypeVar("T")


class FieldReader:
    """Reads values of parsed JSON.

    Each method takes a `value` and its `key`, the dotted path to it such as `members[0].bytes`. It returns the value,
    or raises a BundleError that names the file, the key, what was expected and what was found.
    """

    def __init__(self, where: str) -> None:
        """`where`: the name of the file in errors."""
        self.where = where

    def refuse(self, key: str, expected: str, value: Any) -> BundleError:
        """Return the error for a `value` that is not as `expected`."""
        try:
            shown = json.dumps(value, ensure_ascii=True, default=str)
        except RecursionError:
            # A parsed value may be nested too deeply to be written.
            shown = "a value nested too deeply"
        return BundleError(
            f"{self.where}: {key} must be {expected}, found {clipped(shown)}; export the bundle again"
        )

    # Plain values.

    def text(self, value: Any, key: str, *, limit: int = 200) -> str:
        """A printable string that is not blank, of at most `limit` characters."""
        if (
            not isinstance(value, str)
            or not value.strip()
            or len(value) > limit
            or not value.isprintable()
        ):
            raise self.refuse(key, f"a printable string of 1 to {limit} characters", value)
        return value

    def one_of(self, value: Any, key: str, allowed: Sequence[str]) -> str:
        """One of the `allowed` strings."""
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(key, "one of " + ", ".join(allowed), value)
        return value

    def integer(self, value: Any, key: str, low: int, high: int) -> int:
        """An int from `low` to `high`, both included; not a bool or a float."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"a whole number from {low:,} to {high:,}", value)
        return value

    def number(self, value: Any, key: str, low: float, high: float) -> float:
        """A number from `low` to `high`, both included, as a float; not a bool."""
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low <= value <= high
        ):
            raise self.refuse(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def sequence(self, value: Any, key: str, low: int, high: int, what: str) -> list[Any]:
        """A list of `low` to `high` entries; `what` names them in the error."""
        if not isinstance(value, list) or not low <= len(value) <= high:
            count = f"{low}" if low == high else f"{low} to {high}"
            raise self.refuse(key, f"a list of {count} {what}", value)
        return value

    def file_name(self, value: Any, key: str) -> str:
        """A file name without a directory, other than manifest.json."""
        if not isinstance(value, str) or not FILE_NAME.fullmatch(value) or value == MANIFEST_FILE:
            raise self.refuse(
                key, "a plain file name in the bundle's directory (letters, digits, _ . + -)", value
            )
        return value

    def sha256(self, value: Any, key: str) -> str:
        """A SHA-256 in hexadecimal."""
        if not isinstance(value, str) or not SHA256.fullmatch(value):
            raise self.refuse(key, "64 lower-case hexadecimal digits", value)
        return value

    def open_object(self, value: Any, key: str) -> dict[str, Any]:
        """An object with free keys and finite numbers, not nested too deeply to be copied."""
        if not isinstance(value, dict):
            raise self.refuse(key, "an object", value)
        pending: list[tuple[str, Any, int]] = [(key, value, 1)]
        while pending:
            path, item, depth = pending.pop()
            # 1e999 is valid JSON and is parsed as infinity.
            if isinstance(item, float) and not math.isfinite(item):
                raise self.refuse(path, "a finite number", str(item))
            if depth > DEPTH_LIMIT:
                raise self.refuse(key, f"nested at most {DEPTH_LIMIT} levels deep", item)
            if isinstance(item, dict):
                pending.extend(
                    (f"{path}.{clipped(n)}", child, depth + 1) for n, child in item.items()
                )
            elif isinstance(item, list):
                pending.extend((f"{path}[{i}]", child, depth + 1) for i, child in enumerate(item))
        return value

    def optional(self, value: Any, key: str, read: Callable[[Any, str], T]) -> T | None:
        """None for null, otherwise what `read(value, key)` returns."""
        return None if value is None else read(value, key)
