"""Dynamic batching: what waits is classified together, a lone request never waits, and an error reaches its requests."""

import asyncio
import threading
import time

import numpy as np
import pytest

from organ_infer.batching import Batch
from organ_infer.serve.batcher import Batcher
from organ_infer.serve.limits import ServiceLimits
from organ_infer.serve.together import classify_together, decoded_batches


def batch(*names):
    return Batch(list(names), np.zeros((len(names), 1, 1, 1), np.float32), [()] * len(names))


class FakeModel:
    """Answers each batch with its names. The first run waits for `go`, if there is one."""

    def __init__(self, go=None):
        self.runs = []
        self.begun = threading.Event()
        self._go = go

    def __call__(self, batches):
        self.runs.append([name for each in batches for name in each.names])
        self.begun.set()
        if self._go is not None:
            assert self._go.wait(20)
        return [list(each.names) for each in batches]


def in_loop(test, model, *, slices=8, wait=0.0, on_run=lambda slices: None):
    """Run a coroutine function with a batcher."""

    async def run():
        batcher = Batcher(model, slices=slices, wait=wait, on_run=on_run)
        batcher.start()
        try:
            return await asyncio.wait_for(test(batcher), 30)
        finally:
            await batcher.stop()

    return asyncio.run(run())


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it did not happen")


async def after_a_busy_run(batcher, model, go, *batches):
    """Submit batches while the thread is busy, and let it go on."""
    first = asyncio.create_task(batcher.classify(batch("first")))
    await until(model.begun.is_set)
    others = [asyncio.create_task(batcher.classify(each)) for each in batches]
    await asyncio.sleep(0)
    go.set()
    return await asyncio.gather(first, *others)


def test_what_arrives_during_a_run_is_the_next_run():
    go, counts = threading.Event(), []
    model = FakeModel(go)

    async def test(batcher):
        return await after_a_busy_run(batcher, model, go, batch("a"), batch("b", "c"), batch("d"))

    answers = in_loop(test, model, on_run=counts.append)
    assert answers == [["first"], ["a"], ["b", "c"], ["d"]]
    assert model.runs == [["first"], ["a", "b", "c", "d"]] and counts == [1, 4]


@pytest.mark.parametrize(
    "sizes, runs",
    [
        ((2, 2, 1), [[2, 2], [1]]),
        ((4, 1), [[4], [1]]),
        ((3, 2, 1), [[3], [2, 1]]),
        # a batch is never divided
        ((5, 1), [[5], [1]]),
    ],
)
def test_a_run_has_no_more_slices_than_allowed_and_keeps_the_order(sizes, runs):
    go = threading.Event()
    model = FakeModel(go)
    given = [batch(*[f"{i}"] * size) for i, size in enumerate(sizes)]

    async def test(batcher):
        return await after_a_busy_run(batcher, model, go, *given)

    assert in_loop(test, model, slices=4)[1:] == [each.names for each in given]
    numbers = iter(range(len(sizes)))
    expected = [[f"{next(numbers)}"] * size for run in runs for size in run]
    assert [name for run in model.runs[1:] for name in run] == [n for e in expected for n in e]
    assert [len(run) for run in model.runs[1:]] == [sum(run) for run in runs]


def test_a_lone_request_never_waits():
    model = FakeModel()

    async def test(batcher):
        with batcher.arriving():
            pass
        started = time.monotonic()
        await batcher.classify(batch("alone"))
        return time.monotonic() - started

    assert in_loop(test, model, wait=25) < 20


def test_a_request_waits_for_one_that_is_being_decoded():
    model = FakeModel()

    async def test(batcher):
        async def late():
            with batcher.arriving():
                await asyncio.sleep(0.05)
            return await batcher.classify(batch("late"))

        other = asyncio.create_task(late())
        await asyncio.sleep(0)
        return await asyncio.gather(batcher.classify(batch("early")), other)

    assert in_loop(test, model, wait=25) == [["early"], ["late"]]
    # "late" is announced until it is pending, so that both are one run
    assert model.runs == [["early", "late"]]


def test_a_full_batch_does_not_wait():
    model = FakeModel()

    async def test(batcher):
        started = time.monotonic()
        with batcher.arriving():
            answer = await batcher.classify(batch("a", "b"))
        return answer, time.monotonic() - started

    answer, seconds = in_loop(test, model, slices=2, wait=25)
    assert answer == ["a", "b"] and seconds < 20


def test_waiting_for_others_ends():
    model = FakeModel()

    async def test(batcher):
        with batcher.arriving():
            return await batcher.classify(batch("a"))

    assert in_loop(test, model, wait=0.01) == ["a"]


def test_an_error_reaches_every_request_of_the_run_and_no_other():
    def model(batches):
        if "bad" in batches[0].names:
            raise ValueError("broken")
        return [list(each.names) for each in batches]

    async def test(batcher):
        with batcher.arriving():
            bad = asyncio.gather(
                batcher.classify(batch("bad")),
                batcher.classify(batch("beside")),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
        errors = await bad
        return errors, await batcher.classify(batch("good"))

    errors, good = in_loop(test, model, wait=25)
    assert [str(error) for error in errors] == ["broken", "broken"] and good == ["good"]


def test_a_model_that_answers_too_little_fails_its_requests_and_the_next_run_works():
    def model(batches):
        return [list(each.names) for each in batches if "bad" not in each.names]

    async def test(batcher):
        with pytest.raises(ValueError):
            await batcher.classify(batch("bad"))
        return await batcher.classify(batch("good"))

    assert in_loop(test, model) == ["good"]


def test_stopping_ends_the_thread():
    def threads():
        return {thread for thread in threading.enumerate() if "batches" in thread.name}

    before = threads()

    async def test(batcher):
        await batcher.classify(batch("a"))
        return threads() - before

    (thread,) = in_loop(test, FakeModel())
    thread.join(20)
    assert not thread.is_alive()


def test_a_request_that_has_ended_is_not_classified():
    go = threading.Event()
    model = FakeModel(go)

    async def test(batcher):
        first = asyncio.create_task(batcher.classify(batch("first")))
        await until(model.begun.is_set)
        gone = asyncio.create_task(batcher.classify(batch("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        stays = asyncio.create_task(batcher.classify(batch("stays")))
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(first, stays)

    assert in_loop(test, model) == [["first"], ["stays"]]
    assert model.runs == [["first"], ["stays"]]


def test_stopping_cancels_what_waits():
    go = threading.Event()
    model = FakeModel(go)

    async def test(batcher):
        first = asyncio.create_task(batcher.classify(batch("first")))
        await until(model.begun.is_set)
        second = asyncio.create_task(batcher.classify(batch("second")))
        await asyncio.sleep(0)
        await batcher.stop()
        go.set()
        return await asyncio.gather(first, second, return_exceptions=True)

    assert [type(each) for each in in_loop(test, model)] == [asyncio.CancelledError] * 2


def test_together_is_as_each_alone(classifier, pictures):
    """Labels are equal. Probabilities of a batch can differ in the last digit from those of a slice."""
    contents = [(path.name, path.read_bytes()) for path in sorted(pictures.iterdir())[:6]]
    files = [[contents[0], ("bad", b"no image")], [("bad", b"no image")], contents[1:6]]
    batches = [b for each in files for b in decoded_batches(classifier, each, ServiceLimits())]
    results = classify_together(classifier, batches)
    assert [len(rows) for rows in results] == [2, 1, 5]
    flat = [row for rows in results for row in rows]
    alone = [
        row
        for each in files
        for name, data in each
        for row in classifier.predict_bytes(data, name=name)
    ]
    for found, expected in zip(flat, alone, strict=True):
        assert found.path == expected.path and found.ok == expected.ok
        if found.ok:
            assert found.label == expected.label
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        else:
            assert found == expected
