# ruff: noqa: E501 (markup reads better whole)
"""Template of `spin_core.report.compare_page`; its style is the report's own sheet (`spin_core.report.html.CSS`)."""

from spin_core.report.html import TABLE, WIDE

COMPARE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{{ name }} · spinloop comparison</title>
<style>{{ css | safe }}</style>
</head>
<body>
<main>
<header>
<p class="kicker">spinloop comparison</p>
<h1>{{ name }}</h1>
<p class="verdict">{{ sentence }}</p>
{% if note %}
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
