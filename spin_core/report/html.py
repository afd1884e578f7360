# ruff: noqa: E501 (markup and style rules read better whole)
"""The report's templates and style sheet: light and dark by the reader's own setting, one column on a phone.

Strings and not data files, so that the recorded digest of the stage's code covers them. `--c0` … `--c5`, `--ink` and
`--rule` are the colours that `spin_core.report.charts` draws with.
"""

WIDE = """{% if table.text %}<p>{{ table.text }}</p>{% endif %}
<div class="wide" tabindex="0" role="region" aria-label="{{ table.title }}">
<table class="{{ table.id.partition('-')[0] if table.id.startswith('pair-') else table.id }}">
<thead>
<tr><th scope="col">{{ table.head }}</th>{% for title in table.columns %}<th scope="col">{{ title }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for line in table.lines %}
<tr class="{{ line.kind }}{% if line.best %} best{% endif %}"><th scope="row">{% for part in line.label.split(".") %}{{ part }}{% if not loop.last %}.<wbr>{% endif %}{% endfor %}{% if line.small %}<small>{{ line.small }}</small>{% endif %}</th>{% for figure, small in line.cells %}<td>{{ figure }}{% if small %}{% for part in small.split("; ") %}<small>{{ part }}</small>{% endfor %}{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table.key %}
<details class="key">
<summary>What the columns mean</summary>
<dl>
{% for name, means in table.key %}
<dt>{{ name }}</dt><dd>{{ means }}</dd>
{% endfor %}
</dl>
</details>
{% endif %}
"""
"""One table that may be wider than the screen, with its text and its key."""

TABLE = (
    """<section id="{{ table.id }}">
<h2>{{ table.title }}</h2>
"""
    + WIDE
    + """</section>
"""
)

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';{% if hash %} script-src '{{ hash }}';{% endif %} base-uri 'none'; form-action 'none'">
<title>{{ name }} · spinloop {{ kind }}</title>
<style>{{ css | safe }}</style>
</head>
<body>
<main>
<header>
<p class="kicker">spinloop {{ kind }}</p>
<h1>{{ name }}</h1>
<p class="verdict">{{ sentence }}</p>
"""
"""How a page begins; `hash` is that of its script, if it has one."""

TILES = """<ul class="tiles">
{% for tile in tiles %}
<li><span>{{ tile[0] }}</span><strong>{{ tile[1] }}</strong><small>{{ tile[2] }}</small></li>
{% endfor %}
</ul>
"""
"""Figures in large print: name, figure, small print."""

PAGE = (
    HEAD
    + """{% if decision %}
<p class="decision"><span class="tag {{ 'lost' if decision.outcome in ('alarm', 'keep best') else 'gained' }}">{{ decision.outcome }}</span>{% if decision.best %} <b>★ best: {{ decision.best }}</b> ·{% endif %} {{ decision.reason }}</p>
{% endif %}
</header>
{% if tiles %}
"""
    + TILES
    + """{% endif %}
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
<nav aria-label="Contents">{% for table in tables %}<a href="#{{ table.id }}">{{ table.title }}</a>{% endfor %}{% if charts %}<a href="#curves">Curves</a>{% endif %}{% if samples.rows %}<a href="#samples">Samples</a>{% endif %}<a href="#run">Run</a><a href="#settings">Settings</a></nav>
{% for table in tables %}
"""
    + TABLE
    + """
{% endfor %}
{% if charts %}
<section id="curves">
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
<section id="samples">
<h2>Sample answers</h2>
<p>{{ samples.text }}</p>
<div class="find" id="find" role="search" hidden>
<input type="search" aria-label="Find in samples" placeholder="find in prompts and answers" autocomplete="off">
<span class="chips"><button type="button" data-tag="" aria-pressed="true">all</button>{% for tag, label in samples.tags %}<button type="button" data-tag="{{ tag }}" aria-pressed="false">{{ label }}</button>{% endfor %}</span>
<output aria-live="polite"></output>
</div>
{% for sample in samples.rows %}
{% if loop.index == folded + 1 %}
<details id="more" class="more"><summary>{{ samples.rows | length - folded }} more samples</summary>
{% endif %}
<details class="sample" data-tag="{{ sample.tag }}"{% if loop.index <= open %} open{% endif %}>
<summary><span class="tag {{ sample.tag }}">{{ sample.label }}</span> <bdi>{{ sample.head }}</bdi></summary>
<div class="texts">
<div class="real"><h3>prompt <i>row <code>{{ sample.id }}</code></i></h3><pre dir="auto">{{ sample.prompt }}</pre></div>
<div class="real"><h3>real answer</h3><pre dir="auto">{{ sample.real }}</pre></div>
</div>
<div class="texts">
{% for answer in sample.answers %}
<div><h3>{{ answer.label }}{% if answer.mark %} <b class="{{ answer.mark }}">{{ "✓ match" if answer.mark == "right" else "✗ no match" }}</b>{% endif %}{% if answer.small %} <i>{{ answer.small }}</i>{% endif %}</h3>{% if answer.text is not none %}<pre dir="auto">{{ answer.text }}</pre>{% endif %}{% if answer.made %}<p class="made">answered in <code>{{ answer.made.evaluate }}</code>{% if answer.made.model %} by <a href="#made-{{ answer.made.model }}"><code>{{ answer.made.model }}</code></a>{% endif %}</p>{% endif %}</div>
{% endfor %}
</div>
</details>
{% endfor %}
{% if samples.rows | length > folded %}
</details>
{% endif %}
</section>
{% endif %}
<div id="run">
{{ mark | safe }}
</div>
<section id="settings">
<h2>Settings</h2>
{% if overrides %}
{% set table = overrides %}
"""
    + WIDE
    + """
{% endif %}
<details>
<summary>Profile of this run</summary>
<pre class="profile">{{ profile }}</pre>
</details>
</section>
</main>
<script>{{ script | safe }}</script>
</body>
</html>
"""
)

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
section > h3 { margin: 1.25rem 0 .25rem; font-size: .92rem; }
.kicker { margin: 0; color: var(--soft); font-size: .85rem; }
.verdict { font-size: 1.15rem; max-width: 46em; margin: 0; overflow-wrap: anywhere; }
.decision { max-width: 50em; margin: .6rem 0 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .35rem .9rem; margin: 1.25rem 0 0; font-size: .88rem; }
a { color: var(--c0); }
nav a { text-decoration: none; padding: .15rem 0; }
nav a:hover, nav a:focus { text-decoration: underline; }
section, li[id] { scroll-margin-top: .75rem; }
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
tr.best td, tr.best th[scope=row]:first-child { background: var(--card); }
tr.total th, tr.total td { border-top: 1px solid var(--rule); font-weight: 600; }
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
.find { display: flex; flex-wrap: wrap; gap: .5rem .75rem; align-items: center; margin: .5rem 0 .9rem; }
.find[hidden] { display: none; }
.find input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .35rem .6rem; flex: 1 1 14rem; min-width: 0; }
.find output { color: var(--soft); font-size: .85rem; }
.chips { display: flex; flex-wrap: wrap; gap: .35rem; }
.chips button { font: inherit; font-size: .82rem; color: var(--soft); background: none; border: 1px solid var(--rule); border-radius: 99px; padding: .2rem .7rem; cursor: pointer; }
.chips button[aria-pressed=true] { color: var(--paper); background: var(--ink); border-color: var(--ink); }
.more { border-top: 1px solid var(--line); padding-top: .6rem; }
.more > summary { color: var(--c0); font-size: .95rem; }
.more[open] > summary { margin-bottom: .6rem; }
.tiles + .note { margin-top: 1rem; }
.soft { color: var(--soft); font-size: .85rem; }
.lineage { list-style: none; margin: .25rem 0 0 .45rem; padding: 0 0 0 1.1rem; border-left: 2px solid var(--rule); font-size: .92rem; }
.lineage li { position: relative; margin: 0 0 .6rem; overflow-wrap: anywhere; }
.lineage li::before { content: ""; position: absolute; left: calc(-1.1rem - 6px); top: .5em; width: 10px; height: 10px; border-radius: 50%; background: var(--c0); }
.lineage li.cached::before { background: var(--good); }
.lineage li.outside::before { background: var(--paper); border: 2px solid var(--soft); box-sizing: border-box; }
.lineage li:target { background: var(--card); outline: .4rem solid var(--card); border-radius: 2px; }
.lineage small { display: block; color: var(--soft); }
.lineage span { color: var(--soft); font-size: .85rem; }
.lineage .tag.cached { color: var(--good); }
.facts { font-size: .9rem; margin: 0; grid-template-columns: max-content 1fr; }
.facts dd { overflow-wrap: anywhere; min-width: 0; }
table.ledger td, table.overrides td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8em; }
table.ledger thead th, table.overrides thead th { text-align: left; }
table.ledger th[scope=row] { max-width: none; overflow-wrap: normal; }
table.cost-table th[scope=row] { white-space: nowrap; }
#cost .tiles strong { font-size: 1.35rem; white-space: nowrap; }
.made { margin: .35rem 0 0; color: var(--soft); font-size: .74rem; overflow-wrap: anywhere; }
.made code, h3 code { font-size: .74rem; }
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
  .key dl { grid-template-columns: 1fr; } .key dd { margin-bottom: .4rem; }
  .facts dd { margin: 0; }
  table.harness th[scope=row]:first-child { min-width: 8.5em; max-width: 8.5em; }
  .pair thead th, .ledger thead th { white-space: normal; }
  table.ledger, table.overrides { table-layout: fixed; }
  table.ledger th[scope=row], table.ledger td, table.overrides td { min-width: 0; overflow-wrap: anywhere; padding-left: .2rem; padding-right: .35rem; }
  #cost .tiles strong { font-size: 1.2rem; }
  th:first-child[scope=row], thead tr:first-child th:first-child { max-width: 8em; min-width: 7em; }
}
@media print {
  nav, .find, .more, .sample:not([open]) { display: none; }
  pre { max-height: none; }
  .wide { overflow: visible; }
  figure, .sample, tr { break-inside: avoid; }
}
"""
