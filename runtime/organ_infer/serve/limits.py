"""What a service accepts. Nothing heavy is imported here, because --help shows the defaults."""

from typing import NamedTuple

__all__ = ["ServiceLimits"]


class ServiceLimits(NamedTuple):
    """What a service accepts.

    Attributes:
        request_bytes: Bytes of the body of a request.
        held_bodies: How many bodies of that size may be in memory at once, answers included. More are refused.
        files: Files per request.
        slices: Slices per request.
        pixels: Pixels per slice.
        file_bytes: Bytes per file, and of what it decompresses to.
        any_modality: Whether DICOM of other modalities than CT is read.
        queue: Requests that are decoded or classified, or wait for that.
        batch_wait: Seconds that a request waits, at most, for others that are being decoded.
        connections: Open connections.
        header_seconds: Time in which the head of a request must arrive.
        body_seconds: Time in which the body of a request must arrive, and in which a client must take a part of
            an answer.
        shutdown_seconds: Time for the requests in progress after a signal.
    """

    request_bytes: int = 64 << 20
    held_bodies: int = 8
    files: int = 256
    slices: int = 10_000
    pixels: int = 1 << 24
    file_bytes: int = 1 << 28
    any_modality: bool = False
    queue: int = 128
    batch_wait: float = 0.002
    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    shutdown_seconds: float = 8.0
