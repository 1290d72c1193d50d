"""The errors this package raises; each carries one line: what was expected, what was found, where, what to do."""

__all__ = [
    "BundleError",
    "DeviceError",
    "ImageError",
    "InputError",
    "OrganInferError",
    "one_line",
    "printable",
]


class OrganInferError(Exception):
    """Base of every error that organ_infer raises on purpose."""


class BundleError(OrganInferError):
    """A bundle that is incomplete, altered, or of a form this version does not read."""


class ImageError(OrganInferError):
    """A file that cannot be read as a slice."""


class InputError(OrganInferError, ValueError):
    """An argument that cannot be classified: wrong type, rank, dtype, or nothing at all."""


class DeviceError(OrganInferError):
    """onnxruntime is missing, a device was not granted, or a network gave no usable answer."""


def one_line(error: BaseException | str) -> str:
    """The error's text on one line, its type's name where it has no text."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def printable(text: str) -> str:
    """For a terminal or a line of text: control characters escaped, odd bytes of a file name kept."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
        for c in text
    )
