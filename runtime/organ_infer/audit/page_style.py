"""The style of report.html."""

__all__ = ["STYLE"]

STYLE = """
:root {
  --paper: #f7f7f5; --card: #ffffff; --ink: #1b1f24; --muted: #59616c; --rule: #dedcd6;
  --accent: #0b5f8f; --alarm: #a3330c; --alarm-tint: #fcefe8; --good: #1d6b3c;
  color-scheme: light dark;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1c1f25; --ink: #e8e6e1; --muted: #a5acb6; --rule: #343a43;
    --accent: #7cc4f0; --alarm: #f4a27c; --alarm-tint: #2d2019; --good: #7fcf9c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
}
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.75rem, 1.2rem + 2.4vw, 2.5rem); letter-spacing: -.015em; margin: .2rem 0 .8rem; }
h2 { font-size: 1.4rem; margin: 0 0 .6rem; }
h3 { font-size: 1.1rem; margin: .4rem 0; }
p { margin: 0 0 .8rem; max-width: 46rem; }
section, footer { margin-top: 2.5rem; padding-top: 2rem; border-top: 1px solid var(--rule); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.kicker, .note, .disclaimer, small { color: var(--muted); font-size: .875rem; }
.kicker { margin: 0; font-weight: 600; }
.lede { font-size: 1.125rem; }
.notice { background: var(--alarm-tint); border-left: 3px solid var(--alarm); padding: .6rem .9rem; }
.path, code { font: .875em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
.same { color: var(--good); }
.differs { color: var(--alarm); font-weight: 600; }
.hidden { position: absolute; opacity: 0; width: 1px; height: 1px; margin: 0; pointer-events: none; }

.tiles { display: flex; flex-wrap: wrap; gap: 1px; margin: 1.4rem 0; background: var(--rule); border: 1px solid var(--rule); }
.tiles div { flex: 1 1 8.5rem; background: var(--card); padding: .7rem .9rem; }
.tiles dt { color: var(--muted); font-size: .8125rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }

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
.paths { color: var(--muted); font-size: .875rem; margin: .3rem 0 .6rem; max-width: none; }
.paths .path { color: var(--ink); }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; }
figure { margin: 0; width: 11rem; font-size: .8125rem; line-height: 1.35; }
figure img { display: block; width: 11rem; height: 11rem; object-fit: contain; background: #000; border-radius: .25rem; }
figcaption { margin-top: .3rem; }
figcaption > * { display: block; overflow-wrap: anywhere; }
figcaption span:last-child { color: var(--muted); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); gap: .3rem 1.2rem; margin: .8rem 0 0; font-size: .875rem; }
.numbers div { display: flex; justify-content: space-between; gap: .6rem; border-top: 1px solid var(--rule); padding-top: .2rem; }
.numbers dt { color: var(--muted); overflow-wrap: anywhere; }
.numbers dd { margin: 0; font-variant-numeric: tabular-nums; text-align: right; overflow-wrap: break-word; min-width: 0; }

.scan { border-top: 1px solid var(--rule); padding: .2rem 0; content-visibility: auto; contain-intrinsic-size: auto 2.5rem; }
.scroll { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; background: var(--card); }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap; vertical-align: top; }
td:last-child { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
th { color: var(--muted); font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.warning td { color: var(--muted); padding-top: 0; white-space: normal; min-width: 0; }
.failed { list-style: none; margin: 0; padding: 0; }
.failed li { border-left: 3px solid var(--alarm); padding: .1rem 0 .1rem .9rem; margin-bottom: 1rem; overflow-wrap: anywhere; }
.failed p { margin: 0 0 .2rem; }
.run { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.2rem; font-size: .9375rem; }
.run dt { color: var(--muted); }
.run dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) {
  main { padding: 1.2rem .9rem 3rem; }
  .run { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .run dd { margin-bottom: .5rem; }
  .pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  figure, figure img { width: 100%; }
  figure img { height: auto; aspect-ratio: 1; }
  .evidence { margin-left: 0; }
}
@media print {
  :root { --paper: #ffffff; --accent: #1b1f24; }
  main { max-width: none; padding: 0; }
  .card, .scan { content-visibility: visible; }
  .card, .scan, footer { break-inside: avoid; }
  .filter, .kinds { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; opacity: 1; }
  .scroll { overflow: visible; }
  th, td { white-space: normal; padding: .2rem .4rem; }
}
"""
