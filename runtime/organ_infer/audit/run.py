"""Audits pairs one after the other. The command and Ray's workers share this."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import DeviceError, InputError, OrganInferError, one_line, printable
from ..names import escape_path
from .directory import AuditDirectory
from .outputs import write_outputs
from .pairs import Pair
from .ranking import RankedFinding
from .records import Record, RunIdentity

if TYPE_CHECKING:
    from ..classifier import OrganClassifier
    from ..volumes.types import Mask, Volume

__all__ = ["AuditRun", "OtherMasks", "ScanAuditor", "identity_of"]


def identity_of(classifier: "OrganClassifier", margin_mm: float, tta: bool) -> RunIdentity:
    """Return what determines the results of a run.

    Raises:
        InputError: The model takes no volumes.
    """
    from .. import __version__

    manifest = classifier.manifest
    if manifest.input.orientation is None or manifest.input.window is None:
        raise InputError(
            "this model takes no volumes, because its manifest has no"
            f" {'window' if manifest.input.orientation else 'orientation'}; use another bundle"
        )
    return RunIdentity(
        version=__version__,
        model=manifest.name,
        sha256=classifier.sha256,
        dataset=manifest.task.dataset,
        view=manifest.task.view,
        margin_mm=float(margin_mm),
        tta=bool(tta),
    )


class ScanAuditor:
    """Audits one pair at a time.

    Args:
        classifier: The open classifier.
        margin_mm: Margin around each organ in the plane of the slices, in mm.
    """

    def __init__(self, classifier: "OrganClassifier", margin_mm: float) -> None:
        self._classifier = classifier
        self._margin_mm = margin_mm

    def audit(self, pair: Pair, key: str) -> Record:
        """Audit a pair. An error of the scan or of its mask is part of the record.

        Args:
            pair: The scan and its mask.
            key: Of the pair.

        Raises:
            DeviceError: The model failed, so that other scans would fail, too.
        """
        # Here, because the readers load libraries.
        from ..volumes.reading import open_mask, open_volume
        from .scan import audit_scan

        try:
            _require(pair)
            volume = open_volume(pair.scan)
            mask = open_mask(pair.mask, like=volume, labels=pair.labels)
            audit = audit_scan(
                self._classifier,
                volume,
                mask,
                other_masks=lambda: OtherMasks(pair, volume),
                margin_mm=self._margin_mm,
            )
        except DeviceError:
            raise
        except OrganInferError as e:
            error = str(e)
        except MemoryError:
            error = "not enough memory for this scan; crop it to the organs"
        except Exception as e:
            # One scan must not end an audit of thousands.
            error = f"unexpected {type(e).__name__} ({one_line(e)[:300]}); please report this error"
        else:
            return Record(pair, key, audit)
        return Record(pair, key, error=_with_path(error, pair))


def _with_path(error: str, pair: Pair) -> str:
    """Let an error begin with the path of the scan, unless it begins with one of the pair's paths."""
    if error.startswith((printable(pair.scan), printable(pair.mask))):
        return error
    return f"{escape_path(pair.scan, one_line=True)}: {error}"


def _require(pair: Pair) -> None:
    """Raise InputError if the scan or the mask does not exist."""
    for path in (pair.scan, pair.mask):
        if "\0" in path or not os.path.exists(path):
            raise InputError(f"{escape_path(path, one_line=True)}: no such file or directory")


class OtherMasks(Mapping[str, "Mask"]):
    """A pair's mask, read with every other label map. Only the last one is in memory.

    It is empty if the mask is no label image. If the mask names its numbers, the one other label map is the one that
    reads the names, unless they were read already.
    Label maps that do not fit the mask are left out.

    Args:
        pair: The scan and its mask.
        volume: The open scan.
    """

    def __init__(self, pair: Pair, volume: "Volume") -> None:
        self._pair = pair
        self._volume = volume
        self._last: tuple[str, Mask] | None = None

    def __getitem__(self, name: str) -> "Mask":
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        mask = self._open(name) if name in self._candidates() else None
        if mask is None:
            raise KeyError(name)
        self._last = name, mask
        return mask

    def __iter__(self) -> Iterator[str]:
        for name in self._candidates():
            try:
                self[name]
            except KeyError:
                continue
            yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _candidates(self) -> list[str]:
        from ..volumes.label_maps import LABEL_MAP_OF_NAMES, LABEL_MAPS, label_map

        if not _is_label_image(self._pair.mask):
            return []
        if not _has_bare_numbers(self._pair.mask):
            return [] if label_map(self._pair.labels).prefers_names else [LABEL_MAP_OF_NAMES]
        return [name for name in LABEL_MAPS if name != self._pair.labels.lower()]

    def _open(self, name: str) -> "Mask | None":
        from ..volumes.reading import open_mask

        # The former one is released first.
        self._last = None
        try:
            return open_mask(self._pair.mask, like=self._volume, labels=name)
        except OrganInferError:
            return None


def _is_label_image(mask: str) -> bool:
    from ..volumes.scan_files import title_of

    return not os.path.isdir(mask) and title_of(mask) is not None


def _has_bare_numbers(mask: str) -> bool:
    """Whether the numbers of a label image have no names that a label map knows."""
    from ..volumes.label_maps import LABEL_MAPS
    from ..volumes.scan_files import read_header

    names = read_header(mask).structures.values()
    maps = LABEL_MAPS.values()
    return not any(row.class_of(None, name) for row in maps for name in names)


class AuditRun:
    """The pairs of one run, and their results so far.

    Args:
        pairs: The scans with their masks.
        directory: Of the results.
        identity: Of the run.
        command: The command or call, for the page.

    Attributes:
        pending: The pairs, with their keys, that have no result yet or failed.
        total: The number of pairs.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        directory: AuditDirectory,
        identity: RunIdentity,
        command: str,
    ) -> None:
        self._keys = [(pair, pair.key()) for pair in pairs]
        self._directory = directory
        self._identity = identity
        self._command = command
        self.total = len(self._keys)
        records = ((pair, key, directory.get(key)) for pair, key in self._keys)
        self.pending = [
            (pair, key) for pair, key, record in records if record is None or record.audit is None
        ]

    def records(self) -> list[Record]:
        """Return the results of the pairs, without those that were not reached yet."""
        found = ((pair, self._directory.get(key)) for pair, key in self._keys)
        # An earlier run may have been given other paths to the same files.
        return [replace(record, pair=pair) for pair, record in found if record is not None]

    def write(self) -> list[RankedFinding]:
        """Write the tables and the page, and return the findings.

        Raises:
            OrganInferError: A file cannot be written.
        """
        return write_outputs(
            self._directory,
            self.records(),
            self._identity,
            total=self.total,
            command=self._command,
        )

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Write the tables and the page also if the block raises, as after a signal.

        Raises:
            OrganInferError: A file cannot be written.
        """
        try:
            yield
        except BaseException:
            # The next signal waits until the files are written.
            self._directory.busy = True
            with contextlib.suppress(OrganInferError):
                self.write()
            raise
