"""Medians for the scripts that print a table by hand; benchmarks take turns through comparison.py."""

import statistics
import time
from collections.abc import Callable, Sequence


def medians(
    contestants: Sequence[Callable[[], object]], calls: Sequence[int], rounds: int, rest: float = 0
) -> list[float]:
    """Seconds per call of each contestant. They take turns, each as many calls at a time as `calls` says.

    Args:
        rest: seconds of sleep before each turn, in which the threads of the one before stop spinning.
    """
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for contestant, count, turns in zip(contestants, calls, seconds, strict=True):
            time.sleep(rest)
            begin = time.perf_counter()
            for _ in range(count):
                contestant()
            turns.append((time.perf_counter() - begin) / count)
    return [statistics.median(turns) for turns in seconds]
