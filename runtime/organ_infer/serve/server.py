"""Runs an application with uvicorn: the socket, the signals, and the graceful shutdown."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from ..errors import OrganInferError, file_reason, printable
from .limits import ServiceLimits
from .metrics import Metrics
from .protocol import protocol_class

__all__ = ["address_of", "open_socket", "serve"]

# Bytes of the head of a request.
HEAD_LIMIT = 32 << 10
# File descriptors that are kept for everything but connections.
SPARE_DESCRIPTORS = 64
# Loggers of what this service reports itself.
_OTHER_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: A name or an address.
        port: The port, or 0 for a free one.

    Raises:
        OrganInferError: The address cannot be used.
    """
    try:
        families = {each[0] for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        # localhost has both. Clients that try one only try this one.
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        # :: is all addresses, those of IPv4 too
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listening = socket.create_server(
            (host, port), family=family, backlog=1024, dualstack_ipv6=both
        )
        # asyncio sets TCP_NODELAY only if the socket names its protocol. Without it, an answer waits up to 40 ms for the
        # client's acknowledgment of its head.
        return socket.socket(family, proto=socket.IPPROTO_TCP, fileno=listening.detach())
    except (OSError, UnicodeError) as e:
        # Python adds the address to the text of the system. Errors of names have negative numbers.
        number = getattr(e, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else file_reason(e)
        raise OrganInferError(
            f"{_shown(host, port)}: cannot listen there ({reason}); choose another --host or --port"
        ) from e


def address_of(listening: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{_shown(host, port)}"


def serve(
    app: Any,
    listening: socket.socket,
    limits: ServiceLimits,
    metrics: Metrics,
    on_start: Callable[[], None],
) -> int | None:
    """Serve until a signal, and let the requests in progress finish.

    Args:
        app: The ASGI application.
        listening: The socket.
        limits: What is accepted.
        metrics: Counts what the application does not see.
        on_start: Called when requests are answered.

    Returns:
        The signal's number, or None if there was none.
    """
    limits = limits._replace(connections=min(limits.connections, _descriptors()))
    config = uvicorn.Config(
        app,
        http=protocol_class(limits, metrics),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD_LIMIT,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_seconds)),
    )
    server = _Server(config, on_start)
    with _silent(_OTHER_LOGGERS):
        server.run([listening])
    return server.stopped_by


class _Server(uvicorn.Server):
    """uvicorn's server without its own way to end at a signal.

    Attributes:
        stopped_by: The first signal's number.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start
        self.stopped_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM, unless they are ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End gracefully at the first signal, and at once at a second one."""
        if self.stopped_by is not None:
            self.force_exit = True
        self.stopped_by = self.stopped_by or sig
        self.should_exit = True


def _descriptors() -> int:
    """Return how many connections the limit of open files allows."""
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):
        return 1 << 20
    return 1 << 20 if soft < 0 else max(1, soft - SPARE_DESCRIPTORS)


@contextlib.contextmanager
def _silent(names: tuple[str, ...]) -> Iterator[None]:
    """Silence loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _shown(host: str, port: int) -> str:
    shown = printable(host)
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
