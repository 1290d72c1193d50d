"""organ-infer audit: finds masks that do not fit their scans."""

import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..audit.directory import AuditDirectory, audit_directory
from ..audit.pairs import Pair, Pairs, pair_directories, read_pairs
from ..audit.ranking import RankedFinding
from ..audit.records import Record
from ..audit.run import AuditRun, ScanAuditor, identity_of
from ..errors import printable, shorten_names
from ..names import escape_path
from .audit_arguments import AuditOptions
from .exit_codes import ALL_CLASSIFIED, FAILED, SOME_FAILED
from .model import open_classifier, packaged_model_note
from .output import ClosedPipe, Writer
from .progress import Messages, duration, library_messages
from .signals import Signals

__all__ = ["audit"]

# Characters of a list of structures.
NAMES_LIMIT = 300


def audit(options: AuditOptions, messages: Messages, signals: Signals) -> int:
    """Audit the pairs of scans and masks, write the results, and print the findings.

    Returns:
        The exit code.

    Raises:
        OrganInferError: The pairs or the model cannot be opened, or the directory cannot be written.
        OutputError: Standard output cannot be written. The directory is complete.
    """
    pairs = _pairs(options)
    for note in pairs.notes:
        messages.note(note)
    with library_messages(messages), open_classifier(options) as classifier:
        manifest = classifier.manifest
        identity = identity_of(classifier, options.margin, options.tta)
        if options.bundle is None and messages.terminal:
            messages.note(packaged_model_note(manifest.name, manifest.task))
        with audit_directory(Path(options.output), identity, fresh=options.fresh) as directory:
            signals.writer = directory
            command = f"organ-infer audit {shlex.join(options.arguments)}"
            run = AuditRun(pairs.pairs, directory, identity, command)
            with run.written():
                _audit_all(
                    run, directory, ScanAuditor(classifier, options.margin), messages, signals
                )
                findings = run.write()
    return _report(run.records(), findings, messages)


def _audit_all(
    run: AuditRun,
    directory: AuditDirectory,
    auditor: ScanAuditor,
    messages: Messages,
    signals: Signals,
) -> None:
    """Audit the pending pairs, show errors and warnings, draw the progress bar."""
    if done := run.total - len(run.pending):
        messages.note(f"{done:,} of {run.total:,} scans have results; --fresh starts over")
    messages.start_progress()
    failed = 0
    # warning -> the scans that have it
    warnings: Counter[str] = Counter()
    for count, (pair, key) in enumerate(run.pending, 1):
        record = auditor.audit(pair, key)
        # A signal can end as an error of the scan.
        signals.check()
        directory.add(record)
        signals.check()
        if record.error is not None:
            failed += 1
            messages.error(record.error)
        elif record.audit is not None:
            _show_warnings(pair, record.audit.warnings, warnings, messages)
        messages.progress(count, failed, len(run.pending), "scans", "min")
    for warning, count in warnings.items():
        if count > 1:
            messages.note(f"the same warning for {count:,} scans: {warning}")


def _show_warnings(
    pair: Pair, warnings: Sequence[str], counts: "Counter[str]", messages: Messages
) -> None:
    """Show and count the warnings of a scan. One that was shown before is only counted."""
    for warning in warnings:
        counts[warning] += 1
        if counts[warning] == 1:
            messages.warning(f"{escape_path(pair.scan, one_line=True)}: {warning}")


def _pairs(options: AuditOptions) -> Pairs:
    if len(options.inputs) == 2:
        return pair_directories(*options.inputs, options.labels)
    return Pairs(read_pairs(options.inputs[0], options.labels))


def _report(
    records: Sequence[Record], findings: Sequence[RankedFinding], messages: Messages
) -> int:
    """Print the findings and the summary. Returns the exit code."""
    audits = [record.audit for record in records if record.audit is not None]
    failed = len(records) - len(audits)
    messages.end()
    # The findings are in the directory, so that a closed standard output is no error.
    if sys.stdout is not None:
        with contextlib.suppress(ClosedPipe):
            masks = Counter(record.pair.scan for record in records)
            lines = (_line(ranked, masks[ranked.record.pair.scan]) for ranked in findings)
            Writer(None).write("".join(lines))
    if unmapped := {name for audit in audits for name in audit.unmapped}:
        names = shorten_names(sorted(unmapped, key=_number_first), NAMES_LIMIT)
        messages.note(f"structures of no class, not audited: {names}")
    with_findings = sum(bool(audit.findings) for audit in audits)
    noun = "scan" if len(audits) == 1 else "scans"
    messages.status(
        f"{len(audits):,} {noun} audited, {with_findings:,} with findings, {failed:,} failed;"
        f" {duration(messages.seconds, digits=1)}"
    )
    if not audits:
        return FAILED
    return SOME_FAILED if failed else ALL_CLASSIFIED


def _number_first(name: str) -> tuple[bool, int, str]:
    """Return the key by which 9 comes before 10, and numbers before names."""
    is_number = name.isascii() and name.isdigit()
    return not is_number, len(name.lstrip("0")) if is_number else 0, name


def _line(ranked: RankedFinding, masks: int) -> str:
    """Return the line of a finding. It names the mask, too, if the scan has several."""
    pair, finding = ranked.record.pair, ranked.finding
    paths = (pair.scan, pair.mask) if masks > 1 else (pair.scan,)
    shown = "  ".join(escape_path(path, one_line=True) for path in paths)
    return f"{ranked.rank:>4}  {finding.evidence:>8.1f}  {printable(finding.message)}  {shown}\n"
