"""organ-infer audit: finds masks that do not fit their scans."""

import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..audit.directory import AuditDirectory, audit_directory
from ..audit.outputs import write_outputs
from ..audit.pairs import Pairs, pair_directories, read_pairs
from ..audit.ranking import RankedFinding
from ..audit.records import Record
from ..audit.run import ScanAuditor, identity_of, unfinished
from ..errors import OrganInferError, printable, shorten
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
            run = _Run(pairs, directory, messages, signals)

            def write() -> list[RankedFinding]:
                return write_outputs(
                    directory,
                    run.records(),
                    identity,
                    total=len(pairs.pairs),
                    command=f"organ-infer audit {shlex.join(options.arguments)}",
                )

            try:
                run.audit_all(ScanAuditor(classifier, options.margin))
                findings = write()
            except BaseException:
                # The next signal waits until the files are written.
                directory.busy = True
                with contextlib.suppress(OrganInferError):
                    write()
                raise
    return _report(run.records(), findings, messages)


class _Run:
    """The pairs of a run, and the results so far."""

    def __init__(
        self, pairs: Pairs, directory: AuditDirectory, messages: Messages, signals: Signals
    ) -> None:
        self._keys = [(pair, pair.key()) for pair in pairs.pairs]
        self._directory = directory
        self._messages = messages
        self._signals = signals
        # warning -> the scans that have it
        self._warnings: Counter[str] = Counter()

    def records(self) -> list[Record]:
        """Return the results of the pairs, without those that were not reached yet."""
        found = ((pair, self._directory.get(key)) for pair, key in self._keys)
        # An earlier run may have been given other paths to the same files.
        return [replace(record, pair=pair) for pair, record in found if record is not None]

    def audit_all(self, auditor: ScanAuditor) -> None:
        """Audit the pairs that have no result yet, and those that failed."""
        pending = unfinished(self._keys, self._directory)
        if done := len(self._keys) - len(pending):
            self._messages.note(
                f"{done:,} of {len(self._keys):,} scans have results; --fresh starts over"
            )
        self._messages.start_progress()
        failed = 0
        for count, (pair, key) in enumerate(pending, 1):
            record = auditor.audit(pair, key)
            # A signal can end as an error of the scan.
            self._signals.check()
            self._directory.add(record)
            self._signals.check()
            failed += record.error is not None
            self._show(record)
            self._messages.progress(count, failed, len(pending), "scans", "min")
        for warning, count in self._warnings.items():
            if count > 1:
                self._messages.note(f"the same warning for {count:,} scans: {warning}")

    def _show(self, record: Record) -> None:
        """Show the error of a scan, or its warnings. A warning of several scans is shown once."""
        if record.error is not None:
            self._messages.error(record.error)
        elif record.audit is not None:
            path = escape_path(record.pair.scan, one_line=True)
            for warning in record.audit.warnings:
                self._warnings[warning] += 1
                if self._warnings[warning] > 1:
                    continue
                self._messages.warning(f"{path}: {warning}")


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
            Writer(None).write("".join(map(_line, findings)))
    if unmapped := sorted({name for audit in audits for name in audit.unmapped}):
        names = shorten(", ".join(unmapped), NAMES_LIMIT)
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


def _line(ranked: RankedFinding) -> str:
    path = escape_path(ranked.record.pair.scan, one_line=True)
    finding = ranked.finding
    return f"{ranked.rank:>4}  {finding.evidence:>8.1f}  {printable(finding.message)}  {path}\n"
