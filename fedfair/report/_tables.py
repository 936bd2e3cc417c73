"""The tables below the headline: by group, by site, patients and modality coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedfair.assessment import GroupMetrics, assess, kept_groups
from fedfair.data.crossing import axes, group_names, pairs
from fedfair.metrics import within_site_auc
from fedfair.report._absent import absent, present
from fedfair.report._evaluation import Evaluation
from fedfair.report._load import Experiment
from fedfair.report._results import Estimate, level_over_seeds, number, resampled
from fedfair.resolution import resolved_auc

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GroupCell:
    """One arm on one group."""

    arm: str
    auc: Estimate
    metrics: GroupMetrics


@dataclass(frozen=True)
class GroupRow:
    """One group: its test records per class, with their noise, and every arm on it."""

    name: str
    counts: Sequence[int]
    count_sd: float
    arms: Sequence[GroupCell]


@dataclass(frozen=True)
class GroupTable:
    """One attribute; `absent` names the groups without any record, which have no row."""

    attribute: str
    modulated: bool
    rows: Sequence[GroupRow]
    absent: Sequence[str]


@dataclass(frozen=True)
class SiteRow:
    """One site: `count_heads` of its test records, and each arm's AUC there, in the order of the arms.

    `count_sd` is the standard deviation of the noise in each of the counts.
    """

    name: str
    counts: Sequence[int]
    count_sd: Sequence[float]
    auc: Sequence[Estimate]


@dataclass(frozen=True)
class PatientRow:
    """One site, or all: training and test records [G, C] by modulated group with records, and by class.

    `train` is None if nobody may know it.
    """

    site: str
    train: Sequence[Sequence[int]] | None
    test: Sequence[Sequence[int]]


@dataclass(frozen=True)
class CoverageRow:
    """One site, or all: records with each modality, of all its records."""

    site: str
    observed: Sequence[int]
    total: int


def group_tables(experiment: Experiment) -> list[GroupTable]:
    """Return a table per attribute and pair of them, of the shown seed, with intervals of the AUC."""
    wanted = [*experiment.attributes, *pairs(experiment.attributes)]
    if experiment.attribute not in wanted:
        wanted.append(experiment.attribute)  # a crossing in another order, or of more than two
    return [
        GroupTable(
            attribute,
            attribute == experiment.attribute,
            _group_rows(experiment, attribute) if experiment.evaluations else [],
            absent(experiment, attribute),
        )
        for attribute in wanted
    ]


def _group_rows(experiment: Experiment, attribute: str) -> list[GroupRow]:
    columns = {
        arm: _group_column(experiment, attribute, arm, evaluation)
        for arm, evaluation in experiment.evaluations.items()
    }
    groups = group_names(experiment.attributes, attribute)
    some, there = next(iter(columns.values())), present(experiment, attribute)
    return [
        GroupRow(name, _whole(own.counts), own.count_sd, [cells[g] for cells in columns.values()])
        for g, (name, own) in enumerate(zip(groups, (cell.metrics for cell in some), strict=True))
        if there[g]
    ]


def _group_column(
    experiment: Experiment, attribute: str, arm: str, evaluation: Evaluation
) -> list[GroupCell]:
    kept = axes(experiment.attributes, attribute)
    table = assess(evaluation.pooled, experiment.cells, kept, experiment.min_count)
    intervals = resampled(experiment, evaluation.pooled, attribute, arm)
    found = [(group, intervals[f"group_auc/{g}"]) for g, group in enumerate(table.groups)]
    return [GroupCell(arm, Estimate(group.auc, i.low, i.high, 1, group.auc_sd), group) for group, i in found]


def count_heads(experiment: Experiment) -> list[str]:
    """Return the heads of the counts of a site: records, and positives where there are two classes."""
    if not experiment.evaluations:
        return []
    classes = experiment.schema["classes"]
    return ["records", classes[1]] if len(classes) == 2 else ["records"]


def site_rows(experiment: Experiment) -> list[SiteRow]:
    """Return a row per site: test records of the shown seed, AUC as the mean over seeds.

    None where the server saw sums over sites alone.
    """
    if experiment.summed:
        return []
    some = next(iter(experiment.evaluations.values()), None)
    return [
        SiteRow(
            site,
            *(_site_counts(some, k) if some else ([], [])),
            [_site_auc(experiment, arm, k, site) for arm in experiment.arms],
        )
        for k, site in enumerate(experiment.schema["sites"])
    ]


def _site_counts(evaluation: Evaluation, index: int) -> tuple[list[int], list[float]]:
    """Return all test records of a site, and the positive ones of two classes, with their noise."""
    by_class = evaluation.counts[index, 0].sum(0)
    bins = evaluation.histograms.shape[-1]
    sd = float(np.sqrt(evaluation.variance[index, 0] * evaluation.counts.shape[2] * bins))
    counts, noise = _whole([by_class.sum(), *by_class]), [sd * len(by_class) ** 0.5, sd]
    return ([counts[0], counts[2]], noise) if len(by_class) == 2 else (counts[:1], noise[:1])


def _site_auc(experiment: Experiment, arm: str, index: int, site: str) -> Estimate:
    """Return the AUC at one site: over seeds, or with a bootstrap interval if there is one seed."""
    tests = experiment.compared(arm)
    mean = level_over_seeds([number(test["site_auc"].get(site)) for test in tests.values()])
    evaluation = experiment.runs[next(iter(tests)), arm].evaluation if len(tests) == 1 else None
    if evaluation is None:
        return mean
    interval = resampled(experiment, evaluation.site(index), experiment.attribute, arm, site)["auc"]
    return replace(mean, low=interval.low, high=interval.high)


def pooled_and_within(experiment: Experiment) -> list[tuple[Estimate, Estimate]]:
    """Return per arm the AUC over all pairs of test records, and over pairs of one site, over seeds.

    The latter is not estimated from released sums: few pairs carry the noise of all cells of a site. None
    where the server saw sums over sites alone.
    """
    return [] if experiment.summed else [_pooled_and_within(experiment, arm) for arm in experiment.arms]


def _pooled_and_within(experiment: Experiment, arm: str) -> tuple[Estimate, Estimate]:
    evaluations = [e for seed in experiment.seeds if (e := experiment.runs[seed, arm].evaluation)]
    return (
        level_over_seeds([_pooled_auc(e) for e in evaluations]),
        level_over_seeds([_within_site(e) for e in evaluations]),
    )


def _pooled_auc(evaluation: Evaluation) -> float:
    histograms = evaluation.histograms[:, 0]
    variance = evaluation.variance[:, 0].sum() * histograms.shape[1]
    return float(resolved_auc(histograms.sum((0, 1)), 1, variance))


def _within_site(evaluation: Evaluation) -> float:
    if evaluation.released:
        return math.nan
    return float(within_site_auc(evaluation.histograms[:, 0].sum(1)).mean())


def patient_rows(experiment: Experiment) -> list[PatientRow]:
    """Return a row per site, or one of all, of the shown seed's records by modulated group and class.

    None for released records: noise is as large as the small cells.
    """
    some = next(iter(experiment.evaluations.values()), None)
    if some is None or some.released:
        return []
    train, test = (_by_group(experiment, counts[:, 0]) for counts in (some.train_counts, some.counts))
    known = bool(some.train_counts.any())
    return [
        PatientRow(site, list(map(_whole, train[k])) if known else None, list(map(_whole, test[k])))
        for k, site in enumerate(experiment.shown_sites)
    ]


def _by_group(experiment: Experiment, counts: Array) -> Array:
    """Return [K, G, C] by those groups of the modulated attribute that have records, from [K, cells, C]."""
    by_group = kept_groups(counts, experiment.cells, axes(experiment.attributes, experiment.attribute))
    return by_group[:, present(experiment, experiment.attribute)]


def coverage_rows(experiment: Experiment) -> list[CoverageRow]:
    """Return a row per site, or one of all: how many known records have each modality; none for released."""
    some = next(iter(experiment.evaluations.values()), None)
    if some is None or some.released:
        return []
    by_head = (some.train_counts + some.counts).sum((-1, -2))
    return [
        CoverageRow(site, _whole(by_head[k, 1:]), int(by_head[k, 0]))
        for k, site in enumerate(experiment.shown_sites)
    ]


def _whole(counts: Sequence[float] | Array) -> list[int]:
    """Return whole numbers; noise may have made a count negative, which none is."""
    return [max(0, round(float(n))) for n in counts]
