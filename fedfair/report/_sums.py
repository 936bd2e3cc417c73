"""What the report says of a run in which the server saw sums over sites alone."""

from __future__ import annotations

from typing import NamedTuple

from fedfair.config import parse
from fedfair.report._load import Experiment
from fedfair.secagg import Plan, Rule
from fedfair.uploads import rule


class Opening(NamedTuple):
    """When a sum is opened: the rule, and what follows from it while all sites are there.

    `plan` is None if all sites are too few for any sum.
    """

    rule: Rule
    plan: Plan | None


def opening(experiment: Experiment) -> Opening | None:
    """Return when the sums of an experiment are opened; None if the server saw each site's uploads."""
    if not experiment.summed:
        return None
    agreed, sites = rule(parse({"secure": experiment.config["secure"]})), len(experiment.schema["sites"])
    return Opening(agreed, agreed.plan(sites) if sites >= agreed.fewest else None)
