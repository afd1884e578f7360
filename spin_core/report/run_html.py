# ruff: noqa: E501 (markup reads better whole)
"""Templates of `spin_core.report.run`; their style is the report's own sheet (`spin_core.report.html.CSS`)."""

from spin_core.report.html import TILES, WIDE

COST = (
    """<section id="cost">
<h2>What ran and what it cost</h2>
<p>{{ text }}</p>
"""
    + TILES
    + """<details class="more">
<summary>By stage</summary>
"""
    + WIDE
    + """<p class="soft">Times add up what every step took when it was computed; steps side by side count each their own. Tokens trained on are answer tokens, of all passes. A GPU that several steps shared counts for each by its share.</p>
</details>
</section>
"""
)

LINEAGE = """<section id="lineage">
<h2>Lineage</h2>
<p>What each model was made of, by content: the same digest is the same bytes. A sample's answer links to here.</p>
<details class="more">
<summary>{{ nodes | length }} artifacts, from the dataset to the last answers</summary>
<ol class="lineage">
{% for node in nodes %}
<li id="{{ node.id }}" class="{{ node.style }}"><b>{{ node.title }}</b> {% if node.digest %}<code>{{ node.digest }}</code>{% else %}<span>{{ node.many }}</span>{% endif %}{% if node.state %} <span class="tag {{ node.style }}">{{ node.state }}</span>{% else %} <span class="tag">from outside</span>{% endif %}{% if node.hub %} <span>{{ node.hub }}</span>{% endif %}{% if node.from %}<small>from {% for id, title in node.from %}<a href="#{{ id }}">{{ title }}</a>{{ " · " if not loop.last }}{% endfor %}</small>{% endif %}</li>
{% endfor %}
</ol>
</details>
</section>
"""

SOFTWARE = """<section id="software">
<h2>Software and sources</h2>
<dl class="facts">
{% for name, value in lines %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
{% for source in sources %}
<dt>from the hub</dt><dd>{{ source }}</dd>
{% endfor %}
</dl>
</section>
"""

LEDGER = (
    """<section id="ledger">
<h2>{{ table.title }}</h2>
<p>{{ text }}</p>
{% if table.lines %}
<details class="more">
<summary>Every setting that differs: {{ table.lines | length }}</summary>
"""
    + WIDE
    + """</details>
{% endif %}
</section>
"""
)

STEPS = """<section id="steps">
<h2>Steps of this run</h2>
<details class="more">
<summary>{{ steps | length }} steps</summary>
<div class="wide" tabindex="0" role="region" aria-label="Steps of this run">
<table class="steps">
<thead><tr><th scope="col">step</th><th scope="col">state</th><th scope="col">took</th><th scope="col">key</th><th scope="col">artifact</th></tr></thead>
<tbody>
{% for step in steps %}
<tr><th scope="row">{{ step.label }}{% if step.stage %}<small>{{ step.stage }}</small>{% endif %}</th><td><span class="tag {{ 'cached' if step.cached else 'ran' }}">{{ step.state }}</span></td><td>{{ step.time }}</td><td><code>{{ step.key }}</code></td><td><code>{{ step.digest }}</code></td></tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
</section>
"""
