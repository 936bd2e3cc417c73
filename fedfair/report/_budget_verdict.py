"""The verdict on a privacy budget: where noise leaves a model that nobody should use."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedfair.errors import counted
from fedfair.report._budget import Budget, Setting
from fedfair.report._results import FEWEST_SEEDS

CHANCE = 0.5  # AUC at which scores say nothing
LARGEST_LOSS = 0.1  # fall of the AUC from no privacy


def verdict(budget: Budget) -> str:
    """Return in one sentence where privacy makes the model useless.

    That is where the AUC's interval includes 0.5 or lies below, or where the AUC is more than 0.1
    below that of the same method without privacy (mean over seeds). One seed has no interval, and its
    AUC stands for it. Settings with noise on a part alone are no differential privacy, and named apart.
    """
    noised = [s for s in budget.settings if math.isfinite(s.epsilon) and s.level("auc").seeds]
    private = [s for s in noised if not s.config.privacy.exact]
    if not private:
        return "No private run is done yet, so nothing can be said about what privacy does to the model."
    compared = all(budget.reference(setting) for setting in noised)
    clauses = [_sentence(budget, private, compared)]
    if partly := _useless(budget, [s for s in noised if s.config.privacy.exact]):
        clauses.append(f"noise on a part alone does so {partly}")
    if before := [s.method for s in budget.settings if s.arm == budget.plan["reference"] and _at_chance(s)]:
        clauses.append(f"{', '.join(before)} is no better without privacy")
    if not compared:
        clauses.append("without the arm without privacy, losses are not known")
    return "; ".join(clauses) + "."


def _sentence(budget: Budget, private: Sequence[Setting], compared: bool) -> str:
    few = max(s.level("auc").seeds for s in private) < FEWEST_SEEDS
    chance = f", as far as fewer than {FEWEST_SEEDS} seeds can tell," * few
    if found := _useless(budget, private):
        return f"Differential privacy{chance} makes the model useless {found}"
    loss = f" or the AUC more than {LARGEST_LOSS} below that without privacy" * compared
    return (
        f"Differential privacy{chance} does not make the model useless: in no private setting (of "
        f"{len(private)}) does the AUC's interval reach down to {CHANCE}{loss}"
    )


def _useless(budget: Budget, settings: Sequence[Setting]) -> str:
    """Return which of the settings are useless and why, by epsilon; empty if none is."""
    phrases = []
    for epsilon in budget.epsilons:
        own = [s for s in settings if s.epsilon == epsilon]
        found = [f"{s.arm} {s.method} ({', '.join(why)})" for s in own if (why := _reasons(budget, s))]
        if found:
            share = f"{len(found)} of {counted(len(own), 'setting')}"
            phrases.append(f"at epsilon {epsilon:g} in {share}: {', '.join(found)}")
    return "; ".join(phrases)


def _reasons(budget: Budget, setting: Setting) -> list[str]:
    reference = budget.reference(setting)
    loss = setting.minus(reference, "auc").value if reference else math.nan
    return _at_chance(setting) + [f"{-loss:.3f} below no privacy"] * (loss < -LARGEST_LOSS)


def _at_chance(setting: Setting) -> list[str]:
    auc = setting.level("auc")
    if math.isnan(auc.low):
        return [f"AUC {auc.value:.3f} in one run"] * (auc.value <= CHANCE)
    return [f"AUC {auc.value:.3f}, interval {auc.low:.3f} to {auc.high:.3f}"] * (auc.low <= CHANCE)
