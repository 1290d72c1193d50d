"""How contestants are timed: in turn, in one process, by their medians."""

import statistics
import time
from collections.abc import Callable, Sequence


def medians(contestants: Sequence[Callable[[], object]], calls: Sequence[int], rounds: int) -> list[float]:
    """Seconds a call of each contestant, taken in turn, each as many calls at a time as `calls` says."""
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for contestant, count, taken in zip(contestants, calls, times, strict=True):
            begin = time.perf_counter()
            for _ in range(count):
                contestant()
            taken.append((time.perf_counter() - begin) / count)
    return [statistics.median(taken) for taken in times]
