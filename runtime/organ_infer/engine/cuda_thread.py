"""The one thread that does all CUDA work of a process.

onnxruntime keeps cuBLAS and cuDNN handles and CUDA graphs per calling thread until the session ends, and changes the
calling thread's current CUDA device. With one thread, a server with a thread per request keeps one set of handles,
records each graph once, and finds the device of its own threads unchanged. The thread also serializes the work: a
session's buffers hold one batch, and nothing may be allocated while a graph is recorded.

The thread starts with the first task, so it never starts if only the CPU is used. It is a daemon thread, so an idle one
does not delay the end of the interpreter. The executors of concurrent.futures are not used, because they stop before
atexit handlers run.
"""

import atexit
import ctypes
import os
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from ..errors import DeviceError, one_line
from .threads import START_ERRORS

__all__ = ["Released", "call", "wait"]

T = TypeVar("T")
_Task = tuple["Future[Any]", Callable[[], Any]]

# Seconds that the end of the interpreter waits for a run in progress and for the release of all sessions.
EXIT_SECONDS = 30.0


class _Worker:
    """The thread and its queue."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="organ_infer_cuda", daemon=True)
        try:
            self.thread.start()
        except START_ERRORS as e:
            raise DeviceError(
                f"device cuda: the thread for CUDA cannot be started ({one_line(e)}); raise the limit on processes"
                " (ulimit -u), or use --device cpu"
            ) from e

    def submit(self, task: Callable[[], Any]) -> "Future[Any]":
        # `put` must be reentrant: finalizers submit tasks, and they run at any point where memory is collected.
        future: Future[Any] = Future()
        self._tasks.put((future, task))
        return future

    def _work(self) -> None:
        while True:
            _do(*self._tasks.get())


def _do(future: "Future[Any]", task: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = task()
    except BaseException as e:
        _clear_frames(e)
        future.set_exception(e)
    else:
        future.set_result(result)


def _clear_frames(error: BaseException) -> None:
    """Clear the local variables of an error's traceback, because CUDA memory among them must be freed in this thread."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            pending += [current.__cause__, current.__context__]


_worker: _Worker | None = None
_starting = threading.Lock()
_hooked = False


def _started() -> _Worker:
    """Return the worker, and start it if there is none."""
    global _worker, _hooked
    if _worker is None:
        with _starting:
            if not _hooked:
                atexit.register(_release_all)
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=_after_fork)
                _hooked = True
            if _worker is None:
                _worker = _Worker()
    return _worker


def call(task: Callable[[], T]) -> T:
    """Run a task on the CUDA thread and wait for it.

    On the CUDA thread itself the task runs at once. If the wait is interrupted (KeyboardInterrupt), a task that has not
    begun is canceled, and one that has begun runs to its end on the CUDA thread.

    Args:
        task: A function without arguments.

    Returns:
        What the task returns.

    Raises:
        Exception: Whatever the task raises.
        DeviceError: The CUDA thread cannot be started.
    """
    worker = _started()
    if threading.current_thread() is worker.thread:
        return task()
    future = worker.submit(task)
    try:
        result: T = future.result()
        return result
    except BaseException:
        # No effect unless the wait was interrupted before the task began.
        future.cancel()
        raise
    finally:
        # The future refers to the error, whose traceback refers to this frame. Without this, the cycle would keep both.
        del future


def wait(future: "Future[Any] | None") -> None:
    """Wait for a submitted task. On the CUDA thread itself do not wait, because that thread has to run it.

    Args:
        future: The task, or None if there is nothing to wait for.
    """
    if future is not None and not (_worker and threading.current_thread() is _worker.thread):
        future.result()


class Released:
    """Calls `release` on the CUDA thread once `owner` is gone, at the latest when the interpreter ends.

    In a forked child `release` never runs, and the objects that it would free are never destroyed: a session's destructor
    waits for threads that do not exist there.
    """

    def __init__(self, owner: object, release: Callable[[], None]) -> None:
        """Register the release.

        Args:
            owner: The object to watch. It must hold a reference to this object.
            release: Frees what belongs to the owner. It must not hold a reference to the owner.
        """
        self._finalizer = weakref.finalize(owner, _submit, os.getpid(), release)
        # `_release_all` does this instead, because nothing would run `release` at a later point.
        self._finalizer.atexit = False
        _live.add(self)

    def now(self) -> "Future[None] | None":
        """Release at once.

        Returns:
            The submitted task to wait for, or None if there is none.
        """
        return self._finalizer()


_live: "weakref.WeakSet[Released]" = weakref.WeakSet()


def _submit(pid: int, release: Callable[[], None]) -> "Future[None] | None":
    worker = _worker
    if worker is None or pid != os.getpid():
        _never_destroy(release)
        return None
    return worker.submit(release)


def _release_all() -> None:
    """Release everything at the end of the interpreter.

    The thread continues, for handlers that run later and use a classifier.
    """
    futures = [released.now() for released in list(_live)]
    for future in futures:
        if future is not None:
            try:
                future.result(EXIT_SECONDS)
            except TimeoutError:
                return


def _never_destroy(leaked: object) -> None:
    """Add a reference that is never removed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(leaked))


def _after_fork() -> None:
    """Reset the module in a forked child, which has no copy of the thread. What was queued is never destroyed."""
    global _worker, _starting
    _never_destroy(_worker)
    _worker, _starting = None, threading.Lock()
