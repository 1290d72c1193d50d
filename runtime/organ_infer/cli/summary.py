"""What a run did, in numbers: for the exit code and for the last line on a terminal."""

from typing import TYPE_CHECKING

from ..images.registry import split_selector
from ..plausibility import IMPLAUSIBLE, WHOLE_SLICE
from ..results import ImageFailure
from .exit_codes import ALL_CLASSIFIED, SOME_FAILED
from .progress import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..results import OrganPrediction, Prediction

__all__ = ["IMPLAUSIBLE", "Counts", "is_implausible", "organ_summary"]

# From so many whole slices on they are likely a scan.
SCAN_SLICES = 5
ARRAY_SUFFIXES = (".npy", ".npz")


def is_implausible(prediction: "Prediction") -> bool:
    """Whether a warning tells that the slice is hardly an organ crop."""
    return any(text.startswith(IMPLAUSIBLE) for text in prediction.warnings)


class Counts:
    """Counts the results of a run.

    Attributes:
        files: Files that were passed to the classifier.
        classified: Slices with an answer.
        failed: Slices or files without one.
        implausible: Slices with an answer and a warning that they are hardly an organ crop.
        whole_slices: Of these, the slices that are likely whole ones.
        array_slices: Of these, the slices of arrays.
    """

    def __init__(self) -> None:
        self.files = self.classified = self.failed = self.implausible = self.whole_slices = 0
        self.array_slices = 0
        self._last_file: str | None = None

    @property
    def done(self) -> int:
        return self.classified + self.failed

    @property
    def exit_code(self) -> int:
        return SOME_FAILED if self.failed else ALL_CLASSIFIED

    def add_path(self, path: str) -> None:
        """Count the path's file, unless it is the same as that of the path before."""
        file = split_selector(path)[0]
        self.files += file != self._last_file
        self._last_file = file

    def add(self, result: "Prediction | ImageFailure") -> None:
        """Count a result."""
        if isinstance(result, ImageFailure):
            self.failed += 1
            return
        self.classified += 1
        self.implausible += is_implausible(result)
        if any(WHOLE_SLICE in text for text in result.warnings):
            self.whole_slices += 1
            path = split_selector(result.path or "")[0]
            self.array_slices += path.lower().endswith(ARRAY_SUFFIXES)

    def advice(self) -> str | None:
        """Return what to do with whole slices, or None if there are few."""
        if self.whole_slices < SCAN_SLICES:
            return None
        what = f"{self.whole_slices:,} slices are likely those of a whole scan"
        if self.array_slices == self.whole_slices:
            return (
                f"{what}, an array without its orientation; pass the scan as NIfTI or DICOM to organ-infer volume,"
                " or Volume(hu, affine, source) to predict_volume"
            )
        return f"{what}; organ-infer volume SCAN --mask MASK classifies its organs"

    def summary(self, skipped: int, seconds: float) -> str:
        """Return the last line of a run. Numbers that are 0 are left out.

        Args:
            skipped: Entries of directories that were passed over.
            seconds: How long the run took.
        """
        parts = [f"{_plural(self.classified, 'slice')} from {_plural(self.files, 'file')}"]
        if not self.classified:
            parts.clear()
        others = {"failed": self.failed, "implausible": self.implausible, "skipped": skipped}
        parts += [f"{count:,} {name}" for name, count in others.items() if count]
        return "; ".join([*parts, duration(seconds, digits=1)])


def organ_summary(organs: "Sequence[OrganPrediction]", seconds: float) -> str:
    """Return the last line of a run over a scan. Numbers that are 0 are left out.

    Args:
        organs: The results.
        seconds: How long the run took.
    """
    slices = sum(len(organ.slices) for organ in organs)
    agree = sum(organ.agrees for organ in organs)
    other_side = sum(organ.only_side_differs for organ in organs)
    differ = len(organs) - agree - other_side
    numbers = {
        "agrees" if agree == 1 else "agree": agree,
        "other side": other_side,
        "differs" if differ == 1 else "differ": differ,
    }
    answers = ", ".join(f"{count:,} {name}" for name, count in numbers.items() if count)
    subject = f"{_plural(len(organs), 'organ')}, {_plural(slices, 'slice')}"
    return f"{subject}: {answers}; {duration(seconds, digits=1)}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
