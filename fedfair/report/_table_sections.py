"""The tables by group, by site and of patients, as a Jinja template."""

TABLES = """
{% from "macros" import count, estimate, noise, value, without with context %}
{% macro whose(site) %}{{ "all " ~ place ~ "s" if x.summed else site }}{% endmacro %}
<h2>By group</h2>
{% for table in group_tables %}
<h3>{{ table.attribute }}{% if table.modulated %} (modulated){% endif %}</h3>
{% if table.rows %}
<div class="scroll"><table class="stretch">
<caption>Test records of seed {{ x.shown_seed }}; below each AUC its 95% bootstrap interval

{%- if released %}, noise included; ± is the standard deviation of the noise alone{% endif %}.</caption>
<thead><tr><th class="first">group</th><th>records</th>
<th>{{ x.schema.classes[1] if binary else x.schema.classes|join(" / ") }}</th>
<th class="first">method</th><th>AUC</th>
<th>true positive<br>rate</th><th>false positive<br>rate</th><th>called<br>positive</th></tr></thead>
<tbody>
{% for row in table.rows %}{% for cell in row.arms %}
<tr{% if not loop.last %} class="inner"{% endif %}>
{% if loop.first %}
<th scope="row">{{ row.name }}</th>
{{ count(row.counts|sum, row.count_sd * row.counts|length ** 0.5) }}
{% if binary %}{{ count(row.counts[1], row.count_sd) }}{% else -%}
<td>{{ row.counts|join(" / ") }}{{ noise(row.count_sd) }}</td>{% endif %}

{% else %}
<td></td><td></td><td></td>
{% endif %}
<th scope="row">{{ cell.arm }}</th>{{ estimate(cell.auc) }}{{ value(cell.metrics.true_positive_rate) }}
{{- value(cell.metrics.false_positive_rate) }}{{ value(cell.metrics.selection_rate) }}</tr>
{% endfor %}{% endfor %}
</tbody></table></div>
{{ without(table.absent) }}
{% else %}
<p class="note">No final evaluation yet.</p>
{% endif %}
{% endfor %}

<h2>By {{ place }}</h2>
{% if x.summed %}
<p>The {{ place }}s are not shown one by one: the run summed securely, so only their totals are known.</p>
{% else %}
<div class="scroll"><table>
<caption>AUC of the one global model on each {{ place }}'s test records, with the 95%
{{ "t interval over seeds" if many else "bootstrap interval" }} below.
{% if count_heads %}Counts are those of seed {{ x.shown_seed }}.{% endif %}
{% if released %} ± is the standard deviation of the noise.{% endif %}</caption>
<thead><tr><th class="first">{{ place }}</th>
{% for head in count_heads + x.arms %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in site_rows %}
<tr><th scope="row">{{ row.name }}</th>
{%- for n in row.counts %}{{ count(n, row.count_sd[loop.index0]) }}{% endfor %}

{% for auc in row.auc %}{{ estimate(auc) }}{% endfor %}</tr>
{% endfor %}
{% if count_heads %}
<tr class="sum"><th scope="row" colspan="{{ 1 + count_heads|length }}">all records</th>
{% for pooled, _ in pooled_and_within %}{{ estimate(pooled) }}{% endfor %}</tr>
{% if not released %}
<tr><th scope="row" colspan="{{ 1 + count_heads|length }}">pairs within a {{ place }}</th>
{% for _, within in pooled_and_within %}{{ estimate(within) }}{% endfor %}</tr>
{% endif %}
{% endif %}
</tbody></table></div>
{% if not released %}
<p class="note">“Pairs within a {{ place }}” compares only records of one {{ place }}. If it is far
below “all records”, part of the AUC comes from {{ place }}s that differ in prevalence.</p>
{% endif %}
{% endif %}

{% if patient_rows %}
<h2>{{ "Records" if x.synthetic else "Patients" }}</h2>
<div class="scroll"><table>
<caption>{{ "Training + test" if totals.train else "Test" }} records by {{ x.attribute }} and class (seed
{{ x.shown_seed }}).{% if not totals.train %} Those for training are not told.{% endif %}</caption>
<thead><tr><th class="first">{{ place }}</th><th class="first">{{ x.attribute }}</th>
{% for name in x.schema.classes %}<th>{{ name }}</th>{% endfor %}<th>all</th></tr></thead>
<tbody>
{% for row in patient_rows %}{% for group in groups %}{% set g = loop.index0 %}
<tr{% if not loop.last %} class="inner"{% endif %}><th scope="row">{{ whose(row.site) if loop.first }}</th>
<th scope="row">{{ group }}</th>
{% for test in row.test[g] + [row.test[g]|sum] %}
<td>{% if row.train %}{{ (row.train[g] + [row.train[g]|sum])[loop.index0] }} + {% endif %}{{ test }}</td>
{% endfor %}</tr>
{% endfor %}{% endfor %}
</tbody></table></div>
{{ without(absent) }}
<div class="scroll"><table>
<caption>{{ "Records" if totals.train else "Test records" }} that have each modality, of all
{{- "" if totals.train else " test" }} records{{ "" if x.summed else " of the " ~ place }}.</caption>
<thead><tr><th class="first">{{ place }}</th>
{% for name in x.schema.modalities %}<th>{{ name }}</th>{% endfor %}<th>all</th></tr></thead>
<tbody>
{% for row in coverage_rows %}
<tr><th scope="row">{{ whose(row.site) }}</th>
{% for n in row.observed %}<td>{{ n }}<small>{{ n|percent(row.total) }}</small></td>{% endfor %}
<td>{{ row.total }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
"""
