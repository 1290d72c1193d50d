"""The style of report.html."""

from ..page.style import STYLE as SHARED_STYLE

__all__ = ["STYLE"]

STYLE = (
    SHARED_STYLE
    + """
.hidden { position: absolute; opacity: 0; width: 1px; height: 1px; margin: 0; pointer-events: none; }
.filter { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; max-width: none; }
.filter label { border: 1px solid var(--accent); color: var(--accent); border-radius: 2rem; padding: .3rem .8rem; font-size: .875rem; cursor: pointer; }
.filter b { font-weight: 600; font-variant-numeric: tabular-nums; }
.kinds { font-size: .9375rem; margin-bottom: 1rem; }
.kinds dt { font-weight: 600; }
.kinds dd { margin: 0 0 .4rem; color: var(--muted); }
summary { cursor: pointer; padding: .4rem 0; overflow-wrap: anywhere; }
.cards { list-style: none; margin: 0; padding: 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: .4rem; padding: .9rem 1.1rem 1rem; margin: 0 0 1rem; content-visibility: auto; contain-intrinsic-size: auto 22rem; }
.meta { display: flex; flex-wrap: wrap; align-items: baseline; gap: .2rem .8rem; margin: 0; color: var(--muted); font-size: .875rem; max-width: none; }
.rank { font-weight: 700; color: var(--ink); font-variant-numeric: tabular-nums; }
.kind { border: 1px solid currentColor; border-radius: 2rem; padding: 0 .6rem; color: var(--accent); }
.evidence { margin-left: auto; font-variant-numeric: tabular-nums; }
.evidence b { color: var(--ink); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); gap: .3rem 1.2rem; margin: .8rem 0 0; font-size: .875rem; }
.numbers div { display: flex; justify-content: space-between; gap: .6rem; border-top: 1px solid var(--rule); padding-top: .2rem; }
.numbers dt { color: var(--muted); overflow-wrap: anywhere; }
.numbers dd { margin: 0; font-variant-numeric: tabular-nums; text-align: right; overflow-wrap: break-word; min-width: 0; }
.scan { border-top: 1px solid var(--rule); padding: .2rem 0; content-visibility: auto; contain-intrinsic-size: auto 2.5rem; }
.warning td { color: var(--muted); padding-top: 0; white-space: normal; min-width: 0; }
.failed { list-style: none; margin: 0; padding: 0; }
.failed li { border-left: 3px solid var(--alarm); padding: .1rem 0 .1rem .9rem; margin-bottom: 1rem; overflow-wrap: anywhere; }
.failed p { margin: 0 0 .2rem; }
@media (max-width: 34rem) {
  .evidence { margin-left: 0; }
}
@media print {
  .card, .scan { content-visibility: visible; break-inside: avoid; }
  .filter, .kinds { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; opacity: 1; }
}
"""
)
