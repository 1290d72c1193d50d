"""predict_paths: in order, a batch at a time, one batch read ahead, and no thread left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import UserList

import numpy as np
import pytest
from conftest import child_environment

from organ_infer import (
    ImageFailure,
    InputError,
    OrganClassifier,
    OrganInferError,
    Prediction,
    batching,
)
from organ_infer import classifier as classifier_module


def test_paths_come_back_in_order_with_failures_in_their_place(
    classifier, pictures, slices, tmp_path
):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    paths = [pictures / "s00.png", bad, str(pictures / "s01.png"), tmp_path / "none.png", tmp_path]
    found = list(classifier.predict_paths(paths))
    assert [p.path for p in found] == [str(p) for p in paths]
    assert [type(p) for p in found] == [
        Prediction,
        ImageFailure,
        Prediction,
        ImageFailure,
        ImageFailure,
    ]
    assert found[3].error == "no such file" and found[4].error == "a directory, not an image"
    expected = classifier.predict_proba(slices[:2])
    assert found[0].probabilities == tuple(expected[0].tolist())
    assert found[2].probabilities == tuple(expected[1].tolist())


def test_paths_are_read_a_batch_at_a_time(bundle, pictures):
    taken = []

    def paths():
        for i in range(40):
            taken.append(i)
            yield pictures / f"s{i:02}.png"

    with OrganClassifier(bundle, device="cpu", batch_size=8) as opened:
        results = opened.predict_paths(paths())
        assert taken == []
        next(results)
        assert len(taken) == 8
        assert len(list(results)) == 39


def test_many_failures_do_not_pile_up(bundle):
    taken = []

    def paths():
        for i in range(1000):
            taken.append(i)
            yield f"/none/{i}.png"

    with OrganClassifier(bundle, device="cpu", batch_size=8) as opened:
        next(opened.predict_paths(paths()))
    assert len(taken) == 8


def threads_reading():
    return [thread for thread in threading.enumerate() if "reading" in thread.name]


def test_a_sequence_is_read_one_batch_ahead_and_any_other_iterable_is_not(
    bundle, pictures, monkeypatch
):
    paths = sorted(pictures.iterdir())
    with OrganClassifier(bundle, device="cpu", batch_size=8) as opened:
        expected = list(opened.predict_paths(iter(paths)))
        assert (
            list(opened.predict_paths(paths))
            == list(opened.predict_paths(tuple(paths)))
            == expected
        )
        assert [p.path for p in expected] == list(map(str, paths))

        read, by = [], []
        whole = classifier_module.read_batches
        monkeypatch.setattr(
            classifier_module, "read_batches",
            lambda chunk, *rest, **more: (read.extend(chunk), by.append(threading.current_thread()), whole(chunk, *rest, **more))[-1],
        )  # fmt: skip
        results = opened.predict_paths(paths)
        assert read == []
        next(results)
        [thread.join() for thread in threads_reading()]
        assert read == paths[:16]  # and no more, however long the caller takes
        assert list(results) == expected[1:] and read == paths
        assert by[0] is threading.main_thread() and threading.main_thread() not in by[1:]
        read.clear()
        next(opened.predict_paths(iter(paths)))
        assert read == paths[:8]
    assert threads_reading() == []


def test_what_is_read_in_c_and_by_pillow_is_the_same(bundle, pictures, tmp_path, monkeypatch):
    from PIL import Image

    for i, path in enumerate(sorted(pictures.iterdir())):
        image = Image.open(path)
        image.save(
            tmp_path / f"{i:02}.{'tif' if i % 5 == 1 else 'png'}",
            **({"gamma": 1} if i % 5 == 2 else {}),
        )
    (tmp_path / "07.png").write_bytes(b"damaged")
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "none.png"]
    found = []
    for reader in (batching._read_plain, None):
        monkeypatch.setattr(batching, "_read_plain", reader)
        for size in (1, 7, 64):
            with OrganClassifier(bundle, device="cpu", batch_size=size) as opened:
                found.append(
                    [(p.path, getattr(p, "label", p)) for p in opened.predict_paths(paths)]
                )
    assert all(other == found[0] for other in found)
    assert [isinstance(what, ImageFailure) for _, what in found[0]].count(True) == 2


@pytest.mark.parametrize("end", ["close", "throw", "closed classifier"])
def test_an_end_in_the_middle_leaves_no_thread(bundle, pictures, monkeypatch, end):
    """The thread stops before its next file, though most of its batch is left."""
    monkeypatch.setattr(batching, "_read_plain", None)
    most = 100  # files before the batch in which the end comes
    seen, told = [], threading.Event()
    whole, wait = classifier_module.open_slices, batching._Prefetcher._wait

    def held(path, *more):
        seen.append(path)
        assert len(seen) <= most or told.wait(60)
        return whole(path, *more)

    def waits(prefetcher):
        if prefetcher._stop:
            told.set()  # the thread is told to stop, and goes on with the file it is at
        wait(prefetcher)

    monkeypatch.setattr(classifier_module, "open_slices", held)
    monkeypatch.setattr(batching._Prefetcher, "_wait", waits)
    opened = OrganClassifier(bundle, device="cpu", batch_size=100)
    results = opened.predict_paths([pictures / "s00.png"] * 1000)
    next(results)
    if end == "close":
        results.close()
    elif end == "throw":
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    else:
        opened.close()
        with pytest.raises(OrganInferError, match="closed"):
            list(results)
    assert threads_reading() == []
    assert most <= len(seen) <= most + 1
    opened.close()


@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("name", ["s00.png", "missing.png"])
def test_a_closed_classifier_ends_a_running_iterator_with_its_next_result(
    bundle, pictures, kind, name
):
    """Also in the middle of a batch, and without anything to classify."""
    opened = OrganClassifier(bundle, device="cpu", batch_size=4)
    results = opened.predict_paths(kind([pictures / name] * 10))
    assert next(results).ok == (name == "s00.png")
    opened.close()
    with pytest.raises(OrganInferError, match="this classifier is closed"):
        next(results)
    assert threads_reading() == []


@pytest.mark.parametrize("kind", [list, iter])
def test_closing_after_the_last_result_is_the_end(bundle, pictures, kind):
    opened = OrganClassifier(bundle, device="cpu", batch_size=4)
    results = opened.predict_paths(kind([pictures / "s00.png"] * 8))
    assert len([next(results) for _ in range(8)]) == 8
    opened.close()
    assert list(results) == []


def test_closing_ends_the_reading_of_a_batch(bundle, pictures, monkeypatch):
    """The caller waits for a batch of many slow files: the next file is not read."""
    monkeypatch.setattr(batching, "_read_plain", None)
    opened = OrganClassifier(bundle, device="cpu", batch_size=1000)
    whole, read = classifier_module.open_slices, []

    def closes(path, *more):
        read.append(path)
        if len(read) == 3:
            opened.close()
        return whole(path, *more)

    monkeypatch.setattr(classifier_module, "open_slices", closes)
    with pytest.raises(OrganInferError, match="this classifier is closed"):
        next(opened.predict_paths(iter([pictures / "s00.png"] * 1000)))
    assert len(read) == 3


def test_an_error_of_reading_comes_in_its_place(bundle, pictures, monkeypatch):
    # A list would be checked before the first file is read.
    paths = UserList([pictures / "s00.png"] * 20 + [None] + [pictures / "s01.png"] * 20)
    with OrganClassifier(bundle, device="cpu", batch_size=8) as opened:
        results = opened.predict_paths(paths)
        assert [next(results).index for _ in range(16)]
        with pytest.raises(InputError, match=r"^paths\[20\]: .*, found None;"):
            next(results)
    assert threads_reading() == []


def test_without_threads_it_reads_all_the_same(bundle, pictures, monkeypatch):
    def none(self):
        raise RuntimeError("can't start new thread")

    paths = sorted(pictures.iterdir())
    with OrganClassifier(bundle, device="cpu", batch_size=8) as opened:
        expected = list(opened.predict_paths(paths))
        monkeypatch.setattr(threading.Thread, "start", none)
        assert list(opened.predict_paths(paths)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes on Linux")
def test_memory_does_not_grow_with_the_pictures(bundle, tmp_path):
    """64 pictures of 16 megabytes each in one batch: one at a time is held."""
    import resource

    np.save(tmp_path / "a.npy", np.zeros((4096, 4096), np.uint8))
    with OrganClassifier(bundle, device="cpu") as opened:
        next(opened.predict_paths([tmp_path / "a.npy"]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(list(opened.predict_paths([tmp_path / "a.npy"] * 64))) == 64
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_a_fork_between_two_results_fails_clearly_and_ends(bundle, pictures):
    code = f"""
import os, sys, threading
from organ_infer import OrganClassifier, OrganInferError, classifier
forked, read_batches = threading.Event(), classifier.read_batches

def held(*given, **options):
    if threading.current_thread() is not threading.main_thread():
        forked.wait(20)  # the second batch is being read while the process forks
    yield from read_batches(*given, **options)

paths = [{str(pictures / "s00.png")!r}] * 64
opened = OrganClassifier({str(bundle)!r}, device="cpu", batch_size=8)
classifier.read_batches = held
results = opened.predict_paths(paths)
next(results)
classifier.read_batches = read_batches
if not (child := os.fork()):
    try:
        list(results)
    except OrganInferError as e:
        assert "opened in process" in str(e), e
    else:
        os._exit(3)
    with OrganClassifier({str(bundle)!r}, device="cpu", batch_size=8) as own:
        assert len(list(own.predict_paths(paths))) == 64
    sys.exit(0)
status = os.waitpid(child, 0)[1]
forked.set()
assert status == 0, status
assert len(list(results)) == 63
results = opened.predict_paths(paths)
next(results)
sys.exit(0)  # with a reader under way
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=30, env=child_environment()
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_no_paths_give_nothing_and_one_path_alone_is_refused(classifier):
    assert list(classifier.predict_paths([])) == []
    with pytest.raises(InputError, match=r"pass \[path\]"):
        classifier.predict_paths("slice.png")


# The command.


def test_a_signal_while_files_are_read_ahead_leaves_whole_lines_in_order(bundle, tmp_path):
    """Large pictures, so that a thread is reading the next batch whenever the signal comes."""
    np.save(tmp_path / "a.npy", np.zeros((3000, 3000), np.uint8))
    given = ["--format", "jsonl", "--batch-size", "16", "--bundle", str(bundle)] + [
        str(tmp_path / "a.npy")
    ] * 3000
    process = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", *given],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(), bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    written, words = process.communicate(timeout=20)
    assert (process.returncode, words) == (130, b"organ-infer: interrupted\n")
    found = [json.loads(line) for line in (first + written).splitlines()]
    assert written.endswith(b"\n") or not written
    assert 1 <= len(found) < 3000 and all(row["path"] == str(tmp_path / "a.npy") for row in found)


def test_many_paths_come_back_in_order_however_they_are_given(command, pictures, tmp_path):
    """More than are taken at once, failures among them."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    names = [
        str(tmp_path / "bad.png") if i % 7 == 3 else f"{pictures}/s{i * 13 % 40:02}.png"
        for i in range(400)
    ]
    listed = tmp_path / "list"
    listed.write_text("\n".join(names))
    options = ["--format", "jsonl", "--batch-size", "4"]
    given = command(*options, *names)
    expected = [
        (row["path"], row.get("label", row.get("error")))
        for row in map(json.loads, given.stdout.splitlines())
    ]
    assert given.returncode == 1 and [path for path, _ in expected] == names
    for other in (
        command(*options, "--files-from", listed),
        command(*options, "--files-from", "-", stdin="\n".join(names)),
        command(*options, "--batch-size", "64", *names),
    ):
        found = [json.loads(line) for line in other.stdout.splitlines()]
        assert other.returncode == 1
        assert [(row["path"], row.get("label", row.get("error"))) for row in found] == expected


def test_a_list_that_comes_slowly_is_answered_as_it_comes(bundle, pictures):
    """A list that comes slowly: once a batch is full its results come, though no further path is known."""
    process = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), "--batch-size", "1", "--files-from", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), bufsize=0,
    )  # fmt: skip
    with process.stdin, process.stdout:
        for name in ("s00.png", "s01.png"):
            process.stdin.write(os.fsencode(pictures / name) + b"\n")
            assert name.encode() in process.stdout.readline()
        both = b"".join(os.fsencode(pictures / name) + b"\n" for name in ("s02.png", "s03.png"))
        process.stdin.write(both)  # results that come together do not wait for a third path
        assert b"s02.png" in process.stdout.readline() and b"s03.png" in process.stdout.readline()
    process.wait(timeout=20)
