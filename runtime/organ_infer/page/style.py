"""The style that the pages share: colors for light, dark and print, texts, tables, tiles and figures."""

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

.tiles { display: flex; flex-wrap: wrap; gap: 1px; margin: 1.4rem 0; background: var(--rule); border: 1px solid var(--rule); }
.tiles div { flex: 1 1 8.5rem; background: var(--card); padding: .7rem .9rem; }
.tiles dt { color: var(--muted); font-size: .8125rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }


.paths { color: var(--muted); font-size: .875rem; margin: .3rem 0 .6rem; max-width: none; }
.paths .path { color: var(--ink); }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; }
figure { margin: 0; width: 11rem; font-size: .8125rem; line-height: 1.35; }
figure img { display: block; width: 11rem; height: 11rem; object-fit: contain; background: #000; border-radius: .25rem; }
figcaption { margin-top: .3rem; }
figcaption > * { display: block; overflow-wrap: anywhere; }
figcaption span:last-child { color: var(--muted); }

.scroll { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; background: var(--card); }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap; vertical-align: top; }
td:last-child { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
th { color: var(--muted); font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
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
}
@media print {
  :root { --paper: #ffffff; --accent: #1b1f24; }
  main { max-width: none; padding: 0; }
  footer { break-inside: avoid; }
  .scroll { overflow: visible; }
  th, td { white-space: normal; padding: .2rem .4rem; }
}
"""
