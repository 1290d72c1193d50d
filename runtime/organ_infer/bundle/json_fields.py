"""Values of parsed JSON, checked one by one: type and range, and what to say where they are wrong."""

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
DEPTH_LIMIT = 32  # of objects and lists whose keys are free


def parse_json(text: str | bytes, where: str) -> Any:
    """JSON as the standard has it: UTF-8, no NaN, no key twice. Raises BundleError."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else clipped(str(e), 120)
        raise BundleError(f"{where}: not valid JSON ({reason}): export the bundle again") from e


def clipped(text: str, most: int = 60) -> str:
    """For an error's line: control characters escaped, no longer than `most`."""
    text = printable(text)
    return text if len(text) <= most else text[: most - 3] + "..."


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


T = TypeVar("T")


class FieldReader:
    """Turns parsed JSON into the dataclasses; every refusal names the file, the key, what was expected and found."""

    def __init__(self, where: str) -> None:
        self.where = where

    def refuse(self, key: str, expected: str, found: Any) -> BundleError:
        try:
            shown = json.dumps(found, ensure_ascii=True, default=str)
        except RecursionError:  # what was just read may be too deep to be written from here
            shown = "what is nested too deeply"
        return BundleError(
            f"{self.where}: {key} must be {expected}, found {clipped(shown)}: export the bundle again"
        )

    # Plain values: `key` is the dotted place in the manifest.

    def text(self, value: Any, key: str, *, limit: int = 200) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > limit or not value.isprintable():
            raise self.refuse(key, f"a printable text of 1 to {limit} characters", value)
        return value

    def one_of(self, value: Any, key: str, allowed: Sequence[str]) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(key, "one of " + ", ".join(allowed), value)
        return value

    def integer(self, value: Any, key: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"a whole number from {low:,} to {high:,}", value)
        return value

    def number(self, value: Any, key: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.refuse(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def sequence(self, value: Any, key: str, low: int, high: int, what: str) -> list[Any]:
        if not isinstance(value, list) or not low <= len(value) <= high:
            count = f"{low}" if low == high else f"{low} to {high}"
            raise self.refuse(key, f"a list of {count} {what}", value)
        return value

    def file_name(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not FILE_NAME.fullmatch(value) or value == MANIFEST_FILE:
            raise self.refuse(
                key, "a plain file name in the bundle's directory (letters, digits, _ . + -)", value
            )
        return value

    def sha256(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not SHA256.fullmatch(value):
            raise self.refuse(key, "64 lower-case hexadecimal digits", value)
        return value

    def open_object(self, value: Any, key: str) -> dict[str, Any]:
        """A JSON object with free keys, not too deep to be copied; numbers must be finite (1e999 reads as infinity)."""
        if not isinstance(value, dict):
            raise self.refuse(key, "an object", value)
        waiting: list[tuple[str, Any, int]] = [(key, value, 1)]
        while waiting:
            place, item, depth = waiting.pop()
            if isinstance(item, float) and not math.isfinite(item):
                raise self.refuse(place, "a finite number", str(item))
            if depth > DEPTH_LIMIT:
                raise self.refuse(key, f"nested at most {DEPTH_LIMIT} deep", item)
            if isinstance(item, dict):
                waiting.extend((f"{place}.{clipped(n)}", child, depth + 1) for n, child in item.items())
            elif isinstance(item, list):
                waiting.extend((f"{place}[{i}]", child, depth + 1) for i, child in enumerate(item))
        return value

    def optional(self, value: Any, key: str, read: Callable[[Any, str], T]) -> T | None:
        return None if value is None else read(value, key)
