"""How contestants are timed: in turn, in one process, by their medians."""

import statistics
import time
from collections.abc import Callable, Sequence


def medians(
    contestants: Sequence[Callable[[], object]], calls: Sequence[int], rounds: int, rest: float = 0
) -> list[float]:
    """Seconds a call of each contestant, taken in turn, each as many calls at a time as `calls` says. `rest`: seconds
    before each turn, in which the threads of the one before stop spinning."""
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for contestant, count, taken in zip(contestants, calls, times, strict=True):
            time.sleep(rest)
            begin = time.perf_counter()
            for _ in range(count):
                contestant()
            taken.append((time.perf_counter() - begin) / count)
    return [statistics.median(taken) for taken in times]
