"""How a benchmark is compared with a baseline: the two take turns within the rounds of pytest-benchmark's fixture.

Each contestant of a comparison is one benchmark of a group. `compare` times the target with the fixture, and after
each of its rounds, in `pedantic`'s teardown, times the baseline for itself. On a shared machine, whose speed changes
from one second to the next, two medians are only comparable if they come from the same seconds. The baseline's median
and the ratio of the medians join the benchmark's `extra_info`.

A baseline is a benchmark of its own too, with the target as its baseline. Alone it would find its data in the processor's
caches, where a contestant that takes turns does not, and pytest-benchmark's table would show unlike things.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture


@dataclass(frozen=True)
class Medians:
    """Seconds per call of a target and of its baseline."""

    target: float
    baseline: float

    @property
    def ratio(self) -> float:
        """How many times as long the target takes."""
        return self.target / self.baseline

    @property
    def speedup(self) -> float:
        """How many times as fast the target is."""
        return self.baseline / self.target


def duration(seconds: float) -> str:
    """A time in the unit that fits it, to four digits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def measure(
    benchmark: BenchmarkFixture,
    target: Callable[[], Any],
    *,
    group: str,
    rounds: int,
    calls: int = 1,
    warmup_rounds: int = 1,
    rest: float = 0,
) -> Any:
    """Time `target` alone, in a group without a comparison; what its last call returned.

    Args:
        rounds: how often it is timed, after `warmup_rounds` that do not count.
        calls: how many calls make a round.
        rest: seconds of sleep after each round.
    """
    benchmark.group = group
    return benchmark.pedantic(
        target,
        rounds=rounds,
        iterations=calls,
        warmup_rounds=warmup_rounds,
        teardown=lambda: time.sleep(rest),
    )


def compare(
    benchmark: BenchmarkFixture,
    target: Callable[[], Any],
    baseline: Callable[[], Any],
    *,
    group: str,
    against: str,
    rounds: int,
    calls: int = 1,
    baseline_calls: int | None = None,
    warmup_rounds: int = 1,
    rest: float = 0,
) -> Medians:
    """Time `target` as one contestant of `group`, and `baseline` in turn with it.

    Skips the test, once both have run, if pytest-benchmark is disabled, because nothing was timed then.

    Args:
        against: the baseline's name in `extra_info`.
        rounds: how often each is timed, after `warmup_rounds` that do not count.
        calls: how many calls make a round of the target, and of the baseline unless `baseline_calls` says otherwise.
        rest: seconds of sleep before each turn, in which threads of the other contestant stop spinning.
    """
    baseline_calls = baseline_calls or calls
    seconds: list[float] = []
    # The fixture calls its target with an unpacked tuple and dict, which takes some 40 ns longer than a plain call.
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}

    def baseline_turn() -> None:
        time.sleep(rest)
        begin = time.perf_counter()
        for _ in range(baseline_calls):
            baseline(*arguments, **keywords)
        seconds.append((time.perf_counter() - begin) / baseline_calls)
        time.sleep(rest)

    benchmark.group = group
    benchmark.pedantic(
        target, rounds=rounds, iterations=calls, warmup_rounds=warmup_rounds, teardown=baseline_turn
    )
    if not benchmark.enabled:
        baseline_turn()
        pytest.skip("benchmarks are disabled: both ran once, nothing was timed")
    medians = Medians(
        benchmark.stats.stats.median,
        # Rounds of the warm-up come first; more than one call per round makes pedantic add a round that it does not time.
        statistics.median(seconds[warmup_rounds : warmup_rounds + rounds]),
    )
    benchmark.extra_info.update(
        baseline=against,
        baseline_seconds=medians.baseline,
        ratio=medians.ratio,
        speedup=medians.speedup,
    )
    print(
        f"\n{group}: {benchmark.name} {duration(medians.target)}, {against} {duration(medians.baseline)},"
        f" {medians.ratio:.3g} times as long, {medians.speedup:.3g} times as fast",
        end="",
    )
    return medians
