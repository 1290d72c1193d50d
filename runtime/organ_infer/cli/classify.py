"""Classifies the images of the command line and writes one row per slice, in the order of the input."""

import codecs
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..classifier import OrganClassifier
from ..errors import file_reason, shorten
from ..images.discovery import Skipped
from ..images.registry import UNKNOWN_FORMAT
from ..names import escape_path
from ..results import ImageFailure, Prediction
from .arguments import Options, UsageError
from .formats import FORMATS, RowFormat, RowOptions
from .model import open_classifier, packaged_model_note, reading_options
from .output import RowBuffer, Writer
from .paths import STANDARD_INPUT, Candidates
from .progress import Messages, library_messages
from .signals import Signals
from .summary import IMPLAUSIBLE, Counts, is_implausible
from .total import Total

if TYPE_CHECKING:
    from ..bundle.manifest import Manifest
    from .review import Review

__all__ = ["classify"]

Result = Prediction | ImageFailure

# Seconds that rows may wait to be written together with later ones.
DELAY = 0.2
# Characters of a skipped scan's name.
NAME_LIMIT = 200
# Batches of paths that are passed to the classifier together.
BATCHES_AHEAD = 16


def classify(
    options: Options,
    candidates: Candidates,
    messages: Messages,
    writer: Writer,
    signals: Signals,
    arguments: Sequence[str] = (),
) -> int:
    """Classify the candidates and write their rows.

    Args:
        options: Of the command.
        candidates: What to classify.
        messages: Messages and progress.
        writer: Gets the rows.
        signals: Checked after rows are written.
        arguments: From which the options were parsed, for the report.

    Returns:
        The exit code.

    Raises:
        UsageError: An option does not fit the model.
        OrganInferError: The model cannot be opened, or failed.
        OutputError: The results cannot be written.
        ClosedPipe: The reader of standard output has closed it.
    """
    with library_messages(messages), open_classifier(options) as classifier:
        task = classifier.manifest.task
        row_format = _row_format(options, classifier.manifest)
        review = _review(options, arguments, classifier, row_format, messages)
        writer.needs_reader = review is None
        if options.bundle is None and messages.terminal:
            messages.note(packaged_model_note(classifier.manifest.name, task))
        # The next path of a pipe may never arrive, so rows are written at once.
        is_piped = options.files_from is not None and not os.path.isfile(options.files_from)
        delay = 0.0 if is_piped else DELAY
        rows = RowBuffer(writer, row_format.header, delay, messages.end)
        chunk_size = BATCHES_AHEAD * options.batch_size
        counts = Counts()
        results = _results(
            classifier, candidates, chunk_size, reading_options(options), counts.add_path, review
        )
        if options.strict:
            results = map(_strict, results)
        messages.start_progress()
        with Total(options, wanted=messages.bar and not messages.quiet) as total:
            _write_rows(results, row_format, rows, messages, signals, counts, total, review)
        if candidates.skipped:
            messages.note(_skipped_text(candidates.skipped, candidates.scans))
        if advice := counts.advice():
            messages.note(advice)
        signals.check()
        if end := row_format.end():
            writer.write(end)
        writer.finish()
        code = counts.exit_code if review is None else max(counts.exit_code, review.finish())
        if messages.terminal:
            messages.status(counts.summary(candidates.skipped.total(), messages.seconds))
        return code


def _review(
    options: Options,
    arguments: Sequence[str],
    classifier: OrganClassifier,
    row_format: RowFormat,
    messages: Messages,
) -> "Review | None":
    """Return what collects the results for --report and --labels, or None."""
    if options.report is None and options.labels is None and not options.labels_from_folders:
        return None
    # Imported here, because most runs have neither.
    from .review import Review

    return Review(options, arguments, classifier, row_format, messages)


def _row_format(options: Options, manifest: "Manifest") -> RowFormat:
    """Create the output format for the model.

    Raises:
        UsageError: --top exceeds the number of classes, or --min-plausibility needs another model.
    """
    task, has_plausibility = manifest.task, manifest.plausibility is not None
    if options.min_plausibility is not None and not has_plausibility:
        raise UsageError(
            f"--min-plausibility {options.min_plausibility:g}: {manifest.name} gives no plausibility; leave the option"
            " out, or choose another model with --bundle"
        )
    format_class, organs = FORMATS[options.format], task.organs()
    lists_organs = options.organs and format_class.lists_organs
    kind, names = ("organs", organs) if lists_organs else ("classes", task.classes)
    count = len(set(names))
    if options.top is not None and options.top > count:
        raise UsageError(f"--top {options.top}: the model has {count} {kind}")
    return format_class(
        RowOptions(
            task.classes,
            organs,
            options.top,
            options.organs,
            options.min_probability,
            options.min_plausibility,
            has_plausibility,
        )
    )


def _skipped_text(skipped: Mapping[Skipped, int], scans: Sequence[str] = ()) -> str:
    """Return one line about the entries of directories that were passed over, with what to do."""
    parts = [f"{skipped[kind]:,} {kind.value}" for kind in Skipped if skipped[kind]]
    advice = ""
    if skipped[Skipped.LINK]:
        advice = "; pass a linked directory as a path to include it"
    if skipped[Skipped.SCAN]:
        names = [shorten(escape_path(path, one_line=True), NAME_LIMIT) for path in scans]
        more = ["..."] if skipped[Skipped.SCAN] > len(names) else []
        advice += f"; pass a scan with its mask to organ-infer volume: {', '.join(names + more)}"
    return f"skipped in directories: {', '.join(parts)}{advice}"


def _results(
    classifier: OrganClassifier,
    candidates: Candidates,
    chunk_size: int,
    reading: dict[str, Any],
    on_path: Callable[[str], None] = lambda path: None,
    review: "Review | None" = None,
) -> Iterator[Result]:
    """Yield the results in the order of the candidates. Candidates with an error become failures.

    Args:
        classifier: Classifies the other candidates.
        candidates: What the command line names.
        chunk_size: At most so many paths are passed on together, so that files are read ahead. No more
            are collected than have arrived.
        reading: Keyword arguments of `predict_paths`.
        on_path: Called with each path that is passed on.
        review: Gets the image on standard input, which can be read only once.
    """
    chunk: list[str] = []
    for candidate in candidates:
        if candidate is STANDARD_INPUT:
            yield from classifier.predict_paths(chunk, **reading)
            chunk = []
            on_path(candidate.path)
            yield from _standard_input(classifier, reading, review)
            continue
        if candidate.error is None:
            on_path(candidate.path)
            chunk.append(candidate.path)
            if candidates.has_more and len(chunk) < chunk_size:
                continue
        yield from classifier.predict_paths(chunk, **reading)
        chunk = []
        if candidate.error is not None:
            yield ImageFailure(candidate.path, candidate.error)
    yield from classifier.predict_paths(chunk, **reading)


def _standard_input(
    classifier: OrganClassifier, reading: dict[str, Any], review: "Review | None"
) -> list[Result]:
    """Classify the image on standard input, which is read to its end or to the limit of a file."""
    name = STANDARD_INPUT.path
    try:
        # Some replacements of standard input have no such method.
        peek = getattr(sys.stdin.buffer, "peek", None)
        is_text = peek is not None and _is_text(peek(1))
        stream = sys.stdin.buffer if review is None else review.recorded(sys.stdin.buffer)
        results = classifier.predict_bytes(stream, name=name, **reading)
    except OSError as e:
        return [ImageFailure(name, f"cannot be read ({file_reason(e)})")]
    return [_with_list_advice(result) for result in results] if is_text else results


def _is_text(head: bytes) -> bool:
    """Whether bytes look like lines of text, such as paths."""
    try:
        # Incremental, because the last character may be cut off.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(c.isprintable() or c in "\n\r\t" for c in text)


def _with_list_advice(result: Result) -> Result:
    """Add to the failure of text on standard input what to do if it is a list."""
    if isinstance(result, ImageFailure) and result.error.startswith(UNKNOWN_FORMAT):
        return ImageFailure(result.path, f"{result.error}; for a list of paths use --files-from -")
    return result


def _strict(result: Result) -> Result:
    """Turn the result of an implausible slice into a failure."""
    if isinstance(result, ImageFailure) or not is_implausible(result):
        return result
    reasons = [text for text in result.warnings if text.startswith(IMPLAUSIBLE)]
    return ImageFailure(result.path or "", f"{'; '.join(reasons)} (refused by --strict)")


def _write_rows(
    results: Iterator[Result],
    row_format: RowFormat,
    rows: RowBuffer,
    messages: Messages,
    signals: Signals,
    counts: Counts,
    total: Total,
    review: "Review | None" = None,
) -> None:
    """Write the rows, count them, report failures and warnings, draw the progress bar."""
    try:
        for result in results:
            counts.add(result)
            if review is not None:
                review.add(result)
            if isinstance(result, ImageFailure):
                messages.error(f"{escape_path(result.path, one_line=True)}: {result.error}")
                row = row_format.failure(result)
            else:
                if not row_format.has_warnings:
                    for warning in result.warnings:
                        path = escape_path(result.path or "", one_line=True)
                        messages.warning(f"{path}: {warning}")
                row = row_format.row(result)
            if rows.add(row):
                signals.check()
            # More results than were counted: a small file contains several slices, so the total is not known.
            slices = total.slices
            messages.progress(
                counts.done, counts.failed, slices if slices and counts.done <= slices else None
            )
    except BaseException:
        rows.flush_results()
        raise
    rows.flush()
