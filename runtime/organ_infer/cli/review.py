"""What --report and --labels do with the results: collect them, and write the report and the evaluation at the end."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..classifier import OrganClassifier
from ..errors import InputError, escape_bytes, shorten_names
from ..evaluation.collection import Collection, LeftOut
from ..evaluation.labels import ClassNames, FileLabels, FolderLabels, group_function
from ..evaluation.text import text_lines
from ..names import escape_path
from ..page.parts import count_text
from ..results import ImageFailure, Prediction
from .arguments import Options, UsageError
from .exit_codes import ALL_CLASSIFIED, FAILED
from .formats import RowFormat
from .progress import Messages
from .whole_file import write_whole_file

if TYPE_CHECKING:
    from ..evaluation.types import Evaluation

__all__ = ["Review"]

# Probabilities in a row of the report.
SHOWN = 3
# Characters of a list of names in a note.
NAMES_LIMIT = 800
METRICS_FORMAT = 1


class Recorder:
    """A stream that keeps what was read from it, so that the report can show the image on standard input.

    Args:
        stream: Open for reading bytes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int) -> bytes | None:
        """Read up to `size` bytes."""
        piece: bytes | None = self._stream.read(size)
        self._pieces.append(piece or b"")
        return piece

    def content(self) -> bytes:
        """Return everything that was read."""
        return b"".join(self._pieces)


class Review:
    """Collects the results of a run.

    Args:
        options: Of the command.
        arguments: From which they were parsed.
        classifier: The one that gives the results.
        row_format: Of the rows, for what is uncertain.
        messages: Get the evaluation as text.

    Raises:
        UsageError: The labels cannot be read.
    """

    def __init__(
        self,
        options: Options,
        arguments: Sequence[str],
        classifier: OrganClassifier,
        row_format: RowFormat,
        messages: Messages,
    ) -> None:
        self._options, self._arguments, self._classifier = options, arguments, classifier
        self._row_format, self._messages = row_format, messages
        self._standard_input: Recorder | None = None
        self._count = self._failed = 0
        self._labels, self._collection = self._open_labels()
        self._rows = None
        if options.report is not None:
            from ..report.rows import Rows

            self._rows = Rows()

    def _open_labels(self) -> "tuple[FileLabels | FolderLabels | None, Collection | None]":
        options = self._options
        names = ClassNames(self._classifier.classes)
        labels: FileLabels | FolderLabels
        if options.labels is not None:
            try:
                labels = FileLabels(options.labels, names)
            except InputError as e:
                raise UsageError(f"--labels {e}") from e
        elif options.labels_from_folders:
            labels = FolderLabels(options.paths, names)
        else:
            return None, None
        group_of = None if options.group_by is None else group_function(options.group_by)
        return labels, Collection(names, labels.label_of, group_of)

    def recorded(self, stream: Any) -> Any:
        """Return a stream from which standard input is read, so that the report can show the image."""
        if self._rows is None:
            return stream
        self._standard_input = Recorder(stream)
        return self._standard_input

    def add(self, result: Prediction | ImageFailure) -> None:
        """Add the next result, in the order of the input."""
        number, self._count = self._count, self._count + 1
        if isinstance(result, ImageFailure):
            self._failed += 1
        truth = None
        if self._collection is not None and isinstance(result, Prediction):
            truth = self._collection.add(result)
        if self._rows is None:
            return
        from ..report.rows import Row

        if isinstance(result, ImageFailure):
            self._rows.add(Row(number, result.path, error=result.error))
            return
        known = truth in self._classifier.classes
        self._rows.add(
            Row(
                number,
                result.path or "",
                top=tuple(self._row_format.top_classes(result, SHOWN)),
                is_uncertain=self._row_format.is_uncertain(result),
                warnings=result.warnings,
                truth=truth,
                is_correct=truth == result.label if known else None,
            )
        )

    def finish(self) -> int:
        """Write the evaluation and the report. Returns the exit code of the evaluation.

        Raises:
            OutputError: A file cannot be written.
        """
        code, evaluation = ALL_CLASSIFIED, None
        if self._collection is not None:
            self._note_left_out(self._collection)
            if self._collection.is_empty:
                self._messages.error(
                    "evaluation: no classified slice has a label of the model; check the labels and their paths"
                )
                code = FAILED
            else:
                evaluation = self._collection.evaluation()
                if self._options.group_by is not None and self._collection.groups < 2:
                    self._messages.note(
                        "--group-by puts all slices into one group, so the accuracy has no interval"
                    )
                self._messages.block(
                    f"evaluation of {count_text(evaluation.slices, 'slice')}",
                    text_lines(evaluation),
                )
                if self._options.metrics is not None:
                    self._write_metrics(self._options.metrics, evaluation)
        if self._options.report is not None:
            self._messages.stage("writing the report")
            self._write_report(self._options.report, evaluation)
        return code

    def _note_left_out(self, collection: Collection) -> None:
        """Name and count what the evaluation leaves out."""
        messages = self._messages
        if collection.unknown:
            names = [f"{escape_bytes(name)} ({n:,})" for name, n in collection.unknown.items()]
            messages.note(
                "labels that the model does not have, with their slices, are left out:"
                f" {shorten_names(names, NAMES_LIMIT)}"
            )
        if collection.unlabeled.count:
            messages.note(f"slices without a label are left out: {_named(collection.unlabeled)}")
        if collection.ungrouped.count:
            messages.note(
                f"--group-by matches nothing in these paths, each slice is a group: {_named(collection.ungrouped)}"
            )
        unused = LeftOut()
        for path in () if self._labels is None else self._labels.unused():
            unused.add(path)
        if unused.count:
            has_backslash = any("\\" in path for path in unused.paths)
            messages.note(
                f"labels of paths that were not classified: {_named(unused)};"
                " paths are relative to the directory of the file of labels"
                + (", with / between folders" if has_backslash and os.sep == "/" else "")
            )

    def _write_metrics(self, path: str, evaluation: "Evaluation") -> None:
        manifest = self._classifier.manifest
        values = evaluation.to_dict()
        for mistake in values["mistakes"]:
            mistake["path"] = escape_path(self._mistake_path(mistake.pop("index")))
        content = {
            "format": METRICS_FORMAT,
            "model": manifest.name,
            "sha256": self._classifier.sha256,
            "dataset": manifest.task.dataset,
            "view": manifest.task.view,
            "tta": self._options.tta,
            "failed": self._failed,
            **values,
            "unknown_labels": {
                escape_bytes(name): count for name, count in evaluation.unknown_labels.items()
            },
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole_file("metrics", path, [f"{text}\n"])

    def _mistake_path(self, index: int) -> str:
        return "" if self._collection is None else self._collection.paths[index]

    def _write_report(self, path: str, evaluation: "Evaluation | None") -> None:
        # Imported here, because an evaluation alone needs no page.
        from .. import __version__
        from ..report.page import ReportInfo, page_parts

        assert self._rows is not None
        manifest, options = self._classifier.manifest, self._options
        info = ReportInfo(
            command=shlex.join(["organ-infer", *self._arguments]),
            version=__version__,
            model=manifest.name,
            sha256=self._classifier.sha256,
            dataset=manifest.task.dataset,
            view=manifest.task.view,
            tta=options.tta,
            min_probability=options.min_probability,
        )
        mistakes = (
            {}
            if evaluation is None
            else {
                mistake.index: self._mistake_path(mistake.index) for mistake in evaluation.mistakes
            }
        )
        paths = dict.fromkeys([*(row.path for row in self._rows.kept()), *mistakes.values()])
        pictures: dict[str, str] = {}
        overlays: dict[str, str] | None = {} if options.explain else None
        for name, picture, overlay in self._pictures(list(paths)):
            pictures[name] = picture
            if overlays is not None and overlay is not None:
                overlays[name] = overlay
        write_whole_file(
            "report", path, page_parts(self._rows, pictures, info, evaluation, mistakes, overlays)
        )

    def _pictures(self, paths: list[str]) -> Iterator[tuple[str, str, str | None]]:
        """Yield each path with the data addresses of its picture and, with --explain, of the map over it."""
        from ..explain import overlay_png
        from ..page.pictures import data_address
        from ..report.thumbnails import SliceReader, Thumbnails

        thumbnails = Thumbnails(len(paths), self._classifier.manifest.input.window)
        content = None if self._standard_input is None else self._standard_input.content()
        reader = SliceReader(self._limits(), self._classifier._prepare, content)
        for name, image in reader.slices(paths):
            overlay = None
            if self._options.explain:
                overlay = data_address(overlay_png(self._classifier._heat(image.pixels)))
            yield name, thumbnails.address(image.pixels), overlay

    def _limits(self) -> Any:
        from ..images.types import FILE_LIMIT, PIXEL_LIMIT, Limits

        options = self._options
        return Limits(
            options.pixel_limit or PIXEL_LIMIT,
            options.file_limit or FILE_LIMIT,
            options.any_modality,
        )


def _named(left_out: LeftOut) -> str:
    """Return the number of paths and the first ones."""
    names = [escape_path(path, one_line=True) for path in left_out.paths]
    more = ["..."] if left_out.count > len(names) else []
    return f"{left_out.count:,} ({shorten_names([*names, *more], NAMES_LIMIT)})"
