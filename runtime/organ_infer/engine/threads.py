"""Threads under a limit: how many can be started, and work that is done with fewer if there is one.

onnxruntime waits forever if it cannot start one of its threads. So the threads are started and ended here first.
Limits are those of processes per user (RLIMIT_NPROC), of a container (pids.max), and of memory, which their stacks take.
"""

import _thread
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

__all__ = [
    "START_ERRORS",
    "affordable_threads",
    "limit_libraries",
    "map_in_threads",
    "startable_threads",
]

logger = logging.getLogger("organ_infer")

T = TypeVar("T")
R = TypeVar("R")

# What `Thread.start` and `Executor.submit` raise if a thread cannot be started.
START_ERRORS = (RuntimeError, MemoryError)
# Seconds that a started thread may take to report, and an ended one to leave the process.
PATIENCE = 2.0
# Seconds between two looks.
PAUSE = 0.0002
# Bytes that are left for onnxruntime's own memory. It takes some before and while its threads start.
RESERVE = 1 << 26
# Bytes of addresses that the GNU C library takes for a thread's own allocations, at most for eight threads per processor.
ARENA, ARENAS = 1 << 27, 8
# Bytes of a thread's stack if it is not limited.
STACK = 8 << 20


# The lowest number of threads that a warning has reported.
_reported = sys.maxsize


def startable_threads(count: int) -> int:
    """Start threads, all at the same time, and end them again.

    Args:
        count: The number of threads to try.

    Returns:
        The number that could be started, 0 to `count`.
    """
    if count < 1:
        return 0
    gate = _thread.allocate_lock()
    started: SimpleQueue[int] = SimpleQueue()

    def wait_at_gate() -> None:
        # An error in a thread would be printed.
        with contextlib.suppress(MemoryError):
            started.put(_thread.get_native_id())
            with gate:
                pass

    attempts = 0
    numbers: list[int] = []
    gate.acquire()
    try:
        with contextlib.suppress(*START_ERRORS):
            # Zeros, which take addresses but no memory.
            reserve = bytes(RESERVE)
            while attempts < count:
                _thread.start_new_thread(wait_at_gate, ())
                attempts += 1
            del reserve
        with contextlib.suppress(Empty):
            while len(numbers) < attempts:
                numbers.append(started.get(timeout=PATIENCE))
    finally:
        gate.release()
    _wait_for_end(numbers)
    return len(numbers)


def _wait_for_end(numbers: Iterable[int]) -> None:
    """Wait until the threads of these numbers no longer count against a limit, as Linux shows in /proc."""
    deadline = time.monotonic() + PATIENCE
    for number in numbers:
        while os.path.exists(f"/proc/self/task/{number}") and time.monotonic() < deadline:
            time.sleep(PAUSE)


def _threads_in_memory(count: int, memory: int) -> int:
    """Return how many threads a limit of the process's memory allows, 0 to `count`.

    Trying does not show this, because the first threads may take the addresses that the stacks of the next ones need.
    """
    try:
        import resource

        numbers = [int(text) for text in Path("/proc/self/statm").read_text().split()]
    except (ImportError, OSError, ValueError):
        # Not on Linux.
        return count
    # All addresses, and those of data.
    used = {resource.RLIMIT_AS: numbers[0], resource.RLIMIT_DATA: numbers[5]}
    free = [
        limit - pages * resource.getpagesize() - RESERVE - memory
        for kind, pages in used.items()
        if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY
    ]
    if not free:
        return count
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    if stack == resource.RLIM_INFINITY:
        stack = STACK
    arenas = ARENAS * (os.cpu_count() or 1)
    return next(
        (n for n in range(count, 0, -1) if n * stack + min(n, arenas) * ARENA <= min(free)), 0
    )


def affordable_threads(
    threads: int, needed: Callable[[int], int] = lambda n: n - 1, *, memory: int = 0
) -> int:
    """Return the number of threads to use, fewer than requested if a limit does not allow all.

    A warning reports this, once per process unless the number falls further.

    Args:
        threads: The requested number, with the calling thread.
        needed: The threads to start for a number of threads to use.
        memory: Bytes that the work needs besides.

    Returns:
        From 1 to `threads`.
    """
    possible = startable_threads(_threads_in_memory(needed(threads), memory))
    affordable = next((n for n in range(threads, 1, -1) if needed(n) <= possible), 1)
    global _reported
    if affordable < min(threads, _reported):
        _reported = affordable
        logger.warning(
            "threads: a limit on processes or memory allows %d instead of %d; raise it (ulimit -u, ulimit -v, or pids.max of"
            " the container), or ask for fewer threads",
            affordable,
            threads,
        )
    return affordable


def limit_libraries(threads: int) -> None:
    """Let OpenBLAS and OpenMP start only threads that can be started, by variables of the environment.

    For commands that use PyTorch, before NumPy is imported: under a limit on processes OpenBLAS interrupts the process, and
    OpenMP ends it. Variables that are set already stay.

    Args:
        threads: The number of threads that each of them starts by default.
    """
    # NumPy and SciPy have an OpenBLAS each, PyTorch has OpenMP, and onnxruntime its own threads.
    if startable_threads(4 * (threads - 1)) == 4 * (threads - 1):
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "OMP_NUM_THREADS" not in os.environ:
        # Half of them remain for onnxruntime.
        os.environ["OMP_NUM_THREADS"] = str(affordable_threads(threads, lambda n: 2 * (n - 1)))


def map_in_threads(function: Callable[[T], R], items: Iterable[T], count: int) -> list[R]:
    """Call a function for each item, in several threads, or in this one if they cannot be started.

    Args:
        function: May be called twice for an item. The first result is then dropped.
        items: The arguments.
        count: The most threads.

    Returns:
        The results, in order.

    Raises:
        Exception: Whatever `function` raises.
    """
    # Imported here because a single small network needs no thread pool and starts sooner without this module.
    from concurrent.futures import ThreadPoolExecutor

    items = list(items)
    with ThreadPoolExecutor(count, thread_name_prefix="organ_infer") as workers:
        try:
            results = workers.map(function, items)
        except START_ERRORS:
            workers.shutdown(wait=True, cancel_futures=True)
        else:
            return list(results)
    return [function(item) for item in items]
