"""Counts in a thread how many slices the command line names, for the progress bar."""

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from ..images.registry import open_slices
from ..images.types import FILE_LIMIT, PIXEL_LIMIT, Limits
from .paths import Candidates

if TYPE_CHECKING:
    from types import TracebackType

    from .arguments import Options

__all__ = ["Total"]

# Bytes from which a file is opened to count its slices. Smaller files count as one slice.
LARGE = 1 << 20


class Total:
    """The number of slices, once it is known.

    The results do not wait for it: the paths are expanded a second time, in a thread. A list that is
    a pipe or standard input can be read only once, so its total stays unknown.

    Args:
        options: The options of the command.
        wanted: Whether there is a progress bar. If not, nothing is counted.

    Attributes:
        slices: The number, or None.
    """

    def __init__(self, options: "Options", wanted: bool) -> None:
        self.slices: int | None = None
        self._stopped = False
        self._options = options
        self._thread: threading.Thread | None = None
        listed = options.files_from
        if wanted and (listed is None or os.path.isfile(listed)):
            # A daemon: a directory that takes long to list does not delay the end of the command.
            self._thread = threading.Thread(
                target=self._run, name="organ_infer counting", daemon=True
            )

    def __enter__(self) -> "Total":
        if self._thread is not None:
            try:
                self._thread.start()
            except (RuntimeError, MemoryError):
                # No more threads can be started. The bar then has no total.
                self._thread = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        self._stopped = True
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        # A path or list that cannot be read is reported by the run itself.
        with contextlib.suppress(Exception):
            total = 0
            for candidate in Candidates(self._options):
                total += 1 if candidate.error is not None else self._count(candidate.path)
                if self._stopped:
                    return
            self.slices = total

    def _count(self, path: str) -> int:
        """The slices of a file, without decoding them. 1 if that is not known."""
        limits = Limits(
            self._options.pixel_limit or PIXEL_LIMIT,
            self._options.file_limit or FILE_LIMIT,
            self._options.any_modality,
        )
        count = 0
        with contextlib.suppress(Exception):
            if os.path.getsize(path) >= LARGE:
                for _ in open_slices(path, limits):
                    count += 1
                    if self._stopped:
                        break
        return max(count, 1)
