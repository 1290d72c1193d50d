"""SIGINT and SIGTERM as an exception that does not break a line of output."""

import signal
import threading
from typing import Any, Protocol

__all__ = ["SIGNALS", "Signals", "Stopped"]

# The handled signals, each with the note on standard error.
SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Unbreakable(Protocol):
    """Something that writes lines which a signal must not break."""

    busy: bool

    def discard(self) -> None:
        """Remove what is empty, when a signal ends the command."""

    def partial_note(self) -> str:
        """Return the end of the message of a signal."""


class Stopped(BaseException):
    """A signal asks the command to end.

    Attributes:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Raises Stopped for SIGINT and SIGTERM while the context is open.

    During a write, the first signal waits until the end of the line. A second one does not wait.

    Attributes:
        writer: The writer whose lines must not be broken, once there is one.
    """

    def __init__(self) -> None:
        self.writer: Unbreakable | None = None
        self._pending: int | None = None
        self._raised: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            # Only the main thread can set handlers. The program that called the command handles signals.
            return self
        for number in SIGNALS:
            # A signal that is ignored stays ignored: nohup and background jobs ignore SIGINT.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.writer is not None and self.writer.busy and self._pending is None:
            self._pending = number
        else:
            self._raised = number
            raise Stopped(number)

    def check(self) -> None:
        """Raise Stopped if a signal is pending, or if its Stopped was lost.

        Stopped is lost if other code replaces it, as the import of an extension module can do.
        """
        number = self._raised if self._pending is None else self._pending
        if number is not None:
            raise Stopped(number)
