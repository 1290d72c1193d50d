"""What an audit writes when it ends: findings.csv, organs.csv and report.html."""

import csv
from collections.abc import Iterator, Sequence

from ..errors import OrganInferError, escape_bytes, file_reason
from ..files import atomic_file
from ..names import escape_path
from .directory import AuditDirectory
from .page import page_parts
from .ranking import RankedFinding, ranked
from .records import Record, RunIdentity

__all__ = ["FINDING_COLUMNS", "ORGAN_COLUMNS", "write_outputs"]

FINDING_COLUMNS = ("rank", "evidence", "kind", "scan", "mask", "organs", "message", "numbers")
ORGAN_COLUMNS = (
    *("scan", "mask", "structures", "expected", "label", "probability", "expected_probability"),
    *("agrees", "slices", "volume_ml", "median_hu", "warnings"),
)


def write_outputs(
    directory: AuditDirectory,
    records: Sequence[Record],
    identity: RunIdentity,
    *,
    total: int,
    command: str,
) -> list[RankedFinding]:
    """Write the tables and the page. Each file appears complete or not at all.

    Args:
        directory: Of the audit.
        records: Of the finished and failed scans, without pictures.
        identity: Of the run.
        total: The number of scans of the run, also those that were not reached.
        command: The command or call that ran, for the page.

    Returns:
        The findings.

    Raises:
        OrganInferError: A file cannot be written.
    """
    findings = ranked(records)
    page = page_parts(directory, records, findings, identity, total=total, command=command)
    parts = {
        "findings.csv": _lines(FINDING_COLUMNS, map(_finding_cells, findings)),
        "organs.csv": _lines(ORGAN_COLUMNS, _organ_rows(records)),
        "report.html": page,
    }
    for name, texts in parts.items():
        target = directory.path / name
        try:
            with atomic_file(target) as file:
                for text in texts:
                    file.write(text)
        except OSError as e:
            raise OrganInferError(
                f"{escape_path(target, one_line=True)}: cannot be written ({file_reason(e)});"
                " the same command continues"
            ) from e
    return findings


def _finding_cells(ranked: RankedFinding) -> list[object]:
    finding, pair = ranked.finding, ranked.record.pair
    numbers = "; ".join(f"{name}={value}" for name, value in finding.numbers.items())
    return [
        *(ranked.rank, finding.evidence, finding.kind),
        *(escape_path(pair.scan), escape_path(pair.mask)),
        *("; ".join(finding.organs), finding.message, numbers),
    ]


def _organ_rows(records: Sequence[Record]) -> Iterator[list[object]]:
    for record in records:
        if record.audit is None:
            continue
        paths = escape_path(record.pair.scan), escape_path(record.pair.mask)
        for organ in record.audit.organs:
            yield [
                *(*paths, "; ".join(organ.structures), organ.expected, organ.label),
                *(organ.probability, organ.expected_probability, str(organ.agrees).lower()),
                *(organ.slices, organ.volume_ml, organ.median_hu, "; ".join(organ.warnings)),
            ]


def _lines(columns: Sequence[str], rows: "Iterator[list[object]]") -> Iterator[str]:
    buffer = _Line()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    yield buffer.text
    for cells in rows:
        writer.writerow([escape_bytes(cell) if isinstance(cell, str) else cell for cell in cells])
        yield buffer.text


class _Line:
    """The file of a csv.writer that keeps the last line."""

    text = ""

    def write(self, text: str) -> None:
        self.text = text
