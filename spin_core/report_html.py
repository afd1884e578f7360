# ruff: noqa: E501 (markup and style rules read better whole)
"""The report's templates and style sheet: light and dark by the reader's own setting, one column on a phone.

Strings and not data files, so that the recorded digest of the stage's code covers them. `--c0` … `--c5`, `--ink` and
`--rule` are the colours that `spin_core.charts` draws with.
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ name }} · spinloop report</title>
<style>{{ css | safe }}</style>
</head>
<body>
<main>
<header>
<p class="kicker">spinloop report</p>
<h1>{{ name }}</h1>
<p class="verdict">{{ sentence }}</p>
</header>
{% if tiles %}
<ul class="tiles">
{% for tile in tiles %}
<li><span>{{ tile[0] }}</span><strong>{{ tile[1] }}</strong><small>{{ tile[2] }}</small></li>
{% endfor %}
</ul>
{% endif %}
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
<section>
<h2>Models</h2>
<div class="wide" tabindex="0" role="region" aria-label="Table of models">
<table>
<thead>
<tr><th rowspan="2" scope="col">model</th><th colspan="{{ columns | length - 3 }}" scope="colgroup">held-out rows</th><th colspan="3" scope="colgroup">generated answers it learnt from</th></tr>
<tr>{% for title in columns %}<th scope="col">{{ title }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for line in table %}
<tr class="{{ line.kind }}"><th scope="row">{{ line.label }}</th>{% for title, figure, small in line.cells %}<td>{{ figure }}{% if small %}<small>{{ small }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
<details class="key">
<summary>What the columns mean</summary>
<dl>
<dt>EM</dt><dd>Exact match: share of held-out prompts whose generated answer agrees with the real one; greedy decoding, or sampled at temperature 1. Small print: 95 % Wilson interval.</dd>
<dt>Δ</dt><dd>Difference from the start (θ_0). Small print: held-out rows that became right (gained) and wrong (lost).</dd>
<dt>NLL</dt><dd>Mean negative log-likelihood per token of the real answers; lower is better. SPIN does not optimise it and may raise it.</dd>
<dt>margin, accuracy</dt><dd>β times the gap of log-ratios between real and generated answers against the iteration's opponent, and the share of rows where it is positive (a tie counts half).</dd>
<dt>identical, truncated, empty</dt><dd>Shares of the generated answers, before any is dropped, that equal the real one, were cut at the length cap, or are empty. Small print: further rows without an answer, as their prompt does not fit into the model's context (rejected).</dd>
<dt>–</dt><dd>Not measured in this run, or not finite.</dd>
</dl>
</details>
</section>
{% if charts %}
<section>
<h2>Curves</h2>
<div class="charts">
{% for chart in charts %}
<figure role="img" aria-label="{{ chart.title }}. {{ chart.text }}">
<figcaption>{{ chart.title }}</figcaption>
{{ chart.svg | safe }}
</figure>
{% endfor %}
</div>
</section>
{% endif %}
{% if samples.rows %}
<section>
<h2>Sample answers</h2>
<p>{{ samples.text }}</p>
{% for sample in samples.rows %}
<details class="sample"{% if loop.index <= 3 %} open{% endif %}>
<summary><span class="tag {{ sample.tag }}">{{ sample.said }}</span> <bdi>{{ sample.head }}</bdi></summary>
<div class="texts">
<div class="real"><h3>prompt</h3><pre dir="auto">{{ sample.prompt }}</pre></div>
<div class="real"><h3>real answer</h3><pre dir="auto">{{ sample.real }}</pre></div>
</div>
<div class="texts">
{% for answer in sample.answers %}
<div><h3>{{ answer.label }}{% if answer.mark %} <b class="{{ answer.mark }}">{{ "✓ match" if answer.mark == "right" else "✗ no match" }}</b>{% endif %}{% if answer.nll %} <i>NLL {{ answer.nll }}</i>{% endif %}</h3>{% if answer.text is not none %}<pre dir="auto">{{ answer.text }}</pre>{% endif %}</div>
{% endfor %}
</div>
</details>
{% endfor %}
</section>
{% endif %}
{{ mark | safe }}
<section>
<details>
<summary>Profile of this run</summary>
<pre class="profile">{{ profile }}</pre>
</details>
</section>
</main>
</body>
</html>
"""

STEPS = """<section>
<h2>Steps of this run</h2>
<p>{{ text }}</p>
<div class="wide" tabindex="0" role="region" aria-label="Steps of this run">
<table class="steps">
<thead><tr><th scope="col">step</th><th scope="col">state</th><th scope="col">took</th><th scope="col">key</th><th scope="col">output</th></tr></thead>
<tbody>
{% for step in steps %}
<tr><th scope="row">{{ step.label }}{% if step.stage %}<small>{{ step.stage }}</small>{% endif %}</th><td><span class="tag {{ 'cached' if step.cached else 'ran' }}">{{ step.state }}</span></td><td>{{ step.time }}</td><td><code>{{ step.key }}</code></td><td><code>{{ step.digest }}</code></td></tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
"""

CSS = """
:root {
  --paper: #fff; --card: #f6f7f9; --ink: #1c2330; --soft: #5a6475; --rule: #d5dae2; --line: #e6e9ee;
  --good: #17734a; --bad: #b3261e; --warn: #fff4d6; --warn-ink: #6b4a00;
  --c0: #2563c9; --c1: #d0660a; --c2: #17804f; --c3: #9333b8; --c4: #b3261e; --c5: #0e7c8b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171d; --card: #1c2129; --ink: #e4e8ef; --soft: #9ca6b6; --rule: #465063; --line: #2b323d;
    --good: #5fd09a; --bad: #ff8a80; --warn: #3a2f12; --warn-ink: #ffdf96;
    --c0: #6ea8ff; --c1: #ffa657; --c2: #5fd09a; --c3: #d59bf0; --c4: #ff8a80; --c5: #5ccfdd;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .8rem; font-weight: 600; margin: 0 0 .25rem; color: var(--soft); }
.kicker { margin: 0; color: var(--soft); font-size: .85rem; }
.verdict { font-size: 1.15rem; max-width: 46em; margin: 0; overflow-wrap: anywhere; }
.note { background: var(--warn); color: var(--warn-ink); border-radius: 6px; padding: .5rem .8rem; margin: .5rem 0; font-size: .92rem; overflow-wrap: anywhere; }
.tiles { list-style: none; padding: 0; margin: 1.5rem 0 0; display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tiles li { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.tiles span, .tiles small { display: block; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
.tiles strong { font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .55rem; text-align: right; white-space: nowrap; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
thead th[colspan] { text-align: left; font-weight: 400; font-size: .8rem; border-bottom-color: var(--rule); }
th:first-child[scope=row], thead tr:first-child th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left; max-width: 14em; white-space: normal; overflow-wrap: anywhere; }
tbody th { font-weight: 600; min-width: 7.5em; }
tr.control th, tr.control td { color: var(--soft); }
td small, th small { display: block; color: var(--soft); font-size: .74rem; font-weight: 400; }
.steps td { text-align: left; }
.steps thead th { text-align: left; }
.charts { display: grid; gap: 1.75rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; max-width: 540px; }
figcaption { font-size: .88rem; font-weight: 600; margin-bottom: .25rem; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
.wide + details, section > details:not(.sample) { margin-top: 1rem; }
details > summary { cursor: pointer; overflow-wrap: anywhere; }
.key { margin-top: .6rem; font-size: .88rem; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
.sample { border-top: 1px solid var(--line); padding: .6rem 0; }
.sample > summary { font-size: .95rem; }
.texts { display: grid; gap: .6rem; margin-top: .6rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.texts > div { background: var(--card); border-radius: 6px; padding: .6rem .75rem; min-width: 0; }
.texts > .real { background: none; border: 1px solid var(--line); }
pre { margin: 0; font: .82rem/1.45 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; max-height: 22em; overflow-y: auto; }
pre.profile { max-height: none; background: var(--card); border-radius: 6px; padding: .75rem; margin-top: .6rem; }
code { font: .82rem ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.tag { display: inline-block; border: 1px solid var(--rule); border-radius: 99px; padding: 0 .55em; font-size: .78rem; white-space: nowrap; color: var(--soft); }
.tag.gained, .tag.cached, b.right { color: var(--good); border-color: currentColor; }
.tag.lost, b.wrong { color: var(--bad); border-color: currentColor; }
h3 i { font-weight: 400; }
@media (max-width: 560px) {
  main { padding: 1.25rem .9rem 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  th:first-child[scope=row], thead tr:first-child th:first-child { max-width: 8em; min-width: 6em; }
}
@media print { .sample:not([open]) { display: none; } pre { max-height: none; } }
"""
