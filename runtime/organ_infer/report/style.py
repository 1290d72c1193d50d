"""The style of the page of predictions."""

from ..page.style import STYLE as SHARED_STYLE

__all__ = ["STYLE"]

# The policy of the page allows elements no styles of their own, so that each width of a bar is a class.
_BARS = "".join(f".w{i} {{ background-size: {i}% 100%; }}\n" for i in range(101))
_SHADES = "".join(
    f".hit{i} {{ background: color-mix(in srgb, var(--good) {i * 5}%, transparent); }}\n"
    f".miss{i} {{ background: color-mix(in srgb, var(--alarm) {i * 6}%, transparent); }}\n"
    for i in range(1, 10)
)

STYLE = (
    SHARED_STYLE
    + _BARS
    + _SHADES
    + """
.bar { display: block; height: .4rem; margin: .25rem 0; border-radius: .2rem; background-image: linear-gradient(var(--accent), var(--accent)); background-repeat: no-repeat; box-shadow: inset 0 0 0 1px var(--rule); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.counts td:last-child { min-width: 8rem; width: 60%; vertical-align: middle; }
.badge { border: 1px solid currentColor; border-radius: 2rem; padding: 0 .5rem; font-size: .8125rem; white-space: nowrap; }

.controls { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--rule); padding: .6rem 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: .5rem .7rem; align-items: end; }
.controls[hidden], .row[hidden] { display: none; }
.controls label { font-size: .8125rem; color: var(--muted); display: block; }
.controls select, .controls input, .controls button { font: inherit; font-size: .875rem; width: 100%; min-height: 2.25rem; padding: .2rem .5rem; color: var(--ink); background: var(--card); border: 1px solid var(--rule); border-radius: .3rem; }
.controls button { cursor: pointer; color: var(--accent); border-color: var(--accent); }
.range { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; }
.shown { grid-column: 1 / -1; margin: 0; font-size: .875rem; color: var(--muted); max-width: none; }

.keys { margin-top: .6rem; }
.rows { list-style: none; margin: 0; padding: 0; border-top: 1px solid var(--rule); }
.row { display: grid; grid-template-columns: 5.5rem minmax(0, 19rem) minmax(0, 1fr); gap: .2rem 1.1rem; align-items: start; padding: .7rem 0; border-bottom: 1px solid var(--rule); content-visibility: auto; contain-intrinsic-size: auto 7rem; scroll-margin: 9rem 0 2rem; }
.thumb { position: relative; width: 5.5rem; height: 5.5rem; background: #000; border-radius: .25rem; overflow: hidden; }
.thumb img { display: block; width: 100%; height: 100%; object-fit: contain; cursor: zoom-in; }
/* The slice has to stay visible below the map. The pointer uncovers it. */
.thumb .heat { position: absolute; inset: 0; opacity: .7; }
.thumb:hover .heat { opacity: 0; }
.large .thumb img { cursor: zoom-out; }
img.small { image-rendering: pixelated; }
.none { display: grid; place-items: center; color: var(--muted); background: var(--card); border: 1px dashed var(--rule); font-size: .8125rem; text-align: center; }
.large .thumb { width: min(18rem, 100%); height: auto; aspect-ratio: 1; }
.row.large { grid-template-columns: minmax(0, 18rem) minmax(0, 19rem) minmax(0, 1fr); }
.answer p, .about p { margin: 0; max-width: none; overflow-wrap: anywhere; }
.label { display: flex; flex-wrap: wrap; gap: 0 .5rem; align-items: baseline; font-weight: 600; }
.label span { font-weight: 400; font-variant-numeric: tabular-nums; }
.label span:last-child { margin-left: auto; }
.next, .warn { color: var(--muted); font-size: .875rem; font-variant-numeric: tabular-nums; }
.answer .truth { font-size: .875rem; }

.evaluation { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem 2.5rem; align-items: start; }
.evaluation > * { min-width: 0; }
.evaluation h3, .evaluation ~ h3 { margin: 1.8rem 0 .5rem; }
.evaluation h3:first-child { margin-top: 0; }
.evaluation td:last-child, .matrix td:last-child { white-space: nowrap; min-width: 0; }
.evaluation th, .evaluation td { padding: .25rem .5rem; }
.matrix table { width: auto; }
.matrix td, .matrix th { padding: .25rem .4rem; min-width: 0; }
.matrix td { text-align: right; font-variant-numeric: tabular-nums; min-width: 2.6rem; }
.matrix tbody th { position: sticky; left: 0; background: var(--card); }
.matrix thead th { vertical-align: bottom; text-align: right; }
.matrix thead th:first-child { text-align: left; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); }
.zero { color: var(--muted); }
.diagram { width: 100%; max-width: 24rem; height: auto; display: block; }
.diagram text { fill: var(--muted); font-size: 11px; }
.axis { stroke: var(--rule); fill: none; }
.ideal { stroke: var(--muted); stroke-dasharray: 4 3; }
.accuracy { fill: var(--accent); opacity: .75; }
.confidence { stroke: var(--ink); stroke-width: 2; }
.share { fill: var(--muted); opacity: .6; }
figcaption .path { color: var(--muted); }

@media (max-width: 34rem) {
  .controls { position: static; grid-template-columns: 1fr 1fr; }
  .row { grid-template-columns: 4.5rem minmax(0, 1fr); scroll-margin-top: 1rem; }
  .thumb { width: 4.5rem; height: 4.5rem; }
  .thumb { grid-row: span 2; }
  .row.large { grid-template-columns: minmax(0, 1fr); }
  .evaluation table { font-size: .75rem; }
  .evaluation th, .evaluation td { padding: .25rem .2rem; }
  .counts td:last-child { min-width: 3rem; }
  .counts th, .counts td { padding: .35rem .4rem; }
}
@media print {
  .controls, .keys { display: none; }
  .row { content-visibility: visible; break-inside: avoid; padding: .3rem 0; grid-template-columns: 4rem minmax(0, 15rem) minmax(0, 1fr); }
  .thumb { width: 4rem; height: 4rem; }
}
"""
)
