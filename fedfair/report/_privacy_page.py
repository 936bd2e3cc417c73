"""The privacy section of the page, as a Jinja template."""

PRIVACY = """
{% macro spread(value, sd) %}
{%- if value != value -%}n.e.{%- else -%}{{ value|signed }} ± {{ sd|number }}{%- endif -%}
{% endmacro %}
<h2>Privacy</h2>
<p>Differential privacy bounds how much
{% if x.privacy.mode == "site" %}
anything that leaves the server can depend on any one {{ place }}.
{% else %}
anything that leaves a {{ place }} can depend on any one of its
{{ "records" if x.synthetic else "patients" }}.
{% endif %}
Epsilon is the bound, and smaller is stronger; delta is the probability left out of it.</p>
{% if privacy.accounts %}
<ul>
{% for item in privacy.accounts %}
<li><b>{{ item.arm }}</b>: {{ item.account.statement }}
{% if x.seeds|length > 1 %}<small>This holds for the run of each seed by itself.</small>{% endif %}</li>
{% endfor %}
</ul>
{% if x.summed %}
<p class="note">Each figure is of one {{ place }}'s own uploads and their noise, as if they had been seen:
that only sums were seen is not counted on.</p>
{% endif %}
{% else %}
<p class="note">No run has ended, so none has stated what it spent. The ledgers hold what was charged.</p>
{% endif %}
{% if privacy.stops %}
<div class="banner"><strong>STOPPED AT THE CAP.</strong> Training ended early, before a ledger would have
gone over its cap. The model of the last paid round is the one assessed.
<ul>{% for stop in privacy.stops %}<li>{{ stop }}</li>{% endfor %}</ul></div>
{% endif %}
{% if privacy.accounts %}
<div class="scroll"><table>
<caption>What one run of each method used{{ " at each " ~ place if x.privacy.mode == "sample" }}. A noise
multiplier is the standard deviation of the noise over the most that one
{{ place if x.privacy.mode == "site" else "record" }} can change. For one target, each method has its own.
</caption>
<thead><tr><th class="first">method</th><th>epsilon</th><th>epsilon by RDP<small>cross-check</small></th>
<th>training:<br>noise multiplier</th><th>sampling<br>rate</th><th>rounds</th><th>steps</th>
<th>statistics:<br>noise multiplier</th><th>releases</th></tr></thead>
<tbody>
{% for item in privacy.accounts %}
<tr><th scope="row">{{ item.arm }}</th><td>{{ item.account.epsilon|epsilon }}</td>
<td>{{ item.account.epsilon_rdp|epsilon }}</td>
<td>{{ item.training.noise_multiplier|number }}</td><td>{{ "%.4g"|format(item.training.sample_rate) }}</td>
<td>{{ item.account.rounds }}</td><td>{{ item.account.rounds * item.training.steps }}</td>
<td>{{ item.statistics.noise_multiplier|number if item.account.releases else "none" }}</td>
<td>{{ item.account.releases }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
<p class="note">Public constants: mode {{ x.privacy.mode }}; test figures {{ x.privacy.evaluation }}
{%- for name, value in privacy.constants.items() %}; {{ name }} {{ value }}{% endfor %}.</p>
<h3>Not protected</h3>
<ul>{% for head, why in privacy.unprotected %}<li><b>{{ head }}</b> {{ why }}</li>{% endfor %}</ul>
<h3>Ledgers</h3>
{% if privacy.ledgers %}
<div class="scroll"><table>
<caption>Epsilon spent in all, by each ledger in the folder of the run (seed {{ x.shown_seed }}).</caption>
<thead><tr><th class="first">ledger of</th>{% for arm in x.arms %}<th>{{ arm }}</th>{% endfor %}</tr></thead>
<tbody>
{% for site, entries in privacy.ledgers.items() %}
<tr><th scope="row">{{ site }}</th>
{% for entry in entries %}
{% if entry %}<td>{{ entry.epsilon|epsilon }} ({{ entry.steps|counted("step") }},
{{ entry.runs|counted("run") }})</td>{% else %}<td class="none">none</td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p class="note">The ledgers are not in the folder of the run: each {{ place }} keeps its own.</p>
{% endif %}
{% for table in privacy.tables %}
<h3>Released group statistics: {{ table.arm }}</h3>
<div class="scroll"><table class="stretch">
<caption>Training records as of the last release (round {{ table.round }}, seed {{ table.seed }}), blended
with earlier ones; ± is the standard deviation of the noise. “Kept” is the share of a gap that noise does not
explain
{%- if x.privacy.get("statistics", {}).get("gate", true) %}: all that the method saw of it
{%- else %}, though the method saw all of it{% endif %}. An AUC is unresolved if its noise is above
{{ linear }} or a class is lost in noise.
</caption>
<thead><tr><th class="first">head</th><th class="first">group</th><th>AUC</th><th>gap to all groups</th>
<th>kept</th><th>gap in relative loss</th><th>kept</th></tr></thead>
<tbody>
{% for row in table.rows %}
<tr{% if row.group != x.known_groups[-1] %} class="inner"{% endif %}>
<th scope="row">{{ row.head if row.group == x.known_groups[0] }}</th><th scope="row">{{ row.group }}</th>
{% if row.resolved %}
<td>{{ row.auc|number }} ± {{ row.auc_sd|number }}</td><td>{{ spread(row.auc_gap, row.auc_gap_sd) }}</td>
<td>{{ row.auc_kept|number }}</td>
{% else %}
<td class="none">unresolved</td><td class="none">unresolved</td><td>0</td>
{% endif %}
<td>{{ spread(row.loss_gap, row.loss_gap_sd) }}</td><td>{{ row.loss_kept|number }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
"""
