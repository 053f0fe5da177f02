"""The look of the page: light and dark as the reader's system is, from a phone to paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f6f6f4; --ink: #14140f; --quiet: #5a5953; --grid: #e3e2de;
  --edge: #d3d2cc; --first: #1f66c0; --second: #b3500f; --mark: #dbe8fa; --warn: #8a3b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #161615; --raised: #21211f; --ink: #f2f1ec; --quiet: #b3b2aa; --grid: #34342f;
    --edge: #45453f; --first: #6aa9f7; --second: #f0995c; --mark: #1f3a5c; --warn: #ffb37a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: 1.75rem 0 .4rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
a { color: var(--first); }
nav { margin: 1rem 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; margin: 0; max-width: none; }
nav a { display: inline-block; padding: .2rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tiles div { background: var(--raised); border: 1px solid var(--edge); border-radius: 8px; padding: .7rem .9rem; }
.tiles dt { color: var(--quiet); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dd small { display: block; font-size: .85rem; font-weight: 400; color: var(--quiet); }
pre {
  background: var(--raised); border: 1px solid var(--edge); border-radius: 8px;
  padding: .75rem .9rem; overflow-x: auto; font-size: .875rem;
}
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.note { color: var(--quiet); font-size: .875rem; }
.missing { border-left: 3px solid var(--edge); padding-left: .75rem; color: var(--quiet); }
.remarks { border-left: 3px solid var(--warn); padding-left: .75rem; }
.remarks ul { margin: 0; padding-left: 1.1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.25rem 1.5rem; margin: 1rem 0; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.25rem; margin: 1rem 0; max-width: 62rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .15rem; }
figcaption small { display: block; font-weight: 400; color: var(--quiet); }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--quiet); }
svg .strong { font-weight: 600; fill: var(--ink); }
svg .halo { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; }
svg .label { font-weight: 600; }
svg .label.first { fill: var(--first); }
svg .label.second { fill: var(--second); }
svg .grid { stroke: var(--grid); }
svg .level { stroke: var(--quiet); stroke-dasharray: 5 4; }
svg .best { stroke: var(--quiet); stroke-dasharray: 2 3; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .line.first { stroke: var(--first); }
svg .line.second { stroke: var(--second); }
svg .faint { stroke-width: 1; opacity: .4; }
svg .dot.first { fill: var(--first); }
svg .dot.second { fill: var(--second); }
svg .peak { fill: var(--first); stroke: var(--ground); stroke-width: 2; }
svg .frame { fill: var(--raised); stroke: var(--edge); }
svg .quiet { fill: var(--quiet); opacity: .45; }
svg .named { fill: var(--first); stroke: var(--raised); }
svg .join { stroke: var(--first); stroke-width: 1.5; }
.maps .halo { stroke: var(--raised); }
.scroll { overflow-x: auto; margin: .75rem 0; }
.scroll:focus-visible { outline: 2px solid var(--first); }
.wide svg { min-width: 42rem; max-width: 54rem; }
table { border-collapse: collapse; font-size: .925rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .35rem .75rem; text-align: right; vertical-align: top; white-space: nowrap; border-bottom: 1px solid var(--grid); }
thead th { color: var(--quiet); font-weight: 600; border-bottom: 1px solid var(--edge); vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--ground); padding-left: 0; }
tbody th { font-weight: 400; }
td.words, th.words { text-align: left; white-space: normal; min-width: 13rem; }
td small { display: block; color: var(--quiet); font-size: .8rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem; margin: 1rem 0; }
.card { border: 1px solid var(--edge); border-radius: 8px; padding: .8rem .95rem; min-width: 0; break-inside: avoid; }
.card h3 { margin: 0 0 .5rem; }
.card dl { margin: 0; display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .35rem .75rem; }
.card dt { color: var(--quiet); font-size: .875rem; padding-top: .1rem; }
.card dd { margin: 0; }
.words-list span { display: inline-block; margin: 0 .3rem .25rem 0; padding: 0 .35rem; border-radius: 4px; background: var(--raised); border: 1px solid var(--edge); }
.words-list span.own { background: var(--mark); border-color: var(--first); font-weight: 600; }
.near { margin: 0; padding: 0; list-style: none; }
.near li { display: grid; grid-template-columns: 3.2rem minmax(0, 1fr); gap: .25rem; }
.near b { font-weight: 400; color: var(--quiet); font-variant-numeric: tabular-nums; }
.near .own { font-weight: 600; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .875rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
}
""".strip()
