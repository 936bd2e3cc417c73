from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedfair.assessment import assess
from fedfair.metrics import auc, within_site_auc
from fedfair.report._load import Experiment, load
from fedfair.report._results import (
    Difference,
    Estimate,
    differences,
    headline,
    over_seeds,
    t_quantile,
    verdicts,
)
from fedfair.report._tables import coverage_rows, group_tables, patient_rows, pooled_and_within, site_rows
from fedfair.signals import Signals

Writer = Callable[..., Path]


def change(**values: float) -> dict[str, Difference]:
    """Return differences of +-0.01 about the given means, and of zero mean for the other metrics."""
    means = dict.fromkeys(("auc", "es_auc", "dpd", "deodds", "worst_group_auc"), 0.0) | values
    return {key: Difference(Estimate(m, m - 0.01, m + 0.01, 5), 3) for key, m in means.items()}


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 99])
@pytest.mark.parametrize("probability", [0.025, 0.9, 0.975, 0.99])
def test_t_quantile_is_that_of_scipy(degrees: int, probability: float) -> None:
    # The docstring promises 1e-6 in probability; the density at the 0.99 quantile turns it into this.
    expected = stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=2e-4)


def test_interval_over_seeds_is_that_of_scipy() -> None:
    values = [0.81, 0.84, 0.79, 0.86]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    estimate = over_seeds([*values, math.nan])
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert (estimate.value, estimate.seeds) == (pytest.approx(np.mean(values)), 4)
    assert math.isnan(over_seeds([0.8]).low)
    assert over_seeds([math.nan]).seeds == 0


def test_differences_are_paired_by_seed(folder: Path) -> None:
    experiment = load(folder)
    final = {
        arm: [
            json.loads((folder / f"seed-{s}" / arm / "rounds.jsonl").read_text().splitlines()[-1])["test"]
            for s in range(3)
        ]
        for arm in experiment.arms
    }
    for key, better in (("es_auc", "greater"), ("deodds", "less")):
        base, other = ([test[key] for test in final[arm]] for arm in experiment.arms)
        interval = stats.ttest_rel(other, base).confidence_interval(0.95)
        found = differences(experiment)["dual_mimo"][key]
        assert (found.estimate.low, found.estimate.high) == (
            pytest.approx(interval.low, abs=1e-5),
            pytest.approx(interval.high, abs=1e-5),
        )
        improved = np.greater(other, base) if better == "greater" else np.less(other, base)
        assert found.better == improved.sum()


def test_intervals_of_levels_stay_in_range(folder: Path) -> None:
    estimates = [e for row in headline(load(folder)).values() for e in row.values()]
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in estimates)


def test_one_seed_has_the_bootstrap_interval(tmp_path: Path, write_experiment: Writer) -> None:
    experiment = load(write_experiment(tmp_path / "one", seeds=[3]))
    estimate = headline(experiment)["fedavg"]["auc"]
    test = experiment.compared("fedavg")[3]
    assert estimate.value == test["auc"]
    assert 0.0 < estimate.low < estimate.value < estimate.high <= 1.0
    assert math.isnan(differences(experiment)["dual_mimo"]["auc"].estimate.low)
    assert not math.isnan(site_rows(experiment)[0].auc[0].low)


def test_verdict_says_no_more_than_the_intervals() -> None:
    experiment = load_plan()
    (found,) = verdicts(experiment, {"dual_mimo": change(es_auc=0.02, dpd=-0.02, deodds=0.02, auc=-0.02)})
    assert found.heading == "dual_mimo against fedavg, over 5 seeds"
    assert [metric.key for metric, _ in found.better] == ["es_auc", "dpd"]
    assert [metric.key for metric, _ in found.worse] == ["auc", "deodds"]
    assert [metric.key for metric in found.not_shown] == ["worst_group_auc"]


@pytest.mark.parametrize(
    ("seeds", "remark"), [(0, "No seed has a known metric of both"), (2, "Fewer than 3 seeds")]
)
def test_verdict_on_few_seeds_is_none(seeds: int, remark: str) -> None:
    clear = Difference(Estimate(0.1, 0.09, 0.11, seeds), seeds)
    (found,) = verdicts(load_plan(), {"dual_mimo": dict.fromkeys(change(), clear)})
    assert found.remark.startswith(remark)
    assert not found.better


def load_plan() -> Experiment:
    return Experiment(
        "heart",
        "",
        "complete",
        "",
        "",
        False,
        [0],
        ["fedavg", "dual_mimo"],
        "sex",
        1,
        {},
        {},
        "",
        {"attributes": {"sex": ["female", "male"]}},
    )


def test_group_table_is_that_of_the_assessment(folder: Path) -> None:
    experiment = load(folder)
    tables = group_tables(experiment)
    named = [(table.attribute, table.modulated) for table in tables]
    assert named == [("sex", True), ("age", False), ("sex*age", False)]
    with np.load(folder / "seed-0" / "dual_mimo" / "evaluation.npz") as stored:
        pooled = Signals(*(stored[name].sum(0) for name in ("counts", "losses", "histograms")))
    expected = assess(pooled, (2, 3), 1, 10)
    for row, name, group in zip(tables[1].rows, experiment.attributes["age"], expected.groups, strict=True):
        assert (row.name, tuple(row.counts)) == (name, group.counts)
        assert [cell.arm for cell in row.arms] == ["fedavg", "dual_mimo"]
        assert row.arms[1].metrics == group
        assert row.arms[1].auc.low < group.auc <= row.arms[1].auc.high
    both = assess(pooled, (2, 3), (0, 1), 10).groups
    assert [tuple(row.counts) for row in tables[2].rows] == [group.counts for group in both]
    assert tables[2].rows[1].name == "female & 50 to 59"


def test_patients_and_coverage_are_counted(folder: Path) -> None:
    experiment = load(folder)
    with np.load(folder / "seed-0" / "fedavg" / "evaluation.npz") as stored:
        train, test = stored["train_counts"], stored["counts"]
    row = patient_rows(experiment)[1]
    assert row.site == "Budapest"
    assert np.array_equal(row.train, train[1, 0].reshape(2, 3, 2).sum(1))
    assert np.array_equal(row.test, test[1, 0].reshape(2, 3, 2).sum(1))
    last = coverage_rows(experiment)[3]
    assert last.observed[2] == 0
    assert last.total == train[3, 0].sum() + test[3, 0].sum()
    assert last.observed[0] == train[3, 1].sum() + test[3, 1].sum()


def test_tables_of_one_seed_take_the_seed_with_most_evaluations(
    tmp_path: Path, write_experiment: Writer
) -> None:
    folder = write_experiment(tmp_path / "gap", seeds=[0, 1], rounds=2)
    (folder / "seed-0" / "dual_mimo" / "evaluation.npz").unlink()
    experiment = load(folder)
    assert experiment.shown_seed == 1
    assert list(experiment.evaluations) == ["fedavg", "dual_mimo"]


def test_pairs_within_a_site_are_told_from_all_pairs(folder: Path) -> None:
    experiment = load(folder)
    by_site = [experiment.runs[seed, "fedavg"].evaluation.histograms[:, 0].sum(1)[:, 0] for seed in (0, 1, 2)]
    (pooled, within), _ = pooled_and_within(experiment)
    assert pooled.value == pytest.approx(np.mean([auc(h.sum(0)) for h in by_site]), abs=1e-12)
    assert within.value == pytest.approx(np.mean([within_site_auc(h) for h in by_site]), abs=1e-12)
    assert within.value != pooled.value
