"""Bodies of requests: they are read within limits, and their files are taken out."""

import asyncio
import re
from collections.abc import AsyncIterator
from types import TracebackType

from ..errors import shorten
from .errors import RequestError
from .limits import ServiceLimits

__all__ = ["BodyMemory", "Reservation", "files_of", "read_body"]

# (name, content)
File = tuple[str, bytes]

# The name of an image that is the whole body.
DEFAULT_NAME = "upload"
# Characters of a name, and bytes of the headers of a part.
NAME_LIMIT = 1000
PART_HEADER_LIMIT = 8192
BOUNDARY_LIMIT = 256
# A parameter of a header: its name, and its value with or without quotes.
_PARAMETER = re.compile(r';[ \t]*([^\s;="]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s;"]*)')


class BodyMemory:
    """Counts the bytes of all bodies and answers in memory.

    Attributes:
        bytes: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0

    def reserve(self) -> "Reservation":
        """Return the share of one request, which is released when its context ends."""
        return Reservation(self)

    def fits(self, count: int) -> bool:
        """Whether `count` more bytes fit."""
        return self.bytes + count <= self._limit


class Reservation:
    """The bytes of one body or answer."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._bytes = 0

    def add(self, count: int) -> None:
        """Add `count` bytes.

        Raises:
            RequestError: The bodies and answers in memory are too large together.
        """
        if not self._memory.fits(count):
            raise RequestError("too many large requests at once; send it again later", 503)
        self._memory.bytes += count
        self._bytes += count

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._memory.bytes -= self._bytes
        self._bytes = 0


async def read_body(
    chunks: AsyncIterator[bytes],
    content_length: str | None,
    limits: ServiceLimits,
    reservation: Reservation,
) -> bytes:
    """Return the body of a request. No more than the limit is stored, and a larger one is not read to its end.

    Raises:
        RequestError: It is too large, too slow or empty, or other requests need the memory.
    """
    too_large = RequestError(
        f"the body has more than {limits.request_bytes:,} bytes; send less per request, or raise --request-limit",
        413,
    )
    # A length has any number of digits, and Python converts at most 4,300.
    digits = (content_length or "").strip()
    if digits.isdecimal() and (len(digits) > 18 or int(digits) > limits.request_bytes):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in chunks:
                if len(body) + len(chunk) > limits.request_bytes:
                    raise too_large
                reservation.add(len(chunk))
                body += chunk
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive in {limits.body_seconds:g} s; send less per request, or raise --body-timeout",
            408,
        ) from None
    if not body:
        raise RequestError("the body is empty; send an image, or a form with files", 400)
    return bytes(body)


def files_of(body: bytes, content_type: str, name: str | None, limits: ServiceLimits) -> list[File]:
    """Return the files of a body: those of a multipart form, or else the body itself.

    The content decides the format of a file. Content types do not matter.

    Args:
        body: The body.
        content_type: The header of the request, or an empty text.
        name: The name of the body if it is an image, or None.
        limits: What is accepted.

    Raises:
        RequestError: The form is damaged, or has fields that are no files, or too many files.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not kind.startswith("multipart/"):
        return [(shorten(name or DEFAULT_NAME, NAME_LIMIT), body)]
    if kind != "multipart/form-data":
        raise RequestError(
            "only multipart/form-data is read; send a form with files, or one image as the body",
            415,
        )
    boundary = _parameters(content_type).get("boundary", "").encode("latin-1", "replace")
    if not 0 < len(boundary) <= BOUNDARY_LIMIT:
        raise RequestError("the form has no boundary; let the client set Content-Type itself", 400)
    return [_file(part) for part in _parts(body, boundary, limits)]


def _parts(body: bytes, boundary: bytes, limits: ServiceLimits) -> list[bytes]:
    """Return the parts of a form, each with its headers, from the end of its boundary's line."""
    delimiter = b"\r\n--" + boundary
    # The first boundary may be the first line. One split more than there may be files, and the end.
    pieces = (b"\r\n" + body).split(delimiter, limits.files + 1)
    if len(pieces) < 2:
        raise RequestError("the form does not have its boundary; check Content-Type", 400)
    if not pieces[-1].startswith(b"--"):
        if len(pieces) == limits.files + 2:
            raise RequestError(
                f"more than {limits.files:,} files; send fewer per request, or raise --files-per-request",
                413,
            )
        raise RequestError("the form ends before its last boundary; send all of it", 400)
    parts = pieces[1:-1]
    if not parts:
        raise RequestError("the form is empty; send at least one file", 400)
    return parts


def _file(part: bytes) -> File:
    """Return the name and the content of a part.

    Raises:
        RequestError: The part is damaged, or a field that is no file.
    """
    padding, newline, rest = part.partition(b"\r\n")
    head, blank_line, content = (newline + rest).partition(b"\r\n\r\n")
    if padding.strip(b" \t") or not blank_line or len(head) > PART_HEADER_LIMIT:
        raise RequestError("a part of the form is damaged; send it again", 400)
    parameters = _parameters(_disposition(head))
    name = parameters.get("filename")
    if name is None:
        field = shorten(parameters.get("name", ""), 100)
        raise RequestError(
            f"the field {field!r} is not a file; send files alone, each with a file name", 400
        )
    return shorten(name or DEFAULT_NAME, NAME_LIMIT), content


def _disposition(head: bytes) -> str:
    """Return the header Content-Disposition of a part. Names are UTF-8, whatever else is sent."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return value.decode("utf-8", "surrogateescape")
    return ""


def _parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header, without quotes. `filename*` is none (RFC 7578, section 4.2)."""
    parameters = {}
    for name, value in _PARAMETER.findall(header):
        if value.startswith('"'):
            value = re.sub(r'\\(["\\])', r"\1", value[1:-1])
        parameters[name.lower()] = value
    return parameters
