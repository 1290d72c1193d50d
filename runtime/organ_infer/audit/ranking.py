"""The findings of all scans of an audit, the strongest first."""

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record
from .types import Finding

__all__ = ["RankedFinding", "ranked"]


@dataclass(frozen=True, slots=True)
class RankedFinding:
    """A finding among those of all scans.

    Attributes:
        rank: 1 for the strongest.
        finding: The finding, without pictures.
        record: Of its scan.
        index: Of the finding in its scan.
    """

    rank: int
    finding: Finding
    record: Record
    index: int


def ranked(records: Sequence[Record]) -> list[RankedFinding]:
    """Return the findings of all scans, the strongest first. Equal ones stay in the order of the scans."""
    found = [
        (finding, record, i)
        for record in records
        if record.audit is not None
        for i, finding in enumerate(record.audit.findings)
    ]
    found.sort(key=lambda each: -each[0].evidence)
    return [RankedFinding(rank, *each) for rank, each in enumerate(found, 1)]
