"""The errors that this package raises. Each message is one line."""

__all__ = [
    "BundleError",
    "DeviceError",
    "ImageError",
    "InputError",
    "OrganInferError",
    "file_reason",
    "one_line",
    "printable",
]


class OrganInferError(Exception):
    """Base class of every error that organ_infer raises on purpose."""


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


def printable(text: str) -> str:
    """Escape control characters, for a terminal or one line of text.

    Undecodable bytes of a file name (surrogates from `os.fsdecode`) are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
        for c in text
    )


def file_reason(error: Exception) -> str:
    """Return why a file cannot be opened or written, in the same words with every version of Python."""
    if isinstance(error, ValueError) and "null" in str(error):
        return "NUL in the name"
    return one_line(getattr(error, "strerror", None) or error)
