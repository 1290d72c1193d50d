"""Dynamic batching: requests that wait are classified together, in one thread."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from ..batching import Batch
from .together import Result, count_that_fit

__all__ = ["Batcher"]

# Classifies batches together, and returns the results of each.
RunTogether = Callable[[Sequence[Batch]], list[list[Result]]]


class Batcher:
    """Collects the batches of requests, and runs as many together as fit.

    The batches that arrive while others are classified make up the next run. If the thread is free, a batch waits only
    while other requests are being decoded, and only for a short time. A lone request never waits.

    Args:
        run: Classifies batches together. Called in a thread.
        slices: Slices per run, at most.
        wait: Seconds that a batch waits for others, at most.
        on_run: Called with the number of slices of each run.
    """

    def __init__(
        self,
        run: RunTogether,
        *,
        slices: int,
        wait: float,
        on_run: Callable[[int], None] = lambda slices: None,
    ) -> None:
        self._run = run
        self._slices = slices
        self._wait = wait
        self._on_run = on_run
        self._pending: deque[tuple[Batch, asyncio.Future[list[Result]]]] = deque()
        self._arriving = 0
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "organ_infer batches")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to classify, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run_all())

    async def stop(self) -> None:
        """End the task and its thread. Batches that wait are canceled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for _, future in self._pending:
            future.cancel()
        self._thread.shutdown(wait=False)

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Announce that a batch will come: others may wait for it."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1
            self._changed.set()

    async def classify(self, batch: Batch) -> list[Result]:
        """Return the results of a batch.

        Raises:
            OrganInferError: The model failed. All batches of the run get the same error.
        """
        future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self._pending.append((batch, future))
        self._changed.set()
        return await future

    async def _run_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_for_batches()
            group = self._take()
            # The requests of these have ended meanwhile.
            group = [(batch, future) for batch, future in group if not future.done()]
            if not group:
                continue
            batches = [batch for batch, _ in group]
            try:
                results = await loop.run_in_executor(self._thread, self._run, batches)
                self._on_run(sum(len(batch.packed) for batch in batches))
                for (_, future), rows in zip(group, results, strict=True):
                    if not future.done():
                        future.set_result(rows)
            except Exception as e:
                for _, future in group:
                    if not future.done():
                        future.set_exception(e)
            except asyncio.CancelledError:
                for _, future in group:
                    future.cancel()
                raise

    async def _wait_for_batches(self) -> None:
        """Wait for a batch, and then for the requests that are being decoded, but not long."""
        while not self._pending:
            self._changed.clear()
            await self._changed.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait):
                while self._arriving and self._pending_slices() < self._slices:
                    self._changed.clear()
                    await self._changed.wait()

    def _pending_slices(self) -> int:
        return sum(len(batch.names) for batch, _ in self._pending)

    def _take(self) -> list[tuple[Batch, asyncio.Future[list[Result]]]]:
        """Take the first batches, as many as fit into one run, and at least one."""
        count = count_that_fit([batch for batch, _ in self._pending], self._slices)
        return [self._pending.popleft() for _ in range(count)]
