"""The frame of every page and its style sheet: light and dark, narrow and wide, screen and paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# Colours: dark on light and light on dark with at least 3 : 1, told apart under the common colour-vision deficiencies
# together with dashes and markers.
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --dim: #57606a; --rule: #d5dae0; --soft: #f4f6f8;
  --warn: #fff4d6; --warn-rule: #b7791f; --region: #dff3e4; --mark: #d9ecff; --target: #6e7781; --retain: #1b1f24;
  --c0: #c44e00; --c1: #a2418a; --c2: #0060b0; --c3: #007f5f; --c4: #a06a00; --c5: #2b8cbe; --c6: #6b4f3a; }
@media screen and (prefers-color-scheme: dark) { :root {
  --page: #14181d; --ink: #e6eaee; --dim: #a3adb8; --rule: #39414a;
  --soft: #1d232a; --warn: #3a2e12; --warn-rule: #d9a441; --region: #173324; --mark: #173a5c; --target: #98a2ad;
  --retain: #e6eaee; --c0: #ff8a4c; --c1: #e79bd0; --c2: #6db7ff; --c3: #3dd6a3; --c4: #f2c14e; --c5: #8edcff;
  --c6: #d8b795; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 .6rem; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem; }
h1, p, li, td, th, caption, figcaption, summary { overflow-wrap: anywhere; }
.small, figcaption { color: var(--dim); font-size: .875rem; }
.small p, .small ol { margin: .3rem 0; }
.range { color: var(--dim); font-size: .75rem; font-weight: normal; }
.note { color: var(--dim); }
.warning { background: var(--warn); border-left: 4px solid var(--warn-rule); padding: .5rem .8rem; margin: .8rem 0; }
.conclusions { background: var(--soft); margin: 0 0 .6rem; padding: .8rem 1rem .8rem 2.4rem; border-radius: 6px; }
.conclusions li { margin: .35rem 0; max-width: 62rem; }
/* a shadow at the right edge for as long as there is more to scroll to */
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--page) 40%, transparent) right / 3rem 100%
  no-repeat local, linear-gradient(to left, var(--dim), transparent) right / .6rem 100% no-repeat scroll; }
.numbers { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; width: 100%; }
.numbers th, .numbers td { padding: .3rem .4rem; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: top; overflow-wrap: normal; }
.numbers thead th { vertical-align: bottom; line-height: 1.25; }
.numbers tbody th { text-align: left; font-weight: 600; overflow-wrap: anywhere; min-width: 9.5rem;
  position: sticky; left: 0; background: var(--page); }
.numbers thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); }
.numbers td { white-space: nowrap; }
.numbers .range { font-size: .6875rem; }
.numbers tr.retain > * { border-bottom: 2px solid var(--dim); }
.best { background: var(--mark); text-decoration: underline; text-underline-offset: 3px; padding: 0 .2rem;
  border-radius: 3px; }
abbr { text-decoration: none; cursor: help; }
sup { font-size: .7em; line-height: 0; }
figure { margin: 0; }
figcaption { max-width: 52rem; margin-top: .4rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0; margin: 0 0 .4rem;
  font-size: .875rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.swatch { vertical-align: -.15em; flex: none; overflow: visible; }
.chart { display: block; width: 100%; height: auto; }
.chart.large { max-width: 52rem; }
.chart.small { max-width: 37rem; }
.chart text { font-size: 13px; fill: var(--dim); font-family: inherit; }
.chart .name { fill: var(--ink); }
.chart .note { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; fill: var(--ink); }
.grid { stroke: var(--rule); stroke-width: .6; }
.axis { fill: none; stroke: var(--dim); stroke-width: 1; }
.region { fill: var(--region); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.mark { stroke: var(--page); stroke-width: 1; }
.cross { fill: none; stroke-width: 2.4; }
.start { fill: none; stroke: var(--ink); stroke-width: 1.6; }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.1; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr));
  align-items: start; }
article { border: 1px solid var(--rule); border-radius: 6px; padding: .6rem .8rem; break-inside: avoid; }
.answers { border-collapse: collapse; width: 100%; font-size: .875rem; }
.answers caption { text-align: left; font-weight: 600; padding-bottom: .4rem; font-size: .9375rem; }
.answers th { text-align: left; vertical-align: top; width: 11rem; font-weight: 600; }
.answers th, .answers td { padding: .25rem .5rem .25rem 0; border-top: 1px solid var(--rule); vertical-align: top; }
.answers td:last-child { text-align: right; width: 3rem; font-variant-numeric: tabular-nums; padding-right: 0; }
.answers .range { display: inline-block; }
.answers .true { background: var(--soft); }
.verdict { padding: .4rem 1rem; }
.own td:nth-last-child(-n+3), .own thead th:nth-last-child(-n+3) { text-align: left;
  white-space: normal; min-width: 7rem; }
.answers.two td:last-child { text-align: left; width: auto; }
.tokens { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem; padding: 0; margin: .5rem 0 0; }
.tokens li { border: 1px solid var(--rule); border-radius: 4px; padding: .1rem .35rem; font-size: .875rem;
  display: flex; flex-direction: column; align-items: center; }
.tokens small { color: var(--dim); font-variant-numeric: tabular-nums; font-size: .6875rem; white-space: nowrap; }
.tokens .shade1 { background: var(--soft); border-color: var(--dim); }
.tokens .shade2 { background: var(--warn); border-color: var(--warn-rule); }
.tokens .shade3 { background: var(--warn); border: 2px solid var(--c0); font-weight: 700; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.group { display: grid; grid-template-columns: 1fr 2fr; gap: 1rem; margin-bottom: 1rem; font-size: .875rem; }
.group p { margin: 0 0 .2rem; }
.group .forget { border-left: 4px solid var(--c0); padding-left: .7rem; }
.normals { display: grid; gap: .6rem; }
.normals > div { border-left: 4px solid var(--c3); padding-left: .7rem; }
details { border-top: 1px solid var(--rule); padding: .35rem 0; }
summary { cursor: pointer; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; font-size: .75rem; line-height: 1.4; }
@media (max-width: 36rem) { .chart.large text { font-size: 21px; } .chart.small text { font-size: 16px; }
  .group { grid-template-columns: 1fr; }
  .answers th { width: 5.5rem; }  h1 { font-size: 1.45rem; } main { padding: 1rem .75rem 2rem; } }
@media print { body { font-size: 11pt; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; background: none; }
  .numbers .range { font-size: 5.5pt; } .panels { grid-template-columns: 1fr 1fr; } .chart.large { max-width: 34rem; }
  :root { print-color-adjust: exact; }
  .numbers { font-size: 7pt; } .numbers th, .numbers td { padding: 2pt; } .numbers tbody th { position: static; }
  h2, h3, caption { break-after: avoid; } figure, tr { break-inside: avoid; } pre { white-space: pre-wrap; } }
"""


def document(title: str, body: Sequence[str]) -> str:
    """A whole page that needs nothing else.

    Args:
        title: Of the page, plain text.
        body: Its parts as HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Even if escaping failed somewhere, nothing is fetched and no script runs.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">\n"""
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def numbers_table(rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table of numbers: the first row is its head, the first cell of each other row names it.

    Args:
        rows: Texts of the cells, not yet escaped.
    """
    head, *body = rows
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in body
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="numbers"><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
