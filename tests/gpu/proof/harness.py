"""Runs checks one after another, each within a time limit, and keeps on after a failure.

A check runs in a worker process, which serves all checks of one group. A worker that crashes, hangs or whose check
failed is replaced: after an error CUDA may refuse everything else in that process. The runtime's worker never imports
PyTorch unless a check asks for it, because loading CUDA's libraries differs when PyTorch is there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED, NOT_RUN = "ok", "FAILED", "skipped", "not run: time"
# A check is stopped after this many times its expected seconds, but never before LEAST_LIMIT seconds.
LIMIT_FACTOR = 4.0
LEAST_LIMIT = 60.0
# Small forms run on loaded CPUs, where only a hang is to be ended.
QUICK_FACTOR = 4.0
# Limits grow with a larger --budget, which a slower GPU needs.
USUAL_BUDGET = 600.0
# Seconds before the limit at which a check that fills its time must end by itself.
MARGIN = 8.0
# Seconds for what a worker started to end in order.
GRACE = 10.0


class Skip(Exception):
    """A check cannot run here; the message says what it needs."""


@dataclass(frozen=True)
class Settings:
    """What every check is given. `quick` chooses small sizes; it is always set on the CPU."""

    device: str  # "cpu", "cuda" or "cuda:N"
    quick: bool
    data_dir: Path | None
    scratch: Path

    @property
    def cuda(self) -> bool:
        return self.device != "cpu"


@dataclass
class Context:
    """A running check: its settings, and what it has found so far."""

    settings: Settings
    deadline: float  # of time.monotonic()
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    summary: str = ""  # the figures in a few words, for the table

    def expect(self, condition: bool, problem: str) -> None:
        """Note `problem` unless the condition holds. The check goes on, and fails at its end."""
        if not condition:
            self.problems.append(problem)

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def needs_cuda(self, what: str) -> None:
        """Raise Skip on the CPU."""
        if not self.settings.cuda:
            raise Skip(f"needs a GPU: {what}")


@dataclass(frozen=True)
class Check:
    """One row of the table of checks.

    Attributes:
        run: a function at the top level of a module, so that a worker can import it.
        proves: one line for --list.
        seconds: expected on one H100; it is not begun with less time left.
        quick_seconds: the same with --quick, on two CPU cores.
        fills: it uses all the time that is left, and ends by itself.
        environment: variables that its process needs from the start.
        fresh: it needs a process in which nothing ran before, as memory that was freed hides what is lost.
    """

    name: str
    group: str
    run: Callable[[Context], None]
    proves: str
    seconds: float
    quick_seconds: float
    fills: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    fresh: bool = False


@dataclass
class Result:
    """The verdict of one check: OK, FAILED, SKIPPED or NOT_RUN; `reason` explains every verdict but OK."""

    name: str
    group: str
    verdict: str
    reason: str = ""
    summary: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(
    checks: Sequence[Check],
    settings: Settings,
    budget: float,
    ended: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run the checks in their order within `budget` seconds; `ended` is called with each result as it comes."""
    begun = time.monotonic()
    scale = max(QUICK_FACTOR if settings.quick else 1.0, budget / USUAL_BUDGET)
    results: list[Result] = []
    worker: Worker | None = None
    try:
        for check in checks:
            left = begun + budget - time.monotonic()
            expected = check.quick_seconds if settings.quick else check.seconds
            if expected > left:
                reason = f"expected {expected:.0f} s, left {max(0.0, left):.0f} s"
                result = Result(check.name, check.group, NOT_RUN, reason)
            else:
                limit = left if check.fills else scale * max(LEAST_LIMIT, LIMIT_FACTOR * expected)
                if worker is not None and not worker.serves(check):
                    worker.end()
                    worker = None
                worker = worker or Worker(check, settings)
                result = worker.run(check, min(limit, left), cut_short=left < limit)
                if result.verdict in (FAILED, NOT_RUN):
                    worker.end()
                    worker = None
            results.append(result)
            ended(result)
    finally:
        if worker is not None:
            worker.end()
    return results


class Worker:
    """A process of its own, in a session of its own, that runs the checks of one group."""

    def __init__(self, check: Check, settings: Settings) -> None:
        self._group, self._environment = check.group, check.environment
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, settings), daemon=False)
        with _environment(dict(check.environment)):
            self._process.start()
        theirs.close()

    def serves(self, check: Check) -> bool:
        same = (self._group, self._environment) == (check.group, check.environment)
        return same and not check.fresh

    def run(self, check: Check, limit: float, cut_short: bool = False) -> Result:
        """The check's result; FAILED if the process ends, or is still busy after `limit` seconds.

        `cut_short`: the whole run's time is up by then, which is no fault of the check. It is then NOT_RUN.
        """
        begun = time.monotonic()
        failed = Result(check.name, check.group, FAILED)
        try:
            self._connection.send((check, limit))
            if self._connection.poll(limit):
                result: Result = self._connection.recv()
                return result
            failed.reason = f"still running after {limit:.0f} s, its time limit"
            if cut_short:
                failed.verdict = NOT_RUN
                failed.reason = f"still running when the time was up, after {limit:.0f} s"
            self._process.kill()
        except (EOFError, OSError):
            self._process.join(10)
            failed.reason = f"its process ended unexpectedly ({_ending(self._process.exitcode)})"
        failed.seconds = time.monotonic() - begun
        return failed

    def end(self) -> None:
        """End the process and everything that it started."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(5)
        # The group exists as long as one of its processes does, so this also ends what a crashed worker left. torchrun
        # gives its processes sessions of their own, and ends them if it is asked to end itself.
        with contextlib.suppress(OSError, TypeError):
            os.killpg(self._process.pid, signal.SIGTERM)  # type: ignore[arg-type]
            until = time.monotonic() + GRACE
            while time.monotonic() < until:
                os.killpg(self._process.pid, 0)  # type: ignore[arg-type]
                time.sleep(0.1)
            os.killpg(self._process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        self._process.kill()  # it may not have come to its own session yet
        self._process.join()
        self._connection.close()


def run_one(check: Check, settings: Settings, limit: float) -> Result:
    """Run a check in this process."""
    begun = time.monotonic()
    context = Context(settings, begun + limit - MARGIN)
    result = Result(check.name, check.group, OK)
    try:
        check.run(context)
    except Skip as e:
        result.verdict, result.reason = SKIPPED, str(e)
    except Exception as e:
        traceback.print_exc()
        text = " ".join(str(e).split())[:400]
        context.problems.append(f"{type(e).__name__}: {text}" if text else type(e).__name__)
    if context.problems:
        result.verdict, result.reason = FAILED, "; ".join(context.problems)
    result.summary, result.figures = context.summary, context.figures
    result.seconds = time.monotonic() - begun
    return result


def _serve(connection: Connection, settings: Settings) -> None:
    """The worker's loop: a check and its limit in, its result out, None ends it."""
    os.setsid()
    while (task := connection.recv()) is not None:
        check, limit = task
        connection.send(run_one(check, settings, limit))


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Any:
    """These variables for the process that is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _ending(code: int | None) -> str:
    if code is None:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
