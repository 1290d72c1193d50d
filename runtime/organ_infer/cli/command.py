"""organ-infer: images in, one line of result each out. Formats, exit codes: docs/reference/command.md."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..classifier import OrganClassifier
    from ..images.discovery import Candidate
    from ..results import ImageFailure, Prediction
    from .arguments import Options
    from .output import Writer
    from .progress import Messages

__all__ = ["main"]

ALL, SOME, NOTHING = 0, 1, 2
_SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "terminated"}
CHUNK = 1 << 14  # characters of results that wait to be written together,
DELAY = 0.2  # seconds at most, where no path is waited for
AHEAD = 16  # batches of paths taken at once, unless they may have to be waited for


class Stopped(BaseException):
    """A signal asks to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """Turns SIGINT and SIGTERM into Stopped, but not in the middle of a line: a second one does not wait."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.pending: int | None = None
        self.raised: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for name in _SIGNALS:
            number = getattr(signal, name)
            if signal.getsignal(number) not in (
                signal.SIG_IGN,
                None,
            ):  # nohup and background jobs ignore SIGINT
                self.before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: object) -> None:
        if self.writer is not None and self.writer.busy and self.pending is None:
            self.pending = number
        else:
            self.raised = number
            raise Stopped(number)

    def check(self) -> None:
        """Stop where a signal waits, or where what it raised became something else or nothing, as in the import of an
        extension module."""
        number = self.raised if self.pending is None else self.pending
        if number is not None:
            raise Stopped(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    with _Signals() as signals:
        messages = None
        try:
            from .progress import Messages

            messages = Messages()
            try:
                return _main(sys.argv[1:] if arguments is None else arguments, messages, signals)
            except Exception:
                signals.check()
                raise
        except Stopped as e:
            return _stopped(e.number, messages)
        except MemoryError:
            _say(messages, "not enough memory: use a smaller --batch-size")
        except Exception as e:
            _say(
                messages,
                f"unexpected {type(e).__name__} ({' '.join(str(e).split())[:300]}): please report it",
            )
        return NOTHING


def _say(messages: "Messages | None", text: str) -> None:
    if messages is not None:
        messages.error(text)


def _stopped(number: int, messages: "Messages | None") -> int:
    if messages is not None:
        messages.end()
        messages.note(next(word for name, word in _SIGNALS.items() if getattr(signal, name) == number))
    return 128 + number


def _main(arguments: Sequence[str], messages: "Messages", signals: _Signals) -> int:
    from .arguments import UsageError, parse

    try:
        options = parse(arguments)
    except SystemExit as e:  # --help and --version
        return _flushed(int(e.code or 0))
    except UsageError as e:
        messages.error(str(e))
        return NOTHING
    return _run(options, messages, signals)


def _run(options: "Options", messages: "Messages", signals: _Signals) -> int:
    from ..errors import OrganInferError
    from .arguments import UsageError
    from .output import ClosedPipe, OutputError, Writer

    writer: Writer | None = None
    try:
        messages.quiet = options.quiet
        if sys.stdout is None and options.output is None:
            raise OutputError("standard output is closed")
        if options.check:
            return _check(options, messages)
        images = _some(options, messages)
        writer = signals.writer = Writer(options.output)
        return _classify(options, images, messages, writer, signals)
    except ClosedPipe:
        return ALL
    except (UsageError, OrganInferError, OutputError) as e:
        signals.check()
        if writer is not None:
            writer.discard()
        kept = "" if writer is None or isinstance(e, OutputError) else writer.kept()
        messages.error(f"{e}{kept}")
        return NOTHING
    finally:
        messages.end()


def _check(options: "Options", messages: "Messages") -> int:
    from .check import check
    from .output import Writer

    with _library_words(messages):
        lines, wrong = check(options)
    Writer(None).write("".join(f"{line}\n" for line in lines))
    for line in wrong:
        messages.error(line)
    return NOTHING if wrong else ALL


def _flushed(code: int) -> int:
    """Standard output written out now, where a closed pipe can still be quiet."""
    try:
        if sys.stdout is not None:  # it was closed before this process began
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _some(options: "Options", messages: "Messages") -> "Iterator[Candidate]":
    """The images to classify, at least one of them; what stands for nothing before the first waits for it."""
    from itertools import chain

    from .arguments import UsageError
    from .paths import find

    found = find(options)
    waiting: list[Candidate] = []
    for item in found:
        waiting.append(item)
        if not item.empty:
            return chain(waiting, found)
    for item in waiting[:-1]:
        messages.error(f"{item.path}: {item.error}")
    last = f"{waiting[-1].path}: {waiting[-1].error}" if waiting else "--files-from names none"
    raise UsageError(f"no image found, {last}")


def _classify(
    options: "Options",
    images: "Iterator[Candidate]",
    messages: "Messages",
    writer: "Writer",
    signals: _Signals,
) -> int:
    from ..classifier import OrganClassifier
    from .arguments import UsageError, dataset_name
    from .output import row_format

    with (
        _library_words(messages),
        OrganClassifier(
            options.bundle,
            device=options.device,
            threads=options.threads,
            batch_size=options.batch_size,
            orientation=options.orientation,
            tta=options.tta,
            cuda_graphs=options.cuda_graphs,
        ) as classifier,
    ):
        task = classifier.manifest.task
        organs = task.organs() if options.organs else None
        listed = organs if organs and options.format == "text" else task.classes
        if options.top is not None and options.top > (count := len(set(listed))):
            kind = "organs" if listed is organs else "classes"
            raise UsageError(f"--top {options.top}: the model has {count} {kind}")
        if options.bundle is None:
            article = "an" if task.view[0] in "aeiou" else "a"
            messages.note(
                f"using the packaged {classifier.manifest.name}, {article} {task.view} model trained on"
                f" {dataset_name(task.dataset)}; --bundle takes another"
            )
        head, row = row_format(options.format, task.classes, options.top, organs, options.min_probability)
        counted = messages.bar and options.files_from is None and not any(map(os.path.isdir, options.paths))
        total = len(options.paths) if counted else None
        waits = options.files_from is not None and not os.path.isfile(options.files_from)
        limits = {"pixel_limit": options.pixel_limit, "file_limit": options.file_limit}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        results = _results(classifier, images, None if waits else AHEAD * options.batch_size, given)
        delay = 0.0 if waits else DELAY  # the next path may never come
        return _write(results, head, row, options, messages, writer, signals, total, delay)


def _results(
    classifier: "OrganClassifier", images: "Iterator[Candidate]", at_once: int | None, limits: dict[str, int]
) -> "Iterator[Prediction | ImageFailure]":
    """The results in order: what stands for nothing keeps its place between what is classified. `at_once`: how many
    paths are taken together, so that files are read ahead; None: each when it is needed."""
    from itertools import groupby, islice

    from ..results import ImageFailure

    for nothing, some in groupby(images, lambda item: item.error is not None):
        if nothing:
            yield from (ImageFailure(item.path, item.error or "") for item in some)
            continue
        names = (item.path for item in some)
        if at_once is None:
            yield from classifier.predict_paths(names, **limits)
            continue
        while part := list(islice(names, at_once)):
            yield from classifier.predict_paths(part, **limits)


def _write(
    results: "Iterator[Prediction | ImageFailure]",
    head: str,
    row: "Callable[[Prediction | ImageFailure], str]",
    options: "Options",
    messages: "Messages",
    writer: "Writer",
    signals: _Signals,
    total: int | None,
    delay: float,
) -> int:
    from time import monotonic

    from ..results import ImageFailure

    done = failed = 0
    waiting, written = head, monotonic()
    try:
        for result in results:
            done += 1
            if isinstance(result, ImageFailure):
                failed += 1
                messages.error(f"{result.path}: {result.error}")
            elif options.format == "text":
                for warning in result.warnings:
                    messages.note(f"warning: {result.path}: {warning}")
            waiting += row(result)
            if len(waiting) >= CHUNK or monotonic() - written >= delay:
                ready, waiting, written = waiting, "", monotonic()
                writer.write(ready)
                signals.check()
            messages.progress(
                done, failed, total if total and done <= total else None
            )  # a file may hold many
    except BaseException:
        if waiting != head:  # what was answered is written whatever ends it
            writer.write(waiting)
        raise
    writer.write(waiting)
    signals.check()
    writer.finish()
    return SOME if failed else ALL


@contextmanager
def _library_words(messages: "Messages") -> Iterator[None]:
    """What the library logs as a warning becomes a line here; Pillow's and onnxruntime's own words are not for users."""
    import logging
    import warnings

    from ..engine import ort

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.note(f"warning: {record.getMessage()}")

    log, handler = logging.getLogger("organ_infer"), Lines(logging.WARNING)
    log.addHandler(handler)
    propagated, log.propagate = log.propagate, False
    ort.silent = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagated
        ort.silent = False
