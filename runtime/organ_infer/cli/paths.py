"""Expands the paths on the command line, which are files, directories, patterns and lists, in order."""

import codecs
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from ..errors import file_reason
from ..images.discovery import Candidate, Skipped, expand_path, expand_pattern
from ..images.registry import split_selector
from ..names import escape_path
from .arguments import Options, UsageError
from .hints import path_problem

if TYPE_CHECKING:
    from .progress import Messages

__all__ = ["STANDARD_INPUT", "Candidates", "require_candidates", "require_standard_input"]

# The argument `-`: one image on standard input. In a list, and below a directory, `-` is the name of a file.
STANDARD_INPUT = Candidate("-")

# Scans that the note about skipped files names.
SCANS_NAMED = 3
# Bytes of a list that are read together.
BLOCK = 1 << 16
# Bytes of one path in a list.
NAME_LIMIT = 1 << 16


class Candidates(Iterator[Candidate]):
    """Every image that the options name: first the paths, then the list, or else the boxes.

    A directory or pattern without an image gives a candidate with an error and the path as given.

    Attributes:
        has_more: Whether the next candidate can be taken without waiting for the writer of a list.
        in_list: Whether the last candidate is from a list.
        skipped: How many entries of directories were passed over so far, by kind.
        scans: The first of these that are scans or masks.

    Raises:
        UsageError: A list cannot be read.
    """

    def __init__(self, options: Options) -> None:
        self.skipped: Counter[Skipped] = Counter()
        self.scans: list[str] = []
        self.in_list = False
        self._next: list[Candidate] = []
        self._has_more = True
        self._candidates = self._find(options)

    @property
    def has_more(self) -> bool:
        return bool(self._next) or self._has_more

    def __next__(self) -> Candidate:
        return self._next.pop(0) if self._next else next(self._candidates)

    def _skip(self, path: str, kind: Skipped) -> None:
        self.skipped[kind] += 1
        if kind is Skipped.SCAN and len(self.scans) < SCANS_NAMED:
            self.scans.append(path)

    def put_back(self, candidates: list[Candidate]) -> None:
        """Give these again, before all others."""
        self._next[:0] = candidates

    def _find(self, options: Options) -> Iterator[Candidate]:
        if options.files_from not in (None, "-"):
            # Checked now, and not after the paths before the list have been classified.
            _check_list(options.files_from)
        last: Candidate | None = None
        for path in options.paths:
            for candidate in _expand_argument(path, options.recursive, self._skip):
                if last is not None:
                    yield last
                last = candidate
        if options.boxes is not None:
            # Imported here, because most runs have no boxes.
            from .boxes import boxed_candidates

            for candidate in boxed_candidates(options.boxes):
                if last is not None:
                    yield last
                last = candidate
        # The list behind the paths may have to be waited for.
        self._has_more = options.files_from is None
        if last is not None:
            yield last
        if options.files_from is None:
            return
        self.in_list = True
        separator = b"\0" if options.null else b"\n"
        for arrived in _read_list(options.files_from, separator):
            for i, path in enumerate(arrived, 1):
                candidates = list(_expand_listed(path, options.recursive, self._skip))
                for j, expanded in enumerate(candidates, 1):
                    self._has_more = i < len(arrived) or j < len(candidates)
                    yield expanded


def require_candidates(options: Options, messages: "Messages") -> Candidates:
    """The candidates of the options, of which at least one names an image.

    Raises:
        UsageError: There is no image at all, or a list cannot be read.
    """
    candidates = Candidates(options)
    empty: list[Candidate] = []
    for candidate in candidates:
        # A path of a list that is missing is a failed image, because the next path may have to be waited for.
        if not (candidate.empty or candidates.in_list) and _is_missing(candidate):
            candidate = Candidate(candidate.path, "no such file", empty=True)
        if not candidate.empty:
            candidates.put_back([*empty, candidate])
            return candidates
        empty.append(candidate)
    for candidate in empty[:-1]:
        messages.error(f"{escape_path(candidate.path, one_line=True)}: {candidate.error}")
    last = "--files-from lists no path" if options.boxes is None else "--boxes lists no box"
    if empty:
        last = f"{escape_path(empty[-1].path, one_line=True)}: {empty[-1].error}"
    raise UsageError(f"no image found: {last}")


def require_standard_input(options: Options) -> None:
    """Check that standard input can be read, if `-` is among the paths.

    Raises:
        UsageError: It is closed, a terminal, or named twice.
    """
    count = options.paths.count(STANDARD_INPUT.path)
    if not count:
        return
    if count > 1 or options.files_from == "-":
        raise UsageError(
            "-: standard input is named twice; it holds one image, or the list of --files-from"
        )
    if sys.stdin is None:
        raise UsageError("-: standard input is closed; redirect an image to it")
    if sys.stdin.isatty():
        raise UsageError("-: standard input is a terminal; redirect an image to it")


def _check_list(source: str) -> None:
    """Raise UsageError if a list cannot be opened. A pipe is not opened, because that waits for its writer."""
    try:
        if not stat.S_ISFIFO(os.stat(source).st_mode):
            open(source, "rb").close()
    except (OSError, ValueError) as e:
        # ValueError: a NUL in the name.
        raise _unreadable_list(source, e) from e


def _unreadable_list(source: str, error: Exception) -> UsageError:
    return UsageError(
        f"--files-from {escape_path(source, one_line=True)}: cannot be read ({file_reason(error)})"
    )


def _expand_argument(
    path: str, recursive: bool, on_skipped: Callable[[str, Skipped], None]
) -> Iterator[Candidate]:
    """A path of the command line, which may be a pattern. The name of an existing file is not a pattern."""
    if path == STANDARD_INPUT.path:
        yield STANDARD_INPUT
        return
    if problem := path_problem(path):
        yield Candidate(path, problem, empty=True)
        return
    yield from expand_pattern(path, recursive, on_skipped)


def _expand_listed(
    path: str, recursive: bool, on_skipped: Callable[[str, Skipped], None]
) -> Iterator[Candidate]:
    """A path of a list, where no shell has expanded anything."""
    if problem := path_problem(path, in_list=True):
        yield Candidate(path, problem)
    else:
        yield from expand_path(path, recursive, on_skipped)


def _is_missing(candidate: Candidate) -> bool:
    """Whether there is no such file. A path that cannot be looked up is not missing."""
    if candidate is STANDARD_INPUT:
        return False
    try:
        os.stat(split_selector(candidate.path)[0])
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _read_list(source: str, separator: bytes) -> Iterator[list[str]]:
    """The paths of a list, `-` for standard input, as many at a time as have arrived. Empty ones are skipped."""
    if source == "-" and sys.stdin is None:
        raise UsageError("--files-from -: standard input is closed")
    try:
        with ExitStack() as stack:
            file: BinaryIO = (
                sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
            )
            blocks = iter(lambda: file.read1(BLOCK), b"")  # type: ignore[attr-defined]
            if separator == b"\n":
                blocks = _without_nul(blocks, source)
            for names in _split_blocks(_without_mark(blocks, source), separator):
                if separator == b"\n":
                    names = [name.removesuffix(b"\r") for name in names]
                if paths := [os.fsdecode(name) for name in names if name]:
                    yield paths
    except OSError as e:
        raise _unreadable_list(source, e) from e


def _without_mark(blocks: Iterable[bytes], source: str) -> Iterator[bytes]:
    """The blocks without the byte order mark that Windows writes before UTF-8.

    Raises:
        UsageError: The mark is that of UTF-16.
    """
    for i, block in enumerate(blocks):
        if i == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UsageError(
                f"--files-from {escape_path(source, one_line=True)}: the list is UTF-16; save it as UTF-8"
            )
        yield block.removeprefix(codecs.BOM_UTF8) if i == 0 else block


def _without_nul(blocks: Iterable[bytes], source: str) -> Iterator[bytes]:
    """The blocks, up to the first with a NUL, which no path contains.

    Raises:
        UsageError: There is one, as in the output of `find -print0`.
    """
    for i, block in enumerate(blocks):
        is_utf_16 = i == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if b"\0" in block and not is_utf_16:
            raise UsageError(
                f"--files-from {escape_path(source, one_line=True)}: the list contains NUL; add -0 if its paths end with NUL"
            )
        yield block


def _split_blocks(blocks: Iterable[bytes], separator: bytes) -> Iterator[list[bytes]]:
    """The blocks, joined and split at the separator, as they arrive."""
    rest = b""
    for block in blocks:
        *names, rest = (rest + block).split(separator)
        yield names
        if len(rest) > NAME_LIMIT:
            raise UsageError(
                f"--files-from: a path has more than {NAME_LIMIT:,} bytes; check whether the list needs -0"
            )
    yield [rest]
