"""Macros of the page: cells, differences and figures."""

MACROS = """
{%- macro estimate(e, signed=false) -%}
{%- if e.value != e.value -%}<td class="none">n.e.{{ noise(e.noise) }}</td>
{%- else -%}<td>{{ e.value|signed if signed else e.value|number }}
{%- if e.low == e.low %}<small>{{ e.low|signed if signed else e.low|number }} to {#-#}
 {{ e.high|signed if signed else e.high|number }}</small>{% endif %}{{ noise(e.noise) }}</td>
{%- endif -%}
{%- endmacro -%}
{%- macro noise(sd) -%}
{%- if sd == sd and sd > 0 %}<small>noise ± {{ sd|number if sd < 1 else sd|round|int }}</small>{% endif -%}
{%- endmacro -%}
{%- macro count(n, sd) -%}
<td>{{ n }}{% if sd > 0 %} ± {{ sd|round|int }}{% endif %}</td>
{%- endmacro -%}
{%- macro value(v) -%}
<td{% if v != v %} class="none"{% endif %}>{{ v|number }}</td>
{%- endmacro -%}
{%- macro without(names) -%}
{%- if names %}<p class="note">No {{ "training or test " if x.validated }}records: {{ names|join(", ") }}.
No figure here says anything of them.</p>{% endif -%}
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
