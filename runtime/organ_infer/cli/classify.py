"""Classifies the images of the command line and writes one row per slice, in the order of the input."""

import os
from collections.abc import Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING

from ..classifier import OrganClassifier
from ..results import ImageFailure, Prediction
from .arguments import Options, UsageError, dataset_name
from .exit_codes import ALL_CLASSIFIED, SOME_FAILED
from .formats import FORMATS, RowFormat, RowOptions
from .model import open_classifier, reading_limits
from .output import RowBuffer, Writer
from .progress import Messages, library_messages
from .signals import Signals

if TYPE_CHECKING:
    from ..bundle.manifest import Task
    from ..images.discovery import Candidate

__all__ = ["classify"]

Result = Prediction | ImageFailure

# Seconds that rows may wait to be written together with later ones.
DELAY = 0.2
# Batches of paths that are passed to the classifier together.
BATCHES_AHEAD = 16


def classify(
    options: Options,
    candidates: "Iterator[Candidate]",
    messages: Messages,
    writer: Writer,
    signals: Signals,
) -> int:
    """Classify the candidates and write their rows.

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
        row_format = _row_format(options, task)
        if options.bundle is None:
            _name_packaged_model(classifier.manifest.name, task, messages)
        # The next path of a pipe may never arrive, so rows are written at once and no paths are collected.
        is_piped = options.files_from is not None and not os.path.isfile(options.files_from)
        rows = RowBuffer(writer, row_format.header, delay=0.0 if is_piped else DELAY)
        chunk_size = None if is_piped else BATCHES_AHEAD * options.batch_size
        total = _count_files(options) if messages.bar else None
        results = _results(classifier, candidates, chunk_size, reading_limits(options))
        exit_code = _write_rows(results, row_format, rows, messages, signals, total)
        signals.check()
        writer.finish()
        return exit_code


def _row_format(options: Options, task: "Task") -> RowFormat:
    """Create the output format for the model's classes. Raises UsageError if --top exceeds their number."""
    format_class, organs = FORMATS[options.format], task.organs()
    lists_organs = options.organs and format_class.lists_organs
    kind, names = ("organs", organs) if lists_organs else ("classes", task.classes)
    count = len(set(names))
    if options.top is not None and options.top > count:
        raise UsageError(f"--top {options.top}: the model has {count} {kind}")
    return format_class(
        RowOptions(task.classes, organs, options.top, options.organs, options.min_probability)
    )


def _name_packaged_model(name: str, task: "Task", messages: Messages) -> None:
    messages.note(
        f"using the packaged model {name} ({task.view} slices, trained on {dataset_name(task.dataset)});"
        " use --bundle for another model"
    )


def _count_files(options: Options) -> int | None:
    """Return the number of files, or None if a directory or list would have to be read for it."""
    if options.files_from is not None or any(map(os.path.isdir, options.paths)):
        return None
    return len(options.paths)


def _results(
    classifier: OrganClassifier,
    candidates: "Iterator[Candidate]",
    chunk_size: int | None,
    limits: dict[str, int],
) -> Iterator[Result]:
    """Yield the results in the order of the candidates. Candidates with an error become failures.

    Args:
        classifier: Classifies the other candidates.
        candidates: The images that the command line names.
        chunk_size: The number of paths that are passed on together, so that files are read ahead. None
            passes on each path when it is needed.
        limits: Keyword arguments of `predict_paths`.
    """
    for is_error, group in groupby(candidates, lambda candidate: candidate.error is not None):
        if is_error:
            yield from (ImageFailure(candidate.path, candidate.error or "") for candidate in group)
            continue
        paths = (candidate.path for candidate in group)
        if chunk_size is None:
            yield from classifier.predict_paths(paths, **limits)
            continue
        while chunk := list(islice(paths, chunk_size)):
            yield from classifier.predict_paths(chunk, **limits)


def _write_rows(
    results: Iterator[Result],
    row_format: RowFormat,
    rows: RowBuffer,
    messages: Messages,
    signals: Signals,
    total: int | None,
) -> int:
    """Write the rows, report failures and warnings, draw the progress bar. Returns the exit code."""
    done = failed = 0
    try:
        for result in results:
            done += 1
            if isinstance(result, ImageFailure):
                failed += 1
                messages.error(f"{result.path}: {result.error}")
                row = row_format.failure(result)
            else:
                if not row_format.has_warnings:
                    for warning in result.warnings:
                        messages.note(f"warning: {result.path}: {warning}")
                row = row_format.row(result)
            if rows.add(row):
                signals.check()
            # More results than paths: a file contains several slices, and the total is not known.
            messages.progress(done, failed, total if total and done <= total else None)
    except BaseException:
        rows.flush_results()
        raise
    rows.flush()
    return SOME_FAILED if failed else ALL_CLASSIFIED
