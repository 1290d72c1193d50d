"""report.html: one page without other files, outside addresses and scripts."""

import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..names import escape_path
from ..page.parts import count_text, head, list_rows, path_span, table, text, tiles
from .page_style import STYLE
from .ranking import RankedFinding
from .records import Record, RunIdentity, StoredPicture
from .types import KINDS, AuditedOrgan

if TYPE_CHECKING:
    from .directory import AuditDirectory

__all__ = ["PICTURES_LIMIT", "page_parts"]

# Findings with pictures.
PICTURES_LIMIT = 1000
ORGAN_HEAD = (
    "<th>mask</th><th>model</th><th>verdict</th>",
    '<th class="n">probability</th><th class="n">of the mask\'s class</th>',
    '<th class="n">slices</th><th class="n">ml</th><th class="n">HU</th><th>structures</th>',
)


def page_parts(
    directory: "AuditDirectory",
    records: Sequence[Record],
    findings: Sequence[RankedFinding],
    identity: RunIdentity,
    *,
    total: int,
    command: str,
) -> Iterator[str]:
    """Yield the parts of the page, so that not all pictures are in memory at once.

    Args:
        directory: Where the pictures are.
        records: Of the finished and failed scans.
        findings: Of all of them, ranked.
        identity: Of the run.
        total: The number of scans of the run.
        command: The command or call that ran.
    """
    kinds = _kinds(findings)
    yield head("Audit of segmentations", STYLE + _filter_style(len(kinds)))
    yield "<body>\n<main>\n"
    yield _summary(records, findings, total)
    yield from _findings(directory, findings, kinds)
    yield from _organs(records)
    yield from _failures(records)
    yield _run(identity, command)
    yield "</main>\n</body>\n</html>\n"


# Summary.


def _summary(records: Sequence[Record], findings: Sequence[RankedFinding], total: int) -> str:
    audits = [record.audit for record in records if record.audit is not None]
    organs = [organ for audit in audits for organ in audit.organs]
    agreeing = sum(organ.agrees for organ in organs)
    failed = len(records) - len(audits)
    figures = {
        "scans audited": f"{len(audits):,}",
        "scans with findings": f"{sum(bool(audit.findings) for audit in audits):,}",
        "findings": f"{len(findings):,}",
        "organs that agree": f"{agreeing:,} <small>of {len(organs):,}</small>",
        "scans failed": f"{failed:,}",
    }
    rest = total - len(records)
    incomplete = (
        f'<p class="notice">This audit is not complete: {count_text(rest, "scan")} of {total:,} not reached yet.'
        " The same command continues.</p>\n"
        if rest
        else ""
    )
    return f"""<header>
<p class="kicker">organ-infer audit</p>
<h1>Audit of segmentations</h1>
<p class="lede">Do the labels of each mask fit what the organs look like? Findings are hints. Look at the slices before
you correct a label.</p>
{incomplete}{tiles(figures)}
<p class="disclaimer">Research software, not a medical device.</p>
</header>
"""


# Findings.


def _kinds(findings: Sequence[RankedFinding]) -> dict[str, int]:
    """Return the kinds that occur, in the order of KINDS, with their counts."""
    counts = Counter(ranked.finding.kind for ranked in findings)
    names = [*(kind for kind in KINDS if kind in counts), *(k for k in counts if k not in KINDS)]
    return {kind: counts[kind] for kind in names}


def _filter_style(count: int) -> str:
    """Return the rules by which a chosen kind hides the others, without a script."""
    rules = [
        f"#kind-{i}:checked ~ .cards > :not(.kind-{i}) {{ display: none; }}" for i in range(count)
    ]
    for name in ("all", *range(count)):
        label = f'~ .filter label[for="kind-{name}"]'
        rules += [
            f"#kind-{name}:checked {label} {{ background: var(--accent); color: var(--card); }}",
            f"#kind-{name}:focus-visible {label} {{ outline: 2px solid var(--accent); outline-offset: 2px; }}",
        ]
    return "\n".join(rules) + "\n"


def _findings(
    directory: "AuditDirectory", findings: Sequence[RankedFinding], kinds: Mapping[str, int]
) -> Iterator[str]:
    yield '<section aria-labelledby="findings">\n<h2 id="findings">Findings</h2>\n'
    if not findings:
        yield "<p>None. The labels as they are explain each scan best.</p>\n</section>\n"
        return
    yield (
        "<p>The strongest first. Evidence says by how much an explanation fits better than the labels as they are: the"
        " difference of the log likelihoods. 3 means 20 times as likely.</p>\n"
    )
    if len(findings) > PICTURES_LIMIT:
        yield (
            f'<p class="notice">The strongest {PICTURES_LIMIT:,} of {len(findings):,} findings have pictures.</p>\n'
        )
    yield from _filter(kinds, len(findings))
    numbers = {kind: i for i, kind in enumerate(kinds)}
    yield '<ol class="cards">\n'
    for ranked in findings:
        yield _card(directory, ranked, numbers[ranked.finding.kind])
    yield "</ol>\n</section>\n"


def _filter(kinds: Mapping[str, int], total: int) -> Iterator[str]:
    yield '<input class="hidden" type="radio" name="kind" id="kind-all" checked>\n'
    for i in range(len(kinds)):
        yield f'<input class="hidden" type="radio" name="kind" id="kind-{i}">\n'
    yield f'<p class="filter"><label for="kind-all">all <b>{total:,}</b></label>\n'
    for i, (kind, count) in enumerate(kinds.items()):
        yield f'<label for="kind-{i}">{text(kind)} <b>{count:,}</b></label>\n'
    yield "</p>\n"
    yield '<details class="kinds">\n<summary>What the kinds mean</summary>\n<dl>\n'
    for kind in kinds:
        yield f"<dt>{text(kind)}</dt><dd>{text(KINDS.get(kind, ''))}</dd>\n"
    yield "</dl>\n</details>\n"


def _card(directory: "AuditDirectory", ranked: RankedFinding, number: int) -> str:
    finding, pair = ranked.finding, ranked.record.pair
    figures = ""
    if ranked.rank <= PICTURES_LIMIT:
        pictures = directory.pictures(ranked.record.key)[ranked.index]
        figures = "".join(map(_figure, pictures))
    values = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(_shown(value))}</dd></div>"
        for name, value in finding.numbers.items()
    )
    return f"""<li class="card kind-{number}">
<p class="meta"><span class="rank">{ranked.rank:,}</span> <span class="kind">{text(finding.kind)}</span>
<span class="evidence">evidence <b>{_evidence(finding.evidence)}</b></span></p>
<h3>{text(finding.message)}</h3>
<p class="paths">scan {path_span(pair.scan)}<br>mask {path_span(pair.mask)}</p>
{f'<div class="pictures">{figures}</div>' if figures else ""}
{f'<dl class="numbers">{values}</dl>' if values else ""}
</li>
"""


def _figure(picture: StoredPicture) -> str:
    organ, label = text(picture.organ), text(picture.label)
    answer = f"{label} {picture.probability:.2f}"
    state = "same" if picture.organ == picture.label else "differs"
    return (
        f'<figure><img src="data:image/png;base64,{html.escape(picture.png)}" width="{int(picture.width)}"'
        f' height="{int(picture.height)}" alt="{organ}, slice {int(picture.index)}" loading="lazy">'
        f'<figcaption><b>{organ}</b><span class="{state}">model: {answer}</span>'
        f"<span>slice {int(picture.index)}, {picture.position:.1f} mm</span></figcaption></figure>"
    )


def _evidence(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.1e}"


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.3g}"


# Organs.


def _organs(records: Sequence[Record]) -> Iterator[str]:
    yield '<section aria-labelledby="organs">\n<h2 id="organs">Organs by scan</h2>\n'
    audited = [record for record in records if record.audit is not None]
    if not audited:
        yield "<p>No scan was audited.</p>\n"
    for record in audited:
        yield _scan(record)
    yield "</section>\n"


def _scan(record: Record) -> str:
    audit = record.audit
    assert audit is not None
    differing = sum(not organ.agrees for organ in audit.organs)
    verdict = (
        f'<span class="differs">{differing:,} differ{"s" if differing == 1 else ""}</span>'
        if differing
        else '<span class="same">all agree</span>'
    )
    label = f"Organs of {escape_path(record.pair.scan, one_line=True)}"
    organs = table(ORGAN_HEAD, map(_organ_row, audit.organs), label)
    notes = "".join(f'<p class="note">Warning: {text(warning)}</p>\n' for warning in audit.warnings)
    if audit.unmapped:
        notes += f'<p class="note">Structures of no class: {text(", ".join(audit.unmapped))}</p>\n'
    return f"""<details class="scan">
<summary>{path_span(record.pair.scan)} <span class="note">{count_text(len(audit.organs), "organ")},</span> {verdict}</summary>
<p class="paths">mask {path_span(record.pair.mask)} <span class="note">labels {text(record.pair.labels)}</span></p>
{organs}{notes}</details>
"""


def _organ_row(organ: AuditedOrgan) -> str:
    verdict = (
        '<span class="same">agrees</span>'
        if organ.agrees
        else '<span class="differs">differs</span>'
    )
    row = (
        f"<tr><td>{text(organ.expected)}</td><td>{text(organ.label)}</td>"
        f'<td>{verdict}</td><td class="n">{organ.probability:.3f}</td>'
        f'<td class="n">{organ.expected_probability:.3f}</td><td class="n">{organ.slices:,}</td>'
        f'<td class="n">{organ.volume_ml:,.0f}</td><td class="n">{_hounsfield(organ.median_hu)}</td>'
        f"<td>{text(', '.join(organ.structures))}</td></tr>"
    )
    if organ.warnings:
        row += f'<tr class="warning"><td colspan="9">{text("; ".join(organ.warnings))}</td></tr>'
    return row


def _hounsfield(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else ""


# The rest.


def _failures(records: Sequence[Record]) -> Iterator[str]:
    failed = [record for record in records if record.error is not None]
    if not failed:
        return
    yield '<section aria-labelledby="failed">\n<h2 id="failed">Failed scans</h2>\n'
    yield '<p>The same command tries them again.</p>\n<ul class="failed">\n'
    for record in failed:
        yield (
            f'<li><p class="paths">scan {path_span(record.pair.scan)}<br>mask {path_span(record.pair.mask)}</p>'
            f"<p>{text(record.error)}</p></li>\n"
        )
    yield "</ul>\n</section>\n"


def _run(identity: RunIdentity, command: str) -> str:
    rows = {
        "command": f"<code>{text(command)}</code>",
        "organ-infer": text(identity.version),
        "model": f"{text(identity.model)}, {text(identity.view)} slices, trained on {text(identity.dataset)}",
        "manifest": f"<code>sha256 {text(identity.sha256)}</code>",
        "margin": f"{identity.margin_mm:g} mm",
        "test-time augmentation": "on" if identity.tta else "off",
    }
    return f"""<footer>
<h2>This run</h2>
{list_rows(rows)}
<p class="note">findings.csv and organs.csv beside this page have the same numbers as tables.</p>
</footer>
"""
