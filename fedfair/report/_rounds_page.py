"""Who took part, and how training ended, as a Jinja template."""

ROUNDS = """
{% from "macros" import figure with context %}
{% set sites = x.schema.sites|length %}
{% set all = "The one " ~ place if sites == 1 else "All " ~ sites|counted(place) %}
<h2>Who took part</h2>
{% if not rounds.any %}
<p class="note">No round has ended yet.</p>
{% elif not (rounds.presence or rounds.failures or rounds.repeated) %}
<p>{{ all }} took part in {{ "all rounds" if x.rounds > 1 else "the one round" }}
{{- " of every run" if x.runs|length > 1 }}, and no round had to be repeated.</p>
{% else %}
<p>A round is committed with the {{ place }}s that answered in time.
{% if rounds.presence %}
A {{ place }} took part in all rounds of a run where it is not shown below.
{% else %}
{{ all }} took part in all rounds.
{% endif %}</p>
{% if rounds.presence %}
{% call figure(rounds.presence, "Who took part, by " ~ place ~ " and round") %}
{{ place|capitalize }}s that missed a round{% if rounds.left_out %}, in the first runs with any;
{{ rounds.left_out|counted("more run") }} had some{% endif %}. “Not there”: not connected
when the round began{% if x.summed %}, or without keys for its sum, which are made one sum before{% endif %}.
{% endcall %}
{% endif %}
{% if rounds.failures %}
<div class="scroll"><table class="stretch">
<caption>What went wrong, in the {{ place }}'s own words, or in the server's if it did not answer.</caption>
<thead><tr><th class="first">{{ place }}</th><th class="first">run</th><th class="first">rounds</th>
<th class="first">why</th></tr></thead>
<tbody>
{% for failure in rounds.failures[:rounds.most] %}
<tr><th scope="row">{{ failure.site }}</th><td class="said">{{ failure.run }}</td>
<td class="said">{{ failure.rounds }}</td><td class="said">{{ failure.text }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if rounds.failures|length > rounds.most %}
<p class="note">{% set more = rounds.failures|length - rounds.most %}
{{ more }} more {{ "stands" if more == 1 else "stand" }} in the files rounds.jsonl.</p>
{% endif %}
{% endif %}
{% if rounds.repeated %}
<p>Tried again, since too few {{ place }}s answered or too few records of a group stood behind them:</p>
<ul>{% for line in rounds.repeated %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
{% endif %}
{% if rounds.endings %}
<h3>How training ended</h3>
<ul>{% for line in rounds.endings %}<li>{{ line }}.</li>{% endfor %}</ul>
{% endif %}
{% if rounds.notices %}
<h3>Notices</h3>
<ul>{% for line in rounds.notices %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
"""
