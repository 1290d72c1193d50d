"""The errors that this package raises, and the texts of messages. Each message is one line of bounded length."""

import contextlib
import re
from collections.abc import Sequence

__all__ = [
    "BundleError",
    "DeviceError",
    "ImageError",
    "InputError",
    "OrganInferError",
    "escape_bytes",
    "escape_character",
    "file_reason",
    "one_line",
    "printable",
    "short_repr",
    "shorten",
    "shorten_names",
]

# Characters of a value in a message.
VALUE_LIMIT = 120
# A lone surrogate. U+DC80 to U+DCFF stand for the bytes of a file name that are not UTF-8 (PEP 383).
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class OrganInferError(Exception):
    """Base class of every error that organ_infer raises on purpose."""

    def __str__(self) -> str:
        # Paths in a message may hold anything, but a message can always be printed, on one line.
        return printable(super().__str__())


class BundleError(OrganInferError):
    """The bundle is incomplete, altered, or in a format that this version does not read."""


class ImageError(OrganInferError):
    """A file cannot be read as a slice."""


class InputError(OrganInferError, ValueError):
    """An argument has the wrong type, shape, dtype or value, or is empty."""


class DeviceError(OrganInferError):
    """onnxruntime is missing, the device is not available, or a network gave unusable output."""


def one_line(error: BaseException | str) -> str:
    """Return the error's text on one line, or the name of its type if it has no text."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def shorten(text: str, limit: int) -> str:
    """Return the text, or its beginning and its end if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end - 5]} ... {text[-end:]}"


def shorten_names(names: Sequence[str], limit: int) -> str:
    """Return the names on one line, or the first and last ones if they have more than `limit` characters.

    Names are left out whole. A single name has at most a quarter of `limit`.
    """
    names = [shorten(name, limit // 4) for name in names]
    if len(", ".join(names)) <= limit:
        return ", ".join(names)
    first, last = 1, len(names) - 1
    while len(", ".join([*names[: first + 1], "...", names[-1]])) <= limit * 3 // 4:
        first += 1
    while len(", ".join([*names[:first], "...", *names[last - 1 :]])) <= limit:
        last -= 1
    return ", ".join([*names[:first], "...", *names[last:]])


def short_repr(value: object) -> str:
    """Return the repr of any value on one line of at most 120 characters.

    Only the beginning of long texts and lists is read. A value whose repr fails is named by its type.
    """
    # Imported here, because most programs never need it.
    import reprlib

    brief = reprlib.Repr()
    brief.maxlevel = 2
    brief.maxstring = brief.maxother = brief.maxlong = VALUE_LIMIT
    try:
        if isinstance(value, (bytes, bytearray)):
            # reprlib would take the repr of all of it.
            text = repr(value[:VALUE_LIMIT])
        else:
            text = brief.repr(value)
    except Exception:
        # For example an int with more digits than Python converts.
        text = f"a value of type {type(value).__name__}"
    # A byte of a file name looks as in every other message.
    text = re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", text)
    return shorten(printable(one_line(text)), VALUE_LIMIT)


def escape_character(character: str) -> str:
    r"""Escape one character: `\xNN` for ASCII and for a byte that is not UTF-8, else `\uNNNN` or `\UNNNNNNNN`."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape_bytes(text: str) -> str:
    """Escape the bytes of file names that are not UTF-8, so that the text can be encoded."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    # In an ASCII locale every other byte is a surrogate, also those of UTF-8.
    # UnicodeEncodeError: a surrogate that stands for no byte.
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return _SURROGATE.sub(lambda match: escape_character(match[0]), text)


def printable(text: str) -> str:
    """Escape control characters and bytes that are not UTF-8, for a terminal or one line of text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else escape_character(c) for c in escape_bytes(text))


def file_reason(error: Exception) -> str:
    """Return why a file cannot be opened or written, in the same words with every version of Python."""
    if isinstance(error, ValueError) and "null" in str(error):
        return "NUL in the name"
    return one_line(getattr(error, "strerror", None) or error)
