"""uvicorn's HTTP protocol with timeouts for slow clients, a limit of connections, and errors as JSON.

uvicorn itself waits without end for the head of a first request and for a client that does not take its answer
(https://github.com/encode/uvicorn/issues/2185).
"""

import asyncio
import json
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import RETRY_SECONDS
from .limits import ServiceLimits
from .metrics import Metrics

__all__ = ["protocol_class"]

# Seconds in which the rest of a refused body is read and thrown away, so that the client sees the answer.
LINGER_SECONDS = 2.0


def protocol_class(limits: ServiceLimits, metrics: Metrics) -> type[H11Protocol]:
    """Return the protocol of a service."""

    class Protocol(_ServiceProtocol):
        _limits = limits
        _metrics = metrics

    return Protocol


class _ServiceProtocol(H11Protocol):
    _limits: ServiceLimits
    _metrics: Metrics
    # Ends the connection when its time has passed: for a head, for the rest of a refused body, and for an answer.
    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    timeout_keep_alive_task: asyncio.TimerHandle | None
    # Whether the connection was answered without the application. What else the client sends is thrown away.
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(503, "too many connections; try again later", "connections")
            self.transport.close()
            return
        self._head_timer = self.loop.call_later(self._limits.header_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel("_head_timer")
        self._cancel("_linger_timer")
        self._cancel("_write_timer")
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except Exception:
            # h11 before 0.15 fails at a Content-Length of thousands of digits.
            self.send_400_response("Invalid HTTP request")
        if not self._refused:
            self._watch_next_head()

    def _watch_next_head(self) -> None:
        """Give the head of the next request its time from its first byte on."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel("_head_timer")
        elif self._linger_timer is not None:
            # The rest of a refused body has its own time.
            pass
        elif self.cycle is not None and not self.conn.trailing_data[0]:
            # uvicorn forgets this timer after the rest of a refused body.
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.header_seconds, self._head_is_late)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The rest of the body is not wanted. uvicorn reads and forgets it.
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._linger()
            self._unset_keepalive_if_required()

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.SEND_BODY and not self._refused:
            self._cancel("_linger_timer")

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is no HTTP. Called while the error is handled."""
        error = sys.exc_info()[1]
        started = self.cycle is not None and self.cycle.response_started
        if self.cycle is not None:
            # The application gets no more of this request, and nobody reads what it answers.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if started and not self.cycle.response_complete:
            self._metrics.refused["invalid"] += 1
            self.transport.abort()
            return
        reason, status = msg, 400
        if isinstance(error, h11.RemoteProtocolError):
            reason, status = str(error), error.error_status_hint
        self._refuse(status, f"not a valid HTTP request ({reason}); see /openapi.json", "invalid")

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self._limits.body_seconds, self._answer_is_late
            )

    def resume_writing(self) -> None:
        self._cancel("_write_timer")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def shutdown(self) -> None:
        self._cancel("_head_timer")
        if self._refused:
            self.transport.close()
            return
        super().shutdown()
        if self.cycle is None or self.cycle.response_complete:
            self._abort_later()

    def _abort_later(self) -> None:
        """End a connection that is being closed, if the client does not take the rest of an answer."""
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self._limits.body_seconds, self._answer_is_late
            )

    def _answer_is_late(self) -> None:
        self._metrics.refused["answer timeout"] += 1
        self.transport.abort()

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        self._refuse(
            408,
            f"the head of the request did not arrive in {self._limits.header_seconds:g} s; send it again",
            "header timeout",
        )

    def _refuse(self, status: int, text: str, reason: str) -> None:
        """Answer without the application, and close the connection once the client has had time to read it."""
        self._cancel("_head_timer")
        self._unset_keepalive_if_required()
        self._refused = True
        self._metrics.refused[reason] += 1
        content = json.dumps({"error": text}).encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *([f"Retry-After: {RETRY_SECONDS}"] if status == 503 else []),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + content)
        self.transport.write_eof()
        self.flow.resume_reading()
        self._linger()

    def _linger(self) -> None:
        """Read and forget what the client still sends: an answer is lost if unread data is left when closing."""
        self._cancel("_linger_timer")
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _cancel(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)
