"""The command in this process: exit codes, the order of rows for any mix of files, when rows are written."""

import json
import os
import re
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_graph, needs_default, write_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.image_files import npy, saved

from organ_infer import ImageFailure, OrganClassifier, OrganInferError
from organ_infer.cli import classify, main, output, progress, total
from organ_infer.cli.arguments import parse
from organ_infer.cli.signals import Stopped
from organ_infer.cli.summary import Counts

GRAY = np.random.default_rng(3).integers(0, 256, (28, 28), np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{path: the names of its rows, and whether each is good}"""
    folder = tmp_path_factory.mktemp("mixed")
    content = {
        "good.png": (saved(GRAY), {"": True}),
        "turned.tif": (saved(GRAY.T, "TIFF"), {"": True}),
        "stack.npy": (
            npy(np.stack([GRAY, GRAY[::-1], GRAY.T])),
            {"#0": True, "#1": True, "#2": True},
        ),
        "stack.npy#1": (None, {"": True}),
        "stack.npy#7": (None, {"": False}),
        "cut.png": (saved(GRAY)[:60], {"": False}),
        "text.png": (b"no image", {"": False}),
        "none.png": (None, {"": False}),
        "empty.png": (b"", {"": False}),
    }
    for name, (data, _) in content.items():
        if data is not None:
            (folder / name).write_bytes(data)
    (folder / "nothing").mkdir()
    found = {
        str(folder / name): {f"{folder / name}{end}": good for end, good in rows.items()}
        for name, (_, rows) in content.items()
    }
    found[str(folder / "nothing")] = {str(folder / "nothing"): False}
    return found


@pytest.fixture(scope="module")
def kept_open(bundle):
    """The command's own classifier, opened once for the module."""
    with OrganClassifier(bundle, device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def quick(kept_open, bundle, monkeypatch):
    """Runs the command with it, and gives its exit code, rows and words."""
    from organ_infer.cli import model

    asked = []

    def opened(given, **options):
        asked.append((given, options))
        kept_open._batch_size = options["batch_size"]
        again = SimpleNamespace(manifest=kept_open.manifest, predict_paths=kept_open.predict_paths)
        return _Context(again)

    monkeypatch.setattr(model, "OrganClassifier", opened)

    def run(*arguments):
        return main(["--bundle", str(bundle), *map(str, arguments)])

    run.asked = asked
    yield run
    kept_open._batch_size = 64


class _Context:
    def __init__(self, inside):
        self.inside = inside

    def __enter__(self):
        return self.inside

    def __exit__(self, *_):
        pass


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), size=st.sampled_from([1, 2, 3, 64]), listed=st.booleans())
def test_rows_stand_in_the_order_of_the_inputs_whatever_is_bad(
    quick, files, capfd, tmp_path, data, size, listed
):
    given = data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=9))
    expected = [row for name in given for row in files[name].items()]
    arguments = given
    if listed:
        (tmp_path / "list").write_text("\n".join(given))
        arguments = ["--files-from", tmp_path / "list"]
    code = quick("--format", "jsonl", "--batch-size", size, *arguments)
    out, err = capfd.readouterr()
    nothing = ("nothing",) if listed else ("nothing", "none.png")
    if all(name.endswith(nothing) for name in given):
        assert (code, out) == (2, "") and err.count("\n") == len(given)
        assert "no image found: " in err.splitlines()[-1]
        return
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["path"], "error" not in row) for row in rows] == expected
    assert code == (0 if all(good for _, good in expected) else 1)
    told = [line for line in err.splitlines() if line.startswith("organ-infer: error: ")]
    assert told == [
        f"organ-infer: error: {row['path']}: {row['error']}" for row in rows if "error" in row
    ]


def test_every_format_has_the_same_rows_in_the_same_order(quick, files, capfd):
    given = [name for name in files if not name.endswith("nothing")]
    counts = {}
    for form in ("text", "csv", "jsonl"):
        assert quick("--format", form, *given) == 1
        counts[form] = capfd.readouterr().out.count("\n")
    good = [good for name in given for good in files[name].values()]
    assert counts == {"text": sum(good), "csv": 1 + len(good), "jsonl": len(good)}


def test_the_options_reach_the_classifier_and_limits_its_reading(quick, files, capfd):
    good = next(iter(files))
    assert quick("--pixel-limit", 783, good) == 1 and "at most 783 pixels" in capfd.readouterr().err
    assert quick("--pixel-limit", 784, good) == 0
    size = os.stat(good).st_size
    assert quick("--file-limit", size - 1, good) == 1
    assert f"{size:,} bytes: too large, at most {size - 1:,} are read" in capfd.readouterr().err
    assert quick("--file-limit", size, good) == 0
    quick.asked.clear()
    given = "--device cpu --threads 3 --batch-size 5 --orientation PL --tta --fast --no-cuda-graphs"
    quick(*given.split(), good)
    ((_, options),) = quick.asked
    assert options == {
        "device": "cpu", "threads": 3, "batch_size": 5, "orientation": "PL", "tta": True, "fast": True, "cuda_graphs": False,
    }  # fmt: skip


def test_as_many_classes_and_organs_as_there_are_can_be_asked_for(quick, files, capfd):
    good = next(iter(files))
    for options, code in {
        "--top 11": 0,
        "--top 12": 2,
        "--top 8 --organs": 0,
        "--top 9 --organs": 2,
        "--top 11 --organs --format jsonl": 0,
        "--top 12 --organs --format jsonl": 2,
    }.items():
        assert quick(*options.split(), good) == code, options
    words = capfd.readouterr().err
    assert (
        "--top 12: the model has 11 classes" in words and "--top 9: the model has 8 organs" in words
    )


@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_the_packaged_model_is_named_with_its_view(tmp_path, capfd, monkeypatch, files, view):
    import organ_infer.classifier

    folder = write_bundle(
        tmp_path / "b",
        {"g.onnx": make_graph()},
        change=lambda manifest: manifest["task"].update(view=view),
    )
    monkeypatch.delenv("ORGAN_INFER_BUNDLE", raising=False)
    monkeypatch.setattr(organ_infer.classifier, "packaged_bundle", lambda: folder)
    assert main([next(iter(files))]) == 0 and capfd.readouterr().err == ""
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    assert main([next(iter(files))]) == 0
    note, summary = capfd.readouterr().err.splitlines()
    assert note == f"organ-infer: note: using the packaged random ({view} slices); see --bundle"
    assert re.fullmatch(r"organ-infer: 1 slice from 1 file; \d+\.\d s", summary)
    assert main(["--quiet", next(iter(files))]) == 0 and capfd.readouterr().err == ""


def test_where_no_image_is_each_reason_is_told_and_nothing_done(quick, files, capfd, tmp_path):
    nothing = next(name for name in files if name.endswith("nothing"))
    assert quick("/none/*.png", nothing) == 2
    assert capfd.readouterr() == ("", (
        "organ-infer: error: /none/*.png: no file matches this pattern\n"
        f"organ-infer: error: no image found: {nothing}: no image in this directory; use --recursive to include subdirectories\n"
    ))  # fmt: skip
    (tmp_path / "list").touch()
    assert quick("--files-from", tmp_path / "list") == 2
    assert (
        capfd.readouterr().err == "organ-infer: error: no image found: --files-from lists no path\n"
    )
    assert quick.asked == []


@pytest.fixture
def counted_totals(monkeypatch):
    """The total of each run, once its thread has ended."""
    totals = []

    class Joined(total.Total):
        def __enter__(self):
            super().__enter__()
            if self._thread is not None:
                self._thread.join()
            totals.append(self.slices)
            return self

    monkeypatch.setattr(classify, "Total", Joined)
    return totals


@pytest.mark.parametrize("bar", [True, False])
def test_the_total_counts_files_directories_patterns_lists_and_large_stacks(
    quick, files, monkeypatch, tmp_path, counted_totals, bar
):
    class Shown(progress.Messages):
        def __init__(self):
            super().__init__()
            self.bar = bar

    monkeypatch.setattr(progress, "Messages", Shown)
    monkeypatch.setattr(progress, "_stdout_is_pipe", lambda: False)
    monkeypatch.setattr(total, "LARGE", 2000)
    good = next(iter(files))
    stack = next(name for name in files if name.endswith("stack.npy"))
    nothing = next(name for name in files if name.endswith("nothing"))
    inner = tmp_path / "images" / "inner"
    inner.mkdir(parents=True)
    for path in (inner.parent / "a.png", inner.parent / "b.png", inner / "c.png"):
        path.write_bytes(saved(GRAY))
    (inner / "notes.txt").write_text("text")
    (tmp_path / "list").write_text(f"{good}\n{stack}\n{inner}\n")
    quick(good, good)
    quick(good, nothing)
    quick(inner.parent)
    quick("-r", inner.parent)
    quick(f"{inner.parent}/[ab].png")
    quick(stack, f"{stack}#1")
    quick("--files-from", tmp_path / "list")
    quick("--quiet", good)
    assert counted_totals == ([2, 2, 2, 3, 2, 4, 5, None] if bar else [None] * 8)


def test_rows_of_a_pipe_do_not_wait_and_it_has_no_total(
    quick, files, monkeypatch, tmp_path, counted_totals
):
    delays, real = [], classify.RowBuffer
    monkeypatch.setattr(
        classify,
        "RowBuffer",
        lambda writer, header, delay, before_write: (
            delays.append(delay) or real(writer, header, delay)
        ),
    )
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setattr(progress, "_stdout_is_pipe", lambda: False)
    good = next(iter(files))
    (tmp_path / "list").write_text(good)
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_text, args=(f"{good}\n",))
    writing.start()
    quick("--files-from", tmp_path / "pipe")
    writing.join()
    quick("--files-from", tmp_path / "list")
    assert (delays, counted_totals) == ([0.0, 0.2], [None, 1])


def test_counting_that_cannot_start_or_fails_leaves_the_total_unknown(monkeypatch, tmp_path):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with total.Total(parse(["x"]), wanted=True) as counting:
        counting._thread.join()
    assert counting.slices == 1
    monkeypatch.setattr(total, "Candidates", lambda options: 1 / 0)
    with total.Total(parse(["x"]), wanted=True) as counting:
        counting._thread.join()
    assert counting.slices is None
    monkeypatch.setattr(total.threading.Thread, "start", refuse)
    with total.Total(parse(["x"]), wanted=True) as counting:
        assert counting.slices is None


def test_the_summary_leaves_out_zeros_and_has_right_plurals():
    def prediction(*warnings):
        return SimpleNamespace(warnings=warnings)

    failure = ImageFailure("a", "broken")
    counts = Counts()
    counts.add_path("a.png")
    counts.add(prediction("converted from color to gray"))
    assert counts.summary(0, 0.04) == "1 slice from 1 file; 0.0 s"
    counts.add_path("b.png")
    counts.add(failure)
    assert counts.summary(0, 7.24) == "1 slice from 2 files; 1 failed; 7.2 s"
    counts.add(prediction("converted", "implausible: x; likely y", "implausible: z"))
    assert (
        counts.summary(1234, 192)
        == "2 slices from 2 files; 1 failed; 1 implausible; 1,234 skipped; 3 min 12 s"
    )
    assert (counts.done, counts.exit_code) == (3, 1)
    only_failed = Counts()
    only_failed.add_path("none")
    only_failed.add(failure)
    assert only_failed.summary(0, 59.96) == "1 failed; 1 min 0 s"


def test_the_slices_of_one_stack_are_one_file(tmp_path):
    (tmp_path / "a.npy").touch()
    counts = Counts()
    for path in ("a.npy#0", "a.npy#1", "b.png", "a.npy"):
        counts.add_path(str(tmp_path / path))
    assert counts.files == 3


def test_times_are_read_at_a_glance():
    times = {0: "0 s", 59.4: "59 s", 59.6: "1 min 0 s", 192: "3 min 12 s", 3599.7: "1 h 0 min"}
    times |= {7530: "2 h 5 min", 360_000: "100 h 0 min"}
    assert {seconds: progress.duration(seconds) for seconds in times} == times


# When rows are written.


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(output, "monotonic", lambda: self.now)


def written(monkeypatch, results, *, delay, clock=None, fails=None, length=1000, head="head\n"):
    """What `_write_rows` writes at a time; each result comes a second tenth after the other where a clock is given."""
    pieces, bars = [], []
    messages = SimpleNamespace(
        error=lambda text: bars.append(text), warning=lambda text: bars.append(text),
        progress=lambda done, failed, total: bars.append((done, failed, total)),
    )  # fmt: skip

    def come():
        for result in results:
            if clock is not None:
                clock.now += 0.1
            yield result
        if fails is not None:
            raise fails

    def row(result):
        return "x" * length + "\n"

    row_format = SimpleNamespace(row=row, failure=row, has_warnings=True)
    rows = output.RowBuffer(SimpleNamespace(write=pieces.append, is_terminal=False), head, delay)
    signals = SimpleNamespace(check=lambda: None)
    code, counts = None, Counts()
    try:
        classify._write_rows(
            come(), row_format, rows, messages, signals, counts, SimpleNamespace(slices=3)
        )
        code = counts.exit_code
    except BaseException as e:
        assert e is fails
    return code, pieces, bars


def test_rows_wait_for_16_384_characters_or_a_fifth_of_a_second(monkeypatch):
    clock = Clock(monkeypatch)
    ok = SimpleNamespace(warnings=())
    assert (output.BUFFER_SIZE, classify.DELAY) == (16_384, 0.2)
    code, pieces, _ = written(monkeypatch, [ok] * 40, delay=1e9)
    sizes = [len(piece) for piece in pieces]
    assert code == 0
    assert sizes == [5 + 17 * 1001, 17 * 1001, 6 * 1001]
    assert (
        pieces[0].startswith("head\nx") and "".join(pieces) == "head\n" + ("x" * 1000 + "\n") * 40
    )
    _, pieces, _ = written(monkeypatch, [ok] * 17, delay=1e9, length=1023, head="")
    assert [len(piece) for piece in pieces] == [16_384, 1024]
    _, pieces, _ = written(monkeypatch, [ok] * 5, delay=0.25, clock=clock)
    assert [piece.count("\n") for piece in pieces] == [4, 2]  # the head and three, two at the end
    _, pieces, _ = written(monkeypatch, [ok] * 3, delay=0.0)
    assert [piece.count("\n") for piece in pieces] == [2, 1, 1, 0]  # each at once


def test_the_bar_counts_and_the_code_tells_what_failed(monkeypatch):
    ok, bad = SimpleNamespace(warnings=()), ImageFailure("a", "broken")
    code, _, bars = written(monkeypatch, [ok, bad, ok, bad], delay=1.0)
    assert code == 1
    # of three arguments; a fourth row comes of a file of many slices, and there is no total any more
    assert bars == [(1, 0, 3), "a: broken", (2, 1, 3), (3, 1, 3), "a: broken", (4, 2, None)]


@pytest.mark.parametrize("fails", [OrganInferError("broke"), KeyboardInterrupt(), Stopped(2)])
def test_what_was_answered_is_written_and_not_finished_when_something_breaks(monkeypatch, fails):
    ok = SimpleNamespace(warnings=())
    code, pieces, _ = written(monkeypatch, [ok, ok], delay=1e9, fails=fails)
    assert code is None and "".join(pieces).count("\n") == 3
    code, pieces, _ = written(monkeypatch, [], delay=1e9, fails=fails)
    assert (code, pieces) == (None, [])  # a head alone is no result


# Ends.


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (
            MemoryError(),
            "not enough memory; use a smaller --batch-size, or raise the limit of memory (ulimit -v)",
        ),
        (ValueError("a\n b"), "unexpected ValueError (a b); please report this error"),
        (KeyError("x" * 400), f"unexpected KeyError ('{'x' * 299}); please report this error"),
        (OrganInferError("a fault"), "a fault"),
    ],
)
def test_any_other_failure_is_one_line_and_2(monkeypatch, capfd, files, bundle, raised, words):
    def fail(*_):
        raise raised

    monkeypatch.setattr(classify, "classify", fail)
    assert main(["--bundle", str(bundle), next(iter(files))]) == 2
    assert capfd.readouterr() == ("", f"organ-infer: error: {words}\n")


@pytest.mark.parametrize(("name", "word"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated")])
def test_a_signal_ends_with_its_code_and_its_handler_is_given_back(
    monkeypatch, capfd, files, bundle, name, word
):
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)
    try:

        def ends(*_):
            os.kill(os.getpid(), number)
            raise AssertionError("it goes on")

        monkeypatch.setattr(classify, "classify", ends)
        assert main(["--bundle", str(bundle), next(iter(files))]) == 128 + number
        assert signal.getsignal(number) is signal.default_int_handler
        assert capfd.readouterr() == ("", f"organ-infer: {word}\n")
    finally:
        signal.signal(number, before)


def test_a_signal_that_became_another_error_still_ends_as_a_signal(
    monkeypatch, capfd, files, bundle
):
    """As in the import of an extension module."""

    for error in (RuntimeError("hidden"), OrganInferError("hidden")):

        def ends(*_, error=error):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Stopped:
                raise error from None

        monkeypatch.setattr(classify, "classify", ends)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            assert main(["--bundle", str(bundle), next(iter(files))]) == 143
        finally:
            signal.signal(signal.SIGTERM, before)
        assert capfd.readouterr().err == "organ-infer: terminated\n"


def test_help_and_version_are_0_and_wrong_options_2(capfd):
    assert main(["--help"]) == main(["--version"]) == 0
    assert "usage: organ-infer" in capfd.readouterr().out
    assert main(["--nope"]) == 2 and capfd.readouterr().out == ""


def test_a_closed_pipe_is_0(monkeypatch, capfd, files, bundle):
    from organ_infer.cli.output import ClosedPipe

    def ends(*_):
        raise ClosedPipe

    monkeypatch.setattr(classify, "classify", ends)
    assert main(["--bundle", str(bundle), next(iter(files))]) == 0
    assert capfd.readouterr() == ("", "")


@needs_default
@pytest.mark.parametrize("wrong", [[], ["one", "two"]])
def test_check_is_0_when_nothing_is_wrong_and_2_otherwise(monkeypatch, capfd, wrong):
    from organ_infer.cli import check

    monkeypatch.setattr(check, "check", lambda options: (["a  b", "c  d"], wrong))
    assert main(["--check"]) == (2 if wrong else 0)
    assert capfd.readouterr() == (
        "a  b\nc  d\n",
        "".join(f"organ-infer: error: {line}\n" for line in wrong),
    )


def test_the_library_s_warnings_are_lines_and_all_is_put_back(capfd):
    import logging

    from organ_infer.cli.progress import Messages, library_messages
    from organ_infer.engine import ort as loading

    log = logging.getLogger("organ_infer")
    handlers, propagates = list(log.handlers), log.propagate
    with pytest.raises(ZeroDivisionError), library_messages(Messages()):
        assert loading.silent and not log.propagate
        log.warning("slow %d", 3)
        log.info("unseen")
        raise ZeroDivisionError
    assert capfd.readouterr().err == "organ-infer: warning: slow 3\n"
    assert (log.handlers, log.propagate, loading.silent) == (handlers, propagates, False)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_drawn_on_a_terminal_is_cleared_before_rows(is_terminal):
    events = []
    writer = SimpleNamespace(write=events.append, is_terminal=is_terminal)
    rows = output.RowBuffer(writer, "", 0.0, lambda: events.append("cleared"))
    rows.add("a\n")
    rows.flush()
    cleared = ["cleared"] if is_terminal else []
    assert events == [*cleared, "a\n", *cleared, ""]


def test_results_go_to_a_terminal_only_without_output(monkeypatch, tmp_path):
    monkeypatch.setattr(output.os, "isatty", lambda descriptor: True)
    assert output.Writer(None).is_terminal
    writer = output.Writer(str(tmp_path / "o"))
    assert not writer.is_terminal
    writer.finish()
    monkeypatch.setattr(output.os, "isatty", lambda descriptor: False)
    assert not output.Writer(None).is_terminal
