"""The page that report.py fills, and the parts it is made of: one HTML document, without scripts and without links.

Everything that is not marked safe is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd


def section(title: str, text: str, figure: str, *tables: dict) -> dict:
    """A section of the page: a paragraph, the figure of that name where there is one, and tables."""
    return {"title": title, "text": text, "figure": figure, "tables": tables}


def table(columns: list[str], rows: list[list[str]], *, text=(), title: str = "", marks: Sequence[bool] = ()) -> dict:
    """A table for the page: text columns are set left, marked rows shaded; with a title it can be folded away."""
    marks = marks or [False] * len(rows)
    shaded = [{"cells": cells, "mark": mark} for cells, mark in zip(rows, marks, strict=True)]
    return {"columns": columns, "rows": shaded, "text": text, "title": title}


def cell(value, show: Callable[[float], str]) -> str:
    """A value as show writes it, or a dash where there is none."""
    return "\u2013" if value is None or pd.isna(value) else show(value)


def milliseconds(value: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def count(value: float) -> str:
    """A large number with a metric letter: 1.41 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{milliseconds(value / size)} {letter}"
    return f"{value:.0f}"


TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ experiment }} - PLANER report</title>
<style>
:root { --ink: #1b2530; --muted: #5c6875; --grid: #dfe4e9; --surface: #ffffff; --ground: #f5f7f9; --mark: #eaf2f8;
  --good: #00704d; --bad: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --muted: #9aa7b4; --grid: #313b46; --surface: #161c23; --ground: #0e1318; --mark: #1b2a37;
    --good: #4fc79b; --bad: #f0955a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 16px; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
p, ul { margin: 0 0 .75rem; }
ul { padding-left: 1.2rem; }
.lead, .note { color: var(--muted); }
.note { font-size: .88rem; }
section { background: var(--surface); border: 1px solid var(--grid); border-radius: 10px;
  padding: 1.4rem 1.5rem; margin-top: 1.25rem; }
figure { margin: .75rem 0 0; }
figure svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; margin-top: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .55rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .text { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
tr.mark td { background: var(--mark); }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
td.wrap:first-child { white-space: nowrap; min-width: 0; }
details { margin-top: .75rem; }
summary { cursor: pointer; }
pre { margin: .25rem 0 .75rem; padding: .6rem .8rem; background: var(--ground); border-radius: 6px; overflow-x: auto; }
.verdict td { white-space: normal; text-align: left; vertical-align: top; min-width: 9rem; }
.verdict th { text-align: left; }
.verdict td:first-child { white-space: nowrap; min-width: 0; font-weight: 600; }
.word { display: block; font-weight: 600; color: var(--muted); }
.good { color: var(--good); }
.bad { color: var(--bad); }
h3 { font-size: 1rem; margin: 1.1rem 0 .4rem; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; }
@media print { body { background: none; } section { break-inside: avoid; } }
</style>
</head>
<body>
<main>
{%- macro grid(table) %}
<div class="scroll"><table>
<thead><tr>{% for name in table.columns %}<th{% if name in table.text %} class="text"{% endif %}>{{ name }}</th>
{%- endfor %}</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr{% if row.mark %} class="mark"{% endif %}>
{%- for cell in row.cells %}<td{% if table.columns[loop.index0] in table.text %} class="text wrap"{% endif %}>
{{- cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table></div>
{%- endmacro %}
{%- macro figure(name) %}{% if name in figures %}
<figure>{{ figures[name]|safe }}</figure>{% endif %}{% endmacro %}
<h1>{{ experiment }}</h1>
<p class="lead">{{ setting }}</p>
{%- macro judgement(j) %}
<td><span class="word{% if j.good is not none %} {{ "good" if j.good else "bad" }}{% endif %}">{{ j.word }}</span>
{{- j.text }}</td>{% endmacro %}
<section>
<h2>Verdict</h2>
<div class="scroll"><table class="verdict">
<thead><tr><th>network</th><th>latency target</th><th>quality</th><th>dynamic k on this device</th></tr></thead>
<tbody>
{%- for verdict in verdicts %}
<tr><td>{{ verdict.variant }}</td>{{ judgement(verdict.target) }}{{ judgement(verdict.quality) }}
{{- judgement(verdict.dynamic_k) }}</tr>
{%- endfor %}
</tbody>
</table></div>
<ul>
{%- for name, line in summaries %}
<li>{{ name }}: {{ line }}</li>
{%- endfor %}
</ul>
<p class="note">Speed and test nll over the baseline's. The dense network, the converted one and the baseline were
measured in turn.</p>
{%- if controls %}
<h3>Beside the baseline and the controls</h3>
{%- if shallow %}
<p>{{ shallow }}</p>
{%- endif %}
{{ grid(controls) }}
<p class="note">Losses on the test split, lower is better. Several controls are given as mean &plusmn; standard error.
Differences are taken in pairs, as shares of the control's nll, with intervals by Student's t. Pairs are segments of
the text, random networks, or seeds. An interval over segments does not cover another training of the networks.</p>
{%- endif %}
{%- if remedies %}
<h3>What to try</h3>
<ul>
{%- for name, remedy in remedies %}
<li>{{ name }}: {{ remedy.text }}<pre><code>{{ remedy.command }}</code></pre></li>
{%- endfor %}
</ul>
<p class="note">Add the options of your own command, such as --configfile or --workflow-profile. What --config changes
holds for one command: a key that helps belongs into config/experiments/{{ experiment }}.yaml.</p>
{%- endif %}
<p class="note">{{ rules }}</p>
</section>
<section>
<h2>Files</h2>
<p>A network's folder, such as <code>{{ files.folder }}</code>, holds:</p>
<ul>
{%- for name, what in files.names.items() %}
<li><code>{{ name }}</code>: {{ what }}</li>
{%- endfor %}
</ul>
<p>To load a network, in the folder that holds <code>results</code>:</p>
<pre><code>{{ files.python }}</code></pre>
<p class="note"><code>network(tokens, memory, mem_len=...)</code> reads token numbers [batch, length] and gives hidden
states and the next memory; <code>network.logits(hidden)</code> gives the logits. The network in <code>routers</code>
runs at tau = {{ files.tau }}, the threshold that its <code>architecture.yaml</code> stores; at 0 it runs all
experts.</p>
</section>
<section>
<h2>Networks</h2>
{{ grid(summary) }}
<p class="note">{{ summary_note }}</p>
</section>
{%- for section in sections %}
<section>
<h2>{{ section.title }}</h2>
<p>{{ section.text }}</p>
{{- figure(section.figure) }}
{%- for table in section.tables %}
{%- if table.title %}
<details><summary>{{ table.title }}</summary>{{ grid(table) }}</details>
{%- else %}{{ grid(table) }}{% endif %}
{%- endfor %}
</section>
{%- endfor %}
</main>
</body>
</html>
"""
