"""Template of `spin_core.report.compare_page`; its style is the report's own sheet (`spin_core.report.html.CSS`)."""

from spin_core.report.html import HEAD, TABLE, WIDE

COMPARE = (
    HEAD
    + """{% if note %}
<p>{{ note }}</p>
{% endif %}
</header>
{% set table = best %}
"""
    + TABLE
    + """{% set table = settings %}
"""
    + TABLE
    + """{% set table = costs %}
"""
    + TABLE
    + """{% if others %}
<section>
<h2>Other models</h2>
{% for table in others %}
<h3>{{ table.title }}</h3>
"""
    + WIDE
    + """{% endfor %}
</section>
{% endif %}
</main>
</body>
</html>
"""
)
