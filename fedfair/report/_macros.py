"""Macros of the page: cells, differences and figures."""

MACROS = """
{%- macro estimate(e, signed=false) -%}
{%- if e.value != e.value -%}<td class="none">n.e.</td>
{%- else -%}<td>{{ e.value|signed if signed else e.value|number }}
{%- if e.low == e.low %}<small>{{ e.low|signed if signed else e.low|number }} to {#-#}
 {{ e.high|signed if signed else e.high|number }}</small>{% endif %}</td>
{%- endif -%}
{%- endmacro -%}
{%- macro value(v) -%}
<td{% if v != v %} class="none"{% endif %}>{{ v|number }}</td>
{%- endmacro -%}
{%- macro changes(words, items) -%}
{%- if items -%}<li><b>{{ words }}</b>
{% for m, e in items %}{{ m.label }} ({{ e.value|signed }}, 95% interval {{ e.low|signed }} to {#-#}
 {{ e.high|signed }}){{ ", " if not loop.last else "." }}{% endfor %}</li>{%- endif -%}
{%- endmacro -%}
{%- macro figure(svg, label) -%}
<figure><div role="img" aria-label="{{ label }}">{{ svg|safe }}</div><figcaption>{{ caller() }}</figcaption>
</figure>
{%- endmacro -%}
"""
