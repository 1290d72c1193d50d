"""The names of files as text: one escaping for every output, and the way back (docs/reference/results_format.md)."""

import os
import re
import sys
from typing import Any

from .errors import InputError, escape_character, printable, short_repr

__all__ = ["escape_path", "path_text", "unescape_path"]

# What follows the backslash of an escape.
_CODE = r"x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:10|0[0-9a-f])[0-9a-f]{4}"
# What is escaped: lone surrogates, and a backslash that would look like the beginning of an escape.
_ESCAPED = re.compile(rf"[\ud800-\udfff]|\\(?={_CODE})")
_ESCAPE = re.compile(rf"\\({_CODE})")


def escape_path(path: str | bytes | os.PathLike[str], *, one_line: bool = False) -> str:
    r"""Return a path as text that every program can read, the same in every output of this package.

    A byte that is not UTF-8 becomes `\xNN`. A surrogate that stands for no byte becomes `\uNNNN`. A
    backslash becomes `\x5c` if the text after it would make it look like an escape. Everything else stays.
    Different paths give different texts, and `unescape_path` is the way back.

    Args:
        path: A path as given to `predict_paths`, or `path` of a result.
        one_line: Also escape control characters and line breaks, as text output and messages do.

    Returns:
        Text without surrogates.
    """
    name = _ESCAPED.sub(lambda match: escape_character(match[0]), _as_utf8(os.fsdecode(path)))
    return printable(name) if one_line else name


def unescape_path(text: str) -> str:
    """Return the path of an escaped path, to open the file.

    Args:
        text: A path in the output of the command or of Ray, or from `escape_path`.

    Returns:
        The path, with bytes that are not UTF-8 as in `os.fsdecode`.
    """
    name = _ESCAPE.sub(_unescape, text)
    if _is_utf8():
        return name
    try:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return name


def path_text(value: Any, where: str) -> str:
    """Return a path as str.

    Raises:
        InputError: If it is none. `where` is its name in the message.
    """
    try:
        return os.fsdecode(value)
    except TypeError as e:
        raise InputError(
            f"{where}: expected a path (str, bytes or os.PathLike), found {short_repr(value)};"
            " remove missing values, and pass every path by itself"
        ) from e


def _unescape(match: re.Match[str]) -> str:
    code = int(match[1][1:], 16)
    return chr(code + 0xDC00 if match[1][0] == "x" and code >= 0x80 else code)


def _as_utf8(path: str) -> str:
    """Return the path as it is decoded in a UTF-8 locale. The output does not depend on the locale."""
    if _is_utf8():
        return path
    try:
        return os.fsencode(path).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return path


def _is_utf8() -> bool:
    return sys.getfilesystemencoding().lower() in ("utf-8", "utf8")
