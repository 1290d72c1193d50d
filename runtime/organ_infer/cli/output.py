"""Results as text, csv or jsonl, written in whole lines to standard output or to a file that appears whole."""

import contextlib
import errno
import io
import json
import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import printable
from ..results import ImageFailure, Prediction

__all__ = ["ClosedPipe", "OutputError", "Writer", "row_format"]

Result = Prediction | ImageFailure
UNCERTAIN = "uncertain"
_CSV = ["path", "label", "probability", "organ", "organ_probability", "warnings", "error"]


class OutputError(Exception):
    """The results cannot be written."""


class ClosedPipe(Exception):
    """Whoever read the results has gone."""


def row_format(
    name: str,
    classes: Sequence[str],
    top: int | None,
    organs: Sequence[str] | None,
    min_probability: float | None,
) -> tuple[str, Callable[[Result], str]]:
    """What stands before the first row, and the function that writes a row, its newline with it.

    organs: each class's organ, where text shows organs and they are what `min_probability` judges; None: the labels.
    """
    likeliest = top or 1
    # As float32, as probabilities are: one that was copied from a row is equal to itself.
    (least,) = struct.unpack("f", struct.pack("f", min_probability or 0.0))
    shown = organs or classes
    width = max(map(len, [*shown, UNCERTAIN] if least else shown))

    def unsure(result: Prediction) -> bool:
        return bool((result.organ_probability if organs else result.probability) < least)

    def names(result: Prediction) -> tuple[str, str]:
        """The label and the organ to be written."""
        if not unsure(result):
            return result.label, result.organ
        return (result.label, UNCERTAIN) if organs else (UNCERTAIN, result.organ)

    def pairs(result: Prediction) -> list[tuple[str, float]]:
        if likeliest == 1:
            return [(result.label, result.probability)]
        order = sorted(range(len(classes)), key=lambda i: (-result.probabilities[i], i != result.index, i))
        return [(classes[i], result.probabilities[i]) for i in order[:likeliest]]

    def organ_pairs(result: Prediction) -> list[tuple[str, float]]:
        sums = dict.fromkeys(shown, 0.0)
        for organ, probability in zip(shown, result.probabilities, strict=True):
            sums[organ] += probability
        sums[result.organ] = result.organ_probability
        order = sorted(sums, key=lambda organ: (organ != result.organ, -sums[organ]))
        return [(organ, sums[organ]) for organ in order[:likeliest]]

    def text(result: Result) -> str:
        if isinstance(result, ImageFailure):
            return ""  # named on standard error
        found = organ_pairs(result) if organs else pairs(result)
        if unsure(result):
            found[0] = UNCERTAIN, found[0][1]
        listed = " ".join(f"{label:<{width}} {probability:.3f}" for label, probability in found)
        return f"{listed} {printable(result.path or '')}\n"

    def csv_row(result: Result) -> str:
        if isinstance(result, ImageFailure):
            return _csv_line([result.path, "", "", "", "", "", result.error, *([""] * len(classes))])
        label, organ = names(result)
        return _csv_line(
            [
                result.path or "",
                label,
                _number(result.probability),
                organ,
                _number(result.organ_probability),
                "; ".join(result.warnings),
                "",
                *map(_number, result.probabilities),
            ]
        )

    def jsonl(result: Result) -> str:
        if isinstance(result, ImageFailure):
            return _json_line({"path": result.path, "error": result.error})
        label, organ = names(result)
        row: dict[str, object] = {
            "path": result.path,
            "label": label,
            "index": result.index,
            "probability": _number(result.probability),
            "organ": organ,
            "organ_probability": _number(result.organ_probability),
            "probabilities": dict(zip(classes, map(_number, result.probabilities), strict=True)),
            "warnings": list(result.warnings),
        }
        if top is not None:
            row["top"] = [{"label": label, "probability": _number(p)} for label, p in pairs(result)]
        return _json_line(row)

    formats: dict[str, tuple[str, Callable[[Result], str]]] = {
        "text": ("", text),
        "csv": (_csv_line([*_CSV, *classes]), csv_row),
        "jsonl": ("", jsonl),
    }
    return formats[name]


def _number(value: float) -> float:
    return float(f"{value:.9g}")  # nine digits name a float32 exactly


def _csv_line(values: Sequence[object]) -> str:
    import csv  # the other formats start without

    line = io.StringIO()
    # Before Python 3.11.9 and 3.12.3 a carriage return is quoted only if the end of the line holds one:
    # https://github.com/python/cpython/issues/67044
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return f"{line.getvalue()[:-2]}\n"


def _json_line(row: object) -> str:
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except (
        UnicodeEncodeError
    ):  # a file name that is not UTF-8; escaped, it reads back as Python's own form of it
        line = json.dumps(row)
    return line + "\n"


class Writer:
    """Bytes to standard output, or to FILE.partial until `finish` gives it its name.

    After a failed write a file is cut back to its last whole line. `busy` says that a write is under way, so that a
    signal can wait for the line's end. Raises OutputError, and ClosedPipe where nobody reads standard output.
    """

    def __init__(self, output: str | None) -> None:
        self.output = output
        self.busy = False
        self._whole = 0  # bytes of whole lines written
        self._descriptor = 1
        if output is None:
            return
        self.partial = f"{output}.partial"
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(output).st_mode):
                    raise OutputError(
                        f"--output {printable(output)}: a regular file expected, something else is there"
                    )
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
                flags |= getattr(os, name, 0)
            self._descriptor = os.open(self.partial, flags, 0o666)
        except (OSError, ValueError) as e:
            raise self._failed(e) from e

    def write(self, lines: str) -> None:
        """Whole lines."""
        data = memoryview(lines.encode("utf-8", "surrogateescape"))
        self.busy = True
        try:
            at = 0
            while at < len(data):
                at += os.write(self._descriptor, data[at:])
            self._whole += at
        except BrokenPipeError as e:
            raise ClosedPipe from e
        except OSError as e:
            if self.output is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._whole)
            raise self._failed(e) from e
        finally:
            self.busy = False

    def finish(self) -> None:
        """All results are written: FILE.partial becomes FILE."""
        if self.output is None:
            return
        try:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            os.replace(self.partial, self.output)
        except OSError as e:
            raise self._failed(e) from e
        with contextlib.suppress(OSError):  # it is there; a folder that cannot be opened is not flushed
            folder = os.open(Path(self.output).parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Nothing was done: take an empty FILE.partial away again."""
        if self.output is not None and not self._whole:
            with contextlib.suppress(OSError):
                os.unlink(self.partial)

    def kept(self) -> str:
        """Where results are that FILE will not hold, for the end of an error's line."""
        there = self.output is not None and self._whole
        return f", the results so far are in {printable(self.partial)}" if there else ""

    def _failed(self, error: Exception) -> OutputError:
        where = "standard output" if self.output is None else f"--output {printable(self.output)}"
        reason = getattr(error, "strerror", None) or str(error)
        kept = ""
        if self.output is not None and getattr(error, "errno", 0) in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        ):
            kept = f", the results so far are in {printable(self.partial)}"
        return OutputError(f"{where}: cannot be written ({reason}){kept}")
